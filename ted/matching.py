"""Which layers a run matches, derived from its settings and the configurations of its models."""

from typing import Any

from ted.config import Settings
from ted.errors import ModelError
from ted.models.layers import EMBEDDING, LayerPair, check_pairs, choose, every_second, match_layers
from ted.models.loading import check_config, find_model, load_config, set_dropout
from ted.models.student import changed_config, chosen_config
from ted.tasks.registry import TASKS


def teacher_config(settings: Settings) -> Any:  # noqa: ANN401 - each architecture has its own class
    """Return the configuration of the pre-trained teacher.

    Raises:
        ModelError: it cannot be loaded or do the task, has no such dropout, or texts may be longer than it has
            positions.
    """
    config = load_config(find_model(settings.teacher.model, settings.teacher.revision))
    check_config(config, _auto_class(settings), settings.data.max_length, settings.teacher.model)
    set_dropout(config, settings.teacher.dropout or {}, settings.teacher.model)
    return config


def _auto_class(settings: Settings) -> str:
    return TASKS[settings.task.kind].auto_class


def student_layers(settings: Settings, num_teacher: int) -> tuple[int, ...]:
    """Return the teacher layers that a student built from the teacher consists of.

    Raises:
        ModelError: the teacher has fewer layers than the student is to have.
    """
    student = settings.student
    if student.layers is not None:
        return student.layers
    if student.num_layers is None:
        return every_second(num_teacher)
    try:
        return choose(num_teacher, student.num_layers, student.layer_choice)
    except ValueError as error:
        raise ModelError(str(error)) from error


def student_config(settings: Settings, teacher: Any) -> Any:  # noqa: ANN401 - each architecture has its own class
    """Return the configuration of the student, given the teacher's.

    Raises:
        ModelError: it cannot be loaded, made or do the task, or texts may be longer than it has positions.
    """
    if settings.student.model is not None:
        config, name = load_config(find_model(settings.student.model)), settings.student.model
        set_dropout(config, settings.student.dropout or {}, name)
    elif settings.student.config is not None:
        config, name = changed_config(teacher, settings.student.config), "the student of student.config"
    else:
        return chosen_config(teacher, student_layers(settings, teacher.num_hidden_layers))
    check_config(config, _auto_class(settings), settings.data.max_length, name)
    return config


def layer_pairs(settings: Settings) -> tuple[LayerPair, ...]:
    """Return the matched layers, before them the embeddings if they are matched too.

    Raises:
        ModelError: the layers of the two models cannot be matched as the settings ask.
    """
    teacher = teacher_config(settings)
    depths = student_config(settings, teacher).num_hidden_layers, teacher.num_hidden_layers
    filters = settings.filters
    try:
        if filters.layer_pairs is not None:
            pairs = check_pairs(filters.layer_pairs, *depths)
        else:
            pairs = match_layers(*depths, filters.filter_interval, filters.layer_map)
    except ValueError as error:
        raise ModelError(str(error)) from error
    return (EMBEDDING, *pairs) if filters.match_embeddings else pairs
