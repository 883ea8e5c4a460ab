"""What a task must say about data, losses, filter heads and metrics.

Letters in names: B or N rows, C model outputs, L positions, D features.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ted.heads import Pooling, SequenceHead

FloatArray = npt.NDArray[np.floating]
Array = npt.NDArray[Any]


class Task(ABC):
    """A task whose model maps a text to one vector of outputs."""

    kind: ClassVar[str]
    primary_metric: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    unlabelled: ClassVar[int | float]
    """Value of a label that is not known."""

    def __init__(self, label_names: tuple[str, ...]) -> None:
        self.label_names = label_names

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Number of values the model puts out for a text."""

    @abstractmethod
    def labelled(self, labels_B: Tensor) -> Tensor:
        """Return a mask of the rows whose label is known."""

    @abstractmethod
    def task_loss(self, logits_BC: Tensor, labels_B: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the loss on hard labels over the labelled rows, divided by `num_items`, their number in the update."""

    @abstractmethod
    def metrics(self, logits_NC: FloatArray, labels_N: Array) -> dict[str, float]:
        """Return every metric of the task by name."""

    @abstractmethod
    def primary(self, logits_NC: FloatArray, labels_N: Array) -> float:
        """Return the primary metric alone, fast enough for a bootstrap."""

    @abstractmethod
    def predictions(self, logits_NC: FloatArray) -> Array:
        """Return the answer per row: a class index or a number."""

    def filter_head(self, dim: int, pooling: Pooling, dropout: float) -> nn.Module:
        """Return a fresh stage-I head for filtered states of width `dim`."""
        return SequenceHead(dim, self.num_outputs, pooling=pooling, dropout=dropout)
