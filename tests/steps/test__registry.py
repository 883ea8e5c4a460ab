"""Versions in the model control plane, on a real store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from zenml import save_artifact
from zenml.client import Client

from steps import _registry
from steps._cache import champion_digest
from steps._settings import StepSettings, part
from ted.config import parse_settings
from ted.errors import ModelError


@pytest.fixture
def student(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of the test's own."""
    return str(request.node.name).replace("_", "-")


@pytest.fixture
def settings(name: str) -> StepSettings:
    return part(parse_settings({"export": {"name": name}}), "export")


@pytest.fixture
def reserve(settings: StepSettings, student: Path) -> Callable[[], int]:
    return lambda: _registry.reserve_version(settings, student)


def stages(name: str) -> dict[int, str | None]:
    return {version.number: version.stage for version in Client().list_model_versions(model=name)}


def test_the_same_weights_exported_alike_are_the_same_version(reserve: Callable[[], int], name: str) -> None:
    assert (reserve(), reserve()) == (1, 1)
    assert stages(name) == {1: None}


def test_other_weights_or_another_export_are_a_new_version(
    reserve: Callable[[], int], student: Path, name: str
) -> None:
    reserve()
    (student / "model.safetensors").write_bytes(b"others")
    assert reserve() == 2
    other = part(parse_settings({"export": {"name": name, "opset": 19}}), "export")
    assert _registry.reserve_version(other, student) == 3


def test_promotion_links_artifacts_and_archives_the_version_before(
    reserve: Callable[[], int], student: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "zenml.model.model")
    reserve()
    assert _registry.promote(name, 1, "staging", []) == "staging"
    (student / "model.safetensors").write_bytes(b"others")
    reserve()
    artifact: Any = save_artifact({"a": 1}, f"artifact-{name}")
    assert _registry.promote(name, 2, "staging", [artifact]) == "staging"
    assert stages(name) == {1: "archived", 2: "staging"}
    linked = Client().get_model_version(name, 2).get_artifact(f"artifact-{name}")
    assert linked is not None
    assert linked.id == artifact.id
    assert "numeric" not in caplog.text


def test_a_version_in_production_stays_there(reserve: Callable[[], int], name: str) -> None:
    reserve()
    first: Any = save_artifact({"a": 1}, f"kept-{name}")
    assert _registry.promote(name, 1, "production", [first]) == "production"
    later: Any = save_artifact({"a": 2}, f"kept-{name}")
    assert _registry.promote(name, 1, "staging", [later]) == "production"
    assert stages(name) == {1: "production"}
    linked = Client().get_model_version(name, 1).get_artifact(f"kept-{name}")
    assert linked is not None
    assert linked.id == first.id


def test_without_a_version_in_production_there_is_no_champion(reserve: Callable[[], int], name: str) -> None:
    assert _registry.load_champion(name) is None
    reserve()
    assert _registry.load_champion(name) is None


def test_a_champion_without_a_student_is_refused(reserve: Callable[[], int], name: str) -> None:
    _registry.promote(name, reserve(), "production", [])
    with pytest.raises(ModelError, match=f"version 1 of {name} stands in production without a student"):
        _registry.load_champion(name)


def test_a_new_champion_changes_the_cache_key_and_the_same_one_does_not(
    reserve: Callable[[], int], student: Path, name: str
) -> None:
    before = champion_digest()
    _registry.promote(name, reserve(), "production", [])
    first = champion_digest()
    assert first != before
    assert champion_digest() == first
    (student / "model.safetensors").write_bytes(b"others")
    _registry.promote(name, reserve(), "production", [])
    assert champion_digest() != first
