"""The rules of promotion."""

from pathlib import Path
from typing import Any

import pytest

from steps import _refused
from steps._settings import part
from steps.check_gates import check_gates
from ted.config import Settings
from ted.errors import GateError

Trained = tuple[Path, dict[str, Any]]


def test_a_student_that_passes_gets_its_verdicts(
    settings: Settings, evaluated: Trained, logged: dict[str, Any]
) -> None:
    gates = settings.gates.model_copy(update={"max_latency_ratio": None, "max_slice_drop": None})
    judged = check_gates.entrypoint(part(settings.model_copy(update={"gates": gates}), "gates"), evaluated[1])
    assert {gate["rule"]: gate["passed"] for gate in judged["gates"]} == {
        "champion_tolerance": None,
        "max_size_ratio": True,
    }
    assert judged["models"] == evaluated[1]["models"]
    assert "max_size_ratio" in logged


def test_a_student_that_fails_ends_the_run_with_rule_value_bound_and_report(
    settings: Settings, evaluated: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Any]] = []

    def keep(judged: dict[str, Any]) -> Path:
        kept.append(judged)
        return Path("page.html")

    monkeypatch.setattr(_refused, "keep_refused", keep)
    gates = settings.gates.model_copy(update={"max_size_ratio": 0.01})
    with pytest.raises(GateError, match=r"max_size_ratio: .*%.* the bound is 1.00%\nreport  page.html$"):
        check_gates.entrypoint(part(settings.model_copy(update={"gates": gates}), "gates"), evaluated[1])
    (judged,) = kept
    assert [gate["passed"] for gate in judged["gates"] if gate["rule"] == "max_size_ratio"] == [False]
