"""Which task a run has."""

from datasets import ClassLabel, DatasetDict, Features, List

from ted.config import TaskSettings
from ted.tasks.base import Task
from ted.tasks.classification import Classification
from ted.tasks.language_modeling import CausalLM, MaskedLM
from ted.tasks.multi_label import MultiLabel
from ted.tasks.question_answering import QuestionAnswering
from ted.tasks.regression import Regression
from ted.tasks.token_classification import TokenClassification

KINDS: tuple[type[Task], ...] = (
    Classification,
    MultiLabel,
    Regression,
    QuestionAnswering,
    TokenClassification,
    CausalLM,
    MaskedLM,
)
TASKS: dict[str, type[Task]] = {task.kind: task for task in KINDS}


def get_task(settings: TaskSettings, labels: tuple[str, ...] = ()) -> Task:
    """Return the task of the settings for the class names of the data (none where it has no classes)."""
    return TASKS[settings.kind](settings, labels)


def labels_of(dataset: DatasetDict) -> tuple[str, ...]:
    """Return the class names of validated data, in the order of the model's outputs; empty where there are none."""
    features: Features = dataset["train"].features
    feature = features.get("label")
    if isinstance(feature, List):
        feature = feature.feature
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()
