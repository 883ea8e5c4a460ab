"""Any number of labels out of a set, for a text or a pair of texts.

Letters in names as in :mod:`ted.tasks.base`; a label is known by its place among the C outputs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, List
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from torch import Tensor

from ted import losses
from ted.data.labels import class_numbers, found_names, hash_numbers, read_class_lists
from ted.serving.answers import sigmoid
from ted.tasks.base import Array, Batch, FloatArray, Outputs, SequenceTask


class MultiLabel(SequenceTask):
    """Binary cross-entropy of each label; F1 over all answers, of the mean label and of the mean row.

    References and answers are arrays (N, C) of 0 and 1. Where there is nothing to find and nothing is answered, the F1
    of a row, or of all rows, is 1. A label that neither occurs nor is answered counts 0 in the mean over labels.
    """

    kind = "multi_label"
    primary_metric = "micro_f1"
    prediction_loss = "bce"
    problem_type = "multi_label_classification"
    several_labels = True
    every_split_has_all = False
    unlabelled = -100

    def read_labels(self, table: Dataset, place: str) -> pa.ChunkedArray:
        """Return lists of label names as the source spells them."""
        return read_class_lists(table, place)

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return the declared names, or the labels of the training rows in order."""
        if self.settings.labels is not None:
            return self.settings.labels
        column = train.select_columns(["label"]).with_format("arrow")[:]["label"]
        return found_names(set(pc.list_flatten(column).unique().to_pylist()) - {None, ""})

    def label_numbers(self, frame: pd.DataFrame, names: Sequence[str]) -> "pd.Series[float]":
        """Return a number per set of labels, made of a hash; NaN where one of them is none of the task's."""
        numbers = self._numbers(names)
        sets = [_places(labels, numbers) for labels in frame["label"]]
        return pd.Series(hash_numbers(None if places is None else str(places) for places in sets), index=frame.index)

    def too_few(self, numbers_N: FloatArray, column: Any, names: Sequence[str], least: int) -> str:  # noqa: ANN401 - a column of any type
        """Return which labels have too few rows."""
        if len(names) < 2:  # noqa: PLR2004 - one label is a classification of two classes
            return f"the labels are {list(names)}; a multi-label task needs two"
        numbers = self._numbers(names)
        places = [place for labels in column.to_pylist() for place in _places(labels, numbers) or ()]
        counts = np.bincount(np.array(places, dtype=np.int64), minlength=len(names))
        if not counts.any():
            return "no row has a label"
        few = [f"{name!r} {count}" for name, count in zip(names, counts, strict=True) if count < least]
        return f"too few rows of {', '.join(few)}; quality.min_rows_per_class is {least}" if few else ""

    def clean_labels(
        self, numbers_N: FloatArray, column: pa.ChunkedArray, names: Sequence[str]
    ) -> tuple[pa.Array, Any]:
        """Return lists of label indices that rise."""
        numbers = self._numbers(names)
        lists = [_places(labels, numbers) for labels in column.to_pylist()]
        return pa.array(lists, pa.list_(pa.int64())), List(ClassLabel(names=list(names)))

    def _numbers(self, names: Sequence[str]) -> dict[str, int]:
        return class_numbers(names, declared=self.settings.labels is not None)

    def encode_labels(self, values: list[Any] | None, count: int) -> list[Any]:
        """Return a row of 0 and 1 per text, in bytes."""
        labels_BC = np.full((count, self.num_outputs), self.unlabelled, dtype=np.int8)
        if values is not None:
            labels_BC = _indicators(values, self.num_outputs)
        return list(labels_BC)

    def labelled(self, labels: Tensor) -> Tensor:
        """Return a mask of the rows whose labels are known."""
        return labels[:, 0] != self.unlabelled

    def task_loss(self, logits: Tensor, batch: Batch, mask_BL: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the binary cross-entropy over all labels of the labelled rows."""
        labels_BC = batch["labels"]
        return losses.binary_cross_entropy(logits, labels_BC, self.labelled(labels_BC), num_items=num_items)

    def references(self, rows: Dataset) -> Array:
        """Return a row of 0 and 1 per text."""
        return _indicators(rows["label"][:], self.num_outputs)

    def predictions(self, outputs: Outputs) -> Array:
        """Return 1 where a label is more probable than the threshold."""
        answers_NC: Array = (sigmoid(outputs["logits"]) > self.settings.threshold).astype(np.int8)
        return answers_NC

    def scores(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return the number of right labels, and of labels in answer and reference together."""
        predicted_NC = self.predictions(outputs)
        right_N = (predicted_NC & references_N).sum(1)
        return np.stack([right_N, predicted_NC.sum(1) + references_N.sum(1)], axis=1).astype(np.float64)

    def primary(self, scores_NK: FloatArray) -> float:
        """Return the F1 over all answers."""
        right, total = scores_NK.sum(0)
        return float(2 * right / total) if total else 1.0

    def metrics(self, outputs: Outputs, references_N: Array) -> dict[str, float]:
        """Return micro_f1, macro_f1, samples_f1, subset_accuracy and binary_cross_entropy."""
        predicted_NC, logits_NC = self.predictions(outputs), outputs["logits"].astype(np.float64)
        values = {
            "micro_f1": f1_score(references_N, predicted_NC, average="micro", zero_division=1),
            "macro_f1": f1_score(references_N, predicted_NC, average="macro", zero_division=0),
            "samples_f1": f1_score(references_N, predicted_NC, average="samples", zero_division=1),
            "subset_accuracy": accuracy_score(references_N, predicted_NC),
            "binary_cross_entropy": (np.logaddexp(0, logits_NC) - references_N * logits_NC).mean(),
        }
        return {name: float(value) for name, value in values.items()}

    def row_quality(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return the share of the labels in answer or reference that stand in both; 1 where there is none."""
        right_N, total_N = self.scores(outputs, references_N).T
        union_N = total_N - right_N
        quality_N: FloatArray = np.divide(right_N, union_N, out=np.ones_like(right_N), where=union_N > 0)
        return quality_N

    def label_rows(self, outputs: Outputs, references_N: Array) -> list[dict[str, Any]]:
        """Return precision, recall, F1 and number of rows of each label."""
        figures = precision_recall_fscore_support(references_N, self.predictions(outputs), zero_division=0)
        table = pd.DataFrame(dict(zip(("precision", "recall", "f1", "rows"), figures, strict=True)))
        table.insert(0, "label", self.label_names)
        return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]

    def named(self, references_N: Array) -> Array:
        """Return the names of each row's labels as one text."""
        names = np.asarray(self.label_names, dtype=object)
        return np.array([", ".join(names[row == 1]) or "(none)" for row in references_N], dtype=object)

    def confidences(self, outputs: Outputs) -> FloatArray:
        """Return the probability of each whole answer, as if its labels did not depend on each other."""
        probability_NC = sigmoid(outputs["logits"])
        confidence_N: FloatArray = np.where(self.predictions(outputs), probability_NC, 1 - probability_NC).prod(1)
        return confidence_N

    def slices(self, references_N: Array) -> dict[str, tuple[str, npt.NDArray[np.bool_]]]:
        """Return the rows of each label; an F1 of those without any could only be 0 or 1."""
        return {f"label={name}": (f"label {name}", references_N[:, i] == 1) for i, name in enumerate(self.label_names)}

    def serving(self) -> dict[str, Any]:
        """Return the threshold."""
        return {"threshold": self.settings.threshold}


def _places(labels: Sequence[str] | None, numbers: Mapping[str, int]) -> list[int] | None:
    """Return the rising indices of a row's labels; None where one is none of the task's, or they are missing."""
    if labels is None or any(label not in numbers for label in labels):
        return None
    return sorted({numbers[label] for label in labels})


def _indicators(lists: Sequence[Sequence[int]], count: int) -> Array:
    """Return a row of 0 and 1 per list of label indices."""
    indicators_NC = np.zeros((len(lists), count), dtype=np.int8)
    for row, labels in zip(indicators_NC, lists, strict=True):
        row[labels] = 1
    return indicators_NC
