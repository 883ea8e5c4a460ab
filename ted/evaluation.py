"""Every model of a run on the test split: quality, slices, agreement, size and time, and how sure the differences are.

Letters in names: N rows of the split, C model outputs.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from datasets import Dataset, load_from_disk
from scipy.special import log_softmax
from scipy.stats import bootstrap
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ted.config import EvaluationSettings, Settings
from ted.data.preparation import Batch, Collator, collator, tokenize
from ted.errors import ModelError, SettingsError
from ted.files import atomic_folder, write_json
from ted.models.loading import load_trained
from ted.tasks import Task, get_task, labels_of

Logits = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
ExtraMetrics = Mapping[str, evaluate.EvaluationModule]

LENGTH_GROUPS = 4
# A correlation of fewer rows does not exist.
MIN_ROWS_OF_A_VALUE = 2
# Resamples held in memory at once.
BOOTSTRAP_BATCH = 100


@dataclass(frozen=True)
class Subject:
    """A model under test, with the test split as its tokenizer sees it."""

    name: str
    folder: Path
    size_bytes: int
    model: PreTrainedModel
    rows: Dataset
    collate: Collator

    def batches(self, indices: npt.NDArray[np.integer], batch_size: int) -> Iterator[tuple[Batch, Tensor]]:
        """Yield model inputs, each (B, L), and the places (B) of their rows, on the model's device."""
        for batch in DataLoader(self.rows.select(indices), batch_size, collate_fn=self.collate):
            places, _ = batch.pop("index"), batch.pop("labels")
            yield {name: tensor.to(self.model.device) for name, tensor in batch.items()}, places


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
    logits = {subject.name: _logits(subject, settings.evaluation.batch_size) for subject in subjects}
    answers = Answers(task, test, np.asarray(test["label"]), logits)
    evaluation = {
        "task": task.kind,
        "labels": list(task.label_names),
        "primary_metric": task.primary_metric,
        "higher_is_better": task.higher_is_better,
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
    labels_N: npt.NDArray[np.generic]
    logits: Mapping[str, Logits]

    def metrics(self, name: str) -> dict[str, float]:
        """Return every metric of the task, for a classification also the mean negative log-likelihood of the label."""
        logits_NC = self.logits[name]
        values = self.task.metrics(logits_NC, self.labels_N)
        if not self.task.label_names:
            return values
        likelihood_N = log_softmax(logits_NC.astype(np.float64), axis=-1)[np.arange(len(logits_NC)), self.labels_N]
        return {**values, "negative_log_likelihood": -float(likelihood_N.mean())}

    def extra_metrics(self, name: str, metrics: ExtraMetrics) -> dict[str, float]:
        """Return loaded metrics by location, each named by its location's last part and its own name.

        Raises:
            SettingsError: a metric gives something else than numbers.
        """
        predictions = self.task.predictions(self.logits[name]).tolist()
        values = {}
        for location, metric in metrics.items():
            result = metric.compute(predictions=predictions, references=self.labels_N.tolist())
            for key, value in result.items():
                if np.ndim(value) or not np.isfinite(value):
                    raise SettingsError(
                        f"evaluation.extra_metrics: {location} gives {key} = {value!r} on {name}, which is "
                        f"not a finite number; name a metric of whole answers, or remove it"
                    )
                values[f"{Path(location).stem}.{key}"] = float(value)
        return values

    def agreement(self, name: str) -> float:
        """Return the primary metric with the teacher's answers in place of the labels."""
        return self.task.primary(self.logits[name], self.task.predictions(self.logits["teacher"]))

    def slices(self) -> dict[str, Slice]:
        """Return quartiles of the text length and, for a classification, the classes; without empty ones.

        A regression has no slices by label: a correlation within a band of targets measures the band.
        """
        texts = zip(*(self.test[column] for column in self._texts()), strict=True)
        lengths_N = np.asarray([sum(map(len, parts)) for parts in texts])
        edges = np.quantile(lengths_N, np.arange(1, LENGTH_GROUPS) / LENGTH_GROUPS)
        groups_N = np.searchsorted(edges, lengths_N)
        found = {}
        for group in np.unique(groups_N):
            inside_N = groups_N == group
            shortest, longest = lengths_N[inside_N].min(), lengths_N[inside_N].max()
            found[f"length_q{group + 1}"] = Slice(f"{shortest:,} to {longest:,} characters", inside_N)
        for index, label in enumerate(self.task.label_names):
            found[f"label={label}"] = Slice(f"label {label}", self.labels_N == index)
        return {name: part for name, part in found.items() if part.rows_N.any()}

    def on_slices(self, name: str) -> dict[str, dict[str, Any]]:
        """Return rows and primary metric per slice; the metric is None where too few rows give one."""
        values: dict[str, dict[str, Any]] = {}
        for title, part in self.slices().items():
            rows = int(part.rows_N.sum())
            primary = self.task.primary(self.logits[name][part.rows_N], self.labels_N[part.rows_N])
            values[title] = {"rows": rows, "primary": primary if rows >= MIN_ROWS_OF_A_VALUE else None}
        return values

    def comparisons(self, subject: str, settings: EvaluationSettings, seed: int) -> dict[str, dict[str, float]]:
        """Return the difference in the primary metric to each other model, with a bootstrap interval."""
        others = [name for name in self.logits if name != subject] if subject in self.logits else []
        return {f"{subject}_vs_{other}": self._compare(subject, other, settings, seed) for other in others}

    def _compare(self, subject: str, other: str, settings: EvaluationSettings, seed: int) -> dict[str, float]:
        def difference(rows: npt.NDArray[np.integer]) -> float:
            ours, theirs = (
                self.task.primary(self.logits[name][rows], self.labels_N[rows]) for name in (subject, other)
            )
            return ours - theirs

        everything = np.arange(len(self.labels_N))
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
        """Return a row per text: where it comes from, label, and each model's answer and how sure it was."""
        columns: dict[str, Any] = {name: self.test[name][:] for name in ("row", *self._texts())}
        columns["label"] = self._named(self.labels_N)
        for name, logits_NC in self.logits.items():
            columns[f"{name}_prediction"] = self._named(self.task.predictions(logits_NC))
            if self.task.label_names:
                columns[f"{name}_probability"] = np.exp(log_softmax(logits_NC.astype(np.float64), axis=-1)).max(-1)
        return pd.DataFrame(columns)

    def _texts(self) -> list[str]:
        return [name for name in ("text", "text_pair") if name in self.test.column_names]

    def _named(self, answers_N: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return np.asarray(self.task.label_names)[answers_N] if self.task.label_names else answers_N


def _subject(name: str, folder: Path, test: Dataset, task: Task, settings: Settings) -> Subject:
    """Load a model and refuse one whose outputs do not mean the labels of the data."""
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{name} in {folder} has no *.safetensors file; save the model as safetensors")
    model, tokenizer = load_trained(folder)
    _check_answers(f"{name} in {folder}" if name != "champion" else None, model, task, settings.export.name)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model.to(device)  # type: ignore[arg-type] # transformers wraps the method without its types
    rows = tokenize(test, tokenizer, settings.data.max_length)
    return Subject(name, folder, sum(file.stat().st_size for file in weights), model, rows, collator(tokenizer))


def _check_answers(place: str | None, model: PreTrainedModel, task: Task, name: str) -> None:
    """Refuse a model that answers something else than the data; without a place, it is the champion of a name."""
    outputs = int(model.config.num_labels or 0)
    theirs = list(dict(sorted((model.config.id2label or {}).items())).values())
    if outputs == task.num_outputs and theirs == list(task.label_names or theirs):
        return
    if place is None:
        raise ModelError(
            f"the model in production under the name {name} answers with {theirs if outputs > 1 else 'one number'}, "
            f"the run with {list(task.label_names) or 'one number'}, so they cannot be compared; give export.name "
            f"another name, or archive that version: zenml model version update {name} production --stage archived "
            f"--force"
        )
    if outputs != task.num_outputs:
        raise ModelError(f"{place} has {outputs} outputs, the task {task.num_outputs}; train it on this data")
    raise ModelError(
        f"{place} answers with the labels {theirs}, the data has {list(task.label_names)}; the same labels in the "
        f"same order are needed: train it on this data, or set task.labels to its order"
    )


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


@torch.inference_mode()
def _logits(subject: Subject, batch_size: int) -> Logits:
    """Return the outputs (N, C) in the order of the split; rows of similar length share a batch."""
    by_length = np.argsort(subject.rows["length"], kind="stable")
    parts = [(subject.model(**inputs).logits, places) for inputs, places in subject.batches(by_length, batch_size)]
    outputs_NC = torch.cat([outputs for outputs, _ in parts]).float().cpu().numpy()
    outputs_NC = outputs_NC[np.argsort(torch.cat([places for _, places in parts]).numpy())]
    broken = int((~np.isfinite(outputs_NC)).any(-1).sum())
    if broken:
        raise ModelError(
            f"{subject.name} in {subject.folder} answers {broken} of {len(outputs_NC)} test rows with a value that "
            f"is not finite; train it again with a smaller learning rate"
        )
    return outputs_NC


def _measured(
    subjects: list[Subject], answers: Answers, settings: EvaluationSettings, extra: ExtraMetrics
) -> dict[str, dict[str, Any]]:
    latencies = _latencies(subjects, settings)
    measured: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        name = subject.name
        metrics = {**answers.metrics(name), **answers.extra_metrics(name, extra)}
        ratios = {batch: value / latencies["teacher"][batch] for batch, value in latencies[name].items()}
        measured[name] = {
            "primary": metrics[answers.task.primary_metric],
            "metrics": metrics,
            "slices": answers.on_slices(name),
            "agreement": answers.agreement(name),
            "parameters": subject.model.num_parameters(),
            "size_bytes": subject.size_bytes,
            "latency_ms": latencies[name],
            "latency_ratio": ratios,
        }
    return measured


def _latencies(subjects: list[Subject], settings: EvaluationSettings) -> dict[str, dict[str, float]]:
    """Return milliseconds per model and batch size; the batch is spread evenly over the text lengths of the split."""
    found: dict[str, dict[str, float]] = {subject.name: {} for subject in subjects}
    for size in settings.latency_batch_sizes:
        batches = [(subject.model, _typical_batch(subject, size)) for subject in subjects]
        passes = [[_timed(*batch) for batch in batches] for _ in range(1 + settings.latency_repeats)]
        # The first pass of each model pays for memory and kernels that later ones find ready.
        for subject, median in zip(subjects, np.median(passes[1:], axis=0), strict=True):
            found[subject.name][str(size)] = float(median)
    return found


def _typical_batch(subject: Subject, size: int) -> Batch:
    by_length = np.argsort(subject.rows["length"], kind="stable")
    spread = ((np.arange(size) + 0.5) * len(by_length) / size).astype(int)
    (inputs, _), *_ = subject.batches(by_length[spread], size)
    return inputs


@torch.inference_mode()
def _timed(model: PreTrainedModel, inputs: Batch) -> float:
    """Return the milliseconds of one pass."""
    start = time.perf_counter()
    model(**inputs)
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)
    return (time.perf_counter() - start) * 1000
