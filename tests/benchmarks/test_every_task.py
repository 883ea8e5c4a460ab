import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import every_task
from ted.config import Settings


def test_a_kept_cell_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs, work = tmp_path / "configs", tmp_path / "work"
    configs.mkdir()
    (configs / "reviews.yaml").write_text("parameters: {data: {source: rows}, task: {labels: [bad, good]}}")
    ran: list[Settings] = []

    def run_cell(settings: Settings, folder: Path) -> dict[str, Any]:
        assert settings.run.output_dir == str(folder / "runs")
        ran.append(settings)
        return {"seed": settings.seed, "student": 0.5}

    written: dict[str, Any] = {}
    monkeypatch.setattr(every_task, "CONFIGS", configs)
    monkeypatch.setattr(every_task, "run_cell", run_cell)
    monkeypatch.setattr(every_task, "write_result", lambda _, values: written.update(values))
    for seeds in ("1", "3"):
        monkeypatch.setattr(sys, "argv", ["every_task", "--data", "sets", "--work", str(work), "--seeds", seeds])
        every_task.main()
    assert [settings.seed for settings in ran] == [0, 1, 2]
    assert {settings.data.source for settings in ran} == {str(Path("sets") / "rows")}
    assert [cell["seed"] for cell in written["cells"]["reviews"]] == [0, 1, 2]
    assert json.loads((work / "reviews-1" / "cell.json").read_text())["seed"] == 1
