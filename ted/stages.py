"""The stages of a run. Each reads folders, trains or builds one thing, and writes one folder in one piece.

A stage that is killed and called again with the same inputs goes on from its last checkpoint and ends with the same
weights. With a store, it may be called on another machine.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import set_seed

from ted import checkpoints
from ted.checkpoints import CheckpointStore
from ted.config import Settings, TrainingSettings
from ted.data.collecting import Collector
from ted.data.preparation import Batch, Collator, collator, forward_batches, to_device, tokenize, training_features
from ted.data.sources import dataset_fingerprint
from ted.distillation import MATCH_ROWS, Side, Sides, layer_errors, layer_match, new_filters, teacher_outputs
from ted.files import atomic_folder, sha256_file, write_json
from ted.filters import TaskAwareFilters, initialise
from ted.matching import student_config, student_layers
from ted.methods import METHODS
from ted.models.frozen import FrozenModel, OutputSource
from ted.models.loading import (
    LoadedModel,
    check_config,
    find_model,
    load_config,
    load_pretrained,
    load_trained,
    quiet_transformers,
    set_attention,
    shared_tokenizer,
)
from ted.models.student import build_student, new_student
from ted.objectives import FilterObjective, TaskObjective
from ted.run_record import code_digest, run_record
from ted.tasks import Task, get_task, labels_of
from ted.training import TrainingRun, train

Metrics = dict[str, Any]
UNTRAINED: Metrics = {"log_history": [], "steps": 0, "seconds": 0.0, "resumed_from": 0}


@dataclass(frozen=True)
class DistillationInputs:
    """The folders that stage II reads."""

    data: Path
    teacher: Path
    teacher_filters: Path
    student: Path
    student_filters: Path


@dataclass(frozen=True)
class StageData:
    """Validated data, its task, what names its contents, and where checkpoints of trainings on it are copied to."""

    dataset: DatasetDict
    task: Task
    fingerprint: str
    store: CheckpointStore | None = None


def load_stage_data(settings: Settings, folder: Path, store: CheckpointStore | None = None) -> StageData:
    """Return the validated data of a folder."""
    dataset = DatasetDict.load_from_disk(str(folder))
    return StageData(dataset, get_task(settings.task, labels_of(dataset)), dataset_fingerprint(dataset), store)


def finetune_teacher(settings: Settings, data: Path, out: Path, store: CheckpointStore | None = None) -> Metrics:
    """Fine-tune the teacher on the labelled rows and write it; without `teacher.finetune`, write it as it is.

    Raises:
        ModelError: the model cannot be loaded or does not fit the task.
        NonFiniteError: training diverged.
    """
    stage = load_stage_data(settings, data, store)
    options = settings.teacher
    loaded = load_teacher(settings, stage.task, fresh_head=options.finetune, attention=options.attn_implementation)
    if settings.teacher.finetune:
        return _finetune("teacher", settings, settings.teacher.training, stage, loaded, out)
    metrics = dict(UNTRAINED)
    _write_model(out, loaded, metrics, run_record(settings, stage.fingerprint))
    return metrics


def prepare_student(settings: Settings, data: Path, out: Path, store: CheckpointStore | None = None) -> Metrics:
    """Build or load the student, fine-tune it on the labelled rows and write it: the start of every method.

    Without `student.finetune` it is written as it was built or loaded.

    Raises:
        ModelError: the student cannot be built, or does not share the teacher's tokenizer.
        NonFiniteError: training diverged.
    """
    stage = load_stage_data(settings, data, store)
    loaded = _new_start(settings, stage.task)
    if settings.student.finetune:
        return _finetune("student start", settings, settings.student.training, stage, loaded, out)
    metrics = dict(UNTRAINED)
    _write_model(out, loaded, metrics, run_record(settings, stage.fingerprint))
    return metrics


def _new_start(settings: Settings, task: Task) -> LoadedModel:
    """Return the student before any training: a model of its own, one with new weights, or layers of the teacher."""
    options = settings.student
    teacher = load_teacher(settings, task)
    config = student_config(settings, teacher.model.config)
    set_seed(settings.seed)
    if options.model is not None:
        loaded = load_pretrained(
            find_model(options.model), task, attention=options.attn_implementation, dropout=options.dropout
        )
        shared_tokenizer(teacher, loaded)
        return loaded
    if options.config is not None:
        student = new_student(teacher.model, config)
    else:
        student = build_student(teacher.model, student_layers(settings, teacher.model.config.num_hidden_layers))
    set_attention(student, options.attn_implementation)
    return LoadedModel(student, teacher.tokenizer)


def train_control(
    settings: Settings, data: Path, student: Path, out: Path, store: CheckpointStore | None = None
) -> Metrics:
    """Train the student start on for as many steps as distillation takes, on labels alone, and write it.

    Raises:
        NonFiniteError: training diverged.
    """
    stage = load_stage_data(settings, data, store)
    training = settings.distillation.training
    loaded = load_trained(student, attention=settings.student.attn_implementation)
    features, _ = training_features(stage.dataset, loaded.tokenizer, stage.task, settings.data)
    training = training.model_copy(update={"max_steps": num_steps(training, len(features))})
    return _finetune("control", settings, training, stage, loaded, out)


def learn_filters(
    settings: Settings, data: Path, model: Path, side: Side, out: Path, store: CheckpointStore | None = None
) -> Metrics:
    """Stage I: learn one side's filters on its frozen model and write them.

    What the method does not learn in stage I is written as it starts: identity or random filters of the teacher, and
    student filters that stage II aligns.

    Raises:
        ModelError: layers cannot be matched.
        NonFiniteError: training diverged.
    """
    stage = load_stage_data(settings, data, store)
    filters = new_filters(settings, load_config(find_model(str(model))).hidden_size, side)
    metrics: Metrics = {**UNTRAINED, "probes": {}}
    if filters is not None and learned_in_stage_one(settings, side):
        metrics = _learn(settings, stage, model, side, filters)
    with atomic_folder(out) as folder:
        if filters is not None:
            filters.save(folder)
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "run_record.json", run_record(settings, stage.fingerprint))
    return metrics


def distill_student(
    settings: Settings, inputs: DistillationInputs, out: Path, store: CheckpointStore | None = None
) -> Metrics:
    """Stage II: train the student start with the method's loss and write it. Filters are left behind.

    Raises:
        ModelError: teacher and student see different inputs, or their filters do not match.
        NonFiniteError: training diverged.
    """
    stage = load_stage_data(settings, inputs.data, store)
    teacher, student = _load_side(settings, inputs.teacher, "teacher"), _load_side(settings, inputs.student, "student")
    tokenizer = shared_tokenizer(teacher, student)
    collate = collator(tokenizer, stage.task)
    rows, _ = training_features(stage.dataset, tokenizer, stage.task, settings.data)
    sides = Sides.load(settings, student.model, inputs.teacher_filters, inputs.student_filters)
    source: OutputSource | None = None
    passes = forward_batches(rows, collate, stage.task.forward_rows)
    if METHODS[settings.method].uses_teacher:
        frozen = FrozenModel(teacher.model, sides.teacher_layers)
        source = teacher_outputs(settings, stage.task, inputs.teacher, frozen, rows, passes)
    start_rows = _first(stage.task, rows, collate, settings.distillation.alignment_rows)
    objective = sides.objective(settings, stage.task, source, start_rows)
    probe = _first(stage.task, rows, collate, min(MATCH_ROWS, settings.distillation.alignment_rows))
    before = layer_errors(objective, probe)
    folders = ("teacher", "teacher_filters", "student", "student_filters")
    origin = {name: _weights_digest(getattr(inputs, name)) for name in folders}
    run = _training_run("distillation", settings, settings.distillation.training, stage, origin)
    metrics = train(run, objective, rows, collate)
    metrics["layer_match"] = layer_match(sides, before, layer_errors(objective, probe))
    _write_model(out, student, metrics, run_record(settings, stage.fingerprint))
    checkpoints.remove(run.checkpoints, run.store)
    return metrics


def load_teacher(
    settings: Settings, task: Task, *, fresh_head: bool = True, attention: str | None = None
) -> LoadedModel:
    """Return the pre-trained teacher; a fresh head depends on the seed alone."""
    teacher = settings.teacher
    source = find_model(teacher.model, teacher.revision)
    check_config(load_config(source), task.auto_class, settings.data.max_length, teacher.model)
    set_seed(settings.seed)
    return load_pretrained(source, task, fresh_head=fresh_head, attention=attention, dropout=teacher.dropout)


def _load_side(settings: Settings, folder: Path, side: Side) -> LoadedModel:
    """Return the model that one side's filters read: the teacher frozen in its own precision, or the student."""
    if side == "student":
        return load_trained(folder, attention=settings.student.attn_implementation)
    options = settings.teacher
    return load_trained(folder, attention=options.attn_implementation, dtype=getattr(torch, options.dtype))


