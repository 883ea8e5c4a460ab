"""The order of the steps, and what each is given."""

import importlib

import pytest

from pipelines.ted_pipeline import ted_pipeline
from ted.config import Settings, parse_settings

# What must have ended well before a step starts, as far as it does not follow from the rest.
BEFORE = {
    "validate_data": {"load_data"},
    "finetune_teacher": {"validate_data"},
    "prepare_student": {"validate_data"},
    "learn_teacher_filters": {"finetune_teacher"},
    "learn_student_filters": {"prepare_student"},
    "finetune_control": {"prepare_student"},
    "distill_student": {"finetune_teacher", "prepare_student", "learn_teacher_filters", "learn_student_filters"},
    "evaluate_models": {"distill_student", "finetune_control"},
    "check_gates": {"evaluate_models"},
    "export_onnx": {"check_gates"},
    "build_report": {"export_onnx", "learn_student_filters"},
    "promote_model": {"build_report"},
}


def prepared(settings: Settings) -> dict[str, set[str]]:
    pipeline = ted_pipeline.copy()
    pipeline.prepare(**settings.model_dump(mode="json"))
    return {name: set(invocation.upstream_steps) for name, invocation in pipeline.invocations.items()}


def given(settings: Settings, step: str) -> dict[str, object]:
    pipeline = ted_pipeline.copy()
    pipeline.prepare(**settings.model_dump(mode="json"))
    found: dict[str, object] = pipeline.invocations[step].parameters["settings"].model_dump(mode="json")
    return found


def test_the_bare_name_is_the_pipeline_and_its_stored_source_is_this_package() -> None:
    alias: object = importlib.import_module("ted_pipeline")
    assert alias is ted_pipeline
    assert ted_pipeline.resolve().import_path == "pipelines.ted_pipeline.ted_pipeline"


def test_the_steps_stand_in_their_order() -> None:
    upstream = prepared(Settings())
    assert set(upstream) == {*BEFORE, "load_data"}
    assert {name: steps - upstream[name] for name, steps in BEFORE.items() if steps - upstream[name]} == {}


def test_without_a_control_there_is_no_step_for_it() -> None:
    assert "finetune_control" not in prepared(parse_settings({"evaluation": {"control": False}}))


@pytest.mark.parametrize("method", ["finetune", "kd", "lwd", "random_filter", "ted"])
def test_the_picture_does_not_depend_on_the_method(method: str) -> None:
    assert set(prepared(parse_settings({"method": method}))) == {*BEFORE, "load_data"}


def test_a_bound_of_a_rule_concerns_the_rules_and_the_report_alone() -> None:
    other = parse_settings({"gates": {"max_size_ratio": 0.5}})
    changed = {name for name in (*BEFORE, "load_data") if given(other, name) != given(Settings(), name)}
    assert changed == {"check_gates", "build_report"}


def test_a_price_concerns_the_report_alone() -> None:
    priced = parse_settings({"report": {"price_per_hour": 2.5}})
    changed = {name for name in (*BEFORE, "load_data") if given(priced, name) != given(Settings(), name)}
    assert changed == {"build_report"}


def test_published_arithmetic_reaches_the_steps_that_compute_it() -> None:
    official = parse_settings({"compatibility": "official"})
    distillation = given(official, "distill_student")["distillation"]
    assert isinstance(distillation, dict)
    assert distillation["mask_padding"] is False
