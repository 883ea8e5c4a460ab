import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from ted.config import TaskSettings
from ted.tasks.regression import Regression

TASK = Regression(TaskSettings(kind="regression"))


def test_one_output_without_names() -> None:
    assert (TASK.kind, TASK.num_outputs, TASK.label_names, TASK.primary_metric) == ("regression", 1, (), "pearson")


def test_a_number_is_one_that_float32_holds() -> None:
    frame = pd.DataFrame({"label": [1.5, 1e39, -1e39, "2", "many", float("inf"), None]})
    numbers = TASK.label_numbers(frame, ())
    assert numbers.isna().tolist() == [False, True, True, False, True, True, True]


def test_equal_targets_measure_nothing() -> None:
    assert TASK.too_few(np.array([2.0, 2.0]), None, (), 0) == "every target is 2; give rows with different ones"
    assert TASK.too_few(np.array([2.0, 2.0 + 1e-9]), None, (), 0), "float32 does not tell them apart"
    assert not TASK.too_few(np.array([2.0, 2.5]), None, (), 0)


def test_rows_without_a_number_are_known_by_their_label() -> None:
    assert TASK.labelled(torch.tensor([0.0, TASK.unlabelled, -1.0])).tolist() == [True, False, True]


def test_the_task_loss_is_torchs_mean_over_labelled_rows() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 1, requires_grad=True), torch.tensor([1.0, float("nan"), 0.0, -2.0])
    known = ~torch.isnan(labels)
    loss = TASK.task_loss(logits, {"labels": labels}, torch.ones(1, 1), num_items=torch.tensor(3))
    torch.testing.assert_close(loss, functional.mse_loss(logits[known, 0], labels[known]))
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient[known, 0], 2 * (logits[known, 0] - labels[known]) / 3)
    assert gradient[1].item() == 0.0


def test_metrics_equal_their_definitions() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=30)
    logits = (labels + generator.normal(size=30))[:, None]
    outputs = {"logits": logits}
    metrics = TASK.metrics(outputs, labels)
    assert metrics == {
        "pearson": pytest.approx(np.corrcoef(logits[:, 0], labels)[0, 1]),
        "spearman": pytest.approx(spearmanr(logits[:, 0], labels).statistic),
        "rmse": pytest.approx(np.sqrt(((logits[:, 0] - labels) ** 2).mean())),
    }
    assert TASK.primary(TASK.scores(outputs, labels)) == metrics["pearson"]
    assert TASK.predictions(outputs).tolist() == logits[:, 0].tolist()


def test_constant_predictions_order_nothing() -> None:
    metrics = TASK.metrics({"logits": np.ones((5, 1))}, np.arange(5.0))
    assert (metrics["pearson"], metrics["spearman"]) == (0.0, 0.0)
