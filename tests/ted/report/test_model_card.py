import ast
import re
from itertools import pairwise
from typing import Any

import pytest
import yaml

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
        "| accuracy | 0.7300 |",
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
def test_the_example_is_python(manifest: dict[str, Any], pair: bool, example: str) -> None:
    found = re.search(r"```python\n(.*?)```", render({**manifest, "pair": pair}), re.DOTALL)
    assert found is not None
    ast.parse(found[1])
    assert f"encode_batch({example})" in found[1]


def test_a_regression_answers_with_a_number(manifest: dict[str, Any]) -> None:
    manifest["task"] = {"kind": "regression", "labels": None}
    manifest["metrics"]["slices"] = {}
    card = render(manifest)
    assert "It answers with one number." in card
    assert "print(logits[:, 0])" in card


def test_texts_of_the_run_cannot_add_markup(manifest: dict[str, Any]) -> None:
    manifest["task"]["labels"] = ["<img src=x>", "a|b"]
    card = render(manifest)
    assert "<img" not in card
    assert r"a\|b" in card


def test_checks_that_were_not_made_are_left_out(manifest: dict[str, Any]) -> None:
    card = render({**manifest, "int8": {}})
    assert "8-bit" not in card
    assert "## Parity" in card
