"""The page of a run."""

from pathlib import Path
from typing import Any

import pytest
from zenml.types import HTMLString

from steps import _run
from steps._settings import part
from steps.build_report import build_report
from ted.config import Settings

Trained = tuple[Path, dict[str, Any]]


def test_the_page_names_what_was_run(
    settings: Settings,
    validated: tuple[Path, Path, dict[str, Any]],
    teacher: Trained,
    control: Trained,
    evaluated: Trained,
    exported: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_run, "step_times", lambda: ({"finetune_teacher": 61.0}, ["load_data"]))
    report = build_report.entrypoint(
        part(settings, *Settings.model_fields),
        validated[2],
        [teacher[1], control[1]],
        evaluated[0],
        {**evaluated[1], "gates": []},
        exported[1],
    )
    assert isinstance(report, HTMLString)
    assert report.lstrip().lower().startswith("<!doctype html>")
    assert all(text in report for text in ("steps-test, version 1", "finetune_teacher"))
