"""Which terms each method adds to the task loss in stage II, and which filters it needs.

| method        | prediction loss | layer loss on | teacher filters | student filters |
|---------------|-----------------|---------------|-----------------|-----------------|
| finetune      |                 |               |                 |                 |
| kd            | yes             |               |                 |                 |
| lwd           | yes             | raw states    | identity        | trained along   |
| random_filter | yes             | filtered      | random, frozen  | trained along   |
| ted           | yes             | filtered      | of stage I      | trained along   |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ted import losses
from ted.config import MethodName, Settings
from ted.tasks.registry import TASKS

TeacherFilters = Literal["none", "identity", "random", "learned"]


@dataclass(frozen=True)
class Method:
    """What a method is made of."""

    uses_predictions: bool
    teacher_filters: TeacherFilters

    @property
    def uses_teacher(self) -> bool:
        """Whether anything is learnt from the teacher."""
        return self.uses_predictions or self.uses_layers

    @property
    def uses_layers(self) -> bool:
        """Whether matched layers add a loss."""
        return self.teacher_filters != "none"


METHODS: dict[MethodName, Method] = {
    "finetune": Method(uses_predictions=False, teacher_filters="none"),
    "kd": Method(uses_predictions=True, teacher_filters="none"),
    "lwd": Method(uses_predictions=True, teacher_filters="identity"),
    "random_filter": Method(uses_predictions=True, teacher_filters="random"),
    "ted": Method(uses_predictions=True, teacher_filters="learned"),
}


@dataclass(frozen=True)
class Counts:
    """What the whole batch of an optimiser update holds; losses are divided by these."""

    rows: Tensor
    labelled: Tensor
    predictions: Tensor
    """Predictions on which student and teacher are compared."""
    positions: Tensor
    """Positions that enter the layer loss: real tokens, or all with padding unmasked."""


@dataclass(frozen=True)
class Matched:
    """What teacher and student say of a batch. States are filtered, (B, L, F) per pair; masks are the batch's."""

    student_logits: Tensor
    """Of the predictions, (..., C); the leading dimensions are those of `prediction_mask`."""
    teacher_logits: Tensor
    student_states: Sequence[Tensor]
    teacher_states: Sequence[Tensor]
    position_mask: Tensor
    prediction_mask: Tensor


class Term(Protocol):
    """A weighted summand of the stage-II loss."""

    @property
    def name(self) -> str:
        """Its name in logs."""

    @property
    def weight(self) -> float:
        """What it is multiplied by."""

    def __call__(self, matched: Matched, counts: Counts) -> Tensor:
        """Return the unweighted value: a scalar, or one per pair."""


@dataclass(frozen=True)
class PredictionKL:
    """T^2 KL(teacher || student) over predictions."""

    weight: float
    temperature: float
    name: str = "prediction_loss"

    def __call__(self, matched: Matched, counts: Counts) -> Tensor:
        """Return the divergence."""
        return losses.prediction_kl(
            matched.student_logits,
            matched.teacher_logits,
            matched.prediction_mask,
            temperature=self.temperature,
            num_items=counts.predictions,
        )


@dataclass(frozen=True)
class PredictionBCE:
    """T^2 binary cross-entropy of each output against the teacher's probability, over predictions."""

    weight: float
    temperature: float
    name: str = "prediction_loss"

    def __call__(self, matched: Matched, counts: Counts) -> Tensor:
        """Return the mean over predictions and outputs."""
        return losses.prediction_bce(
            matched.student_logits,
            matched.teacher_logits,
            matched.prediction_mask,
            temperature=self.temperature,
            num_items=counts.predictions,
        )


@dataclass(frozen=True)
class BatchSoftmaxKL:
    """The published code's divergence for one output: over the rows of a batch."""

    weight: float
    temperature: float
    name: str = "prediction_loss"

    def __call__(self, matched: Matched, counts: Counts) -> Tensor:
        """Return the divergence; micro-batches weigh by their rows."""
        student_B, teacher_B = matched.student_logits.squeeze(-1), matched.teacher_logits.squeeze(-1)
        value = losses.batch_softmax_kl(student_B, teacher_B, temperature=self.temperature)
        return value * len(student_B) / counts.rows


@dataclass(frozen=True)
class PredictionMSE:
    """Squared difference of the outputs over predictions."""

    weight: float
    name: str = "prediction_loss"

    def __call__(self, matched: Matched, counts: Counts) -> Tensor:
        """Return the mean over predictions and outputs."""
        difference_BC = (matched.student_logits - matched.teacher_logits) ** 2
        return losses.masked_sum(difference_BC.mean(-1), matched.prediction_mask, counts.predictions)


@dataclass(frozen=True)
class LayerMSE:
    """Squared difference of filtered states, per pair in the units of `variances`."""

    weight: float
    reduction: Literal["mean", "sum"]
    variances: Tensor | None = None
    """(pair); None leaves raw units."""
    name: str = "layer_loss"

    def per_pair(self, matched: Matched, counts: Counts) -> Tensor:
        """Return the loss of each pair."""
        pairs = zip(matched.student_states, matched.teacher_states, strict=True)
        errors = torch.stack(
            [
                losses.layer_mse(student, teacher, matched.position_mask, num_items=counts.positions)
                for student, teacher in pairs
            ]
        )
        return errors if self.variances is None else errors / self.variances.to(errors)

    def __call__(self, matched: Matched, counts: Counts) -> Tensor:
        """Return the mean or sum over pairs."""
        return self.reduce(self.per_pair(matched, counts))

    def reduce(self, errors: Tensor) -> Tensor:
        """Return the mean or sum of the pairs' losses."""
        return errors.mean() if self.reduction == "mean" else errors.sum()


def build_terms(settings: Settings, variances: Tensor | None) -> tuple[Term, ...]:
    """Return the terms of the settings' method; `variances` of the filtered teacher states, if layers are matched."""
    method, weights = METHODS[settings.method], settings.distillation
    terms: list[Term] = []
    if method.uses_predictions:
        terms.append(_prediction_term(settings))
    if method.uses_layers:
        units = variances if weights.layer_loss_units == "variance" else None
        terms.append(LayerMSE(weights.mse_alpha, weights.layer_reduction, units))
    return tuple(term for term in terms if term.weight > 0)


def _prediction_term(settings: Settings) -> Term:
    weights = settings.distillation
    kind = TASKS[settings.task.kind].prediction_loss
    if kind == "mse" and weights.batch_softmax_kl:
        return BatchSoftmaxKL(weights.kl_alpha, weights.temperature)
    if kind == "mse":
        return PredictionMSE(weights.prediction_mse_alpha)
    if kind == "bce":
        return PredictionBCE(weights.kl_alpha, weights.temperature)
    return PredictionKL(weights.kl_alpha, weights.temperature)
