"""Stage II wiring: teacher outputs, aligned filters, the objective, and how well layers match."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from ted.config import Settings
from ted.data.preparation import Batch, to_device
from ted.errors import ModelError
from ted.filters import FilterKind, RidgeStatistics, TaskAwareFilters
from ted.matching import layer_pairs, teacher_config
from ted.methods import METHODS, build_terms
from ted.models.frozen import FrozenModel, OutputSource, keep_outputs, move, run_model, store_bytes, store_key
from ted.objectives import DistillationObjective, FilteredTeacher
from ted.tasks import Task

logger = logging.getLogger(__name__)

Side = Literal["teacher", "student"]
MATCH_ROWS = 512
"""Rows that the match of layers is reported on."""


def new_filters(settings: Settings, input_dim: int, side: Side) -> TaskAwareFilters | None:
    """Return one side's filters as the method starts them; None where it matches no layers.

    Args:
        settings: of the run.
        input_dim: hidden size of that side's model.
        side: whose filters.
    """
    method = METHODS[settings.method]
    if not method.uses_layers:
        return None
    pairs = layer_pairs(settings)
    layers = [pair.teacher if side == "teacher" else pair.student for pair in pairs]
    kind: FilterKind = "nonlinear" if settings.filters.filter_nonlinear else "linear"
    if method.teacher_filters == "identity":
        kind = "identity" if side == "teacher" else kind
        output_dim = teacher_config(settings).hidden_size
    else:
        output_dim = settings.filters.filter_output_dim or teacher_config(settings).hidden_size
    generator = torch.Generator().manual_seed(settings.seed + (side == "student"))
    return TaskAwareFilters(layers, input_dim, output_dim, kind).initialise(settings.filters.init_std, generator)


def teacher_outputs(
    settings: Settings, task: Task, folder: Path, frozen: FrozenModel, rows: Dataset, batches: Iterable[Batch]
) -> OutputSource:
    """Return the teacher's outputs: kept on disk where the settings let them, else computed on each batch.

    Args:
        settings: of the run.
        task: of the run.
        folder: the teacher's, which names the outputs.
        frozen: the teacher.
        rows: features that it will be asked for.
        batches: all of them, in an order of their own.
    """
    options = settings.distillation
    if options.teacher_cache == "off" or not options.mask_padding:
        return frozen
    config = frozen.model.config
    num_tokens = sum(rows["length"])
    num_logits = task.num_logits(len(rows), num_tokens, config.vocab_size)
    size = store_bytes(num_logits, num_tokens, len(frozen.layers), config.hidden_size)
    if options.teacher_cache == "auto" and size > options.teacher_cache_mib * 2**20:
        return frozen
    store = (
        Path(settings.run.output_dir) / "teacher_outputs" / store_key(rows, folder, frozen.layers, frozen.arithmetic)
    )
    return keep_outputs(frozen, rows, to_device(batches), store)


@dataclass(frozen=True)
class Sides:
    """Teacher and student with their filters, ready to be matched."""

    student: PreTrainedModel
    teacher_filters: TaskAwareFilters | None
    student_filters: TaskAwareFilters | None

    @classmethod
    def load(cls, settings: Settings, student: PreTrainedModel, teacher_folder: Path, student_folder: Path) -> "Sides":
        """Return the student and both sides' filters from the folders that stage I wrote.

        Raises:
            ModelError: the filters of the two sides cannot be matched.
        """
        if not METHODS[settings.method].uses_layers:
            return cls(student, None, None)
        teacher_filters, student_filters = TaskAwareFilters.load(teacher_folder), TaskAwareFilters.load(student_folder)
        ours = (len(teacher_filters.layers), teacher_filters.output_dim)
        theirs = (len(student_filters.layers), student_filters.output_dim)
        if ours != theirs:
            raise ModelError(
                f"the teacher has {ours[0]} filters of width {ours[1]}, the student {theirs[0]} of width {theirs[1]}; "
                "learn both with the same settings"
            )
        return cls(student, teacher_filters, student_filters)

    @property
    def teacher_layers(self) -> tuple[int, ...]:
        """Layers whose states the teacher has to give."""
        return () if self.teacher_filters is None else self.teacher_filters.layers

    def objective(
        self, settings: Settings, task: Task, source: OutputSource | None, batches: Iterable[Batch]
    ) -> DistillationObjective:
        """Return the stage-II objective, with the student's filters at their start.

        Args:
            settings: of the run.
            task: of the run.
            source: the teacher's outputs; None where the method has no use for them.
            batches: training rows that alignment and target variances are measured on.
        """
        options = settings.distillation
        teacher = None if source is None else FilteredTeacher(source, self.teacher_filters)
        variances = None
        if self.student_filters is not None and teacher is not None:
            variances = self._align(settings, teacher, batches)
        objective = DistillationObjective(
            self.student, self.student_filters, teacher, build_terms(settings, variances), task
        )
        objective.mask_padding = options.mask_padding
        objective.filter_scale = options.filter_learning_rate_multiplier
        return objective

    @torch.no_grad()
    def _align(self, settings: Settings, teacher: FilteredTeacher, batches: Iterable[Batch]) -> Tensor:
        """Start the student's filters as the settings ask; return the variance of each pair's target.

        The student has its dropout on, as when it is trained: filters that fit states without it would, where these
        hardly vary, blow its noise up to many times the target.
        """
        filters, options = self.student_filters, settings.distillation
        assert filters is not None
        statistics = RidgeStatistics(len(filters.layers), filters.input_dim, filters.output_dim)
        set_seed(settings.seed)
        self.student.train()
        for batch in to_device(batches):
            move(self.student, batch["input_ids"].device)
            states = run_model(self.student, batch, filters.layers).states
            statistics.add(states, teacher(batch).states, batch["attention_mask"])
        flat = [self.teacher_layers[place] for place in statistics.flat_targets()]
        if flat and options.layer_loss_units == "variance" and options.mse_alpha > 0:
            logger.warning(
                "The filtered states of teacher layers %s (-1: embeddings) are nearly the same for all tokens, so the "
                "layer loss in units of their variance may grow large; distillation.layer_loss_units: raw has no units",
                flat,
            )
        if options.student_filter_init == "ridge":
            statistics.align(filters.cpu(), options.ridge_penalty)
        elif options.student_filter_init == "random":
            filters.initialise(settings.filters.init_std, torch.Generator().manual_seed(settings.seed + 1))
        return statistics.target_variances()


@torch.no_grad()
def layer_errors(objective: DistillationObjective, batches: Iterable[Batch]) -> list[float]:
    """Return, per pair, the squared error of the filtered states relative to the variance of the target."""
    if objective.filters is None:
        return []
    objective.eval()
    count = 0
    sums: list[Tensor] = []
    for batch in to_device(batches):
        objective.to(batch["input_ids"].device)
        matched, _ = objective.match(batch)
        kept_BL = batch["attention_mask"].bool()
        count += int(kept_BL.sum())
        pairs = zip(matched.student_states, matched.teacher_states, strict=True)
        sums.append(torch.stack([_sums(student[kept_BL], teacher[kept_BL]) for student, teacher in pairs]))
    errors_KF, targets_KF, squares_KF = (torch.stack(sums).sum(0) / count).unbind(1)
    variances_K = (squares_KF - targets_KF**2).mean(-1)
    relative: list[float] = (errors_KF.mean(-1) / variances_K).tolist()
    return relative


def _sums(student_TF: Tensor, teacher_TF: Tensor) -> Tensor:
    """Return the sums over tokens of squared difference, target and squared target (3, F)."""
    student_TF, teacher_TF = student_TF.double().cpu(), teacher_TF.double().cpu()
    return torch.stack([((student_TF - teacher_TF) ** 2).sum(0), teacher_TF.sum(0), (teacher_TF**2).sum(0)])


def layer_match(filters: Sides, before: Sequence[float], after: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row per pair: its layers and the relative error before and after stage II."""
    if filters.teacher_filters is None or filters.student_filters is None:
        return []
    layers = zip(filters.student_filters.layers, filters.teacher_filters.layers, before, after, strict=True)
    return [
        {"student_layer": student, "teacher_layer": teacher, "before": start, "after": end}
        for student, teacher, start, end in layers
    ]
