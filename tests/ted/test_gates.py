import ast
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import ted.gates
from ted.config import GateSettings
from ted.errors import GateError
from ted.gates import Verdict, check, enforce

OFF = GateSettings(
    min_teacher_share=None,
    min_gain_over_start=None,
    min_gain_over_control=None,
    champion_tolerance=None,
    max_slice_drop=None,
    max_latency_ratio=None,
    max_size_ratio=None,
)

RULES = (
    "min_teacher_share",
    "min_gain_over_start",
    "min_gain_over_control",
    "champion_tolerance",
    "max_slice_drop",
    "max_latency_ratio",
    "max_size_ratio",
)


def model(primary: float) -> dict[str, Any]:
    return {
        "primary": primary,
        "slices": {"length_q1": {"rows": 100, "primary": primary}, "label=no": {"rows": 100, "primary": primary}},
        "size_bytes": 1000,
        "latency_ratio": {"1": 1.0, "32": 1.0},
    }


def evaluation(**primaries: float) -> dict[str, Any]:
    measured = {"teacher": 0.8, "student_start": 0.7, "student": 0.76, **primaries}
    return {
        "primary_metric": "accuracy",
        "higher_is_better": True,
        "models": {name: model(primary) for name, primary in measured.items()},
    }


def lower_is_better(**primaries: float) -> dict[str, Any]:
    return {**evaluation(**primaries), "primary_metric": "rmse", "higher_is_better": False}


def verdict(measured: dict[str, Any], rule: str, **gates: float | None) -> Verdict:
    (found,) = check(measured, OFF.model_copy(update=gates))
    assert found.rule == rule
    return found


def test_it_needs_the_standard_library_only() -> None:
    tree = ast.parse(Path(ted.gates.__file__).read_text(encoding="utf-8"))
    imported = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    imported += [name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names]
    assert [name for name in imported if name.split(".")[0] not in sys.stdlib_module_names] == ["ted.errors"]


def test_a_good_student_passes_every_rule_in_the_order_of_the_settings() -> None:
    measured = evaluation(control=0.72, champion=0.75)
    measured["models"]["student"] |= {"size_bytes": 500, "latency_ratio": {"1": 0.6, "32": 0.5}}
    measured["comparisons"] = {"student_vs_champion": {"difference": 0.01, "low": -0.01, "high": 0.03}}
    verdicts = check(measured, GateSettings())
    assert [found.rule for found in verdicts] == list(RULES)
    assert [found.passed for found in verdicts] == [True] * len(RULES)
    enforce(verdicts)


def test_a_rule_without_a_bound_is_off() -> None:
    assert check(evaluation(), OFF) == ()


def test_the_evaluation_is_not_changed() -> None:
    measured = evaluation()
    before = deepcopy(measured)
    check(measured, GateSettings())
    assert measured == before


@pytest.mark.parametrize(
    ("student", "passed"), [(0.73, True), (0.72, True), (0.72 - 1e-12, True), (0.7199, False)], ids=str
)
def test_teacher_share(student: float, passed: bool) -> None:
    found = verdict(evaluation(student=student), "min_teacher_share", min_teacher_share=0.9)
    assert found.passed is passed
    assert found.value == pytest.approx(student / 0.8)
    assert found.bound == 0.9
    assert f"{student / 0.8:.2%}" in found.message
    assert "90.00%" in found.message


@pytest.mark.parametrize(
    ("student", "share", "passed"), [(0.8, 1.0, True), (1.0, 0.8, True), (1.01, 0.8 / 1.01, False)], ids=str
)
def test_teacher_share_where_lower_is_better(student: float, share: float, passed: bool) -> None:
    found = verdict(lower_is_better(student=student), "min_teacher_share", min_teacher_share=0.8)
    assert found.value == pytest.approx(share)
    assert found.passed is passed
    assert f"the teacher has {share:.2%} of the student's rmse (0.8000 of {student:.4f})" in found.message


@pytest.mark.parametrize("teacher", [0.0, -0.2])
def test_a_teacher_that_knows_nothing_gives_no_share(teacher: float) -> None:
    found = verdict(evaluation(teacher=teacher), "min_teacher_share", min_teacher_share=0.9)
    assert (found.value, found.passed) == (None, False)
    assert "no share can be formed" in found.message


