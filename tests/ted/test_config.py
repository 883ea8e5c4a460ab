"""Settings: bounds, refusals, round trips, and a description under every field."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ted.config import (
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


QUESTIONS: dict[str, Any] = {"task": {"kind": "question_answering"}}


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
        ({"method": "tedd"}, "'random_filter' or 'ted'; got 'tedd'; did you mean ted?"),
        ({"task": {"kind": "clasification"}}, "or 'masked_lm'; got 'clasification'; did you mean classification?"),
        ({"task": {"labels": ["a", 1]}}, "a valid string; got 1, which is what YAML reads without quotes; quote"),
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
            "the layout of SQuAD that is context, beside data.text_column: question and data.label_column: answers",
        ),
        (
            {**QUESTIONS, "data": {"text_pair_column": "b", "stride": 65}},
            "data.stride is 65, more than half of data.max_length (128)",
        ),
        (
            {**QUESTIONS, "data": {"text_pair_column": "b", "max_length": 8}},
            "data.max_length is 8, but windows with a question need 16",
        ),
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
            {"filters": {"student_training": {"warmup_step": 1}}},
            "filters.student_training.warmup_step: unknown setting; did you mean filters.student_training.warmup_st",
        ),
        ({"gates": {"max_size_ratio": False}}, "gates.max_size_ratio: true or false cannot stand here, and YAML reads"),
        (
            {"teacher": {"dropout": {"hidden_dropout_prob": False}}},
            "teacher.dropout.hidden_dropout_prob: Input should be",
        ),
        (
            {"filters": {"layer_pairs": [[True, 0]]}},
            "filters.layer_pairs.0.0: Input should be a valid integer; got True",
        ),
        ({"task": {"labels": [True, False]}}, "task.labels: true or false cannot stand here, and YAML reads on, off"),
        ({"distillation": {"teacher_cache": False}}, "distillation.teacher_cache: true or false cannot stand here, a"),
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
