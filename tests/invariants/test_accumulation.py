"""A batch of an update gives the same weights however it is cut: 8 x 1 = 1 x 8, with padding and unlabelled rows."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from benchmarks.tiny import LABELS, TAGS, TOPICS, new_data, new_tokenizer, write_backbone
from ted.config import DataSettings, DistillationTraining, TaskSettings
from ted.data.preparation import collator, training_features
from ted.filters import TaskAwareFilters
from ted.methods import LayerMSE, PredictionBCE, PredictionKL, PredictionMSE, Term
from ted.models.frozen import FrozenModel
from ted.models.loading import find_model, load_pretrained
from ted.models.student import build_student
from ted.objectives import DistillationObjective, FilteredTeacher
from ted.tasks import Task, get_task
from ted.training import TrainingRun, train

TASKS = {
    "classification": get_task(TaskSettings(), LABELS),
    "multi_label": get_task(TaskSettings(kind="multi_label"), TOPICS),
    "regression": get_task(TaskSettings(kind="regression")),
    "question_answering": get_task(TaskSettings(kind="question_answering")),
    "token_classification": get_task(TaskSettings(kind="token_classification"), TAGS),
}
TERMS: dict[str, tuple[Term, ...]] = {
    "task": (),
    "kl": (PredictionKL(5.0, 2.0),),
    "bce": (PredictionBCE(5.0, 2.0),),
    "mse": (PredictionMSE(1.0),),
    "layers": (LayerMSE(10.0, "mean"),),
    "all": (PredictionKL(5.0, 2.0), LayerMSE(10.0, "sum", torch.tensor([0.5, 2.0]))),
}
CASES = [("classification", name) for name in ("task", "kl", "layers", "all")] + [
    ("multi_label", "bce"),
    ("regression", "mse"),
    ("question_answering", "all"),
    ("token_classification", "task"),
    ("token_classification", "all"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("accumulation") / "backbone")


def rows_of(kind: str) -> Dataset:
    """Return 11 labelled and 8 unlabelled rows: updates of 8 that hold both, and one of 3."""
    data = new_data(kind, unlabelled=8, train=11)
    return training_features(data, new_tokenizer(), TASKS[kind], DataSettings(max_length=32, stride=4))[0]


def new_objective(folder: Path, task: Task, terms: tuple[Term, ...]) -> DistillationObjective:
    torch.manual_seed(0)
    teacher = load_pretrained(find_model(str(folder)), task).model
    student = build_student(teacher, [0, 2])
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    source = FilteredTeacher(FrozenModel(teacher, [1, 3]), TaskAwareFilters([1, 3], 32, 16, "linear"))
    return DistillationObjective(student, TaskAwareFilters([0, 1], 32, 16, "linear"), source, terms, task)


@pytest.mark.parametrize(("kind", "terms"), CASES)
def test_eight_times_one_is_one_times_eight(kind: str, terms: str, folder: Path, tmp_path: Path) -> None:
    ends: list[dict[str, Tensor]] = []
    logs = []
    for size, accumulation in ((8, 1), (1, 8), (4, 2)):
        objective = new_objective(folder, TASKS[kind], TERMS[terms])
        settings = DistillationTraining(
            learning_rate=1e-3,
            num_train_epochs=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            # Adam divides by the size of a gradient: without this, rounding of gradients near zero decides.
            adam_epsilon=1e-3,
        )
        run = TrainingRun("cut", settings, 3, tmp_path / str(size))
        metrics = train(run, objective, rows_of(kind), collator(new_tokenizer(), TASKS[kind]))
        assert metrics["steps"] == 6
        ends.append({name: tensor.clone() for name, tensor in objective.state_dict().items()})
        logs.append(metrics["log_history"])
    for name, tensor in ends[0].items():
        for other in ends[1:]:
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)
    for entries in zip(*logs, strict=True):
        for key in ("loss", "task_loss", "grad_norm"):
            assert entries[1][key] == pytest.approx(entries[0][key], rel=1e-4, abs=1e-6)
