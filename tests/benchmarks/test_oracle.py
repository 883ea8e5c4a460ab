"""The oracle accepts the published figures and notices when one of them is another."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.oracle import TASKS, TOLERANCE, main

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "oracle"


def oracle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["oracle", str(folder)])
    return main()


@pytest.fixture
def one_case(tmp_path: Path) -> Path:
    """Hold one case that may be changed."""
    for name in ("f_cls_lwd.json", "f_cls_lwd.safetensors", "backbone.safetensors"):
        shutil.copyfile(FOLDER / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_every_case_of_a_supported_task_agrees() -> None:
    command = [sys.executable, "-m", "benchmarks.oracle", str(FOLDER)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"case", "block", "worst_relative_error", "quantity"} <= set(rows[0])
    specs = [json.loads(path.read_text()) for path in FOLDER.glob("*.json")]
    expected = {spec["case"] for spec in specs if spec["task_kind"] in TASKS}
    assert {row["case"] for row in rows} == expected
    assert {spec["task_kind"] for spec in specs} == set(TASKS)
    assert all(0 < row["worst_relative_error"] <= TOLERANCE for row in rows)
    assert {row["block"] for row in rows} == {"expected", "expected_nopad", "expected_real_only"}


@pytest.mark.parametrize("quantity", ["kl", "layer_loss", "task_loss", "total"])
def test_one_altered_number_is_noticed(
    quantity: str, one_case: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert oracle(one_case, monkeypatch) == 0
    capsys.readouterr()
    path = one_case / "f_cls_lwd.json"
    spec = json.loads(path.read_text())
    spec["expected_nopad"][quantity] *= 1 + 1e-4
    path.write_text(json.dumps(spec))
    assert oracle(one_case, monkeypatch) == 1
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    worst = next(row for row in rows if row["block"] == "expected_nopad")
    assert worst["worst_relative_error"] == pytest.approx(1e-4, rel=0.1)


def test_one_altered_gradient_is_noticed(
    one_case: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(one_case / "f_cls_lwd.safetensors")
    name = next(name for name in tensors if name.startswith("expected.grad."))
    tensors[name].view(-1)[tensors[name].abs().argmax()] *= 1 + 1e-3
    save_file(tensors, one_case / "f_cls_lwd.safetensors")
    assert oracle(one_case, monkeypatch) == 1
    rows = {row["block"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["expected"]["quantity"] == name.removeprefix("expected.")
    assert rows["expected_nopad"]["worst_relative_error"] <= TOLERANCE


def test_a_folder_without_cases_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert oracle(folder, monkeypatch) == 1
        assert "holds no case to check; give a folder with <case>.json files" in capsys.readouterr().err


def test_a_quantity_that_is_not_a_number_is_noticed(
    one_case: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = one_case / "f_cls_lwd.json"
    spec = json.loads(path.read_text())
    spec["expected_nopad"]["total"] = float("nan")
    path.write_text(json.dumps(spec))
    assert oracle(one_case, monkeypatch) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[0])["quantity"] == "total"
