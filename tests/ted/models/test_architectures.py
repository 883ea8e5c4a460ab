"""A tiny random model of every supported architecture, from fine-tuning through filters and distillation to ONNX."""

import json
import re
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file

from benchmarks import architectures
from benchmarks.architectures import ARCHITECTURES, take_through, tasks_of
from ted.config import TaskKind
from ted.errors import ModelError
from ted.models.facts import SUPPORTED
from ted.models.loading import load_trained


def test_every_supported_kind_of_model_is_in_the_matrix() -> None:
    kinds = {case.new_config(case.new_tokenizer()).model_type for case in ARCHITECTURES.values()}
    assert kinds == set(SUPPORTED)


def test_the_guide_names_every_architecture() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "how-to" / "architectures.md").read_text(encoding="utf-8")
    rows = [line for line in guide.splitlines() if line.startswith(("| encoders", "| decoders"))]
    assert set(re.findall("`([a-z0-9-]+)`", "".join(rows))) == set(ARCHITECTURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_goes_through_every_stage_and_its_export_is_proved(name: str, tmp_path: Path) -> None:
    manifest = take_through(ARCHITECTURES[name], tmp_path)
    assert manifest["parity"]["max_abs_difference"] < 1e-4
    assert manifest["parity"]["raw_text"]["max_abs_difference"] < 1e-4
    assert manifest["parameters"]["graph"] == manifest["parameters"]["model"]
    start, end = (load_file(tmp_path / side / "model.safetensors") for side in ("student_start", "student"))
    assert [key for key in end if torch.equal(start[key], end[key]) and start[key].any()] == []
    student, tokenizer = load_trained(tmp_path / "student")
    assert student.config.num_hidden_layers == 2
    texts = load_from_disk(tmp_path / "data")["validation"]["text"][:]
    with torch.inference_mode():
        logits_NC = student(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    # Answers that hardly differ would be equal within the tolerance whatever the file computes.
    assert logits_NC.std(0).min() > 0.1


CAUSAL = [(name, "causal_lm") for name, case in ARCHITECTURES.items() if "causal_lm" in tasks_of(case)]
OTHERS = [
    ("modernbert", "token_classification"),
    ("qwen3", "token_classification"),
    ("deberta-v3", "question_answering"),
    ("gpt2", "question_answering"),
    ("albert", "masked_lm"),
]


def test_decoders_continue_texts_and_encoders_guess_masks() -> None:
    assert {name for name, _ in CAUSAL} == {"gpt2", "llama", "qwen2", "qwen3", "gemma2", "gemma3", "opt"}
    assert {name for name, case in ARCHITECTURES.items() if "masked_lm" in tasks_of(case)} == ARCHITECTURES.keys() - {
        name for name, _ in CAUSAL
    }
    assert all("classification" in tasks_of(case) for case in ARCHITECTURES.values())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CAUSAL + OTHERS)
def test_other_heads_go_through_every_stage(name: str, kind: TaskKind, tmp_path: Path) -> None:
    """Every decoder continues texts; of the other heads, one or two models stand for all that the command tries."""
    manifest = take_through(ARCHITECTURES[name], tmp_path, kind)
    assert manifest["parity"]["max_abs_difference"] < 1e-4
    assert load_trained(tmp_path / "student").model.config.num_hidden_layers == 2
    start, end = (load_file(tmp_path / side / "model.safetensors") for side in ("student_start", "student"))
    assert [key for key in end if torch.equal(start[key], end[key]) and start[key].any()] == []
    if kind == "causal_lm":
        greedy = manifest["parity"]["greedy"]
        assert greedy["equal"] == greedy["tokens"] > 0


def test_the_command_prints_a_line_per_architecture_and_task(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {"bert": {"parity": {"max_abs_difference": 2e-6}}, "gpt2": ModelError("has no layers")}

    def outcome(architecture: architectures.Architecture, _: Path, task: TaskKind) -> object:
        assert task in tasks_of(architecture)
        result = outcomes["bert" if architecture is ARCHITECTURES["bert"] else "gpt2"]
        if isinstance(result, ModelError):
            raise result
        return result

    monkeypatch.setattr(architectures, "take_through", outcome)
    assert architectures.main(["bert"]) == 0
    assert architectures.main(["bert", "gpt2", "--tasks", "masked_lm", "causal_lm"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["name"], row["task"], row["passed"], row["max_abs_difference"]) for row in rows] == [
        *[("bert", task, True, 2e-6) for task in tasks_of(ARCHITECTURES["bert"])],
        ("bert", "masked_lm", True, 2e-6),
        ("gpt2", "causal_lm", False, None),
    ]
    assert rows[-1]["problem"] == "has no layers"


def test_the_command_refuses_a_name_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        architectures.main(["bret"])
    assert "no such architectures: bret; known are bert" in capsys.readouterr().err
