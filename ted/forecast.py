"""What a run will take in time, memory and disk, before it starts.

Row and token counts come from the data, parameter counts from the models' configurations. Seconds come from a few
training steps of untrained models of the same shape on this machine, so they hold for this machine only.
"""

import hashlib
import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from datasets import Dataset
from rich.table import Table
from torch import nn
from transformers import PreTrainedModel

from ted.config import Settings, TrainingSettings
from ted.data.sources import load_dataset, select_rows
from ted.distillation import Side, new_filters
from ted.files import read_json, write_json
from ted.filters import TaskAwareFilters
from ted.matching import layer_pairs, student_config, teacher_config
from ted.methods import METHODS
from ted.models.frozen import logits_of, move, store_bytes
from ted.models.loading import find_model, load_tokenizer
from ted.run_record import code_digest
from ted.stages import learned_in_stage_one, num_steps
from ted.tasks import Task, get_task

SAMPLED_ROWS = 256
TIMED_STEPS = 3
MIB = 2**20
ADAMW_BYTES = 16  # float32 weight, gradient and two moments
CHECKPOINT_BYTES = 12  # float32 weight and two moments
BUNDLE_BYTES = 5  # float32 and 8-bit weights
LIBRARIES_MIB = 1000  # resident memory of the imported libraries
EXPORT_SECONDS = 30.0  # the exporter's time hardly depends on the size of the weights
LARGEST_TIMED = 500_000_000


@dataclass(frozen=True)
class StageForecast:
    """What one step of the pipeline will take; seconds are None where the model is too large to be tried."""

    step: str
    updates: int
    seconds: float | None
    memory_mib: int
    disk_mib: int


@dataclass(frozen=True)
class Forecast:
    """What a run will take on this machine."""

    device: str
    labelled_rows: int
    unlabelled_rows: int
    tokens_per_row: float
    teacher_parameters: int
    student_parameters: int
    keeps_teacher_outputs: bool
    stages: tuple[StageForecast, ...]

    @property
    def seconds(self) -> float | None:
        """Seconds of all steps one after the other."""
        parts = [stage.seconds for stage in self.stages]
        return None if None in parts else sum(part for part in parts if part is not None)

    @property
    def memory_mib(self) -> int:
        """Memory of the largest step."""
        return max(stage.memory_mib for stage in self.stages)

    @property
    def disk_mib(self) -> int:
        """Disk of everything that the run leaves and, for a while, needs."""
        return sum(stage.disk_mib for stage in self.stages)

    def table(self) -> Table:
        """Return the forecast as a table for the terminal."""
        title = (
            f"Forecast on {self.device} if nothing is cached: {self.labelled_rows:,} labelled and "
            f"{self.unlabelled_rows:,} unlabelled rows, {self.tokens_per_row:.0f} tokens a row"
        )
        table = Table(title=title, caption=self._caption(), title_justify="left", caption_justify="left")
        table.add_column("step")
        for heading in ("updates", "time", "memory", "disk"):
            table.add_column(heading, justify="right")
        for stage in self.stages:
            updates = f"{stage.updates:,}" if stage.updates else ""
            table.add_row(stage.step, updates, *_amounts(stage.seconds, stage.memory_mib, stage.disk_mib))
        table.add_section()
        table.add_row("all", "", *_amounts(self.seconds, self.memory_mib, self.disk_mib))
        return table

    def _caption(self) -> str:
        kept = "kept on disk" if self.keeps_teacher_outputs else "computed again for each batch"
        teacher, student = self.teacher_parameters / 1e6, self.student_parameters / 1e6
        remark = "" if student < teacher else ", which is no smaller"
        return f"teacher {teacher:.1f} M parameters, student {student:.1f} M{remark}; teacher outputs are {kept}"


def _amounts(seconds: float | None, memory_mib: int, disk_mib: int) -> tuple[str, str, str]:
    clock = "unknown" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    return clock, f"{memory_mib:,} MiB", f"{disk_mib:,} MiB"


def forecast(settings: Settings) -> Forecast:
    """Return what a run with these settings will take; kept beside the run, so that asking again costs nothing.

    Raises:
        DataError: the data cannot be read.
        ModelError: a model cannot be loaded or its layers cannot be matched.
    """
    kept = Path(settings.run.output_dir) / "forecast" / f"{_key(settings)}.json"
    if kept.is_file():
        values = read_json(kept)
        return Forecast(**{**values, "stages": tuple(StageForecast(**stage) for stage in values["stages"])})
    result = _forecast(settings)
    write_json(kept, asdict(result))
    return result


