from pathlib import Path

import pytest

from benchmarks.tiny import new_config, new_settings, write_backbone
from ted.errors import ModelError
from ted.matching import layer_pairs, student_config, student_layers, teacher_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hold a backbone of four layers and a student of two."""
    write_backbone(tmp_path / "backbone")
    new_config(num_hidden_layers=2).save_pretrained(tmp_path / "small")
    return tmp_path


def test_the_configuration_of_the_teacher_is_read(folder: Path) -> None:
    assert teacher_config(new_settings(folder)).hidden_size == 32


def test_both_models_must_have_the_head_of_the_task(folder: Path) -> None:
    settings = new_settings(folder, task={"kind": "causal_lm"}, student={"config": {"num_hidden_layers": 2}})
    with pytest.raises(ModelError, match=r"backbone is of the architecture bert, .*: no causal"):
        teacher_config(settings)
    with pytest.raises(ModelError, match=r"the student of student\.config is of the architecture bert"):
        student_config(settings, new_config())


def test_a_student_takes_every_second_layer_unless_told(folder: Path) -> None:
    assert student_layers(new_settings(folder), 4) == (0, 2)
    assert student_layers(new_settings(folder, student={"layers": [0, 1, 3]}), 4) == (0, 1, 3)


def test_pairs_follow_the_number_of_layers_of_the_student(folder: Path) -> None:
    assert layer_pairs(new_settings(folder)) == ((0, 1), (1, 3))
    assert layer_pairs(new_settings(folder, student={"layers": [3]})) == ((0, 3),)
    assert layer_pairs(new_settings(folder, student={"model": str(folder / "small")})) == ((0, 1), (1, 3))
    assert layer_pairs(new_settings(folder, filters={"filter_interval": 2})) == ((1, 3),)
    assert layer_pairs(new_settings(folder, filters={"layer_map": "first_then_last"})) == ((0, 0), (1, 3))


def test_explicit_pairs_are_checked_against_both_models(folder: Path) -> None:
    assert layer_pairs(new_settings(folder, filters={"layer_pairs": [[1, 2]]})) == ((1, 2),)
    with pytest.raises(ModelError, match=r"holds \[2, 3\], but the student has layers 0 to 1"):
        layer_pairs(new_settings(folder, filters={"layer_pairs": [[2, 3]]}))


def test_layers_that_do_not_match_are_an_error_of_the_models(folder: Path) -> None:
    with pytest.raises(ModelError, match="3 matched student layers cannot be spread evenly over 4 teacher layers"):
        layer_pairs(new_settings(folder, student={"layers": [0, 1, 2]}))


def test_a_number_of_layers_is_chosen_by_rule(folder: Path) -> None:
    assert student_layers(new_settings(folder, student={"num_layers": 3}), 4) == (0, 1, 2)
    last = new_settings(folder, student={"num_layers": 2, "layer_choice": "last"})
    assert student_layers(last, 4) == (2, 3)
    assert student_config(last, teacher_config(last)).num_hidden_layers == 2
    with pytest.raises(ModelError, match=r"student\.num_layers is 5, but the teacher has 4 layers"):
        layer_pairs(new_settings(folder, student={"num_layers": 5}))


def test_a_student_of_a_changed_configuration_may_be_deeper_than_the_teacher(folder: Path) -> None:
    deep = {"config": {"num_hidden_layers": 8}}
    assert layer_pairs(new_settings(folder, student=deep, filters={"filter_interval": 2})) == (
        (1, 0),
        (3, 1),
        (5, 2),
        (7, 3),
    )


def test_embeddings_are_matched_before_all_other_pairs(folder: Path) -> None:
    assert layer_pairs(new_settings(folder, filters={"match_embeddings": True})) == ((-1, -1), (0, 1), (1, 3))
    explicit = {"match_embeddings": True, "layer_pairs": [[1, 2]]}
    assert layer_pairs(new_settings(folder, filters=explicit)) == ((-1, -1), (1, 2))


def test_all_layers_may_be_matched_to_the_last(folder: Path) -> None:
    assert layer_pairs(new_settings(folder, filters={"layer_map": "all_to_one"})) == ((0, 3), (1, 3))


def test_the_student_has_to_read_the_texts_too(folder: Path) -> None:
    new_config(num_hidden_layers=2, max_position_embeddings=12).save_pretrained(folder / "small")
    settings = new_settings(folder, student={"model": str(folder / "small")})
    with pytest.raises(ModelError, match=r"data\.max_length is 16, but .*small has 12 positions"):
        layer_pairs(settings)
    with pytest.raises(ModelError, match=r"but the student of student\.config has 12 positions"):
        layer_pairs(new_settings(folder, student={"config": {"max_position_embeddings": 12}}))
