"""The part of the settings that a step gets."""

import pytest

from steps._settings import StepSettings, part
from ted.config import parse_settings

SETTINGS = parse_settings({"seed": 7, "data": {"max_length": 64}, "gates": {"min_teacher_share": None}})


def test_only_the_given_sections_and_the_seed_are_recorded() -> None:
    assert set(part(SETTINGS, "data", "gates").model_dump(mode="json")) == {"seed", "data", "gates"}


def test_a_round_trip_through_json_changes_nothing() -> None:
    given = part(SETTINGS, "data", "gates")
    again = StepSettings.model_validate(given.model_dump(mode="json"))
    assert again == given
    assert (again.seed, again.data.max_length, again.gates.min_teacher_share) == (7, 64, None)


def test_a_section_that_was_not_given_cannot_be_read() -> None:
    with pytest.raises(AssertionError, match="the step reads teacher"):
        _ = part(SETTINGS, "data").teacher


def test_another_section_does_not_change_the_part() -> None:
    other = parse_settings({"seed": 7, "data": {"max_length": 64}, "export": {"opset": 19}})
    assert part(other, "data").model_dump_json() == part(SETTINGS, "data").model_dump_json()