def _key(settings: Settings) -> str:
    stamps = []
    for name in (settings.data.source, settings.data.unlabelled, settings.teacher.model, settings.student.model):
        place = Path(name) if name else None
        files = [] if place is None else sorted(place.rglob("*")) if place.is_dir() else [place]
        stamps += [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    parts = (settings.model_dump_json(), stamps, code_digest(), torch.get_num_threads(), str(_device()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Load:
    """What the forecast is computed from."""

    settings: Settings
    labelled: int
    unlabelled: int
    held_out: int
    tokens_per_row: float
    longest: int
    teacher: PreTrainedModel
    student: PreTrainedModel


def _forecast(settings: Settings) -> Forecast:
    load = _measure_load(settings)
    layers = len(layer_pairs(settings)) if METHODS[settings.method].uses_layers else 0
    states = _kept_bytes(load, layers)
    options = settings.distillation
    fits = options.teacher_cache == "on" or states <= options.teacher_cache_mib * MIB
    wanted = METHODS[settings.method].uses_predictions and options.teacher_cache != "off"
    keeps = wanted and fits and options.mask_padding
    stages = _stage_forecasts(load, states if keeps else 0)
    return Forecast(
        device=str(_device()),
        labelled_rows=load.labelled,
        unlabelled_rows=load.unlabelled,
        tokens_per_row=load.tokens_per_row,
        teacher_parameters=load.teacher.num_parameters(),
        student_parameters=load.student.num_parameters(),
        keeps_teacher_outputs=keeps,
        stages=tuple(stages),
    )


def _measure_load(settings: Settings) -> _Load:
    data = select_rows(load_dataset(settings.data, settings.task, settings.seed), settings.data, settings.seed)
    config = teacher_config(settings)
    teacher, student = (_untrained(settings, shape) for shape in (config, student_config(settings, config)))
    lengths, per_row = _lengths(settings, data["train"])
    return _Load(
        settings,
        labelled=round(per_row * len(data["train"])),
        unlabelled=round(per_row * len(data["unlabelled"])) if "unlabelled" in data else 0,
        held_out=round(per_row * (len(data["validation"]) + len(data["test"]))),
        tokens_per_row=statistics.fmean(lengths),
        longest=max(lengths),
        teacher=teacher,
        student=student,
    )


def _untrained(settings: Settings, config: Any) -> PreTrainedModel:  # noqa: ANN401 - each architecture has its own class
    task = _task(settings)
    config.num_labels = len(task.output_labels or ()) or config.num_labels
    model: PreTrainedModel = getattr(transformers, task.auto_class).from_config(config)
    return model


def _task(settings: Settings) -> Task:
    """Return the task, with two classes where the data have not been asked for theirs."""
    return get_task(settings.task, settings.task.labels or ("first", "second"))


def _lengths(settings: Settings, rows: Dataset) -> tuple[list[int], float]:
    """Return the tokens of the features of some rows, and the features per row."""
    tokenizer = load_tokenizer(find_model(settings.teacher.model, settings.teacher.revision))
    sample = rows.select(range(min(SAMPLED_ROWS, len(rows))))
    texts = sample.select_columns([name for name in ("text", "text_pair") if name in sample.column_names])[:]
    known = {name: [str(text) for text in column] for name, column in texts.items()}
    encoded = get_task(settings.task).encode_training(known, tokenizer, settings.data)
    return [len(ids) for ids in encoded["input_ids"]], len(encoded["input_ids"]) / len(sample)


def _stage_forecasts(load: _Load, kept_bytes: int) -> list[StageForecast]:
    settings, method = load.settings, METHODS[load.settings.method]
    teacher, student = _seconds(load, load.teacher), _seconds(load, load.student)
    batches = (load.labelled + load.unlabelled) / _batch_rows(load)
    noisy, distillation = settings.filters.backbone_dropout, settings.distillation.training
    live = teacher.forward if method.uses_teacher and not kept_bytes else 0.0
    stages = [
        *_finetuned(load, teacher.step, student.step),
        *_stage_one(load, teacher.forward if noisy else live, student.forward),
        _trained(load, "distill_student", load.student, distillation, student.step + live),
    ]
    if settings.evaluation.control:
        stages.append(_trained(load, "finetune_control", load.student, distillation, student.step))
    # What is read once: by the step that first keeps the teacher's outputs, and by the one that aligns the filters.
    once = {"distill_student": student.forward * batches if method.uses_layers else 0.0}
    if kept_bytes:
        first = noisy or not any(stage.step == "learn_teacher_filters" for stage in stages)
        keeper = "distill_student" if first else "learn_teacher_filters"
        once[keeper] = once.get(keeper, 0.0) + teacher.forward * batches
        stages = [_with_disk(stage, kept_bytes) if stage.step == keeper else stage for stage in stages]
    stages = [replace(stage, seconds=(stage.seconds or 0.0) + once.get(stage.step, 0.0)) for stage in stages]
    tested = (teacher.forward + 3 * student.forward) * load.held_out / _batch_rows(load)
    memory = 4 * load.teacher.num_parameters() + _activation_bytes(load, load.teacher) // 8
    stages.append(StageForecast("evaluate_models", 0, tested, LIBRARIES_MIB + memory // MIB, 0))
    exported = int(BUNDLE_BYTES * load.student.num_parameters())
    stages.append(StageForecast("export_onnx", 0, EXPORT_SECONDS, LIBRARIES_MIB, exported // MIB))
    return [replace(stage, seconds=None) if math.isnan(stage.seconds or 0.0) else stage for stage in stages]


def _finetuned(load: _Load, teacher_step: float, student_step: float) -> list[StageForecast]:
    """Return the steps that train a whole model on the labelled rows; without training they only write it."""
    settings = load.settings
    models = (
        ("finetune_teacher", load.teacher, settings.teacher, teacher_step),
        ("prepare_student", load.student, settings.student, student_step),
    )
    return [
        _trained(load, step, model, options.training, seconds)
        if options.finetune
        else StageForecast(step, 0, 0.0, LIBRARIES_MIB + _weights(model) // MIB, _weights(model) // MIB)
        for step, model, options, seconds in models
    ]


def _stage_one(load: _Load, teacher_seconds: float, student_seconds: float) -> list[StageForecast]:
    """Return the trainings of filters that stage I has, given the seconds in which each model reads a batch."""
    settings, task = load.settings, _task(load.settings)
    sides: tuple[tuple[Side, PreTrainedModel, float], ...] = (
        ("teacher", load.teacher, teacher_seconds),
        ("student", load.student, student_seconds),
    )
    stages = []
    for side, model, read in sides:
        if not learned_in_stage_one(settings, side):
            continue
        filters = new_filters(settings, model.config.hidden_size, side)
        assert filters is not None
        heads = task.filter_heads(len(filters.layers), filters.output_dim, settings.filters, model)
        training = settings.filters.training_of(side)
        updates, batches = num_steps(training, load.labelled), _batches_per_update(load, training)
        seconds = updates * batches * (read + _filter_seconds(load, filters, heads))
        learnt = sum(parameter.numel() for part in (filters, heads) for parameter in part.parameters())
        logits = task.num_logits(1, load.longest, model.config.vocab_size) * training.per_device_train_batch_size
        memory = _weights(model) + _activation_bytes(load, model) // 8 + ADAMW_BYTES * learnt + 2 * 4 * logits
        disk = (4 + 2 * CHECKPOINT_BYTES) * learnt
        stages.append(
            StageForecast(f"learn_{side}_filters", updates, seconds, LIBRARIES_MIB + memory // MIB, disk // MIB)
        )
    return stages


def _trained(
    load: _Load, step: str, model: PreTrainedModel, training: TrainingSettings, seconds: float
) -> StageForecast:
    distills = step in {"distill_student", "finetune_control"}
    updates = num_steps(training, load.labelled + (load.unlabelled if distills else 0))
    parameters = model.num_parameters()
    memory = ADAMW_BYTES * parameters + _activation_bytes(load, model, training)
    if step == "distill_student" and METHODS[load.settings.method].uses_teacher:
        width = 2 if load.settings.teacher.dtype == "bfloat16" else 4
        memory += width * load.teacher.num_parameters() + _activation_bytes(load, load.teacher) // 8
    disk = (4 + 2 * CHECKPOINT_BYTES) * parameters
    total = updates * _batches_per_update(load, training) * seconds
    return StageForecast(step, updates, total, LIBRARIES_MIB + memory // MIB, disk // MIB)


def _with_disk(stage: StageForecast, kept_bytes: int) -> StageForecast:
    return replace(stage, disk_mib=stage.disk_mib + kept_bytes // MIB)


def _weights(model: PreTrainedModel) -> int:
    """Return the bytes of a model's float32 weights."""
    return 4 * model.num_parameters()


def _batches_per_update(load: _Load, training: TrainingSettings) -> float:
    """Return an update's rows relative to the batch that is timed."""
    return training.per_device_train_batch_size * training.gradient_accumulation_steps / _batch_rows(load)


def _activation_bytes(load: _Load, model: PreTrainedModel, training: TrainingSettings | None = None) -> int:
    """Return float32 activations kept for a backward pass on the longest batch (arXiv 2205.05198, equation 1).

    The logits count twice: they have a gradient. With gradient checkpointing, a layer's input is kept and one layer
    at a time is computed again.
    """
    config = model.config
    rows = _batch_rows(load) if training is None else training.per_device_train_batch_size
    per_token = config.hidden_size * 2 * 34 + 2 * 5 * config.num_attention_heads * load.longest
    per_token *= config.num_hidden_layers
    if training is not None and training.gradient_checkpointing:
        per_token = per_token // config.num_hidden_layers + 4 * config.hidden_size * config.num_hidden_layers
    num_logits = _task(load.settings).num_logits(rows, rows * load.longest, config.vocab_size)
    return int(rows * load.longest * per_token) + 2 * 4 * num_logits


def _batch_rows(load: _Load) -> int:
    return load.settings.distillation.training.per_device_train_batch_size


def _kept_bytes(load: _Load, layers: int) -> int:
    rows = load.labelled + load.unlabelled
    tokens, config = math.ceil(rows * load.tokens_per_row), load.teacher.config
    num_logits = _task(load.settings).num_logits(rows, tokens, config.vocab_size)
    return store_bytes(num_logits, tokens, layers, config.hidden_size)


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


class _Seconds(NamedTuple):
    """Seconds of a training step and of a forward pass; NaN where the model is too large to be tried."""

    step: float
    forward: float


def _seconds(load: _Load, model: PreTrainedModel) -> _Seconds:
    """Time a model on a batch of usual length."""
    if model.num_parameters() > LARGEST_TIMED:
        return _Seconds(math.nan, math.nan)
    device = _device()
    move(model, device)
    shape = (_batch_rows(load), round(load.tokens_per_row))
    input_ids = torch.randint(model.config.vocab_size, shape, device=device)
    optimizer = torch.optim.AdamW(model.parameters())
    steps = [_timed_step(model, input_ids, optimizer) for _ in range(TIMED_STEPS)]
    with torch.inference_mode():
        passes = [_timed(lambda: logits_of(model(input_ids=input_ids)).sum().item()) for _ in range(TIMED_STEPS)]
    return _Seconds(min(steps), min(passes))


def _filter_seconds(load: _Load, filters: TaskAwareFilters, heads: nn.ModuleList) -> float:
    """Return the seconds of a training step of filters and their heads on states of a batch of usual length."""
    device, shape = _device(), (_batch_rows(load), round(load.tokens_per_row))
    move(filters, device)
    move(heads, device)
    state_BLD, mask_BL = torch.randn(*shape, filters.input_dim, device=device), torch.ones(shape, device=device)
    parameters = [parameter for part in (filters, heads) for parameter in part.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters)

    def step() -> None:
        optimizer.zero_grad()
        for head, filtered_BLF in zip(heads, filters.filter_states([state_BLD] * len(heads)), strict=True):
            torch.autograd.backward(head(filtered_BLF, mask_BL).square().mean())
        optimizer.step()

    return min(_timed(step) for _ in range(TIMED_STEPS))


def _timed_step(model: PreTrainedModel, input_ids: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(logits_of(model(input_ids=input_ids)).square().mean())
        optimizer.step()

    return _timed(step)


def _timed(action: Any) -> float:  # noqa: ANN401 - any callable without arguments
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
