"""Rules between settings: what cannot act is refused, what acts is taken, published values are filled in."""

from typing import Any

import pytest

from ted.config import OFFICIAL_VALUES, TRAININGS, Settings, parse_settings
from ted.errors import SettingsError


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


QUESTIONS: dict[str, Any] = {"task": {"kind": "question_answering"}, "data": {"text_pair_column": "context"}}
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
    *[(kind, "evaluation.extra_metrics", ["bleu"], f"task.kind is {kind['task']['kind']}") for kind in (
        MULTI_LABEL, TAGS, QUESTIONS
    )],
    (CAUSAL, "task.mask_probability", 0.3, "task.kind is causal_lm"),
    (MASKED, "task.max_new_tokens", 3, "task.kind is masked_lm"),
    (nested("teacher.finetune", False), "teacher.training.max_steps", 5, "teacher.finetune is false"),
    (
        merged(nested("teacher.finetune", False), nested("student.model", "x")),
        "teacher.dropout",
        {"hidden_dropout_prob": 0.0},
        "the teacher does not train, and student.model has its own",
    ),
    (merged(KD, MASKED), "distillation.mask_padding", False, "method kd does not use it"),
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


def test_distillation_of_predictions_needs_a_weight() -> None:
    with pytest.raises(SettingsError, match=r"kl_alpha is 0, so method kd learns nothing from the teacher; raise it"):
        parse_settings(merged(KD, nested("distillation.kl_alpha", 0)))
    with pytest.raises(SettingsError, match=r"prediction_mse_alpha is 0, so method kd"):
        parse_settings(merged(KD, REGRESSION, nested("distillation.prediction_mse_alpha", 0)))
    weightless = merged(nested("distillation.kl_alpha", 0), nested("distillation.mse_alpha", 0))
    with pytest.raises(SettingsError, match=r"kl_alpha and distillation.mse_alpha are 0, so method ted learns nothing"):
        parse_settings(weightless)
    assert parse_settings(nested("distillation.kl_alpha", 0)).distillation.mse_alpha > 0


def test_padding_acts_on_predictions_per_token_too() -> None:
    for kind in (QUESTIONS, TAGS, CAUSAL):
        settings = parse_settings(merged(KD, kind, nested("distillation.mask_padding", False)))
        assert settings.distillation.mask_padding is False


def test_dropout_of_a_teacher_that_is_not_trained_reaches_the_student_made_from_it() -> None:
    untrained, dropout = nested("teacher.finetune", False), nested("teacher.dropout.attention_dropout", 0.0)
    for base in (untrained, merged(untrained, nested("student.model", "x"), OFFICIAL)):
        assert parse_settings(merged(base, dropout)).teacher.dropout == {"attention_dropout": 0.0}


@pytest.mark.parametrize("method", [LWD, RANDOM])
def test_filters_that_stage_one_does_not_learn_cannot_start_there(method: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"student_filter_init is stage_one, but method .* set it to ridge or rand"):
        parse_settings(merged(method, nested("distillation.student_filter_init", "stage_one")))
    parse_settings(merged(method, OFFICIAL))


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
