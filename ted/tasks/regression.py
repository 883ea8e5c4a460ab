"""One number, for a text or a pair of texts."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import Dataset, Value
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from torch import Tensor

from ted import losses
from ted.data.labels import read_numbers
from ted.tasks.base import Array, Batch, FloatArray, Outputs, SequenceTask


class Regression(SequenceTask):
    """Squared error; Pearson and Spearman correlation and root mean squared error.

    A correlation with constant predictions is reported as 0: such a model orders nothing. There are no slices by label:
    a correlation within a band of targets measures the band.
    """

    kind = "regression"
    primary_metric = "pearson"
    prediction_loss = "mse"
    problem_type = "regression"
    unlabelled = float("nan")

    @property
    def output_labels(self) -> tuple[str, ...]:
        """One output without a class."""
        return ("value",)

    def read_labels(self, table: Dataset, place: str) -> pa.ChunkedArray:
        """Return target numbers."""
        return read_numbers(table, place)

    def label_numbers(self, frame: pd.DataFrame, names: Sequence[str]) -> "pd.Series[float]":
        """Return the targets; NaN for what is no number that float32 holds."""
        numbers = pd.to_numeric(frame["label"], errors="coerce").astype(np.float64)
        with np.errstate(over="ignore"):
            known = np.isfinite(numbers.astype(np.float32))
        return numbers.where(known)

    def too_few(self, numbers_N: FloatArray, column: Any, names: Sequence[str], least: int) -> str:  # noqa: ANN401 - a column of any type
        """Return that all targets are equal, with which nothing can be correlated."""
        same = len(numbers_N) > 1 and len(np.unique(numbers_N.astype(np.float32))) == 1
        return f"every target is {numbers_N[0]:g}; give rows with different ones" if same else ""

    def clean_labels(
        self,
        numbers_N: FloatArray,
        column: pa.ChunkedArray,
        names: Sequence[str],
    ) -> tuple[pa.Array, Any]:
        """Return float32 targets."""
        return pa.array(numbers_N, mask=np.isnan(numbers_N)).cast(pa.float32()), Value("float32")

    def labelled(self, labels: Tensor) -> Tensor:
        """Return a mask of the rows whose number is known."""
        return ~torch.isnan(labels)

    def task_loss(self, logits: Tensor, batch: Batch, mask_BL: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the mean squared error over the labelled rows."""
        labels_B = batch["labels"]
        return losses.squared_error(logits.squeeze(-1), labels_B, self.labelled(labels_B), num_items=num_items)

    def predictions(self, outputs: Outputs) -> Array:
        """Return the number per row."""
        return outputs["logits"][:, 0]

    def scores(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return prediction and target."""
        return np.stack([self.predictions(outputs), references_N], axis=1)

    def primary(self, scores_NK: FloatArray) -> float:
        """Return the Pearson correlation."""
        return _correlation(pearsonr, scores_NK)

    def row_quality(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return the distance from the target, negative."""
        error_N: FloatArray = np.abs(self.predictions(outputs) - references_N)
        return -error_N

    def metrics(self, outputs: Outputs, references_N: Array) -> dict[str, float]:
        """Return pearson, spearman and rmse."""
        scores_NK = self.scores(outputs, references_N)
        return {
            "pearson": self.primary(scores_NK),
            "spearman": _correlation(spearmanr, scores_NK),
            "rmse": float(np.sqrt(np.mean((scores_NK[:, 0] - scores_NK[:, 1]) ** 2))),
        }


def _correlation(statistic: Callable[..., Any], scores_NK: FloatArray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        value = float(statistic(scores_NK[:, 0], scores_NK[:, 1]).statistic)
    return 0.0 if np.isnan(value) else value
