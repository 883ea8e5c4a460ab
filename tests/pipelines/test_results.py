"""What a person takes from a run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from zenml.models import PipelineRunResponse

from pipelines.results import Results, check_place, publish, show
from ted.errors import SettingsError
from ted.files import read_json

MODEL = {
    "primary": 0.9,
    "agreement": 1.0,
    "parameters": 22_713_216,
    "size_bytes": 90 * 2**20,
    "latency_ms": {"1": 5.0, "32": 80.0},
}
EVALUATION = {
    "rows": 1235,
    "primary_metric": "accuracy",
    "models": {"teacher": MODEL, "student_start": MODEL | {"primary": 0.7}},
    "gates": [
        {"rule": "max_size_ratio", "passed": True, "message": "small enough"},
        {"rule": "champion_tolerance", "passed": None, "message": "not judged"},
    ],
}


@dataclass
class Artifact:
    """Stands for an artifact version: makes its content when it is loaded."""

    load: Callable[[], Any]
    id: UUID
    created: datetime = field(default_factory=lambda: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


@pytest.fixture
def run(tmp_path: Path) -> Callable[[int], PipelineRunResponse]:
    """Returns a run whose report has an id."""

    def bundle() -> Path:
        folder = tmp_path / "loaded"
        (folder / "name/1").mkdir(parents=True)
        (folder / "name/1/model.onnx").write_bytes(b"graph")
        return folder

    def make(report: int) -> PipelineRunResponse:
        outputs = {
            "check_gates": {"judged_evaluation": [Artifact(lambda: EVALUATION, UUID(int=1))]},
            "export_onnx": {"bundle": [Artifact(bundle, UUID(int=2))], "bundle_manifest": []},
            "build_report": {"report": [Artifact(lambda: "<html>", UUID(int=report << 96))]},
        }
        steps = {name: SimpleNamespace(outputs=output) for name, output in outputs.items()}
        return cast("PipelineRunResponse", SimpleNamespace(steps=steps))

    return make


def test_a_run_leaves_three_things_behind_a_link(tmp_path: Path, run: Callable[[int], PipelineRunResponse]) -> None:
    results = publish(run(7), tmp_path / "runs")
    assert results == Results(tmp_path / "runs/latest", EVALUATION)
    assert (tmp_path / "runs/latest").readlink() == Path("results/2026-01-02-030405-00000007")
    assert read_json(results.folder / "evaluation.json") == EVALUATION
    assert (results.folder / "report.html").read_text() == "<html>"
    assert (results.folder / "bundle/name/1/model.onnx").read_bytes() == b"graph"
    assert not (tmp_path / "loaded").exists()


def test_the_same_report_is_not_written_twice_and_another_moves_the_link(
    tmp_path: Path, run: Callable[[int], PipelineRunResponse]
) -> None:
    publish(run(7), tmp_path / "runs")
    publish(run(8), tmp_path / "runs")
    (tmp_path / "runs/results/2026-01-02-030405-00000007/report.html").write_text("kept")
    assert (publish(run(7), tmp_path / "runs").folder / "report.html").read_text() == "kept"
    assert len(list((tmp_path / "runs/results").iterdir())) == 2
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("folder", [True, False])
def test_what_stands_in_the_place_of_the_link_is_let_be(tmp_path: Path, folder: bool) -> None:
    latest = tmp_path / "latest"
    if folder:
        latest.mkdir()
    else:
        latest.write_text("mine")
    with pytest.raises(SettingsError, match=r"latest is not a link, .*; move it away, or set run\.output_dir"):
        check_place(tmp_path)


def test_a_new_folder_and_the_link_of_an_earlier_run_are_places(
    tmp_path: Path, run: Callable[[int], PipelineRunResponse]
) -> None:
    check_place(tmp_path / "runs")
    publish(run(7), tmp_path / "runs")
    check_place(tmp_path / "runs")


def test_the_table_has_a_line_per_model_and_rule(capsys: pytest.CaptureFixture[str]) -> None:
    show(Results(Path("runs/latest"), EVALUATION))
    text = capsys.readouterr().out
    assert [word in text for word in ("1,235 test rows", "accuracy", "ms/32", "student start", "0.7000", "22.71")] == [
        True
    ] * 6
    assert "passed  max_size_ratio: small enough" in text
    assert "open  champion_tolerance: not judged" in text
    assert "runs/latest/report.html" in text
    assert "runs/latest/bundle" in text
