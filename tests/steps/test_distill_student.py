"""Stage II."""

from pathlib import Path
from typing import Any

from steps._settings import part
from steps.distill_student import distill_student
from ted.config import Settings
from ted.files import read_json

Trained = tuple[Path, dict[str, Any]]


def test_the_student_comes_without_filters_and_with_its_match(
    settings: Settings,
    validated: tuple[Path, Path, dict[str, Any]],
    teacher: Trained,
    teacher_filters: Trained,
    student_start: Trained,
    student_filters: Trained,
) -> None:
    names = ("data", "task", "run", "method", "compatibility", "teacher", "student", "filters", "distillation")
    folder, metrics = distill_student.entrypoint(
        part(settings, *names), validated[0], teacher[0], teacher_filters[0], student_start[0], student_filters[0]
    )
    assert metrics["step"] == "distill_student"
    assert [match["student_layer"] for match in metrics["layer_match"]] == [0, 1]
    assert read_json(folder / "run_record.json")["settings"]["method"] == "ted"
    assert not list(folder.glob("filters*"))
