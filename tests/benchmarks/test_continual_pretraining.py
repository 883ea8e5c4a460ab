"""The comparison runs on a tiny model, keeps what it measured and compares like with like."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from benchmarks import continual_pretraining
from benchmarks.language_models import figures_by_source
from benchmarks.tiny import new_data, write_decoder
from ted.config import parse_settings
from ted.evaluation import evaluate_models
from ted.files import read_json

METHODS = ("finetune", "kd", "lwd", "ted")
FOLDERS = {"teacher": "model", "data": "data", "work": "work"}
Call = Callable[..., dict[str, Any]]


def here(function: Call, *arguments: object) -> dict[str, Any]:
    """Call a function in this process: importing the libraries again would take longer than a tiny run."""
    return function(*arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continual")
    write_decoder(folder / "model")
    data = new_data("causal_lm", train=40)
    (folder / "data").mkdir()
    for name, split in (("train", "train"), ("validation", "validation"), ("test_a", "test"), ("test_b", "test")):
        rows = data[split].select_columns("text")
        words = "" if name != "test_b" else "plot "
        lines = [json.dumps({"text": words + text}) for text in rows["text"]]
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    written: dict[str, Any] = {}
    monkeypatch.setattr(continual_pretraining, "in_own_process", here)
    monkeypatch.setattr(continual_pretraining, "write_result", lambda _, values: written.update(values))

    def call(*extra: str) -> dict[str, Any]:
        folders = [f"--{name}={place / folder}" for name, folder in FOLDERS.items()]
        sizes = ["--steps=4", "--filter-steps=2", "--filter-interval=1", "--length=16", "--alignment-rows=8"]
        monkeypatch.setattr(sys, "argv", ["continual_pretraining", *folders, *sizes, *extra])
        continual_pretraining.main()
        return written

    return call


def test_every_method_sees_the_same_tokens_from_one_start(run: Call) -> None:
    result = run()
    assert tuple(result["methods"]) == METHODS
    assert {method["tokens_seen"] for method in result["methods"].values()} == {4 * 4 * 16}
    assert {method["steps"] for method in result["methods"].values()} == {4}
    for figures in (result["before"]["teacher"], *(method["test"] for method in result["methods"].values())):
        assert set(figures) == {"all", "test_a.jsonl", "test_b.jsonl"}
    students = {method["test"]["all"]["perplexity"] for method in result["methods"].values()}
    assert len(students) == len(METHODS)
    assert len(result["methods"]["ted"]["probes"]) == len(result["methods"]["ted"]["layer_match"]) == 2
    assert result["methods"]["kd"]["layer_match"] == []


def test_what_is_kept_is_not_measured_again(place: Path, run: Call) -> None:
    run("--methods", "kd")
    kept = read_json(place / "work" / "kd.json")
    kept["steps"] = -1
    (place / "work" / "kd.json").write_text(json.dumps(kept))
    assert run("--methods", "kd")["methods"] == {"kd": kept}


def test_other_sizes_need_another_folder(run: Call, capsys: pytest.CaptureFixture[str]) -> None:
    run("--methods", "kd")
    with pytest.raises(SystemExit):
        run("--seed", "7")
    assert "holds results of other arguments" in capsys.readouterr().err


def test_figures_are_those_of_the_evaluation(place: Path, run: Call, tmp_path: Path) -> None:
    measured = run("--methods", "kd")["before"]["teacher"]
    values = {"task": {"kind": "causal_lm"}, "data": {"max_length": 16}, "evaluation": {"batch_size": 4}}
    settings, data, teacher = parse_settings(values), place / "work" / "data", place / "work" / "teacher"
    evaluation = evaluate_models(settings, data, {"teacher": teacher}, tmp_path / "out")["models"]["teacher"]
    assert figures_by_source(settings, data, teacher) == measured
    assert evaluation["metrics"] == pytest.approx(measured["all"])
    for name in ("test_a.jsonl", "test_b.jsonl"):
        assert evaluation["slices"][f"source={name}"]["primary"] == pytest.approx(measured[name]["perplexity"])
    assert len(load_from_disk(str(data))["test"]) == 32
