"""Padding changes nothing: a text alone, in a batch with longer ones, and padded further."""

import pytest
import torch
from torch.nn import functional

from benchmarks.tiny import LABELS, TAGS, TOPICS, new_data, new_tokenizer, write_backbone
from ted.config import DataSettings, TaskSettings
from ted.data.preparation import Batch, collator, tokenize
from ted.filters import TaskAwareFilters
from ted.methods import LayerMSE, PredictionBCE, PredictionKL, Term
from ted.models.frozen import FrozenModel
from ted.models.loading import find_model, load_pretrained
from ted.models.student import build_student
from ted.objectives import DistillationObjective, FilteredTeacher
from ted.tasks import get_task

TASKS = {
    "classification": get_task(TaskSettings(), LABELS),
    "multi_label": get_task(TaskSettings(kind="multi_label"), TOPICS),
    "question_answering": get_task(TaskSettings(kind="question_answering")),
    "token_classification": get_task(TaskSettings(kind="token_classification"), TAGS),
}
KL = PredictionKL(5.0, 2.0)
DATA = DataSettings(max_length=16, stride=4)
ROWS = 6


@pytest.fixture(scope="module", params=list(TASKS))
def objective(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DistillationObjective:
    torch.manual_seed(0)
    task = TASKS[request.param]
    folder = write_backbone(tmp_path_factory.mktemp("padding") / "backbone")
    teacher = load_pretrained(find_model(str(folder)), task).model
    student = build_student(teacher, [0, 2])
    student.train(mode=False)
    source = FilteredTeacher(FrozenModel(teacher, [1, 3]), TaskAwareFilters([1, 3], 32, 16, "linear"))
    term: Term = PredictionBCE(5.0, 2.0) if task.kind == "multi_label" else KL
    terms = (term, LayerMSE(10.0, "mean"))
    return DistillationObjective(student, TaskAwareFilters([0, 1], 32, 16, "linear"), source, terms, task)


def gradients(objective: DistillationObjective, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss of the batches of one update and its gradient."""
    objective.zero_grad()
    counts = objective.count(batches)
    loss = sum(objective(batch, counts)["loss"] for batch in batches)
    assert isinstance(loss, torch.Tensor)
    torch.autograd.backward(loss)
    found = {name: value.grad.clone() for name, value in objective.named_parameters() if value.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("extra", [0, 9])
def test_rows_alone_add_up_to_their_padded_batch(extra: int, objective: DistillationObjective) -> None:
    tokenizer, task = new_tokenizer(), objective.task
    rows = tokenize(new_data(task.kind, train=ROWS)["train"], tokenizer, task, DATA)
    collate = collator(tokenizer, task)
    assert len(set(rows["length"][:])) > 1
    alone = [collate([row]) for row in rows]
    batch = collate(list(rows))
    together = {
        name: functional.pad(tensor, (0, extra), value=-100 if name == "labels" else 0)
        if tensor.shape == batch["input_ids"].shape
        else tensor
        for name, tensor in batch.items()
    }
    loss, expected = gradients(objective, alone)
    padded_loss, padded = gradients(objective, [together])
    assert padded_loss == pytest.approx(loss, rel=1e-5)
    assert padded.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(padded[name], gradient, rtol=1e-4, atol=1e-5)
