"""From the logits of batches in any order to what is known of each row."""

from collections.abc import Mapping

import numpy as np
from datasets import Dataset
from torch import Tensor

from ted.tasks import Task
from ted.tasks.base import Array, Outputs


class Collector:
    """Gathers what the answers need of a model's logits, batch by batch, for the features of a split."""

    def __init__(self, task: Task, features: Dataset, rows: Dataset) -> None:
        self.task = task
        self.features = features
        self.rows = rows
        self.broken = 0
        """Features with a logit that is not finite."""
        self._places: list[Array] = []
        self._parts: list[Outputs] = []

    def add(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add the logits (B, ...) of a batch of the collator."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in batch.items()}
        values = logits.float().cpu().numpy()
        self.broken += int((~np.isfinite(values)).reshape(len(values), -1).any(-1).sum())
        self._places.append(arrays["index"])
        self._parts.append(self.task.reduce(values, arrays))

    def outputs(self) -> Outputs:
        """Return what is known of each row, in order; every feature has to have been added."""
        order = np.argsort(np.concatenate(self._places))
        reduced = {name: np.concatenate([part[name] for part in self._parts])[order] for name in self._parts[0]}
        return self.task.join(reduced, self.features, self.rows)
