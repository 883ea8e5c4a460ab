"""One number, for a text or a pair of texts."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from torch import Tensor

from ted import losses
from ted.tasks.base import Array, FloatArray, Task


class Regression(Task):
    """Squared error; Pearson and Spearman correlation and root mean squared error.

    A correlation with constant predictions is reported as 0: such a model orders nothing.
    """

    kind = "regression"
    primary_metric = "pearson"
    unlabelled = float("nan")

    @property
    def num_outputs(self) -> int:
        """One."""
        return 1

    def labelled(self, labels_B: Tensor) -> Tensor:
        """Return a mask of the rows whose number is known."""
        return ~torch.isnan(labels_B)

    def task_loss(self, logits_BC: Tensor, labels_B: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the mean squared error over the labelled rows."""
        return losses.squared_error(logits_BC.squeeze(-1), labels_B, self.labelled(labels_B), num_items=num_items)

    def predictions(self, logits_NC: FloatArray) -> Array:
        """Return the number per row."""
        return logits_NC[:, 0]

    def primary(self, logits_NC: FloatArray, labels_N: Array) -> float:
        """Return the Pearson correlation."""
        return self._correlation(pearsonr, logits_NC, labels_N)

    def metrics(self, logits_NC: FloatArray, labels_N: Array) -> dict[str, float]:
        """Return pearson, spearman and rmse."""
        return {
            "pearson": self.primary(logits_NC, labels_N),
            "spearman": self._correlation(spearmanr, logits_NC, labels_N),
            "rmse": float(np.sqrt(np.mean((self.predictions(logits_NC) - labels_N) ** 2))),
        }

    def _correlation(self, statistic: Callable[..., Any], logits_NC: FloatArray, labels_N: Array) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConstantInputWarning)
            value = float(statistic(self.predictions(logits_NC), labels_N).statistic)
        return 0.0 if np.isnan(value) else value
