"""The rules that a student must pass, as a pure function of an evaluation."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ted.errors import GateError

if TYPE_CHECKING:
    from ted.config import GateSettings

# Differences of measured figures carry rounding errors; a value this close to its bound meets it.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What one rule says of a student; `passed` is None where the rule has nothing to compare with."""

    rule: str
    value: float | None
    bound: float
    passed: bool | None
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as a value that JSON holds."""
        return asdict(self)


def check(evaluation: Mapping[str, Any], gates: "GateSettings") -> tuple[Verdict, ...]:
    """Return a verdict per rule that is switched on.

    Args:
        evaluation: what `ted.evaluation.evaluate_models` returns.
        gates: bounds of the rules; a bound of None switches its rule off. A value that equals its bound passes.

    Raises:
        GateError: the evaluation lacks the student, the teacher, or the bootstrap interval of a comparison.
    """
    for name in ("student", "teacher"):
        if name not in evaluation["models"]:
            raise GateError(
                f"the evaluation holds {', '.join(evaluation['models']) or 'no model'} but no {name}; "
                f"evaluate the student beside its teacher"
            )
    rules = (
        ("min_teacher_share", gates.min_teacher_share, _teacher_share),
        ("min_gain_over_start", gates.min_gain_over_start, partial(_gain_rule, other="student_start")),
        ("min_gain_over_control", gates.min_gain_over_control, partial(_gain_rule, other="control")),
        ("champion_tolerance", gates.champion_tolerance, _champion_tolerance),
    )
    verdicts = [rule(name, evaluation, bound) for name, bound, rule in rules if bound is not None]
    if gates.max_slice_drop is not None:
        verdicts.append(_slice_drop(evaluation, gates.max_slice_drop, gates.min_slice_rows))
    if gates.max_latency_ratio is not None:
        verdicts.append(_latency_ratio(evaluation, gates.max_latency_ratio))
    if gates.max_size_ratio is not None:
        verdicts.append(_size_ratio(evaluation, gates.max_size_ratio))
    return tuple(verdicts)


def enforce(verdicts: Iterable[Verdict]) -> None:
    """Refuse a student that failed a rule; rules that were not judged do not count.

    Raises:
        GateError: one line per failed rule with the measured value and the bound.
    """
    failed = [verdict for verdict in verdicts if verdict.passed is False]
    if failed:
        lines = [f"{verdict.rule}: {verdict.message}" for verdict in failed]
        raise GateError(
            "\n".join(["the student is not promoted; improve it or change these bounds under gates:", *lines])
        )


def _teacher_share(rule: str, evaluation: Mapping[str, Any], bound: float) -> Verdict:
    student, teacher = _primary(evaluation, "student"), _primary(evaluation, "teacher")
    part, whole = (student, teacher) if evaluation["higher_is_better"] else (teacher, student)
    metric = evaluation["primary_metric"]
    if whole <= 0:
        message = f"no share can be formed of {metric} {student:.4f} (student) and {teacher:.4f} (teacher)"
        return Verdict(rule, None, bound, False, message)
    share = part / whole
    whose = "the student keeps" if evaluation["higher_is_better"] else "less is better, and the teacher has"
    other = "teacher" if evaluation["higher_is_better"] else "student"
    message = f"{whose} {share:.2%} of the {other}'s {metric} ({part:.4f} of {whole:.4f})"
    return Verdict(rule, share, bound, _at_least(share, bound), f"{message}; the bound is {bound:.2%}")


def _gain_rule(rule: str, evaluation: Mapping[str, Any], bound: float, other: str) -> Verdict:
    if other not in evaluation["models"]:
        return _not_judged(rule, bound, f"{other} was not evaluated")
    gain = _gain(evaluation, other)
    message = f"{_against(evaluation, other)}: {gain:+.4f}; it must exceed {bound:+.4f}"
    return Verdict(rule, gain, bound, gain > bound + ROUNDING, message)


def _champion_tolerance(rule: str, evaluation: Mapping[str, Any], bound: float) -> Verdict:
    """A drop beyond the tolerance fails; the interval of the difference tells how sure that is."""
    if "champion" not in evaluation["models"]:
        return _not_judged(rule, bound, "there is no champion yet")
    low, high = _interval(evaluation, "student_vs_champion")
    drop = -_gain(evaluation, "champion")
    message = (
        f"{_against(evaluation, 'champion')}: {-drop:+.4f}, paired bootstrap {low:+.4f} to {high:+.4f}; "
        f"the tolerance is {bound:.4f}"
    )
    passed = _at_most(drop, bound)
    if not passed and high >= 0:
        message += "; the interval does not exclude that they are equal, more test rows would tell"
    return Verdict(rule, drop, bound, passed, message)


def _slice_drop(evaluation: Mapping[str, Any], bound: float, min_rows: int) -> Verdict:
    rule = "max_slice_drop"
    if "student_start" not in evaluation["models"]:
        return _not_judged(rule, bound, "student_start was not evaluated")
    drops = _slice_drops(evaluation, min_rows)
    if not drops:
        return _not_judged(rule, bound, f"no slice has a measured value on {min_rows} rows or more")
    failed = [name for name, drop in drops.items() if not _at_most(drop, bound)]
    named = failed or [max(drops, key=drops.__getitem__)]
    changes = ", ".join(f"{name} {-drops[name]:+.4f}" for name in named)
    message = f"{evaluation['primary_metric']} against student_start, by slice: {changes}; the bound is {-bound:+.4f}"
    return Verdict(rule, max(drops.values()), bound, not failed, message)


def _slice_drops(evaluation: Mapping[str, Any], min_rows: int) -> dict[str, float]:
    """Return how far the student lies below the student start, for each slice that is large enough to be judged."""
    start, student = (evaluation["models"][name]["slices"] for name in ("student_start", "student"))
    sign = 1 if evaluation["higher_is_better"] else -1
    return {
        name: sign * (start[name]["primary"] - part["primary"])
        for name, part in student.items()
        if part["rows"] >= min_rows and part["primary"] is not None and start[name]["primary"] is not None
    }


def _latency_ratio(evaluation: Mapping[str, Any], bound: float) -> Verdict:
    student = evaluation["models"]["student"]
    batch = max(student["latency_ratio"], key=int)
    ratio = student["latency_ratio"][batch]
    message = f"the student takes {ratio:.2%} of the teacher's time per batch of {batch}; the bound is {bound:.2%}"
    return Verdict("max_latency_ratio", ratio, bound, _at_most(ratio, bound), message)


def _size_ratio(evaluation: Mapping[str, Any], bound: float) -> Verdict:
    models = evaluation["models"]
    ratio = models["student"]["size_bytes"] / models["teacher"]["size_bytes"]
    message = f"the student's weights take {ratio:.2%} of the teacher's bytes; the bound is {bound:.2%}"
    return Verdict("max_size_ratio", ratio, bound, _at_most(ratio, bound), message)


def _not_judged(rule: str, bound: float, reason: str) -> Verdict:
    return Verdict(rule, None, bound, None, f"not judged: {reason}")


def _primary(evaluation: Mapping[str, Any], name: str) -> float:
    return float(evaluation["models"][name]["primary"])


def _gain(evaluation: Mapping[str, Any], other: str) -> float:
    """Return how much better the student is than another model; positive is better whatever the metric."""
    sign = 1 if evaluation["higher_is_better"] else -1
    return sign * (_primary(evaluation, "student") - _primary(evaluation, other))


def _interval(evaluation: Mapping[str, Any], comparison: str) -> tuple[float, float]:
    """Return the bootstrap interval of a comparison as gains."""
    found = evaluation.get("comparisons", {}).get(comparison)
    if found is None:
        raise GateError(f"the evaluation holds no comparison {comparison}; evaluate the models again")
    low, high = float(found["low"]), float(found["high"])
    return (low, high) if evaluation["higher_is_better"] else (-high, -low)


def _against(evaluation: Mapping[str, Any], other: str) -> str:
    student, theirs = _primary(evaluation, "student"), _primary(evaluation, other)
    return f"{evaluation['primary_metric']} {student:.4f} against {theirs:.4f} of {other}"


def _at_least(value: float, bound: float) -> bool:
    return value >= bound or math.isclose(value, bound, rel_tol=0.0, abs_tol=ROUNDING)


def _at_most(value: float, bound: float) -> bool:
    return value <= bound or math.isclose(value, bound, rel_tol=0.0, abs_tol=ROUNDING)
