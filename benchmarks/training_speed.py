"""Measure how fast stage II trains, with and without what makes it fast.

    python -m benchmarks.training_speed [--rounds 12]

The sample's teacher and 3-layer student take steps on the sample's texts in four ways: rows in random order padded to
one fixed length, padded to the longest of the batch, grouped by length, and grouped with the teacher's outputs kept.
The ways take turns step by step, so that they share whatever else the machine does; the figure of each is its median.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from benchmarks.results import write_result
from ted.config import Settings
from ted.data.preparation import Batch, Collator, collator, forward_batches, training_features
from ted.data.quality import validate
from ted.data.sources import load_dataset
from ted.distillation import Sides, new_filters
from ted.models.frozen import FrozenModel, OutputSource, keep_outputs
from ted.models.loading import LoadedModel
from ted.models.student import build_student
from ted.objectives import DistillationObjective
from ted.stages import load_teacher
from ted.tasks import get_task, labels_of

ROWS = 1024
BATCH_ROWS = 16
FIXED_LENGTH = 64


@dataclass(frozen=True)
class Way:
    """One way to train: its batches, and where the teacher's outputs come from."""

    batches: Sequence[Batch]
    source: OutputSource


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="steps per way; the first is not counted")
    rounds = parser.parse_args().rounds
    settings = Settings()
    dataset = load_dataset(settings.data, settings.task, settings.seed)
    dataset = validate(dataset, settings.data, settings.quality, settings.task).dataset
    task = get_task(settings.task, labels_of(dataset))
    teacher = load_teacher(settings, task)
    data = settings.data.model_copy(update={"max_length": FIXED_LENGTH})
    rows = training_features(dataset, teacher.tokenizer, task, data)[0].select(range(ROWS))
    teacher_filters = new_filters(settings, teacher.model.config.hidden_size, "teacher")
    student_filters = new_filters(settings, teacher.model.config.hidden_size, "student")
    sides = Sides(build_student(teacher.model, (0, 2, 4)), teacher_filters, student_filters)
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(teacher, sides, rows, collator(teacher.tokenizer, task), Path(folder))
        aligned = forward_batches(rows, collator(teacher.tokenizer, task))
        objectives = {name: sides.objective(settings, task, way.source, aligned) for name, way in ways.items()}
        seconds = _take_turns(ways, objectives, rounds)
    write_result("training-speed", {"rows_per_step": BATCH_ROWS, "ways": _figures(seconds)})
    return 0


def _ways(teacher: LoadedModel, sides: Sides, rows: Dataset, collate: Collator, folder: Path) -> dict[str, Way]:
    live = FrozenModel(teacher.model, sides.teacher_layers)
    kept = keep_outputs(live, rows, forward_batches(rows, collate), folder / "outputs")
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)  # noqa: S311 - an order, not a secret
    longest = _batches(order, rows, collate)
    grouped = _batches(sorted(order, key=rows["length"][:].__getitem__), rows, collate)
    random.Random(0).shuffle(grouped)  # noqa: S311
    fixed = [_pad(batch) for batch in longest]
    return {
        "fixed length": Way(fixed, live),
        "longest of batch": Way(longest, live),
        "grouped by length": Way(grouped, live),
        "grouped, teacher kept": Way(grouped, kept),
    }


def _batches(order: list[int], rows: Dataset, collate: Callable[[Any], Batch]) -> list[Batch]:
    starts = range(0, len(order), BATCH_ROWS)
    return [collate([rows[row] for row in order[start : start + BATCH_ROWS]]) for start in starts]


def _pad(batch: Batch) -> Batch:
    """Return the batch padded to the fixed length."""
    missing = FIXED_LENGTH - batch["input_ids"].shape[1]
    padded = {name: value for name, value in batch.items() if value.dim() == 1}
    for name in batch.keys() - padded.keys():
        padded[name] = torch.nn.functional.pad(batch[name], (0, missing))
    return padded


def _take_turns(
    ways: dict[str, Way], objectives: dict[str, DistillationObjective], rounds: int
) -> dict[str, list[float]]:
    optimizer = torch.optim.AdamW(next(iter(objectives.values())).parameters(), lr=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            objective, batch = objectives[name].train(), way.batches[turn % len(way.batches)]
            started = time.perf_counter()
            optimizer.zero_grad()
            torch.autograd.backward(objective(batch, objective.count([batch]))["loss"])
            optimizer.step()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _figures(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    slowest = statistics.median(seconds["fixed length"])
    return {
        name: {
            "rows_per_second": BATCH_ROWS / statistics.median(values),
            "ratio": slowest / statistics.median(values),
            "steps": len(values),
        }
        for name, values in seconds.items()
    }


if __name__ == "__main__":
    sys.exit(main())
