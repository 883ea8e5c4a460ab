"""Which student layer is matched to which teacher layer: index arithmetic only.

A layer index is 0-based; the output of layer i is `hidden_states[i + 1]`, entry 0 being the embedding: layer -1.
"""

from typing import Literal, NamedTuple

LayerMap = Literal["last_of_group", "first_then_last", "all_to_one"]
LayerChoice = Literal["evenly", "first", "last"]


class LayerPair(NamedTuple):
    """A student layer and the teacher layer it is matched to."""

    student: int
    teacher: int


def every_second(num_layers: int) -> tuple[int, ...]:
    """Return layers 0, 2, 4 and so on: the student that inherits every second teacher layer."""
    return tuple(range(0, num_layers, 2))


EMBEDDING = LayerPair(-1, -1)
"""The pair of the two models' embeddings."""


def choose(num_layers: int, count: int, choice: LayerChoice) -> tuple[int, ...]:
    """Return `count` of a stack's layers: the first, the last, or evenly spaced ones from the first on.

    Raises:
        ValueError: there are not so many layers.
    """
    if count > num_layers:
        raise ValueError(f"student.num_layers is {count}, but the teacher has {num_layers} layers; lower it")
    if choice == "evenly":
        return tuple(place * num_layers // count for place in range(count))
    return tuple(range(count) if choice == "first" else range(num_layers - count, num_layers))


def pick(num_layers: int, interval: int, layer_map: LayerMap) -> tuple[int, ...]:
    """Return one layer per full group of `interval` layers.

    `last_of_group` takes layers with (i + 1) mod interval = 0, as published at commit 1cd33d0; `first_then_last` takes
    the first of a group in the first half of the stack and the last in the second half, as at commit 327899e.
    """
    firsts = range(0, num_layers - interval + 1, interval)
    if layer_map == "first_then_last":
        return tuple(first if first < num_layers // 2 else first + interval - 1 for first in firsts)
    return tuple(first + interval - 1 for first in firsts)


def match_layers(num_student: int, num_teacher: int, interval: int, layer_map: LayerMap) -> tuple[LayerPair, ...]:
    """Return the pairs for every `interval`-th student layer and as many evenly spaced teacher layers.

    With `all_to_one` each of these student layers is matched to the teacher's last layer instead.

    Raises:
        ValueError: the interval exceeds the student, or the teacher's layers cannot be spread evenly.
    """
    count = num_student // interval
    if count == 0:
        raise ValueError(
            f"filters.filter_interval is {interval} but the student has {num_student} layers; lower it to at most that"
        )
    student = pick(num_student, interval, layer_map)
    if layer_map == "all_to_one":
        return tuple(LayerPair(layer, num_teacher - 1) for layer in student)
    teacher_interval, rest = divmod(num_teacher, count)
    if teacher_interval == 0 or rest:
        raise ValueError(
            f"{count} matched student layers cannot be spread evenly over {num_teacher} teacher layers; "
            "choose other student.layers or filters.filter_interval, or name pairs in filters.layer_pairs"
        )
    teacher = pick(num_teacher, teacher_interval, layer_map)
    return tuple(LayerPair(*pair) for pair in zip(student, teacher, strict=True))


def check_pairs(pairs: tuple[tuple[int, int], ...], num_student: int, num_teacher: int) -> tuple[LayerPair, ...]:
    """Return explicit pairs after checking them against both stacks.

    Raises:
        ValueError: a pair lies outside a stack, or a student layer is named twice.
    """
    for student, teacher in pairs:
        if student >= num_student or teacher >= num_teacher:
            raise ValueError(
                f"filters.layer_pairs holds [{student}, {teacher}], but the student has layers 0 to {num_student - 1} "
                f"and the teacher 0 to {num_teacher - 1}"
            )
    if len({student for student, _ in pairs}) != len(pairs):
        raise ValueError(f"filters.layer_pairs names a student layer twice: {[list(pair) for pair in pairs]}")
    return tuple(LayerPair(*pair) for pair in pairs)
