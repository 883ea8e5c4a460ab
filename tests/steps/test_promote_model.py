"""Stage and lineage of a version."""

from pathlib import Path
from typing import Any

from zenml import save_artifact
from zenml.client import Client

from steps._settings import part
from steps.promote_model import promote_model
from ted.config import Settings


def test_the_version_gets_its_stage_and_its_lineage(settings: Settings, exported: tuple[Path, dict[str, Any]]) -> None:
    names = ("validated_data", "teacher", "teacher_filters", "student", "student_filters", "bundle")
    artifacts = [save_artifact({"of": name}, f"promoted-{name}") for name in names]
    promotion = promote_model.entrypoint(part(settings, "export", "promotion"), exported[1], *artifacts)
    assert promotion == {"name": "steps-test", "version": 1, "stage": "staging"}
    version = Client().get_model_version("steps-test", "staging")
    assert version.number == 1
    assert all(version.get_artifact(f"promoted-{name}") is not None for name in names)
