"""Every bad input of the zoo meets the answer that its cases.yaml names."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ted import errors
from ted.config import DataSettings, QualitySettings, TaskSettings
from ted.data.quality import Validation, validate
from ted.data.sources import load_dataset

ZOO = Path(__file__).parents[2] / "bad_inputs"
CASES: dict[str, dict[str, Any]] = yaml.safe_load((ZOO / "cases.yaml").read_text(encoding="utf-8"))
STOPPED = [name for name, case in CASES.items() if "error" in case]
EXCLUDED = [name for name, case in CASES.items() if "excluded" in case]


def judge(case: dict[str, Any]) -> Validation:
    data = DataSettings(source=str(ZOO / case["source"]), **case.get("data", {}))
    task = TaskSettings(kind=case.get("kind", "classification"), labels=case.get("labels"))
    return validate(load_dataset(data, task, seed=0), data, QualitySettings(), task)


@pytest.mark.parametrize("name", STOPPED)
def test_bad_input_stops_with_a_clear_message(name: str) -> None:
    case = CASES[name]
    with pytest.raises(getattr(errors, case["error"]), match=re.escape(case["message"])):
        judge(case)


@pytest.mark.parametrize("name", EXCLUDED)
def test_bad_rows_are_excluded_and_recorded(name: str) -> None:
    case = CASES[name]
    validation = judge(case)
    found = [[finding.split, finding.rule, list(finding.rows)] for finding in validation.findings]
    assert found == case["excluded"]
    recorded = list(zip(*(validation.excluded[column] for column in ("split", "rule", "row")), strict=True))
    assert recorded == [(split, rule, row) for split, rule, rows in case["excluded"] for row in rows]
    kept = {(name, row) for name, split in validation.dataset.items() for row in split["row"]}
    assert kept.isdisjoint({(split, row) for split, _, row in recorded})


def test_every_case_has_an_answer_and_every_file_a_case() -> None:
    assert len(STOPPED) + len(EXCLUDED) == len(CASES)
    sources = {case["source"] for case in CASES.values()}
    assert {path.name for path in ZOO.iterdir()} - {"cases.yaml"} <= sources
