"""What a task must say; one file per task."""

from ted.tasks.base import Task
from ted.tasks.registry import get_task, labels_of

__all__ = ["Task", "get_task", "labels_of"]
