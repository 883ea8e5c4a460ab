"""Settings: bounds, refusals, round trips, and a description under every field."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ted.config import (
    OFFICIAL_VALUES,
    TRAININGS,
    FilterSettings,
    FilterTraining,
    Section,
    Settings,
    TeacherSettings,
    TrainingSettings,
    parse_settings,
)
from ted.errors import SettingsError


def sections(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, section
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, f"{path}.{name}".lstrip("."))


SECTIONS = dict(sections(Settings))


def nested(key: str, value: object) -> dict[str, Any]:
    """Return the mapping that gives one dotted key a value."""
    section, _, rest = key.partition(".")
    return {section: nested(rest, value) if rest else value}


def merged(*mappings: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for mapping in mappings:
        for key, value in mapping.items():
            old = result.get(key)
            result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def test_an_empty_mapping_gives_the_defaults() -> None:
    settings = parse_settings({})
    assert settings == Settings()
    assert settings.resolved() is settings


def test_defaults_that_users_rely_on() -> None:
    settings = Settings()
    assert (settings.method, settings.compatibility, settings.seed) == ("ted", "none", 42)
    assert settings.task.kind == "classification"
    assert (settings.distillation.temperature, settings.distillation.mask_padding) == (2.0, True)
    assert settings.distillation.student_filter_init == "ridge"
    assert settings.distillation.layer_loss_units == "variance"
    assert (settings.filters.filter_nonlinear, settings.filters.filter_interval) == (False, 1)
    assert settings.student.layers is None
    assert settings.promotion.model_stage == "staging"


@pytest.mark.parametrize("path", SECTIONS)
def test_every_field_has_a_description_that_repeats_no_value(path: str) -> None:
    for name, field in SECTIONS[path].model_fields.items():
        assert field.description, f"{path}.{name} has no description"
        assert field.description.rstrip().endswith("."), f"{path}.{name}: a description is a sentence"
        assert "default" not in field.description.lower(), f"{path}.{name} names its default in prose"


@pytest.mark.parametrize("path", SECTIONS)
def test_sections_are_frozen_and_closed(path: str) -> None:
    section = SECTIONS[path]
    assert issubclass(section, Section)
    assert section.model_config.get("frozen")
    assert section.model_config.get("extra") == "forbid"


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="Instance is frozen"):
        settings.seed = 1


def test_settings_come_back_from_json() -> None:
    settings = parse_settings(
        {"student": {"layers": [0, 3]}, "filters": {"layer_pairs": [[0, 1]]}, "task": {"labels": ["a", "b"]}}
    )
    assert Settings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


QUESTIONS: dict[str, Any] = {"task": {"kind": "question_answering"}, "data": {"text_pair_column": "context"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sead": 1}, "sead: unknown setting; did you mean seed?"),
        ({"distilation": {}}, "distilation: unknown setting; did you mean distillation?"),
        ({"distillation": {"kl_alhpa": 1}}, "distillation.kl_alhpa: unknown setting; did you mean distillation.kl_al"),
        ({"teacher": {"training": {"lr": 1}}}, "teacher.training.lr: unknown setting; allowed: adam_beta1, "),
        ({"seed": "x"}, "seed: Input should be a valid integer, unable to parse string as an integer; got 'x'"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0; got -1"),
        ({"method": "dk"}, "method: Input should be 'finetune', 'kd', 'lwd', 'random_filter' or 'ted'; got 'dk'"),
        ({"data": 3}, "data: Input should be a valid dictionary"),
        ({"filters": {"layer_pairs": [[0, -1]]}}, "filters.layer_pairs.0.1: Input should be greater than or equal to"),
        ({"export": {"name": "My Model"}}, "export.name: String should match pattern"),
        ({"distillation": {"temperature": 0}}, "distillation.temperature: Input should be greater than 0; got 0"),
        ({"teacher": {"training": {"learning_rate": 0}}}, "teacher.training.learning_rate: Input should be greater"),
        ({"task": {"labels": ["a"]}}, "task.labels: Tuple should have at least 2 items"),
        ({"task": {"labels": ["a", "b", "a"]}}, "task.labels repeats a name: ['a', 'b', 'a']; name each class once"),
        (
            {"task": {"kind": "regression", "labels": ["a", "b"]}},
            "task.labels cannot act: task.kind is regression; remove it",
        ),
        ({"data": {"validation_fraction": 0.5, "test_fraction": 0.5}}, "leave no training rows; lower one"),
        ({"data": {"train_rows": 10, "labelled_rows": 11}}, "data.labelled_rows is larger than data.train_rows; lower"),
        ({"quality": {"min_characters": 9, "max_characters": 8}}, "quality.min_characters is above quality.max_charac"),
        (
            {"task": {"kind": "question_answering"}},
            "data.text_pair_column is missing: with task.kind question_answering",
        ),
        (merged(QUESTIONS, nested("data.stride", 65)), "data.stride is 65, more than half of data.max_length (128)"),
        (merged(QUESTIONS, nested("data.max_length", 8)), "data.max_length is 8, but windows with a question need 16"),
        ({"student": {"model": "x", "layers": [0]}}, "student.layers cannot act beside student.model; remove one"),
        ({"student": {"model": "x", "config": {"a": 1}}}, "student.config cannot act beside student.model; remove one"),
        ({"student": {"layers": [0], "num_layers": 1}}, "student.num_layers cannot act beside student.layers; remove"),
        (
            {"student": {"config": {"a": 1}, "num_layers": 1}},
            "student.num_layers cannot act beside student.config; rem",
        ),
        ({"student": {"config": {}}}, "student.config: Dictionary should have at least 1 item"),
        ({"student": {"num_layers": 0}}, "student.num_layers: Input should be greater than or equal to 1"),
        ({"student": {"layer_choice": "middle"}}, "student.layer_choice: Input should be 'evenly', 'first' or 'last'"),
        ({"teacher": {"dtype": "float16"}}, "teacher.dtype: Input should be 'float32' or 'bfloat16'; got 'float16'"),
        ({"teacher": {"attn_implementation": "flash"}}, "teacher.attn_implementation: Input should be 'eager', 'sdpa'"),
        ({"student": {"layers": [2, 0]}}, "student.layers must rise without repeats, not [2, 0]"),
        (
            {"data": {"splits": {"dev": "x"}}},
            "data.splits.dev: Input should be 'train', 'validation' or 'test'; got 'd",
        ),
        ({"data": {"splits": {"test": "x"}}}, "data.splits names no train; say which split has the training rows"),
        ({"data": {"splits": {"train": "x", "test": "x"}}}, "data.splits names a split twice: {'train': 'x', 'test':"),
        ({"teacher": {"dropout": {"hidden_dropout_prob": 1}}}, "teacher.dropout.hidden_dropout_prob: Input should be"),
        ({"teacher": {"dropout": {}}}, "teacher.dropout: Dictionary should have at least 1 item"),
        (
            nested("filters.student_training.warmup_step", 1),
            "filters.student_training.warmup_step: unknown setting; did you mean filters.student_training.warmup_st",
        ),
        ({"student": {"layers": [0, 0]}}, "student.layers must rise without repeats, not [0, 0]"),
        (
            {"task": {"kind": "token_classification"}, "data": {"max_length": 100}},
            "data.stride is 64, more than half of data.max_length (100): windows would hardly move on; lower it to at",
        ),
    ],
)
def test_wrong_values_get_one_line_with_the_dotted_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(values)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_every_problem_gets_its_line() -> None:
    with pytest.raises(SettingsError, match=r"(?s)data\.max_length: .*sead: ") as caught:
        parse_settings({"sead": 1, "data": {"max_length": 1}})
    assert len(str(caught.value).splitlines()) == 2


KD: dict[str, Any] = {"method": "kd"}
LWD: dict[str, Any] = {"method": "lwd"}
RANDOM: dict[str, Any] = {"method": "random_filter"}
FINETUNE: dict[str, Any] = {"method": "finetune"}
REGRESSION: dict[str, Any] = {"task": {"kind": "regression"}}
MULTI_LABEL: dict[str, Any] = {"task": {"kind": "multi_label"}}
OFFICIAL: dict[str, Any] = {"compatibility": "official"}
TAGS: dict[str, Any] = {"task": {"kind": "token_classification"}}
CAUSAL: dict[str, Any] = {"task": {"kind": "causal_lm"}}
MASKED: dict[str, Any] = {"task": {"kind": "masked_lm"}}
BATCH_KL: dict[str, Any] = merged(REGRESSION, nested("distillation.batch_softmax_kl", True))

IDLE: list[tuple[dict[str, Any], str, Any, str]] = [
    ({}, "distillation.prediction_mse_alpha", 1.0, "task.kind is classification"),
    ({}, "distillation.batch_softmax_kl", True, "task.kind is classification"),
    ({}, "data.stride", 8, "task.kind is classification"),
    ({}, "task.max_answer_tokens", 8, "task.kind is classification"),
    ({}, "task.null_threshold", None, "task.kind is classification"),
    (QUESTIONS, "filters.head_pooling", "mean", "task.kind is question_answering"),
    (QUESTIONS, "task.labels", ["a", "b"], "task.kind is question_answering"),
    ({}, "task.threshold", 0.4, "task.kind is classification"),
    ({}, "data.label_separator", ";", "task.kind is classification"),
    (MULTI_LABEL, "distillation.prediction_mse_alpha", 1.0, "task.kind is multi_label"),
    (REGRESSION, "quality.min_rows_per_class", 3, "task.kind is regression"),
    (TAGS, "data.text_pair_column", "b", "task.kind is token_classification"),
    (TAGS, "filters.head_pooling", "mean", "task.kind is token_classification"),
    ({}, "data.stride", 8, "task.kind is classification"),
    (REGRESSION, "distillation.kl_alpha", 1.0, "a regression task has one output"),
    (REGRESSION, "distillation.temperature", 2.0, "a regression task has one output"),
    (BATCH_KL, "distillation.prediction_mse_alpha", 1.0, "a regression task has one output"),
    (merged(REGRESSION, OFFICIAL), "distillation.prediction_mse_alpha", 1.0, "a regression task has one output"),
    (nested("data.splits", {"train": "a", "test": "b"}), "data.test_fraction", 0.1, "data.splits names the test split"),
    ({}, "student.dropout", {"hidden_dropout_prob": 0.0}, "other students have teacher.dropout"),
    ({}, "filters.student_training.warmup_steps", 0, "do not start as stage I leaves them"),
    *[(KD, key, value, "method kd does not use it") for key, value in [
        ("filters.filter_output_dim", 8),
        ("distillation.mse_alpha", 1.0),
        ("distillation.layer_loss_units", "raw"),
        ("distillation.layer_reduction", "sum"),
        ("distillation.mask_padding", True),
        ("distillation.student_filter_init", "random"),
        ("distillation.ridge_penalty", 1.0),
        ("distillation.alignment_rows", 10),
        ("distillation.filter_learning_rate_multiplier", 2.0),
    ]],
    *[(method, key, value, f"method {method['method']} does not use it") for method in (LWD, RANDOM)
      for key, value in [
        ("filters.training.max_steps", 8),
        ("filters.student_training.max_steps", 8),
        ("filters.head_pooling", "mean"),
        ("filters.head_dropout", 0.2),
        ("filters.backbone_dropout", True),
    ]],
    (LWD, "filters.filter_output_dim", 8, "method lwd does not use it"),
    *[(FINETUNE, key, value, "method finetune does not use it") for key, value in [
        ("filters.filter_interval", 2),
        ("distillation.kl_alpha", 1.0),
        ("distillation.temperature", 1.0),
        ("distillation.teacher_cache", "on"),
        ("distillation.teacher_cache_mib", 10),
        ("data.unlabelled", "more.csv"),
    ]],
    (merged(FINETUNE, REGRESSION), "distillation.prediction_mse_alpha", 1.0, "method finetune does not use it"),
    (merged(FINETUNE, REGRESSION), "distillation.batch_softmax_kl", True, "method finetune does not use it"),
    *[(kind, key, value, f"task.kind is {kind['task']['kind']}") for kind in (CAUSAL, MASKED) for key, value in [
        ("data.label_column", "label"),
        ("data.text_pair_column", "second"),
        ("data.unlabelled", "more.csv"),
        ("data.labelled_rows", 5),
        ("quality.unknown_label", "stop"),
        ("quality.conflicting_labels", "stop"),
        ("quality.min_rows_per_class", 1),
        ("filters.head_pooling", "mean"),
        ("filters.head_dropout", 0.2),
        ("evaluation.extra_metrics", ["bleu"]),
    ]],
    (CAUSAL, "task.mask_probability", 0.3, "task.kind is causal_lm"),
    (MASKED, "task.max_new_tokens", 3, "task.kind is masked_lm"),
    (nested("teacher.finetune", False), "teacher.training.max_steps", 5, "teacher.finetune is false"),
    (nested("student.finetune", False), "student.training.max_steps", 5, "student.finetune is false"),
    (nested("distillation.teacher_cache", "on"), "distillation.teacher_cache_mib", 5, "teacher_cache is not auto"),
    (nested("distillation.mask_padding", False), "distillation.teacher_cache", "on", "padded positions enter"),
    (OFFICIAL, "distillation.teacher_cache", "on", "padded positions enter the layer loss"),
    (nested("distillation.student_filter_init", "random"), "distillation.ridge_penalty", 1.0, "do not start by ridge"),
    (OFFICIAL, "distillation.ridge_penalty", 1.0, "do not start by ridge regression"),
    (nested("evaluation.control", False), "gates.min_gain_over_control", 0.1, "evaluation.control is false"),
    (nested("filters.layer_pairs", [[0, 0]]), "filters.filter_interval", 2, "filters.layer_pairs is given"),
    (nested("filters.layer_pairs", [[0, 0]]), "filters.layer_map", "first_then_last", "filters.layer_pairs is given"),
    (nested("distillation.kl_alpha", 0), "distillation.temperature", 3.0, "distillation.kl_alpha is 0"),
    (nested("distillation.mse_alpha", 0), "filters.filter_output_dim", 8, "distillation.mse_alpha is 0"),
    (nested("distillation.mse_alpha", 0), "distillation.layer_reduction", "sum", "distillation.mse_alpha is 0"),
    (nested("distillation.mask_padding", False), "distillation.teacher_cache_mib", 5, "padded positions enter"),
    (LWD, "filters.init_std", 0.1, "start by ridge regression"),
    (nested("gates.max_slice_drop", None), "gates.min_slice_rows", 5, "gates.max_slice_drop is null"),
    (nested("teacher.training.max_steps", 5), "teacher.training.num_train_epochs", 2.0, "overrides its"),
    ({}, "student.layer_choice", "last", "student.num_layers is not given"),
    ({}, "filters.training.gradient_checkpointing", True, "a filter has no layers"),
    (OFFICIAL, "filters.student_training.gradient_checkpointing", True, "a filter has no layers"),
    (FINETUNE, "teacher.dtype", "bfloat16", "method finetune does not use it"),
    (merged(FINETUNE, nested("teacher.finetune", False)), "teacher.attn_implementation", "eager", "neither trains nor"),
    (
        merged(OFFICIAL, nested("filters.student_training.max_steps", 5)),
        "filters.student_training.num_train_epochs",
        2.0,
        "overrides its",
    ),
    (nested("export.int8", False), "export.int8_max_metric_drop", 0.1, "export.int8 is false"),
    (nested("export.int8", False), "export.int8_max_latency_ratio", 0.1, "export.int8 is false"),
    (nested("export.int8", False), "export.int8_max_size_ratio", 0.1, "export.int8 is false"),
]  # fmt: skip


@pytest.mark.parametrize(("base", "key", "value", "reason"), IDLE)
def test_a_setting_that_cannot_act_is_refused(base: dict[str, Any], key: str, value: object, reason: str) -> None:
    parse_settings(base)
    with pytest.raises(SettingsError, match=r"cannot act: .*; remove it") as caught:
        parse_settings(merged(base, nested(key, value)))
    named = [line for line in str(caught.value).splitlines() if key.startswith(line.split(" ", 1)[0])]
    assert len(named) == 1
    assert reason in named[0]


def test_settings_that_act_are_taken() -> None:
    assert parse_settings(merged(REGRESSION, nested("distillation.prediction_mse_alpha", 2.0))) != Settings()
    assert parse_settings(merged(BATCH_KL, nested("distillation.kl_alpha", 1.0))).distillation.kl_alpha == 1.0
    assert parse_settings(merged(KD, nested("distillation.kl_alpha", 1.0))).distillation.kl_alpha == 1.0
    layers = merged(LWD, nested("filters.filter_interval", 2), nested("distillation.mse_alpha", 1.0))
    assert parse_settings(layers).filters.filter_interval == 2
    assert parse_settings(merged(RANDOM, nested("filters.filter_output_dim", 8))).filters.filter_output_dim == 8
    rules = nested("gates.min_gain_over_control", None) | nested("evaluation.control", False)
    assert parse_settings(rules).gates.min_gain_over_control is None
    for kind in (CAUSAL, MASKED):
        assert parse_settings(merged(kind, nested("distillation.kl_alpha", 2.0))).distillation.kl_alpha == 2.0
    assert parse_settings(nested("distillation.ridge_penalty", 0.1)).distillation.ridge_penalty == 0.1
    labels = merged(MULTI_LABEL, nested("task.threshold", 0.3), nested("quality.min_rows_per_class", 3))
    acting = merged(labels, nested("data.label_separator", ";"), nested("distillation.temperature", 1.0))
    assert parse_settings(acting).task.threshold == 0.3


def test_nonlinear_filters_cannot_be_aligned() -> None:
    nonlinear = nested("filters.filter_nonlinear", True)
    with pytest.raises(SettingsError, match=r"student_filter_init is ridge, which aligns linear filters only; with"):
        parse_settings(nonlinear)
    for start in ("stage_one", "random"):
        parse_settings(merged(nonlinear, nested("distillation.student_filter_init", start)))
    parse_settings(merged(nonlinear, OFFICIAL))


def test_flash_attention_needs_bfloat16_wherever_its_model_computes() -> None:
    flash = nested("teacher.attn_implementation", "flash_attention_2")
    with pytest.raises(SettingsError) as caught:
        parse_settings(flash)
    start = "teacher.attn_implementation is flash_attention_2, which computes in bfloat16 only; set "
    needs = ("teacher.dtype: bfloat16", "teacher.training.bf16: true")
    assert str(caught.value).splitlines() == [f"{start}{need}, or take sdpa" for need in needs]
    parse_settings(merged(flash, nested("teacher.dtype", "bfloat16"), nested("teacher.training.bf16", True)))
    parse_settings(merged(flash, nested("teacher.dtype", "bfloat16"), nested("teacher.finetune", False)))
    parse_settings(merged(flash, FINETUNE, nested("teacher.training.bf16", True)))
    flash = nested("student.attn_implementation", "flash_attention_2")
    with pytest.raises(
        SettingsError, match=r"(?s)^student\.attn.* set student\.tr.*student\.attn.* set distillation\.tr"
    ):
        parse_settings(flash)
    parse_settings(merged(flash, nested("student.training.bf16", True), nested("distillation.training.bf16", True)))
    parse_settings(merged(flash, nested("student.finetune", False), nested("distillation.training.bf16", True)))


OTHER_VALUES: dict[str, Any] = {
    "filters.head_pooling": "mean",
    "filters.backbone_dropout": False,
    "filters.init_std": 0.5,
    "filters.layer_map": "first_then_last",
    "filters.match_embeddings": True,
    "distillation.temperature": 1.0,
    "distillation.layer_loss_units": "variance",
    "distillation.layer_reduction": "sum",
    "distillation.mask_padding": True,
    "distillation.student_filter_init": "random",
    "distillation.filter_learning_rate_multiplier": 2.0,
    "distillation.batch_softmax_kl": False,
    "data.group_by_length": True,
    **{f"{block}.max_grad_norm": 1.0 for block in TRAININGS},
    **{f"{block}.weight_decay": 0.01 for block in TRAININGS},
    **{f"{block}.lr_scheduler_type": "cosine" for block in TRAININGS},
}


@pytest.mark.parametrize("key", OFFICIAL_VALUES)
def test_a_published_value_cannot_be_contradicted(key: str) -> None:
    task = REGRESSION if key == "distillation.batch_softmax_kl" else {}
    with pytest.raises(SettingsError, match=rf"(?m)^{key} must be .* with compatibility: official, not .*; remove one"):
        parse_settings(merged(OFFICIAL, task, nested(key, OTHER_VALUES[key])))
    parse_settings(merged(OFFICIAL, task, nested(key, OFFICIAL_VALUES[key])))


def test_official_fills_in_the_published_values_and_nothing_else() -> None:
    given = merged(OFFICIAL, nested("distillation.kl_alpha", 20.0), nested("filters.filter_output_dim", 768))
    assert parse_settings(given).resolved().filters.student_training is None
    given = merged(given, nested("filters.student_training.warmup_steps", 0))
    settings = parse_settings(given)
    resolved = settings.resolved()
    dumped = resolved.model_dump()
    for key, value in OFFICIAL_VALUES.items():
        block: Any = dumped
        for name in key.split("."):
            block = block[name]
        assert block == value, key
    assert (resolved.distillation.kl_alpha, resolved.filters.filter_output_dim) == (20.0, 768)
    learning = {"max_grad_norm": 0.0, "weight_decay": 0.0, "lr_scheduler_type": "linear"}
    training = settings.teacher.training.model_copy(update=learning)
    assert resolved.teacher == settings.teacher.model_copy(update={"training": training})
    assert resolved.resolved() == resolved
    assert Settings.model_validate(resolved.model_dump(mode="json")).resolved() == resolved


def test_every_training_is_among_those_that_official_changes() -> None:
    assert {path for path in SECTIONS if path.endswith("training")} | {"filters.student_training"} == set(TRAININGS)


def test_filters_of_the_student_are_trained_like_the_teachers_unless_it_is_said_otherwise() -> None:
    one = FilterSettings(training=FilterTraining(max_steps=7))
    assert one.training_of("teacher") == one.training_of("student") == one.training
    two = FilterSettings(training=FilterTraining(max_steps=7), student_training=FilterTraining(max_steps=9))
    assert (two.training_of("teacher").max_steps, two.training_of("student").max_steps) == (7, 9)


def test_stages_differ_from_the_common_training_by_two_values() -> None:
    common = set(TrainingSettings.model_fields)
    for path, section in SECTIONS.items():
        if path.endswith("training"):
            assert set(section.model_fields) == common
            own = set(section.__annotations__)
            assert own == {"learning_rate", "num_train_epochs"}
    assert TeacherSettings().training.learning_rate < 1e-3