@pytest.mark.parametrize(
    ("other", "rule"), [("student_start", "min_gain_over_start"), ("control", "min_gain_over_control")]
)
@pytest.mark.parametrize(("theirs", "passed"), [(0.70, True), (0.7099999, True), (0.71, False), (0.9, False)], ids=str)
def test_gain(other: str, rule: str, theirs: float, passed: bool) -> None:
    found = verdict(evaluation(**{other: theirs}), rule, **{rule: 0.05})
    assert found.value == pytest.approx(0.76 - theirs)
    assert found.passed is passed
    assert other in found.message
    assert "+0.0500" in found.message


@pytest.mark.parametrize(("theirs", "passed"), [(0.82, True), (0.81, False), (0.80, False)])
def test_gain_where_lower_is_better(theirs: float, passed: bool) -> None:
    found = verdict(lower_is_better(student_start=theirs), "min_gain_over_start", min_gain_over_start=0.05)
    assert found.value == pytest.approx(theirs - 0.76)
    assert found.passed is passed


def test_a_student_equal_to_the_control_has_gained_nothing() -> None:
    found = verdict(evaluation(control=0.76), "min_gain_over_control", min_gain_over_control=0.0)
    assert found.passed is False


def test_a_negative_gain_may_be_allowed() -> None:
    found = verdict(evaluation(control=0.77), "min_gain_over_control", min_gain_over_control=-0.02)
    assert found.passed is True


@pytest.mark.parametrize(
    ("rule", "gone"),
    [
        ("min_gain_over_start", "student_start"),
        ("min_gain_over_control", "control"),
        ("champion_tolerance", "champion"),
        ("max_slice_drop", "student_start"),
    ],
)
def test_a_rule_without_its_counterpart_is_not_judged(rule: str, gone: str) -> None:
    measured = evaluation()
    measured["models"].pop(gone, None)
    found = verdict(measured, rule, **{rule: 0.0})
    assert (found.value, found.passed) == (None, None)
    assert found.message.startswith("not judged: ")
    enforce([found])


@pytest.mark.parametrize(
    ("champion", "low", "high", "passed"),
    [
        (0.75, -0.01, 0.03, True),  # better
        (0.77, -0.03, -0.001, True),  # worse for certain, within the tolerance
        (0.77, -0.06, 0.04, True),  # at the tolerance
        (0.79, -0.06, 0.01, False),  # beyond the tolerance, may be chance
        (0.79, -0.06, -0.001, False),  # beyond the tolerance, and not by chance
    ],
)
def test_champion(champion: float, low: float, high: float, passed: bool) -> None:
    measured = evaluation(champion=champion)
    measured["comparisons"] = {"student_vs_champion": {"difference": 0.76 - champion, "low": low, "high": high}}
    found = verdict(measured, "champion_tolerance", champion_tolerance=0.01)
    assert found.value == pytest.approx(champion - 0.76)
    assert found.passed is passed
    assert f"{low:+.4f} to {high:+.4f}" in found.message
    assert ("more test rows would tell" in found.message) is (not passed and high >= 0)


@pytest.mark.parametrize(("low", "high", "passed"), [(-0.01, 0.06, False), (0.01, 0.06, False)])
def test_champion_where_lower_is_better(low: float, high: float, passed: bool) -> None:
    measured = lower_is_better(champion=0.73)
    measured["comparisons"] = {"student_vs_champion": {"difference": 0.03, "low": low, "high": high}}
    assert verdict(measured, "champion_tolerance", champion_tolerance=0.01).passed is passed


def test_a_champion_without_an_interval_is_refused() -> None:
    with pytest.raises(GateError, match="no comparison student_vs_champion; evaluate the models again"):
        check(evaluation(champion=0.7), OFF.model_copy(update={"champion_tolerance": 0.01}))