def num_steps(training: TrainingSettings, num_rows: int) -> int:
    """Return the optimiser updates of a training on so many rows."""
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(num_rows / training.per_device_train_batch_size)
    return math.ceil(training.num_train_epochs * math.ceil(batches / training.gradient_accumulation_steps))


def learned_in_stage_one(settings: Settings, side: Side) -> bool:
    """Return whether stage I learns the filters of a side, rather than leaving them as they start."""
    if METHODS[settings.method].teacher_filters != "learned":
        return False
    return side == "teacher" or settings.distillation.student_filter_init == "stage_one"


def _finetune(
    name: str, settings: Settings, training: TrainingSettings, stage: StageData, loaded: LoadedModel, out: Path
) -> Metrics:
    """Train a whole model on the labelled rows and write it."""
    train_rows, task = stage.dataset["train"], stage.task
    rows = tokenize(train_rows, loaded.tokenizer, task, settings.data, encode=task.encode_training)
    run = _training_run(name, settings, training, stage, {"start": _state_digest(loaded.model)})
    metrics = train(run, TaskObjective(loaded.model, task), rows, collator(loaded.tokenizer, task))
    _write_model(out, loaded, metrics, run_record(settings, stage.fingerprint))
    checkpoints.remove(run.checkpoints, run.store)
    return metrics


