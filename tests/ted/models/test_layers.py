import pytest

from ted.models.layers import check_pairs, choose, every_second, match_layers, pick


def test_every_second_layer_from_the_first() -> None:
    assert every_second(6) == (0, 2, 4)
    assert every_second(12) == (0, 2, 4, 6, 8, 10)
    assert every_second(5) == (0, 2, 4)
    assert every_second(1) == (0,)


def test_published_examples() -> None:
    """Twelve layers at interval 2, in the released code and in the older commit."""
    assert pick(12, 2, "last_of_group") == (1, 3, 5, 7, 9, 11)
    assert pick(12, 2, "first_then_last") == (0, 2, 4, 7, 9, 11)


@pytest.mark.parametrize("num_layers", range(1, 26))
@pytest.mark.parametrize("interval", range(1, 8))
def test_last_of_group_is_the_published_condition(num_layers: int, interval: int) -> None:
    expected = tuple(layer for layer in range(num_layers) if (layer + 1) % interval == 0)
    assert pick(num_layers, interval, "last_of_group") == expected


@pytest.mark.parametrize("num_layers", range(1, 26))
@pytest.mark.parametrize("interval", range(1, 8))
def test_both_rules_take_one_layer_per_full_group(num_layers: int, interval: int) -> None:
    picked = pick(num_layers, interval, "first_then_last")
    assert [layer // interval for layer in picked] == list(range(num_layers // interval))


def test_interval_one_matches_every_layer_with_itself() -> None:
    assert match_layers(12, 12, 1, "last_of_group") == tuple((layer, layer) for layer in range(12))


def test_a_small_student_is_spread_over_the_teacher() -> None:
    assert match_layers(6, 12, 1, "last_of_group") == ((0, 1), (1, 3), (2, 5), (3, 7), (4, 9), (5, 11))
    assert match_layers(6, 12, 1, "first_then_last") == ((0, 0), (1, 2), (2, 4), (3, 7), (4, 9), (5, 11))
    assert match_layers(6, 12, 2, "last_of_group") == ((1, 3), (3, 7), (5, 11))
    assert match_layers(3, 6, 3, "last_of_group") == ((2, 5),)


def test_an_interval_beyond_the_student_is_refused() -> None:
    with pytest.raises(ValueError, match=r"filters\.filter_interval is 4 but the student has 3 layers; lower it"):
        match_layers(3, 12, 4, "last_of_group")


@pytest.mark.parametrize(("num_student", "num_teacher"), [(5, 12), (12, 6), (4, 6)])
def test_uneven_stacks_are_refused(num_student: int, num_teacher: int) -> None:
    with pytest.raises(ValueError, match=f"{num_student} matched student layers cannot be spread evenly over"):
        match_layers(num_student, num_teacher, 1, "last_of_group")


def test_explicit_pairs_are_taken_as_they_are() -> None:
    assert check_pairs(((0, 5), (2, 1)), 3, 6) == ((0, 5), (2, 1))


@pytest.mark.parametrize("pair", [(3, 0), (0, 6)])
def test_pairs_outside_a_stack_are_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="student has layers 0 to 2 and the teacher 0 to 5"):
        check_pairs((pair,), 3, 6)


def test_a_student_layer_has_one_target() -> None:
    with pytest.raises(ValueError, match=r"names a student layer twice: \[\[1, 0\], \[1, 2\]\]"):
        check_pairs(((1, 0), (1, 2)), 3, 6)


def test_chosen_layers_are_the_first_the_last_or_evenly_spread() -> None:
    assert choose(12, 3, "first") == (0, 1, 2)
    assert choose(12, 3, "last") == (9, 10, 11)
    assert choose(12, 6, "evenly") == every_second(12)
    assert choose(12, 3, "evenly") == (0, 4, 8)
    assert choose(6, 4, "evenly") == (0, 1, 3, 4)
    for choice in ("first", "last", "evenly"):
        assert choose(5, 5, choice) == (0, 1, 2, 3, 4)


def test_more_layers_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(ValueError, match=r"student\.num_layers is 7, but the teacher has 6 layers; lower it"):
        choose(6, 7, "first")


def test_all_student_layers_may_be_matched_to_the_last_of_the_teacher() -> None:
    assert match_layers(3, 12, 1, "all_to_one") == ((0, 11), (1, 11), (2, 11))
    assert match_layers(5, 12, 2, "all_to_one") == ((1, 11), (3, 11))
