"""What a run will take in time, memory and disk, before it starts.

Row and token counts come from the data, parameter counts from the models' configurations. Seconds come from a few
training steps of untrained models of the same shape on this machine, so they hold for this machine only.
"""

import hashlib
import math
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from rich.table import Table
from transformers import PreTrainedModel

from ted.config import Settings
from ted.data.sources import load_dataset, select_rows
from ted.files import read_json, write_json
from ted.matching import layer_pairs, student_config, teacher_config
from ted.methods import METHODS
from ted.models.frozen import logits_of, move, store_bytes
from ted.models.loading import find_model, load_tokenizer
from ted.run_record import code_digest
from ted.stages import num_steps
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
        return f"teacher {teacher:.1f} M parameters, student {student:.1f} M; teacher outputs are {kept}"


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
    parts = (settings.model_dump_json(), stamps, code_digest(), torch.get_num_threads())
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
    settings = load.settings
    rows = load.labelled + load.unlabelled
    teacher_step, teacher_forward = _seconds(load, load.teacher)
    student_step, student_forward = _seconds(load, load.student)
    distilled = num_steps(settings.distillation.training, rows)
    teacher_pass = None if teacher_forward is None else teacher_forward * rows / _batch_rows(load)
    student_pass = None if student_forward is None else student_forward * rows / _batch_rows(load)
    live = 0 if kept_bytes else (teacher_forward or 0) * distilled
    finetuned = num_steps(settings.teacher.training, load.labelled) if settings.teacher.finetune else 0
    started = num_steps(settings.student.training, load.labelled) if settings.student.finetune else 0
    forecasts = [
        _trained(load, "finetune_teacher", load.teacher, finetuned, teacher_step, 0.0),
        _trained(load, "prepare_student", load.student, started, student_step, 0.0),
        _passed(load, "learn_teacher_filters", load.teacher, teacher_pass, kept_bytes),
        _trained(load, "distill_student", load.student, distilled, student_step, live + (student_pass or 0)),
    ]
    if settings.evaluation.control:
        forecasts.append(_trained(load, "finetune_control", load.student, distilled, student_step, 0.0))
    tested = 0.0
    for forward, count in ((teacher_forward, 1), (student_forward, 3)):
        tested += (forward or 0.0) * count * load.held_out / _batch_rows(load)
    forecasts.append(_passed(load, "evaluate_models", load.teacher, tested, 0))
    exported = int(BUNDLE_BYTES * load.student.num_parameters())
    forecasts.append(StageForecast("export_onnx", 0, EXPORT_SECONDS, LIBRARIES_MIB, exported // MIB))
    return forecasts


def _trained(
    load: _Load, step: str, model: PreTrainedModel, updates: int, seconds: float | None, extra: float
) -> StageForecast:
    parameters = model.num_parameters()
    memory = ADAMW_BYTES * parameters + _activation_bytes(load, model)
    if step == "distill_student":
        memory += 4 * load.teacher.num_parameters() + _activation_bytes(load, load.teacher) // 8
    disk = 4 * parameters + (2 * CHECKPOINT_BYTES * parameters if updates else 0)
    total = None if seconds is None else updates * seconds + extra
    return StageForecast(step, updates, total, LIBRARIES_MIB + memory // MIB, disk // MIB)


def _passed(load: _Load, step: str, model: PreTrainedModel, seconds: float | None, disk: int) -> StageForecast:
    memory = 4 * model.num_parameters() + _activation_bytes(load, model) // 8
    return StageForecast(step, 0, seconds, LIBRARIES_MIB + memory // MIB, disk // MIB)


def _activation_bytes(load: _Load, model: PreTrainedModel) -> int:
    """Return float32 activations kept for a backward pass on the longest batch (arXiv 2205.05198, equation 1).

    The logits count twice: they have a gradient.
    """
    config, rows = model.config, _batch_rows(load)
    per_token = config.hidden_size * 2 * 34 + 2 * 5 * config.num_attention_heads * load.longest
    num_logits = _task(load.settings).num_logits(rows, rows * load.longest, config.vocab_size)
    return int(rows * load.longest * config.num_hidden_layers * per_token) + 2 * 4 * num_logits


def _batch_rows(load: _Load) -> int:
    return load.settings.distillation.training.per_device_train_batch_size


def _kept_bytes(load: _Load, layers: int) -> int:
    rows = load.labelled + load.unlabelled
    tokens, config = math.ceil(rows * load.tokens_per_row), load.teacher.config
    num_logits = _task(load.settings).num_logits(rows, tokens, config.vocab_size)
    return store_bytes(num_logits, tokens, layers, config.hidden_size)


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _seconds(load: _Load, model: PreTrainedModel) -> tuple[float | None, float | None]:
    """Return the seconds of a training step and of a forward pass on a batch of usual length."""
    if model.num_parameters() > LARGEST_TIMED:
        return None, None
    device = _device()
    move(model, device)
    shape = (_batch_rows(load), round(load.tokens_per_row))
    input_ids = torch.randint(model.config.vocab_size, shape, device=device)
    optimizer = torch.optim.AdamW(model.parameters())
    steps = [_timed_step(model, input_ids, optimizer) for _ in range(TIMED_STEPS)]
    with torch.inference_mode():
        passes = [_timed(lambda: logits_of(model(input_ids=input_ids)).sum().item()) for _ in range(TIMED_STEPS)]
    return min(steps), min(passes)


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
