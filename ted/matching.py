"""Which layers a run matches, derived from its settings and the configurations of its models."""

from typing import Any

from ted.config import Settings
from ted.errors import ModelError
from ted.models.layers import LayerPair, check_pairs, every_second, match_layers
from ted.models.loading import check_length, find_model, load_config, set_dropout


def teacher_config(settings: Settings) -> Any:  # noqa: ANN401 - each architecture has its own class
    """Return the configuration of the pre-trained teacher.

    Raises:
        ModelError: it cannot be loaded, has no such dropout, or texts may be longer than it has positions.
    """
    config = load_config(find_model(settings.teacher.model, settings.teacher.revision))
    check_length(config, settings.data.max_length, settings.teacher.model)
    set_dropout(config, settings.teacher.dropout or {}, settings.teacher.model)
    return config


def student_layers(settings: Settings, num_teacher: int) -> tuple[int, ...]:
    """Return the teacher layers that a student built from the teacher consists of."""
    return settings.student.layers or every_second(num_teacher)


def layer_pairs(settings: Settings) -> tuple[LayerPair, ...]:
    """Return the matched layers.

    Raises:
        ModelError: the layers of the two models cannot be matched as the settings ask.
    """
    num_teacher = teacher_config(settings).num_hidden_layers
    if settings.student.model is None:
        num_student = len(student_layers(settings, num_teacher))
    else:
        num_student = load_config(find_model(settings.student.model)).num_hidden_layers
    filters = settings.filters
    try:
        if filters.layer_pairs is not None:
            return check_pairs(filters.layer_pairs, num_student, num_teacher)
        return match_layers(num_student, num_teacher, filters.filter_interval, filters.layer_map)
    except ValueError as error:
        raise ModelError(str(error)) from error
