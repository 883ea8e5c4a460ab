import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import distillation_gain
from ted.config import Settings


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Holds the seeds that were run, none of which trains anything."""
    seeds: list[int] = []

    def run_seed(settings: Settings, folder: Path) -> dict[str, Any]:
        assert str(folder) in settings.run.output_dir
        seeds.append(settings.seed)
        return {"seed": settings.seed, **dict.fromkeys(distillation_gain.MODELS, 0.5 + settings.seed / 10)}

    monkeypatch.setattr(distillation_gain, "run_seed", run_seed)
    return seeds


def measure(folder: Path, configuration: str, seeds: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    config, out = folder / "config.yaml", folder / "gain.json"
    config.write_text(configuration)
    arguments = ["--config", str(config), "--seeds", str(seeds), "--out", str(out), "--work", str(folder / "work")]
    monkeypatch.setattr(sys, "argv", ["distillation_gain", *arguments])
    assert distillation_gain.main() == 0
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def test_further_seeds_join_those_of_before(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(tmp_path, "parameters: {seed: 1}", 2, monkeypatch)
    result = measure(tmp_path, "parameters: {seed: 0, run: {output_dir: elsewhere}}", 4, monkeypatch)
    assert measured == [1, 2, 0, 3]
    assert sorted(row["seed"] for row in result["seeds"]) == [0, 1, 2, 3]
    assert result["summary"]["student"]["mean"] == pytest.approx(0.65)


def test_rows_of_other_settings_are_not_averaged(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(tmp_path, "parameters: {data: {labelled_rows: 500}}", 1, monkeypatch)
    before = (tmp_path / "gain.json").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        measure(tmp_path, "parameters: {data: {labelled_rows: 400}}", 2, monkeypatch)
    message = "holds results of other settings: data.labelled_rows (500 there, 400 now); give another --out"
    assert message in capsys.readouterr().err
    assert len(measured) == 1
    assert (tmp_path / "gain.json").read_bytes() == before


def test_a_bad_configuration_is_refused(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        measure(tmp_path, "parametrs: {}", 1, monkeypatch)
    assert "parametrs: unknown key; did you mean parameters?" in capsys.readouterr().err
    assert measured == []
