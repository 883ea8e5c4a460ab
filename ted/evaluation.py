"""Every model of a run on the test split: quality, slices, agreement, size and time, and how sure the differences are.

Letters in names: N rows of the split, C model outputs.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from datasets import Dataset, load_from_disk
from scipy.stats import bootstrap
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ted.config import EvaluationSettings, Settings
from ted.data.collecting import Collector
from ted.data.preparation import Batch, Collator, collator, forward_batches, to_device, tokenize
from ted.errors import ModelError, SettingsError
from ted.files import atomic_folder, write_json
from ted.models.frozen import run_model
from ted.models.loading import check_length, check_same_tokenizer, head_of, load_trained
from ted.tasks import Task, get_task, labels_of
from ted.tasks.base import Outputs

Mask = npt.NDArray[np.bool_]
ExtraMetrics = Mapping[str, evaluate.EvaluationModule]

NO_INPUTS = {"labels", "index"}
LENGTH_GROUPS = 4
# A correlation of fewer rows does not exist.
MIN_ROWS_OF_A_VALUE = 2
# Resamples held in memory at once.
BOOTSTRAP_BATCH = 100


@dataclass(frozen=True)
class Subject:
    """A model under test, with the features of the test split as its tokenizer makes them."""

    name: str
    folder: Path
    size_bytes: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    features: Dataset
    collate: Collator

    def batch(self, indices: npt.NDArray[np.integer]) -> Batch:
        """Return the model inputs, each (B, L), of some features, on the model's device."""
        batch = self.collate([self.features[int(index)] for index in indices])
        return {name: tensor.to(self.model.device) for name, tensor in batch.items() if name not in NO_INPUTS}


@dataclass(frozen=True)
class Slice:
    """Some rows of the test split."""

    title: str
    rows_N: Mask


def evaluate_models(settings: Settings, data: Path, models: Mapping[str, Path], out: Path) -> dict[str, Any]:
    """Measure models on the test split and write `evaluation.json` and `predictions.parquet`.

    Latencies are medians of passes in which the models take turns, so that their ratios hold on a busy machine.
    Confidence intervals come from a paired bootstrap over the rows (Efron and Tibshirani, 1993, percentile method).

    Args:
        settings: sections `task`, `data`, `evaluation`, `export` (its name) and the seed are used.
        data: folder of validated data.
        models: folder of each model by name; `teacher` is required, `student` is compared with every other one.
        out: folder that is written.

    Returns:
        The content of `evaluation.json`: per model quality, slices, agreement with the teacher (share of equal classes,
        or Pearson correlation), parameters, `size_bytes`, `latency_ms` per batch size and ratios to the teacher.

    Raises:
        ModelError: there is no teacher, or a model does not fit the labels, has no weights or answers no finite number.
        SettingsError: an extra metric cannot be loaded or does not give numbers.
    """
    extra = _load_metrics(settings.evaluation.extra_metrics)
    if "teacher" not in models:
        raise ModelError(
            f"models to evaluate: {', '.join(models) or 'none'}; name one of them teacher, to compare with"
        )
    dataset = load_from_disk(str(data))
    task, test = get_task(settings.task, labels_of(dataset)), dataset["test"]
    subjects = [_subject(name, folder, test, task, settings) for name, folder in models.items()]
    _check_tokens(subjects, task, settings.export.name)
    batch_size = settings.evaluation.batch_size or task.forward_rows
    outputs = {subject.name: _outputs(subject, task, test, batch_size) for subject in subjects}
    answers = Answers(task, test, task.references(test), outputs)
    evaluation = {
        "task": task.kind,
        "labels": list(task.label_names),
        "primary_metric": task.primary_metric,
        "higher_is_better": task.higher_is_better,
        "quality_name": task.quality_name,
        "rows": len(test),
        "confidence": settings.evaluation.confidence,
        "slice_titles": {name: part.title for name, part in answers.slices().items()},
        "models": _measured(subjects, answers, settings.evaluation, extra),
        "comparisons": answers.comparisons("student", settings.evaluation, settings.seed),
    }
    with atomic_folder(out) as folder:
        write_json(folder / "evaluation.json", evaluation)
        answers.table().to_parquet(folder / "predictions.parquet", index=False)
    return evaluation