@pytest.mark.parametrize(
    ("value", "passed"), [(0.65, True), (0.6, True), (0.6 - 1e-12, True), (0.59, False), (None, True)], ids=str
)
def test_slice_drop(value: float | None, passed: bool) -> None:
    measured = evaluation()
    measured["models"]["student"]["slices"]["label=no"]["primary"] = value
    found = verdict(measured, "max_slice_drop", max_slice_drop=0.1)
    assert found.passed is passed
    assert found.value == pytest.approx(-0.06 if value is None else 0.7 - value)
    assert "length_q1" in found.message if value is None else "label=no" in found.message


def test_every_slice_that_fails_is_named() -> None:
    measured = evaluation()
    for part in measured["models"]["student"]["slices"].values():
        part["primary"] = 0.5
    assert "length_q1 -0.2000, label=no -0.2000" in verdict(measured, "max_slice_drop", max_slice_drop=0.1).message


def test_slice_drop_where_lower_is_better() -> None:
    measured = lower_is_better()
    measured["models"]["student"]["slices"]["label=no"]["primary"] = 0.9
    found = verdict(measured, "max_slice_drop", max_slice_drop=0.1)
    assert found.value == pytest.approx(0.2)
    assert found.passed is False


@pytest.mark.parametrize(("rows", "passed"), [(49, None), (50, False)])
def test_small_slices_are_not_judged(rows: int, passed: bool | None) -> None:
    measured = evaluation(student=0.1)
    for part in measured["models"]["student"]["slices"].values():
        part["rows"] = rows
    assert verdict(measured, "max_slice_drop", max_slice_drop=0.1, min_slice_rows=50).passed is passed


@pytest.mark.parametrize(("ratio", "passed"), [(0.5, True), (0.9, True), (0.901, False)])
def test_latency_is_judged_at_the_largest_batch(ratio: float, passed: bool) -> None:
    measured = evaluation()
    measured["models"]["student"]["latency_ratio"] = {"128": ratio, "32": 7.0}
    found = verdict(measured, "max_latency_ratio", max_latency_ratio=0.9)
    assert found.value == ratio
    assert found.passed is passed
    assert "batch of 128" in found.message


@pytest.mark.parametrize(("size", "passed"), [(500, True), (900, True), (901, False)])
def test_size(size: int, passed: bool) -> None:
    measured = evaluation()
    measured["models"]["student"]["size_bytes"] = size
    found = verdict(measured, "max_size_ratio", max_size_ratio=0.9)
    assert found.value == pytest.approx(size / 1000)
    assert found.passed is passed


@pytest.mark.parametrize("gone", ["student", "teacher"])
def test_an_evaluation_without_a_needed_model_is_refused(gone: str) -> None:
    measured = evaluation()
    del measured["models"][gone]
    with pytest.raises(GateError, match=f"but no {gone}; evaluate the student beside its teacher"):
        check(measured, GateSettings())


def test_enforce_names_every_failed_rule_with_value_and_bound() -> None:
    measured = evaluation(student=0.6, control=0.7)
    with pytest.raises(GateError) as error:
        enforce(check(measured, GateSettings(max_latency_ratio=None, max_size_ratio=None)))
    heading, *lines = str(error.value).splitlines()
    assert "not promoted" in heading
    assert [line.split(":")[0] for line in lines] == [
        "min_teacher_share",
        "min_gain_over_start",
        "min_gain_over_control",
    ]
    assert "75.00%" in lines[0]
    assert "90.00%" in lines[0]
    assert "-0.1000" in lines[1]


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (lambda models: models["student"].update(size_bytes=2000), ["max_size_ratio"]),
        (lambda models: models["student"].update(latency_ratio={"1": 2.0}), ["max_latency_ratio"]),
    ],
)
def test_enforce_names_only_failed_rules(change: Callable[[dict[str, Any]], None], rules: list[str]) -> None:
    measured = evaluation()
    measured["models"]["student"] |= {"size_bytes": 500, "latency_ratio": {"1": 0.6}}
    change(measured["models"])
    with pytest.raises(GateError) as error:
        enforce(check(measured, GateSettings()))
    assert [line.split(":")[0] for line in str(error.value).splitlines()[1:]] == rules


def test_a_verdict_is_a_plain_dict_for_json() -> None:
    assert Verdict("rule", 1.0, 0.5, True, "text").as_dict() == {
        "rule": "rule",
        "value": 1.0,
        "bound": 0.5,
        "passed": True,
        "message": "text",
    }
