from typing import get_args

import pytest

from benchmarks.tiny import LABELS, new_data
from ted.config import TaskKind, TaskSettings
from ted.tasks import Task, get_task, labels_of
from ted.tasks.registry import TASKS


def test_every_kind_of_the_settings_has_a_task() -> None:
    assert set(TASKS) == set(get_args(TaskKind))


@pytest.mark.parametrize("kind", get_args(TaskKind))
def test_a_task_says_all_that_is_asked_of_it(kind: TaskKind) -> None:
    labels = labels_of(new_data(kind))
    task = get_task(TaskSettings(kind=kind), labels)
    assert isinstance(task, Task)
    assert (task.kind, task.label_names) == (kind, labels)


def test_names_of_classes_come_from_the_data_in_their_order() -> None:
    assert labels_of(new_data("classification")) == LABELS
    assert labels_of(new_data("regression")) == ()
    assert labels_of(new_data("question_answering")) == ()
