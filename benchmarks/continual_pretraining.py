"""Compare methods on raw text: which student predicts text best after the same tokens, from one start?

    python -m benchmarks.continual_pretraining --teacher MODEL --data FOLDER --work FOLDER

The teacher is a causal language model; the student starts as every second layer of it. Each method trains it on the
same packed blocks in the same order: `finetune` on the text alone, the others also on the teacher. A method runs in a
process of its own, and what it measured is kept in the work folder: a call that is repeated goes on with what is
missing.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.language_models import figures_by_source
from benchmarks.own_process import in_own_process, peak_mib
from benchmarks.results import write_result
from ted import stages
from ted.config import Settings, parse_settings
from ted.data.preparation import training_features
from ted.data.quality import validate
from ted.data.sources import load_dataset, select_rows
from ted.files import read_json, write_json
from ted.models.loading import find_model, load_tokenizer
from ted.tasks import get_task

METHODS = ("finetune", "kd", "lwd", "ted")


def new_settings(arguments: argparse.Namespace, method: str) -> Settings:
    """Return the settings of a method."""
    steps = {"per_device_train_batch_size": arguments.batch_size, "checkpoint_steps": arguments.checkpoint_steps}
    training = {**steps, "max_steps": arguments.steps, "learning_rate": arguments.learning_rate}
    distillation: dict[str, Any] = {"training": training}
    values: dict[str, Any] = {
        "method": method,
        "seed": arguments.seed,
        "task": {"kind": "causal_lm"},
        "data": {"source": str(arguments.data), "max_length": arguments.length},
        "quality": {"max_characters": 300_000},
        "teacher": {"model": str(arguments.teacher), "finetune": False},
        "student": {"finetune": False},
        "distillation": distillation,
        "evaluation": {"batch_size": arguments.batch_size},
        "run": {"output_dir": str(arguments.work / "runs")},
    }
    if method != "finetune":
        distillation |= {"temperature": 1.0, "kl_alpha": arguments.kl_alpha}
    if method in {"lwd", "ted"}:
        distillation |= {"alignment_rows": arguments.alignment_rows, "mse_alpha": arguments.mse_alpha}
        values["filters"] = {"filter_interval": arguments.filter_interval}
    if method == "ted":
        values["filters"]["training"] = {**steps, "max_steps": arguments.filter_steps}
    return parse_settings(values)


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write data, teacher and student start, and return their figures."""
    settings, work = new_settings(arguments, "finetune"), arguments.work
    dataset = load_dataset(settings.data, settings.task, settings.seed)
    clean = validate(dataset, settings.data, settings.quality, settings.task).dataset
    rows = select_rows(clean, settings.data, settings.seed)
    rows.save_to_disk(str(work / "data"))
    stages.finetune_teacher(settings, work / "data", work / "teacher")
    stages.prepare_student(settings, work / "data", work / "student_start")
    tokenizer, task = load_tokenizer(find_model(str(arguments.teacher))), get_task(settings.task)
    blocks, _ = training_features(rows, tokenizer, task, settings.data)
    models = {name: figures_by_source(settings, work / "data", work / name) for name in ("teacher", "student_start")}
    return {
        "arguments": _sizes(arguments),
        "rows": {name: len(split) for name, split in rows.items()},
        "tokens": sum(blocks["length"]),
        **models,
    }


def run_method(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """Train the student by a method and return what that took and what came of it."""
    settings, work = new_settings(arguments, method), arguments.work
    data, teacher, start = work / "data", work / "teacher", work / "student_start"
    filters = {side: work / f"{method}_{side}_filters" for side in ("teacher", "student")}
    first = stages.learn_filters(settings, data, teacher, "teacher", filters["teacher"])
    stages.learn_filters(settings, data, start, "student", filters["student"])
    inputs = stages.DistillationInputs(data, teacher, filters["teacher"], start, filters["student"])
    second = stages.distill_student(settings, inputs, work / method)
    peak = peak_mib()
    return {
        "steps": second["steps"],
        "tokens_seen": second["steps"] * arguments.batch_size * arguments.length,
        "stage_one_seconds": round(first["seconds"], 1),
        "stage_two_seconds": round(second["seconds"], 1),
        "peak_mib": round(peak),
        "resumed": bool(first["resumed_from"] or second["resumed_from"]),
        "layer_match": second["layer_match"],
        "probes": first.get("probes", {}),
        "loss": [entry["loss"] for entry in second["log_history"]],
        "test": figures_by_source(settings, data, work / method),
    }


def kept(path: Path, make: Any, *arguments: object) -> dict[str, Any]:  # noqa: ANN401 - any function of a module
    """Return what a file holds, after calling a function for it in a process of its own where it is missing."""
    if not path.is_file():
        write_json(path, in_own_process(make, *arguments))
    values: dict[str, Any] = read_json(path)
    return values


def main() -> int:
    """Run what is missing, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a causal language model")
    parser.add_argument("--data", type=Path, required=True, help="folder of train, validation and test files of text")
    parser.add_argument("--work", type=Path, required=True, help="folder for models and checkpoints; one per size")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, default=300, help="updates of each method")
    parser.add_argument("--filter-steps", type=int, default=30, help="updates of stage I")
    parser.add_argument("--filter-interval", type=int, default=3, help="match the last of so many student layers")
    parser.add_argument("--batch-size", type=int, default=4, help="blocks per update")
    parser.add_argument("--length", type=int, default=128, help="tokens of a block")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--kl-alpha", type=float, default=5.0)
    parser.add_argument("--mse-alpha", type=float, default=10.0)
    parser.add_argument("--alignment-rows", type=int, default=64, help="blocks that filters are aligned on")
    parser.add_argument("--checkpoint-steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    before = kept(arguments.work / "before.json", prepare, arguments)
    if before["arguments"] != _sizes(arguments):
        parser.error(f"{arguments.work} holds results of other arguments, {before['arguments']}; give another --work")
    methods = {
        method: kept(arguments.work / f"{method}.json", run_method, arguments, method) for method in arguments.methods
    }
    write_result("continual-pretraining", {"before": before, "methods": methods})
    return 0


def _sizes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the results of a work folder have in common."""
    return {name: value for name, value in vars(arguments).items() if name not in {"work", "methods"}} | {
        name: str(getattr(arguments, name)) for name in ("teacher", "data")
    }


if __name__ == "__main__":
    sys.exit(main())
