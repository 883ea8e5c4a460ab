import subprocess
from pathlib import Path

import pytest
import torch

import ted
from ted.config import Settings
from ted.files import write_json
from ted.run_record import git_commit, library_versions, run_record


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "file").write_text("1")
    identity = ["-c", "user.name=Ted", "-c", "user.email=ted@example.org"]
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "First"], ["tag", "v1"]):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def test_the_commit_is_named_in_full(repository: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert git_commit() == head
    (repository / "file").write_text("2")
    assert git_commit() == f"{head}-dirty"


def test_no_commit_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None


def test_no_commit_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


def test_versions_are_those_installed() -> None:
    versions = library_versions()
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"transformers", "datasets", "numpy"} <= set(versions)


def test_versions_survive_a_broken_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "remains-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "torch" in library_versions()


def test_the_record_gives_the_settings_back(tmp_path: Path) -> None:
    settings = Settings(seed=7)
    record = run_record(settings, "abc")
    write_json(tmp_path / "run_record.json", record)
    assert Settings.model_validate(record["settings"]) == settings
    assert record["data_fingerprint"] == "abc"
    assert record["ted"] == ted.__version__
    assert {"commit", "libraries", "python", "machine"} <= set(record)
