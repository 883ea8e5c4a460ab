"""One class out of a set, for a text or a pair of texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_recall_fscore_support
from torch import Tensor

from ted import losses
from ted.data.labels import class_numbers, found_names, read_classes
from ted.tasks.base import Array, Batch, FloatArray, Outputs, SequenceTask


class Classification(SequenceTask):
    """Cross-entropy; accuracy, macro-F1, Matthews correlation and negative log-likelihood, with two classes also F1."""

    kind = "classification"
    primary_metric = "accuracy"
    prediction_loss = "kl"
    problem_type = "single_label_classification"
    unlabelled = -100

    def read_labels(self, table: Dataset, place: str) -> pa.ChunkedArray:
        """Return class names as the source spells them."""
        return read_classes(table, place)

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return the declared names, or the labels of the training rows in order."""
        if self.settings.labels is not None:
            return self.settings.labels
        return found_names(set(train.unique("label")) - {None})

    def label_numbers(self, frame: pd.DataFrame, names: Sequence[str]) -> "pd.Series[float]":
        """Return class indices; a whole number stands for the declared class of that index, if none is called so."""
        numbers = class_numbers(names, declared=self.settings.labels is not None)
        return frame["label"].map(numbers).astype(np.float64)

    def too_few(self, numbers_N: FloatArray, column: Any, names: Sequence[str], least: int) -> str:  # noqa: ANN401 - a column of any type
        """Return which classes have too few rows."""
        if len(names) == 1:
            return f"the only class is {names[0]!r}; a classification needs two"
        counts = np.bincount(numbers_N.astype(np.int64), minlength=len(names))
        few = [f"{name!r} {count}" for name, count in zip(names, counts, strict=True) if count < least]
        return f"too few rows of {', '.join(few)}; quality.min_rows_per_class is {least}" if few else ""

    def clean_labels(
        self,
        numbers_N: FloatArray,
        column: pa.ChunkedArray,
        names: Sequence[str],
    ) -> tuple[pa.Array, Any]:
        """Return class indices."""
        return pa.array(numbers_N, mask=np.isnan(numbers_N)).cast(pa.int64()), ClassLabel(names=list(names))

    def strata(self, column: pa.ChunkedArray) -> Array:
        """Return the class of each row."""
        numbers_N: Array = pd.factorize(column.to_pandas())[0]
        return numbers_N

    def labelled(self, labels: Tensor) -> Tensor:
        """Return a mask of the rows whose class is known."""
        return labels != self.unlabelled

    def task_loss(self, logits: Tensor, batch: Batch, mask_BL: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the cross-entropy over the labelled rows."""
        labels_B = batch["labels"]
        return losses.cross_entropy(logits, labels_B, self.labelled(labels_B), num_items=num_items)

    def predictions(self, outputs: Outputs) -> Array:
        """Return the class index per row."""
        classes_N: Array = np.argmax(outputs["logits"], axis=-1)
        return classes_N

    def scores(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return 1 where the class is right."""
        right_NK: FloatArray = (self.predictions(outputs) == references_N)[:, None].astype(np.float64)
        return right_NK

    def primary(self, scores_NK: FloatArray) -> float:
        """Return the accuracy."""
        return float(scores_NK.mean())

    def row_quality(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return 1 where the class is right."""
        return self.scores(outputs, references_N)[:, 0]

    def metrics(self, outputs: Outputs, references_N: Array) -> dict[str, float]:
        """Return accuracy, macro_f1, matthews, negative_log_likelihood and, with two classes, f1 of the second."""
        predicted_N = self.predictions(outputs)
        classes = range(self.num_outputs)
        likelihood_NC = log_softmax(outputs["logits"].astype(np.float64), axis=-1)
        values = {
            "accuracy": accuracy_score(references_N, predicted_N),
            "macro_f1": f1_score(references_N, predicted_N, labels=classes, average="macro", zero_division=0),
            "matthews": matthews_corrcoef(references_N, predicted_N),
            "negative_log_likelihood": -likelihood_NC[np.arange(len(predicted_N)), references_N].mean(),
        }
        if self.num_outputs == 2:  # noqa: PLR2004 - F1 of the positive class exists for two classes
            values["f1"] = f1_score(references_N, predicted_N, zero_division=0)
        return {name: float(value) for name, value in values.items()}

    def label_rows(self, outputs: Outputs, references_N: Array) -> list[dict[str, Any]]:
        """Return precision, recall, F1 and number of rows of each class."""
        figures = precision_recall_fscore_support(
            references_N, self.predictions(outputs), labels=range(self.num_outputs), zero_division=0
        )
        table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "rows"), figures, strict=True)))
        table.insert(0, "label", self.label_names)
        return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]

    def named(self, references_N: Array) -> Array:
        """Return class names."""
        return np.asarray(self.label_names)[references_N]

    def confidences(self, outputs: Outputs) -> FloatArray:
        """Return the probability of each answer."""
        probability_N: FloatArray = np.exp(log_softmax(outputs["logits"].astype(np.float64), axis=-1)).max(-1)
        return probability_N

    def slices(self, references_N: Array) -> dict[str, tuple[str, npt.NDArray[np.bool_]]]:
        """Return the rows of each class."""
        return {f"label={name}": (f"label {name}", references_N == i) for i, name in enumerate(self.label_names)}
