from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import f1_score, matthews_corrcoef
from torch.nn import functional
from transformers import BertModel

from benchmarks.tiny import LABELS, new_config, new_data, new_settings, run_stages, write_backbone
from ted.config import FilterSettings, TaskSettings, parse_settings
from ted.errors import SettingsError
from ted.evaluation import evaluate_models
from ted.export.bundle import export_bundle
from ted.heads import SequenceHead
from ted.serving.bundle import open_bundle
from ted.serving.predictor import Predictor
from ted.tasks.classification import Classification

BINARY = Classification(TaskSettings(), ("no", "yes"))
TERNARY = Classification(TaskSettings(), ("a", "b", "c"))
MASK = torch.ones(1, 1)
LOGITS_NC = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.5], [0.2, 0.1], [0.0, 1.0]])
LABELS_N = np.array([0, 1, 1, 0, 0])


def test_one_output_per_class() -> None:
    assert (BINARY.num_outputs, TERNARY.num_outputs) == (2, 3)
    assert (BINARY.kind, BINARY.primary_metric, BINARY.higher_is_better) == ("classification", "accuracy", True)


def test_a_class_has_a_name() -> None:
    """CSV has no other way to say that a label is missing, and JSONL should not say another thing."""
    table = Dataset.from_dict({"label": ["a", "", " ", None, "b"]})
    assert BINARY.read_labels(table, "rows").to_pylist() == ["a", None, None, None, "b"]
    with pytest.raises(SettingsError, match=r"task\.labels holds an empty name: \['a', ' '\]; give each class a name"):
        parse_settings({"task": {"labels": ["a", " "]}})


def test_rows_without_a_class_are_known_by_their_label() -> None:
    labels = torch.tensor([0, 1, int(BINARY.unlabelled)])
    assert BINARY.labelled(labels).tolist() == [True, True, False]


def test_the_task_loss_is_torchs_mean_over_labelled_rows() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3), torch.tensor([0, -100, 2, 1, -100])
    loss = TERNARY.task_loss(logits, {"labels": labels}, MASK, num_items=torch.tensor(3))
    torch.testing.assert_close(loss, functional.cross_entropy(logits, labels))


def test_a_batch_without_labels_costs_nothing() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = TERNARY.task_loss(logits, {"labels": torch.full((2,), -100)}, MASK, num_items=torch.tensor(0))
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, logits)[0].abs().sum() == 0


def test_metrics_equal_their_definitions() -> None:
    predicted = [0, 1, 0, 0, 1]
    outputs = {"logits": LOGITS_NC}
    assert BINARY.predictions(outputs).tolist() == predicted
    metrics = BINARY.metrics(outputs, LABELS_N)
    likelihood = functional.cross_entropy(torch.tensor(LOGITS_NC), torch.tensor(LABELS_N)).item()
    assert metrics == {
        "accuracy": pytest.approx(3 / 5),
        "macro_f1": pytest.approx((4 / 6 + 1 / 2) / 2),
        "matthews": pytest.approx((2 * 1 - 1 * 1) / np.sqrt(2 * 3 * 2 * 3)),
        "f1": pytest.approx(1 / 2),
        "negative_log_likelihood": pytest.approx(likelihood),
    }
    assert BINARY.primary(BINARY.scores(outputs, LABELS_N)) == metrics["accuracy"]
    assert all(type(value) is float for value in metrics.values())


def test_more_classes_have_no_f1_of_one_class() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(40, 3)), generator.integers(0, 3, 40)
    metrics = TERNARY.metrics({"logits": logits}, labels)
    assert set(metrics) == {"accuracy", "macro_f1", "matthews", "negative_log_likelihood"}
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, logits.argmax(-1), average="macro"))
    assert metrics["matthews"] == pytest.approx(matthews_corrcoef(labels, logits.argmax(-1)))


def test_a_class_that_never_occurs_counts_as_missed() -> None:
    logits = np.eye(3)[[0, 0, 1]]
    assert TERNARY.metrics({"logits": logits}, np.array([0, 0, 1]))["macro_f1"] == pytest.approx(2 / 3)


def test_constant_predictions_have_figures() -> None:
    metrics = BINARY.metrics({"logits": np.tile([1.0, 0.0], (4, 1))}, np.array([0, 0, 0, 1]))
    assert (metrics["accuracy"], metrics["f1"], metrics["matthews"]) == (0.75, 0.0, 0.0)


def test_a_filter_head_has_the_outputs_of_the_task() -> None:
    head = TERNARY.filter_head(8, FilterSettings(head_dropout=0.3), BertModel(new_config()))
    assert isinstance(head, SequenceHead)
    assert (head.out.out_features, head.pooling, head.dropout.p) == (3, "mean", 0.3)


def test_pairs_go_from_rows_to_served_answers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    dataset = new_data("classification", unlabelled=12, pair=True)
    dataset.save_to_disk(str(data))
    write_backbone(tmp_path / "backbone")
    changes = {"text_pair_column": "text_pair", "max_length": 16}
    settings = new_settings(tmp_path, data=changes, export={"int8": False, "name": "pairs"})
    run_stages(settings, tmp_path)
    models = {name: tmp_path / name for name in ("teacher", "student")}
    evaluation = evaluate_models(settings, data, models, tmp_path / "evaluation")
    table = pd.read_parquet(tmp_path / "evaluation" / "predictions.parquet")
    assert table["text_pair"].tolist() == dataset["test"]["text_pair"][:]

    manifest = export_bundle(settings, tmp_path / "student", data, evaluation, 1, tmp_path / "bundles")
    assert manifest["pair"] is True
    assert manifest["parity"]["raw_text"]["texts"] == 16
    predictor = Predictor(open_bundle(tmp_path / "bundles"))
    pairs = list(zip(dataset["test"]["text"], dataset["test"]["text_pair"], strict=True))
    assert any(len(windows[0].ids) == 16 for windows in predictor.encode(pairs))
    answers = predictor.predict(pairs)
    assert [answer["label"] for answer in answers] == table["student_prediction"].tolist()
    assert [answer["text"] for answer in answers] == pairs
    swapped = predictor.predict([(second, first) for first, second in pairs])
    assert [answer["probabilities"] for answer in swapped] != [answer["probabilities"] for answer in answers]
    assert {answer["label"] for answer in answers} <= set(LABELS)
