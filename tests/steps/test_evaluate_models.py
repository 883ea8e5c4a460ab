"""Every model on the test split."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steps import evaluate_models as module
from steps._settings import part
from ted.config import Settings
from ted.files import read_json

Trained = tuple[Path, dict[str, Any]]


def test_a_run_without_control_and_champion_measures_three_models(evaluated: Trained) -> None:
    folder, figures = evaluated
    assert list(figures["models"]) == ["teacher", "student_start", "student"]
    assert read_json(folder / "evaluation.json")["models"].keys() == figures["models"].keys()
    assert "student_prediction" in pd.read_parquet(folder / "predictions.parquet")


def test_the_champion_is_measured_beside_the_others(
    settings: Settings,
    validated: tuple[Path, Path, dict[str, Any]],
    teacher: Trained,
    student_start: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load_champion(name: str) -> Path:
        asked.append(name)
        return teacher[0]

    monkeypatch.setattr(module, "load_champion", load_champion)
    given = part(settings, "data", "task", "evaluation", "export")
    models = (teacher[0], student_start[0], student_start[0], student_start[0])
    _, figures = module.evaluate_models.entrypoint(given, validated[0], *models)
    assert asked == ["steps-test"]
    assert list(figures["models"]) == ["teacher", "student_start", "control", "student", "champion"]
    assert "student_vs_champion" in figures["comparisons"]
