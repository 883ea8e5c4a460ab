"""The modules that a trainer optimises: each maps a batch to the loss and to the values worth logging."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ted.data.preparation import Batch
from ted.filters import TaskAwareFilters
from ted.methods import Counts, LayerMSE, Matched, Term
from ted.models.frozen import ModelOutputs, OutputSource, run_model
from ted.tasks import Task

Losses = dict[str, Tensor]
"""`loss` to be minimised, and what it is made of."""


class Objective(nn.Module):
    """A loss over trainable modules. Frozen models are not among them, so that checkpoints hold only what changes."""

    mask_padding = True

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def count(self, batches: Sequence[Batch]) -> Counts:
        """Return what the batches of one optimiser update hold together."""
        masks = [self.position_mask(batch) for batch in batches]
        both = list(zip(batches, masks, strict=True))
        return Counts(
            rows=_total([torch.tensor(len(batch["index"])) for batch in batches]),
            labelled=_total([self.task.num_labelled(batch, mask_BL) for batch, mask_BL in both]),
            predictions=_total([self.task.prediction_mask(batch, mask_BL).sum() for batch, mask_BL in both]),
            positions=_total([mask_BL.sum() for mask_BL in masks]),
        )

    def position_mask(self, batch: Batch) -> Tensor:
        """Return (B, L): 1 at positions that enter a loss over positions."""
        mask_BL = batch["attention_mask"]
        return mask_BL if self.mask_padding else torch.ones_like(mask_BL)

    def parameter_scales(self) -> dict[str, float]:
        """Return the learning-rate multiplier of parameters, by name prefix, where it is not 1."""
        return {}


def _total(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()


class TaskObjective(Objective):
    """The task loss of a whole model."""

    def __init__(self, model: PreTrainedModel, task: Task) -> None:
        super().__init__(task)
        self.model = model

    def forward(self, batch: Batch, counts: Counts) -> Losses:
        """Return the task loss."""
        logits = run_model(self.model, batch, ()).logits
        loss = self.task.task_loss(logits, batch, self.position_mask(batch), num_items=counts.labelled)
        return {"loss": loss, "task_loss": loss}


class FilterObjective(Objective):
    """Stage I: the mean over filters of the task loss of each filter's own head; the backbone stays as it is.

    `L_I = 1/K sum_k l_task(h_k(f_k(H_k)), y)`, section 3 of arXiv 2210.01351.
    """

    def __init__(self, filters: TaskAwareFilters, heads: nn.ModuleList, backbone: OutputSource, task: Task) -> None:
        super().__init__(task)
        self.filters = filters
        self.heads = heads
        self.backbone = backbone

    def head_logits(self, batch: Batch) -> Iterator[Tensor]:
        """Yield the logits of each filter's head."""
        for head, state_BLF in zip(self.heads, self._filtered(batch), strict=True):
            yield head(state_BLF, batch["attention_mask"])

    def forward(self, batch: Batch, counts: Counts) -> Losses:
        """Return the mean loss and the loss of each filter.

        The logits of a head are computed again for its gradient: with a large vocabulary, those of one filter alone
        are as large as everything else.
        """
        mask_BL = self.position_mask(batch)

        def loss_of(head: nn.Module, state_BLF: Tensor) -> Tensor:
            logits = head(state_BLF, batch["attention_mask"])
            return self.task.task_loss(logits, batch, mask_BL, num_items=counts.labelled)

        pairs = zip(self.heads, self._filtered(batch), strict=True)
        values: list[Tensor] = [checkpoint(loss_of, head, state_BLF, use_reentrant=False) for head, state_BLF in pairs]
        loss = torch.stack(values).mean()
        named = {f"task_loss_{layer}": value for layer, value in zip(self.filters.layers, values, strict=True)}
        return {"loss": loss, "task_loss": loss, **named}

    def _filtered(self, batch: Batch) -> list[Tensor]:
        return self.filters.filter_states(self.backbone(batch).states)


class DistillationObjective(Objective):
    """Stage II: `L = L_task + sum of weight * term` over the student and its filters.

    The teacher and its filters only give targets.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        filters: TaskAwareFilters | None,
        teacher: "FilteredTeacher | None",
        terms: Sequence[Term],
        task: Task,
    ) -> None:
        super().__init__(task)
        self.student = student
        self.filters = filters
        self.teacher = teacher
        self.terms = tuple(terms)
        self.filter_scale = 1.0

    def parameter_scales(self) -> dict[str, float]:
        """Return the multiplier of the student filters' learning rate."""
        return {"filters.": self.filter_scale}

    def match(self, batch: Batch) -> tuple[Matched, Tensor]:
        """Return what teacher and student say of a batch, and the student's logits as its model gives them."""
        layers = () if self.filters is None else self.filters.layers
        student = run_model(self.student, batch, layers)
        states = [] if self.filters is None else self.filters.filter_states(student.states)
        teacher = student if self.teacher is None else self.teacher(batch)
        mask_BL = self.position_mask(batch)
        matched = Matched(
            self.task.prediction_logits(student.logits, mask_BL),
            self.task.prediction_logits(teacher.logits, mask_BL),
            states,
            teacher.states,
            mask_BL,
            self.task.prediction_mask(batch, mask_BL),
        )
        return matched, student.logits

    def forward(self, batch: Batch, counts: Counts) -> Losses:
        """Return the weighted sum and each unweighted summand."""
        matched, logits = self.match(batch)
        task_loss = self.task.task_loss(logits, batch, matched.position_mask, num_items=counts.labelled)
        values = {"task_loss": task_loss}
        loss = values["task_loss"]
        for term in self.terms:
            if isinstance(term, LayerMSE):
                errors = term.per_pair(matched, counts)
                values[term.name] = term.reduce(errors)
                values |= {f"{term.name}_{pair}": error for pair, error in enumerate(errors)}
            else:
                values[term.name] = term(matched, counts)
            loss = loss + term.weight * values[term.name]
        return {"loss": loss, **values}


class FilteredTeacher:
    """A teacher's logits and filtered states for a batch. It holds no trainable parameter."""

    def __init__(self, source: OutputSource, filters: TaskAwareFilters | None) -> None:
        self.source = source
        self.filters = None if filters is None else filters.requires_grad_(False).eval()

    def __call__(self, batch: Batch) -> ModelOutputs:
        """Return the logits (B, C) and the filtered states (B, L, F) per pair."""
        outputs = self.source(batch)
        if self.filters is None:
            return outputs
        with torch.no_grad():
            filtered = self.filters.to(outputs.logits.device).filter_states(outputs.states)
        return outputs._replace(states=filtered)