@dataclass(frozen=True)
class Answers:
    """What every model answered on the test split."""

    task: Task
    test: Dataset
    references_N: npt.NDArray[Any]
    outputs: Mapping[str, Outputs]

    def metrics(self, name: str) -> dict[str, float]:
        """Return every metric of the task."""
        return self.task.metrics(self.outputs[name], self.references_N)

    def extra_metrics(self, name: str, metrics: ExtraMetrics) -> dict[str, float]:
        """Return loaded metrics by location, each named by its location's last part and its own name.

        Raises:
            SettingsError: the task has no answers to compare, or a metric gives something else than numbers.
        """
        if not metrics:
            return {}
        predictions = self.task.predictions(self.outputs[name])
        if predictions is None:
            raise SettingsError(f"evaluation.extra_metrics cannot act: {self.task.kind} gives no answers; remove it")
        values = {}
        for location, metric in metrics.items():
            try:
                result = metric.compute(predictions=predictions.tolist(), references=self.references_N.tolist())
            except (ValueError, TypeError, KeyError) as error:
                raise SettingsError(
                    f"evaluation.extra_metrics: {location} cannot read the answers to {self.task.kind} "
                    f"({' '.join(str(error).split())}); name another metric, or remove it"
                ) from error
            for key, value in result.items():
                if np.ndim(value) or not np.isfinite(value):
                    raise SettingsError(
                        f"evaluation.extra_metrics: {location} gives {key} = {value!r} on {name}, which is "
                        f"not a finite number; name a metric of whole answers, or remove it"
                    )
                values[f"{Path(location).stem}.{key}"] = float(value)
        return values

    def label_rows(self, name: str) -> list[dict[str, Any]]:
        """Return the figures of each label."""
        return self.task.label_rows(self.outputs[name], self.references_N)

    def agreement(self, name: str) -> float | None:
        """Return the primary metric with the teacher's answers in place of the labels; None where it has none."""
        theirs = self.task.predictions(self.outputs["teacher"])
        return None if theirs is None else self.task.primary(self.task.scores(self.outputs[name], theirs))

    def slices(self) -> dict[str, Slice]:
        """Return quartiles of the text length, files of the split, and what the task adds; without empty ones."""
        parts = {**self._lengths(), **self._sources()}
        parts |= {name: Slice(title, rows_N) for name, (title, rows_N) in self.task.slices(self.references_N).items()}
        return {name: part for name, part in parts.items() if part.rows_N.any()}

    def _lengths(self) -> dict[str, Slice]:
        texts = zip(*(self.test[column] for column in self._texts()), strict=True)
        lengths_N = np.asarray([sum(map(len, parts)) for parts in texts])
        edges = np.quantile(lengths_N, np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS)
        groups_N = np.searchsorted(edges, lengths_N)
        found = {}
        for group in np.unique(groups_N):
            inside_N = groups_N == group
            shortest, longest = lengths_N[inside_N].min(), lengths_N[inside_N].max()
            found[f"length_q{group + 1}"] = Slice(f"{shortest:,} to {longest:,} characters", inside_N)
        return found

    def _sources(self) -> dict[str, Slice]:
        sources_N = np.asarray(self.test["source"])
        names = np.unique(sources_N)
        return {f"source={name}": Slice(f"from {name}", sources_N == name) for name in names} if len(names) > 1 else {}

    def on_slices(self, name: str) -> dict[str, dict[str, Any]]:
        """Return rows and primary metric per slice; the metric is None where too few rows give one."""
        scores_NK = self._scores(name)
        values: dict[str, dict[str, Any]] = {}
        for title, part in self.slices().items():
            rows = int(part.rows_N.sum())
            primary = self.task.primary(scores_NK[part.rows_N]) if rows >= MIN_ROWS_OF_A_VALUE else None
            values[title] = {"rows": rows, "primary": primary}
        return values

    def comparisons(self, subject: str, settings: EvaluationSettings, seed: int) -> dict[str, dict[str, float]]:
        """Return the difference in the primary metric to each other model, with a bootstrap interval."""
        others = [name for name in self.outputs if name != subject] if subject in self.outputs else []
        return {f"{subject}_vs_{other}": self._compare(subject, other, settings, seed) for other in others}

    def _compare(self, subject: str, other: str, settings: EvaluationSettings, seed: int) -> dict[str, float]:
        ours_NK, theirs_NK = self._scores(subject), self._scores(other)

        def difference(rows: npt.NDArray[np.integer]) -> float:
            return self.task.primary(ours_NK[rows]) - self.task.primary(theirs_NK[rows])

        everything = np.arange(len(self.test))
        interval = bootstrap(
            (everything,),
            difference,
            n_resamples=settings.bootstrap_samples,
            batch=BOOTSTRAP_BATCH,
            vectorized=False,
            confidence_level=settings.confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        return {"difference": difference(everything), "low": float(interval.low), "high": float(interval.high)}

    def table(self) -> pd.DataFrame:
        """Return a row per text: where it comes from, label, each model's answer, how good and how sure it was."""
        columns: dict[str, Any] = {name: self.test[name][:] for name in ("row", *self._texts())}
        if self.task.has_labels:
            columns["label"] = self.task.named(self.references_N)
        for name, outputs in self.outputs.items():
            predictions, confidences_N = self.task.predictions(outputs), self.task.confidences(outputs)
            if predictions is not None:
                columns[f"{name}_prediction"] = self.task.named(predictions)
            if confidences_N is not None:
                columns[f"{name}_probability"] = confidences_N
            columns[f"{name}_quality"] = self.task.row_quality(outputs, self.references_N)
        return pd.DataFrame(columns)

    def _texts(self) -> list[str]:
        return [name for name in ("text", "text_pair") if name in self.test.column_names]

    def _scores(self, name: str) -> npt.NDArray[np.floating]:
        return self.task.scores(self.outputs[name], self.references_N)


def _subject(name: str, folder: Path, test: Dataset, task: Task, settings: Settings) -> Subject:
    """Load a model and refuse one whose outputs do not mean the labels of the data."""
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{name} in {folder} has no *.safetensors file; save the model as safetensors")
    model, tokenizer = load_trained(folder)
    _check_answers(f"{name} in {folder}" if name != "champion" else None, model, task, settings.export.name)
    check_length(model.config, settings.data.max_length, _place(name, folder, settings.export.name))
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.to(device)  # type: ignore[arg-type] # transformers wraps the method without its types
    features = tokenize(test, tokenizer, task, settings.data)
    size = sum(file.stat().st_size for file in weights)
    return Subject(name, folder, size, model, tokenizer, features, collator(tokenizer, task))


def _check_tokens(subjects: Sequence[Subject], task: Task, name: str) -> None:
    """Refuse figures per token of models that cut texts into other tokens; `name` is that of the champion."""
    if task.has_labels:
        return
    teacher = next(subject for subject in subjects if subject.name == "teacher")
    for subject in subjects:
        try:
            check_same_tokenizer(teacher.tokenizer, subject.tokenizer)
        except ModelError as error:
            place = _place(subject.name, subject.folder, name)
            champion = subject.name == "champion"
            remedy = _other_name(name) if champion else "train it with the teacher's tokenizer"
            raise ModelError(
                f"the {task.primary_metric} of {place} is one of other tokens than the teacher's, so they cannot be "
                f"compared; {remedy} ({error})"
            ) from error


def _place(name: str, folder: Path, champion: str) -> str:
    """Return where a model lies, for messages; the folder of the champion, whose name is given, is a temporary one."""
    return _in_production(champion) if name == "champion" else f"{name} in {folder}"


def _in_production(name: str) -> str:
    return f"the model in production under the name {name}"


def _other_name(name: str) -> str:
    return (
        f"give export.name another name, or archive that version: zenml model version update {name} production "
        "--stage archived --force"
    )


def _check_answers(place: str | None, model: PreTrainedModel, task: Task, name: str) -> None:
    """Refuse a model that answers something else than the data; without a place, it is the champion of a name."""
    head, labels = head_of(model.config), list(dict(sorted((model.config.id2label or {}).items())).values())
    wanted = task.output_labels
    theirs, ours = _answered(head, labels), _answered(task.auto_class, list(wanted or ()))
    same = head == task.auto_class and (wanted is None or labels == list(wanted) or len(labels) == len(wanted) == 1)
    if same:
        return
    if place is None:
        raise ModelError(
            f"{_in_production(name)} answers with {theirs}, the run with {ours}, so they cannot be compared; "
            f"{_other_name(name)}"
        )
    if head != task.auto_class:
        raise ModelError(f"{place} has the head of {head}, the task that of {task.auto_class}; train it on this data")
    if len(labels) != len(wanted or ()):
        raise ModelError(f"{place} has {len(labels)} outputs, the task {len(wanted or ())}; train it on this data")
    raise ModelError(
        f"{place} answers with the labels {labels}, the data has {list(wanted or ())}; the same labels in the same "
        "order are needed: train it on this data, or set task.labels to its order"
    )


def _answered(head: str | None, labels: list[str]) -> str:
    """Return what a model with a head and names of its outputs answers with, for messages."""
    if head in {"AutoModelForSequenceClassification", "AutoModelForTokenClassification"}:
        return "one number" if len(labels) == 1 else str(labels)
    return str(head).removeprefix("AutoModelFor")


def _load_metrics(locations: tuple[str, ...]) -> ExtraMetrics:
    """Load the further metrics before anything is measured."""
    metrics = {}
    for location in locations:
        try:
            metrics[location] = evaluate.load(location)
        except (OSError, ImportError, TypeError, ValueError) as error:
            raise SettingsError(
                f"evaluation.extra_metrics: {location} cannot be loaded ({' '.join(str(error).split())}); "
                f"give the path or hub id of a metric of the evaluate library, or remove it"
            ) from error
    return metrics


def outputs_of(
    run: Callable[[Batch], Tensor], task: Task, rows: Dataset, features: Dataset, batches: Iterable[Batch]
) -> tuple[Outputs, int]:
    """Return what a model says of each row, and how many of its features have a logit that is not finite.

    Args:
        run: gives the logits of a batch.
        task: of the run.
        rows: of the split.
        features: of the rows.
        batches: every feature once, in any order.
    """
    collector = Collector(task, features, rows)
    for batch in batches:
        collector.add(run(batch), batch)
    return collector.outputs(), collector.broken


@torch.inference_mode()
def _outputs(subject: Subject, task: Task, test: Dataset, batch_size: int) -> Outputs:
    batches = forward_batches(subject.features, subject.collate, batch_size)
    outputs, broken = outputs_of(
        lambda batch: run_model(subject.model, batch, ()).logits, task, test, subject.features, to_device(batches)
    )
    if broken:
        raise ModelError(
            f"{subject.name} in {subject.folder} answers {broken} of {len(subject.features)} test rows with a value "
            f"that is not finite; train it again with a smaller learning rate"
        )
    return outputs


def _measured(
    subjects: list[Subject], answers: Answers, settings: EvaluationSettings, extra: ExtraMetrics
) -> dict[str, dict[str, Any]]:
    latencies = _latencies(subjects, settings, latency_batch_sizes(settings, answers.task))
    measured: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        name = subject.name
        metrics = {**answers.metrics(name), **answers.extra_metrics(name, extra)}
        ratios = {batch: value / latencies["teacher"][batch] for batch, value in latencies[name].items()}
        measured[name] = {
            "primary": metrics[answers.task.primary_metric],
            "metrics": metrics,
            "slices": answers.on_slices(name),
            "label_rows": answers.label_rows(name),
            "agreement": answers.agreement(name),
            "parameters": subject.model.num_parameters(),
            "size_bytes": subject.size_bytes,
            "latency_ms": latencies[name],
            "latency_ratio": ratios,
        }
    return measured


def latency_batch_sizes(settings: EvaluationSettings, task: Task) -> tuple[int, ...]:
    """Return the batch sizes at which latency is measured."""
    return settings.latency_batch_sizes or task.latency_batch_sizes


def _latencies(
    subjects: list[Subject], settings: EvaluationSettings, batch_sizes: Iterable[int]
) -> dict[str, dict[str, float]]:
    """Return milliseconds per model and batch size; the batch is spread evenly over the text lengths of the split."""
    found: dict[str, dict[str, float]] = {subject.name: {} for subject in subjects}
    for size in batch_sizes:
        batches = [(subject.model, _typical_batch(subject, size)) for subject in subjects]
        passes = [[_timed(*batch) for batch in batches] for _ in range(1 + settings.latency_repeats)]
        # The first pass of each model pays for memory and kernels that later ones find ready.
        for subject, median in zip(subjects, np.median(passes[1:], axis=0), strict=True):
            found[subject.name][str(size)] = float(median)
    return found


def _typical_batch(subject: Subject, size: int) -> Batch:
    by_length = np.argsort(subject.features["length"], kind="stable")
    spread = ((np.arange(size) + 0.5) * len(by_length) / size).astype(int)
    return subject.batch(by_length[spread])


@torch.inference_mode()
def _timed(model: PreTrainedModel, inputs: Batch) -> float:
    """Return the milliseconds of one pass."""
    start = time.perf_counter()
    model(**inputs)
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)
    return (time.perf_counter() - start) * 1000