def _learn(settings: Settings, stage: StageData, folder: Path, side: Side, filters: TaskAwareFilters) -> Metrics:
    """Run stage I for one side, in place."""
    loaded = _load_side(settings, folder, side)
    options = settings.filters
    heads = stage.task.filter_heads(len(filters.layers), filters.output_dim, options, loaded.model)
    initialise(heads, options.init_std, torch.Generator().manual_seed(settings.seed))
    frozen = FrozenModel(loaded.model, filters.layers, dropout=options.backbone_dropout)
    collate = collator(loaded.tokenizer, stage.task)
    rows, num_labelled = training_features(stage.dataset, loaded.tokenizer, stage.task, settings.data)
    source: OutputSource = frozen
    if side == "teacher" and not options.backbone_dropout:
        passes = forward_batches(rows, collate, stage.task.forward_rows)
        source = teacher_outputs(settings, stage.task, folder, frozen, rows, passes)
    labelled = rows.select(range(num_labelled))
    objective = FilterObjective(filters, heads, source, stage.task)
    objective.mask_padding = settings.distillation.mask_padding
    run = _training_run(
        f"{side} filters", settings, options.training_of(side), stage, {"model": _weights_digest(folder)}
    )
    metrics = train(run, objective, labelled, collate)
    metrics["probes"] = _probe(settings, stage, loaded, objective)
    checkpoints.remove(run.checkpoints, run.store)
    return metrics


@torch.no_grad()
def _probe(settings: Settings, stage: StageData, loaded: LoadedModel, objective: FilterObjective) -> Metrics:
    """Return the primary metric of each filter's head on the validation split, by layer."""
    rows = stage.dataset["validation"]
    features = tokenize(rows, loaded.tokenizer, stage.task, settings.data)
    objective.backbone = FrozenModel(loaded.model, objective.filters.layers)
    objective.eval()
    collected = [Collector(stage.task, features, rows) for _ in objective.filters.layers]
    batches = forward_batches(features, collator(loaded.tokenizer, stage.task), stage.task.forward_rows)
    for batch in to_device(batches):
        for collector, logits in zip(collected, objective.head_logits(batch), strict=True):
            collector.add(logits, batch)
    references_N = stage.task.references(rows)
    scores = [stage.task.scores(collector.outputs(), references_N) for collector in collected]
    layers = zip(objective.filters.layers, scores, strict=True)
    return {str(layer): stage.task.primary(scores_NK) for layer, scores_NK in layers}


def _training_run(
    name: str, settings: Settings, training: TrainingSettings, stage: StageData, origin: Mapping[str, Any]
) -> TrainingRun:
    """Return a run whose checkpoint folder is named after everything that its weights depend on."""
    identity = {
        "name": name,
        "settings": settings.model_dump(mode="json", exclude={"run"}),
        "training": training.model_dump(mode="json"),
        "data": stage.fingerprint,
        "origin": dict(origin),
        "code": code_digest(),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(settings.run.output_dir) / "checkpoints" / f"{name.replace(' ', '-')}-{key}"
    return TrainingRun(name, training, settings.seed, folder, settings.data.group_by_length, stage.store)


def _first(task: Task, rows: Dataset, collate: Collator, count: int) -> Iterable[Batch]:
    return forward_batches(rows.select(range(min(count, len(rows)))), collate, task.forward_rows)


def _state_digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _weights_digest(folder: Path) -> str:
    digests = [sha256_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


@quiet_transformers()
def _write_model(out: Path, loaded: LoadedModel, metrics: Metrics, record: Metrics) -> None:
    with atomic_folder(out) as folder:
        loaded.model.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "run_record.json", record)
