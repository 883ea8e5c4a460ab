"""Measure what distillation gives over the student start and over training it on: one line per seed, kept as it ends.

    python -m benchmarks.distillation_gain --config FILE --seeds 3 --out FILE.json --work FOLDER

All models of a seed share one student start. A killed run goes on where it stopped, and further seeds join those of
before: a seed that is in the file is not run again. The file must hold results of the same settings.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.results import provenance
from ted import stages
from ted.config import Settings
from ted.data.quality import validate
from ted.data.sources import load_dataset, select_rows
from ted.errors import SettingsError
from ted.evaluation import evaluate_models
from ted.files import read_json, write_json
from ted.settings_file import read_parameters

MODELS = ("teacher", "student_start", "control", "student")


def run_seed(settings: Settings, folder: Path) -> dict[str, Any]:
    """Return the primary metric of every model of one seed and the seconds it took."""
    started = time.monotonic()
    dataset = load_dataset(settings.data, settings.task, settings.seed)
    clean = validate(dataset, settings.data, settings.quality, settings.task).dataset
    data = folder / "data"
    select_rows(clean, settings.data, settings.seed).save_to_disk(str(data))
    paths = {name: folder / name for name in (*MODELS, "teacher_filters", "student_filters")}
    stages.finetune_teacher(settings, data, paths["teacher"])
    stages.prepare_student(settings, data, paths["student_start"])
    stages.learn_filters(settings, data, paths["teacher"], "teacher", paths["teacher_filters"])
    stages.learn_filters(settings, data, paths["student_start"], "student", paths["student_filters"])
    inputs = stages.DistillationInputs(
        data, paths["teacher"], paths["teacher_filters"], paths["student_start"], paths["student_filters"]
    )
    stages.distill_student(settings, inputs, paths["student"])
    stages.train_control(settings, data, paths["student_start"], paths["control"])
    evaluation = evaluate_models(settings, data, {name: paths[name] for name in MODELS}, folder / "evaluation")
    values = {name: evaluation["models"][name]["primary"] for name in MODELS}
    agreement = {name: evaluation["models"][name]["agreement"] for name in MODELS}
    return {"seed": settings.seed, **values, "agreement": agreement, "seconds": time.monotonic() - started}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and standard deviation over seeds per model, and of the student's paired gains."""
    columns = {name: [row[name] for row in rows] for name in MODELS}
    for rival in ("student_start", "control"):
        columns[f"student - {rival}"] = [row["student"] - row[rival] for row in rows]
    return {
        name: {"mean": statistics.mean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0}
        for name, values in columns.items()
    }


def kept_rows(out: Path, settings: Settings) -> list[dict[str, Any]]:
    """Return the rows that an earlier call wrote to a file; none where there is no file.

    Raises:
        SettingsError: the file was written with settings that differ in more than the seed and the section `run`.
    """
    if not out.is_file():
        return []
    record = read_json(out)
    before, now = _comparable(record["settings"]), _comparable(settings.model_dump(mode="json"))
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        lines = [f"{key} ({before.get(key)!r} there, {now.get(key)!r} now)" for key in changed]
        raise SettingsError(f"{out} holds results of other settings: {', '.join(lines)}; give another --out")
    rows: list[dict[str, Any]] = record["seeds"]
    return rows


def _comparable(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted key, without those that may differ between the seeds of one file."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _comparable(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return {key: value for key, value in flat.items() if key != "seed" and not key.startswith("run.")}


def main() -> int:
    """Run the seeds that the file lacks and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML with `parameters:`, as for a pipeline run")
    parser.add_argument("--seeds", type=int, required=True, help="number of seeds, from the configured one on")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--work", type=Path, required=True, help="folder for models and checkpoints")
    arguments = parser.parse_args()
    try:
        settings = read_parameters(arguments.config).resolved()
        rows = kept_rows(arguments.out, settings)
    except SettingsError as error:
        parser.error(str(error))
    for seed in range(settings.seed, settings.seed + arguments.seeds):
        if seed in {row["seed"] for row in rows}:
            continue
        folder = arguments.work / f"seed-{seed}"
        run = settings.run.model_copy(update={"output_dir": str(folder / "runs")})
        rows.append(run_seed(settings.model_copy(update={"seed": seed, "run": run}), folder))
        _write(arguments.out, settings, rows)
    return 0


def _write(out: Path, settings: Settings, rows: list[dict[str, Any]]) -> None:
    record = {**provenance(), "settings": settings.model_dump(mode="json")}
    write_json(out, {**record, "summary": summary(rows), "seeds": rows})


if __name__ == "__main__":
    sys.exit(main())
