"""What each step returns on a tiny model, called once per session through its entrypoint."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.tiny import LABELS, new_data, new_settings, write_backbone
from steps._settings import part
from steps.evaluate_models import evaluate_models
from steps.export_onnx import export_onnx
from steps.finetune_control import finetune_control
from steps.finetune_teacher import finetune_teacher
from steps.learn_student_filters import learn_student_filters
from steps.learn_teacher_filters import learn_teacher_filters
from steps.load_data import load_data
from steps.prepare_student import prepare_student
from steps.validate_data import validate_data
from ted.config import Settings

Trained = tuple[Path, dict[str, Any]]
Validated = tuple[Path, Path, dict[str, Any]]

LEARNING = ("data", "task", "run")
MATCHING = (*LEARNING, "method", "teacher", "student", "filters", "distillation")
STEP_MODULES = (
    *("load_data", "validate_data", "_metrics", "evaluate_models", "check_gates", "export_onnx", "promote_model"),
    "build_report",
)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone and a source of three Parquet files, one of them with a row that says nothing."""
    folder = tmp_path_factory.mktemp("run")
    write_backbone(folder / "backbone")
    (folder / "source").mkdir()
    for name, split in new_data("classification", train=60).items():
        frame = split.to_pandas().drop(columns=["row", "source"])
        frame["label"] = [LABELS[label] for label in frame["label"]]
        frame = frame.drop_duplicates("text")
        if name == "train":
            frame = pd.concat([frame, pd.DataFrame({"text": ["  "], "label": [LABELS[0]]})])
        frame.to_parquet(folder / "source" / f"{name}.parquet", index=False)
    return folder


@pytest.fixture(scope="session")
def settings(run_folder: Path) -> Settings:
    return new_settings(
        run_folder,
        task={"labels": LABELS},
        data={"source": str(run_folder / "source"), "labelled_rows": 30},
        quality={"max_excluded_fraction": 0.5},
        evaluation={"latency_repeats": 3, "bootstrap_samples": 100},
        gates={"min_teacher_share": None, "min_gain_over_start": None, "min_gain_over_control": None},
        export={"name": "steps-test"},
    )


@pytest.fixture(scope="session")
def logged() -> Iterator[dict[str, Any]]:
    """What the steps log as metadata, which without a run has no place to go."""
    values: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in STEP_MODULES:
            module = importlib.import_module(f"steps.{name}")
            if hasattr(module, "log_metadata"):
                patch.setattr(module, "log_metadata", values.update)
        yield values


@pytest.fixture(scope="session")
def raw_data(settings: Settings, logged: dict[str, Any]) -> Path:
    folder: Path = load_data.entrypoint(part(settings, "data", "task"), "digest")
    assert logged["source_digest"] == "digest"
    return folder


@pytest.fixture(scope="session")
def validated(settings: Settings, raw_data: Path) -> Validated:
    found: Validated = validate_data.entrypoint(part(settings, "data", "quality", "task"), raw_data)
    return found


@pytest.fixture(scope="session")
def teacher(settings: Settings, validated: Validated) -> Trained:
    made: Trained = finetune_teacher.entrypoint(part(settings, *LEARNING, "teacher"), validated[0], "digest")
    return made


@pytest.fixture(scope="session")
def student_start(settings: Settings, validated: Validated) -> Trained:
    given = part(settings, *LEARNING, "teacher", "student")
    made: Trained = prepare_student.entrypoint(given, validated[0], "digest")
    return made


@pytest.fixture(scope="session")
def teacher_filters(settings: Settings, validated: Validated, teacher: Trained) -> Trained:
    made: Trained = learn_teacher_filters.entrypoint(part(settings, *MATCHING), validated[0], teacher[0])
    return made


@pytest.fixture(scope="session")
def student_filters(settings: Settings, validated: Validated, student_start: Trained) -> Trained:
    made: Trained = learn_student_filters.entrypoint(part(settings, *MATCHING), validated[0], student_start[0])
    return made


@pytest.fixture(scope="session")
def control(settings: Settings, validated: Validated, student_start: Trained) -> Trained:
    given = part(settings, *LEARNING, "student", "distillation")
    made: Trained = finetune_control.entrypoint(given, validated[0], student_start[0])
    return made


@pytest.fixture(scope="session")
def evaluated(
    settings: Settings,
    validated: Validated,
    teacher: Trained,
    student_start: Trained,
    control: Trained,
) -> Trained:
    """The control stands in for the student, which distillation would make of the same start."""
    given = part(settings, "data", "task", "evaluation", "export")
    models = (teacher[0], student_start[0], None, control[0])
    made: Trained = evaluate_models.entrypoint(given, validated[0], *models)
    return made


@pytest.fixture(scope="session")
def exported(settings: Settings, validated: Validated, control: Trained, evaluated: Trained) -> Trained:
    given = part(settings, "data", "quality", "task", "evaluation", "export")
    made: Trained = export_onnx.entrypoint(given, validated[0], control[0], evaluated[1])
    return made
