"""Kill every stage with SIGKILL once it has a checkpoint, run it again, and compare with a run that was left alone.

    python -m benchmarks.resume_drill [FOLDER]

Works on a tiny random model. A JSON line per stage holds the sha256 of the weights of both runs and the step that the
second attempt went on from. Exit status 1 if two digests differ or a second attempt began anew.
"""

import argparse
import contextlib
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.tiny import distillation_inputs, new_data, new_settings, write_backbone
from ted import stages
from ted.config import Settings
from ted.files import read_json, sha256_file

STEPS = 36
KILL_AFTER = 14
"""In the middle of the second pass over the rows; checkpoints and passes do not end together."""
TRAINING = {"max_steps": STEPS, "per_device_train_batch_size": 4, "checkpoint_steps": 2, "learning_rate": 1e-3}
POLL_SECONDS = 0.002

Stage = Callable[[Settings, Path, Path], Any]
STAGES: dict[str, Stage] = {
    "teacher": lambda settings, folder, out: stages.finetune_teacher(settings, folder / "data", out),
    "student_start": lambda settings, folder, out: stages.prepare_student(settings, folder / "data", out),
    "teacher_filters": lambda settings, folder, out: stages.learn_filters(
        settings, folder / "data", folder / "teacher", "teacher", out
    ),
    "student_filters": lambda settings, folder, out: stages.learn_filters(
        settings, folder / "data", folder / "student_start", "student", out
    ),
    "student": lambda settings, folder, out: stages.distill_student(settings, distillation_inputs(folder), out),
    "control": lambda settings, folder, out: stages.train_control(
        settings, folder / "data", folder / "student_start", out
    ),
}


def drill_settings(folder: Path, runs: str) -> Settings:
    """Return settings under which every stage trains, draws dropout masks and keeps its checkpoints in `runs`."""
    filters = {"training": TRAINING, "backbone_dropout": True}
    distillation = {"training": TRAINING | {"gradient_accumulation_steps": 2}, "student_filter_init": "stage_one"}
    return new_settings(
        folder,
        teacher={"training": TRAINING},
        student={"training": TRAINING},
        filters=filters,
        distillation=distillation,
        run={"output_dir": str(folder / runs)},
    )


def run_stage(name: str, folder: Path, runs: str, out: Path) -> None:
    """Run one stage on the folders that the undisturbed stages before it have written."""
    torch.set_num_threads(1)
    STAGES[name](drill_settings(folder, runs), folder, out)


def drill(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row per stage: digests of an undisturbed and of a killed run, and where the latter went on."""
    new_data("classification", unlabelled=12).save_to_disk(str(folder / "data"))
    write_backbone(folder / "backbone")
    for name in STAGES:
        whole, resumed = folder / name, folder / "resumed" / name
        _finish(name, folder, "whole", whole)
        _kill(name, folder, resumed)
        _finish(name, folder, "killed", resumed)
        digests = [sha256_file(next(out.glob("*.safetensors"))) for out in (whole, resumed)]
        resumed_from = read_json(resumed / "metrics.json")["resumed_from"]
        yield {"stage": name, "uninterrupted": digests[0], "resumed": digests[1], "resumed_from": resumed_from}


def _start(name: str, folder: Path, runs: str, out: Path) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.resume_drill"])
    process = context.Process(target=run_stage, args=(name, folder, runs, out))
    process.start()
    return process


def _finish(name: str, folder: Path, runs: str, out: Path) -> None:
    process = _start(name, folder, runs, out)
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"stage {name} ended with exit code {process.exitcode}; its message stands above")


def _kill(name: str, folder: Path, out: Path) -> None:
    """Start a stage and kill it while it trains."""
    process = _start(name, folder, "killed", out)
    marks = f"checkpoints/*/checkpoint-{KILL_AFTER}/complete.json"
    while process.is_alive() and not list((folder / "killed").glob(marks)):
        time.sleep(POLL_SECONDS)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL or out.exists():
        raise RuntimeError(f"stage {name} ended before it could be killed; raise STEPS")


def main() -> int:
    """Print a JSON line per stage; return 1 if a resumed run differs from an undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="an empty folder to work in; a temporary one if not given")
    folder = parser.parse_args().folder
    passed = True
    with contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory() as work:
        for row in drill(Path(work)):
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
            passed &= row["uninterrupted"] == row["resumed"] and row["resumed_from"] > 0
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
