import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from ted.files import write_json
from ted.report.model_card import render


def test_the_front_matter_is_yaml_and_invents_no_licence(manifest: dict[str, Any]) -> None:
    _, front, _ = render(manifest).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "unknown",
        "library_name": "onnxruntime",
        "pipeline_tag": "text-classification",
        "tags": ["onnx", "knowledge-distillation", "classification"],
        "model_name": "small-critic",
    }


def test_it_states_what_the_manifest_holds(manifest: dict[str, Any]) -> None:
    card = render(manifest)
    for expected in (
        "# small-critic, version 3",
        "negative, positive",
        "64 tokens",
        "| measure | trained student, float32 | `model.onnx` |",
        "| accuracy | 0.7300 | 0.7125 |",
        "| other metric | 0.5000 | \N{EN DASH} |",
        "The slices are those of the trained student, float32:",
        "| label=positive | 20 | \N{EN DASH} |",
        "| 3 | 33 | 2.5e-07 | yes |",
        "| accepted | no |",
        "metric_drop 0.25 is above 0.01",
        f"| `model.onnx` | {3 * 2**20} | `{'ab' * 32}` |",
        "Not stated.",
    ):
        assert expected in card


def test_tables_are_whole(manifest: dict[str, Any]) -> None:
    lines = render(manifest).splitlines()
    for before, line in pairwise(lines):
        if re.fullmatch(r"\|(---\|)+", line):
            assert before.rstrip().count("|") == line.count("|")


@pytest.mark.parametrize(
    ("pair", "example"), [(False, "['A first text.']"), (True, "[('A first text.', 'A second text.')]")]
)
def test_the_example_takes_what_the_bundle_takes(manifest: dict[str, Any], pair: bool, example: str) -> None:
    found = re.search(r"```python\n(.*?)```", render({**manifest, "pair": pair}), re.DOTALL)
    assert found is not None
    assert f"encode_batch({example})" in found[1]


@pytest.mark.parametrize(
    ("kind", "pair", "expected"),
    [
        ("classification", False, "Texts are cut to 64 tokens, special tokens included."),
        ("question_answering", True, "A context that does not fit into 64 tokens, question and special tokens"),
        ("token_classification", False, "A text that does not fit into 64 tokens, special tokens included,"),
    ],
)
def test_it_says_whether_long_texts_are_cut_or_read_in_windows(
    manifest: dict[str, Any], kind: str, pair: bool, expected: str
) -> None:
    card = render({**manifest, "task": {"kind": kind, "labels": None}, "pair": pair})
    assert expected in card
    assert ("is read in windows of so many" in card) is (kind != "classification")
    assert ("Texts are cut" in card) is (kind == "classification")


def write_bundle(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a model that adds a score per token and class, and a tokenizer that splits at spaces."""
    weights_VC = np.array([[0.0, 0.0], [-1.0, 1.0]], np.float32)
    nodes = [
        helper.make_node("Gather", ["weights", "input_ids"], ["scores"]),
        helper.make_node("Unsqueeze", ["attention_mask", "last"], ["mask"]),
        helper.make_node("Cast", ["mask"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["scores", "factor"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "one"], ["logits"], keepdims=0),
    ]
    constants = {"weights": weights_VC, "last": np.array([-1]), "one": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "L"]) for name in manifest["inputs"]],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "text": 1}, unk_token="[UNK]"))  # noqa: S106 - a token
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "bundle.json", manifest)


@pytest.mark.parametrize("pair", [False, True])
def test_the_example_runs_beside_the_files(tmp_path: Path, manifest: dict[str, Any], pair: bool) -> None:
    write_bundle(tmp_path, manifest)
    found = re.search(r"```python\n(.*?)```", render({**manifest, "pair": pair}), re.DOTALL)
    assert found is not None
    done = subprocess.run([sys.executable, "-c", found[1]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "['positive']\n"


def test_a_regression_answers_with_a_number(manifest: dict[str, Any]) -> None:
    manifest["task"] = {"kind": "regression", "labels": None}
    manifest["metrics"]["slices"] = {}
    card = render(manifest)
    assert "It answers with one number." in card
    assert 'print(outputs["logits"][:, 0])' in card


def test_texts_of_the_run_cannot_add_markup(manifest: dict[str, Any]) -> None:
    manifest["task"]["labels"] = ["<img src=x>", "a|b"]
    card = render(manifest)
    assert "<img" not in card
    assert r"a\|b" in card


def test_checks_that_were_not_made_are_left_out(manifest: dict[str, Any]) -> None:
    card = render({**manifest, "int8": {}})
    assert "8-bit" not in card
    assert "## Parity" in card
