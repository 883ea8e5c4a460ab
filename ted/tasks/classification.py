"""One class out of a set, for a text or a pair of texts."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor

from ted import losses
from ted.tasks.base import Array, FloatArray, Task


class Classification(Task):
    """Cross-entropy; accuracy, macro-F1 and Matthews correlation, with two classes also F1 of the second."""

    kind = "classification"
    primary_metric = "accuracy"
    unlabelled = -100

    @property
    def num_outputs(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    def labelled(self, labels_B: Tensor) -> Tensor:
        """Return a mask of the rows whose class is known."""
        return labels_B != self.unlabelled

    def task_loss(self, logits_BC: Tensor, labels_B: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the cross-entropy over the labelled rows."""
        return losses.cross_entropy(logits_BC, labels_B, self.labelled(labels_B), num_items=num_items)

    def predictions(self, logits_NC: FloatArray) -> Array:
        """Return the class index per row."""
        classes_N: Array = np.argmax(logits_NC, axis=-1)
        return classes_N

    def primary(self, logits_NC: FloatArray, labels_N: Array) -> float:
        """Return the accuracy."""
        return float(np.mean(self.predictions(logits_NC) == labels_N))

    def metrics(self, logits_NC: FloatArray, labels_N: Array) -> dict[str, float]:
        """Return accuracy, macro_f1, matthews and, with two classes, f1."""
        predicted_N = self.predictions(logits_NC)
        classes = range(self.num_outputs)
        values = {
            "accuracy": accuracy_score(labels_N, predicted_N),
            "macro_f1": f1_score(labels_N, predicted_N, labels=classes, average="macro", zero_division=0),
            "matthews": matthews_corrcoef(labels_N, predicted_N),
        }
        if self.num_outputs == 2:  # noqa: PLR2004 - F1 of the positive class exists for two classes
            values["f1"] = f1_score(labels_N, predicted_N, zero_division=0)
        return {name: float(value) for name, value in values.items()}
