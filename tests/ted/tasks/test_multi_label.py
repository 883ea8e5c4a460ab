import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from sklearn.metrics import accuracy_score, f1_score, jaccard_score
from torch.nn import functional

from benchmarks.tiny import (
    TOPICS,
    new_data,
    new_settings,
    new_tokenizer,
    run_stages,
    write_backbone,
)
from ted.config import DataSettings, QualitySettings, TaskSettings
from ted.data.labels import split_labels
from ted.data.preparation import collator, training_features
from ted.data.quality import Validation, validate
from ted.data.sources import load_dataset
from ted.errors import DataError, DataQualityError
from ted.evaluation import evaluate_models
from ted.export.bundle import export_bundle
from ted.models.loading import load_trained
from ted.serving.answers import new_answerer
from ted.serving.bundle import open_bundle
from ted.serving.predictor import Predictor
from ted.tasks.multi_label import MultiLabel

SETTINGS = TaskSettings(kind="multi_label")
NAMES = ("fire", "flood", "storm")
DECLARED = TaskSettings(kind="multi_label", labels=NAMES)
TASK = MultiLabel(SETTINGS, NAMES)
MASK = torch.ones(1, 1)
TOKENIZER = new_tokenizer().backend_tokenizer
LISTS = [["flood"], [], ["storm", "fire"], None]


def read(values: list[Any], feature: Any) -> list[Any]:  # noqa: ANN401 - features have no common type
    """Return the labels of a column as the task reads them."""
    table = Dataset.from_dict({"label": values}, features=Features({"label": feature}))
    lists: list[Any] = TASK.read_labels(table, "a.parquet: column 'label'").to_pylist()
    return lists


def write_rows(folder: Path, suffix: str, lists: list[Any]) -> Path:
    """Write rows with the given labels, each text another, as one file."""
    rows = [{"text": f"message {row}", "label": labels} for row, labels in enumerate(lists)]
    path = folder / f"messages.{suffix}"
    folder.mkdir(exist_ok=True)
    if suffix == "csv":
        texts = [{**row, "label": None if row["label"] is None else " | ".join(row["label"])} for row in rows]
        pd.DataFrame(texts).to_csv(path, index=False)
    elif suffix == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def judged(path: Path, settings: TaskSettings = SETTINGS, **quality: Any) -> Validation:
    data = DataSettings(source=str(path))
    return validate(load_dataset(data, settings, seed=0), data, QualitySettings(**quality), settings)


class TestLabels:
    def test_names_numbers_and_classes_are_read_as_lists_of_names(self) -> None:
        assert read(LISTS, List(Value("string"))) == LISTS
        assert read([[2, 0], [], None], List(Value("int64"))) == [["2", "0"], [], None]
        assert read([[2, 0], [], [-1]], List(ClassLabel(names=list(NAMES)))) == [["storm", "fire"], [], [None]]
        assert read([["fire", "flood"]], List(Value("string"), length=2)) == [["fire", "flood"]]
        assert read([[], []], List(Value("null"))) == [[], []]

    def test_what_is_no_list_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"a\.parquet: column 'label' holds int64, not lists of labels"):
            read([1, 2], Value("int64"))

    def test_a_vector_of_zeros_and_ones_is_no_list_of_numbers(self) -> None:
        with pytest.raises(DataError, match=r"repeats a number in row 2: \[0, 1, 0\]; give the numbers or names"):
            read([[1], [0, 1, 0]], List(Value("int64")))

    @pytest.mark.parametrize(
        ("vectors", "kind", "message"),
        [
            ([None, [1.0, 0.0, 1.0]], "float32", r"lists of float \(row 2: \[1\.0, 0\.0, 1\.0\]\)"),
            ([[], [True, False]], "bool", r"lists of bool \(row 2: \[True, False\]\)"),
            ([None, [0, 1], [1, 0]], "int64", r"both 0 and 1 in every row, as in row 2: \[0, 1\]"),
        ],
    )
    def test_a_vector_is_refused_whatever_its_type(self, vectors: list[Any], kind: str, message: str) -> None:
        with pytest.raises(DataError, match=message + "; give the numbers or names of the labels that a row has, not"):
            read(vectors, List(Value(kind)))

    @pytest.mark.parametrize("rows", [["1|0", "0|0"], ["1|0", "0|1"]])
    def test_a_vector_in_text_is_no_list_of_names_either(self, rows: list[str]) -> None:
        table = split_labels(Dataset.from_dict({"text": ["a", "b"], "label": rows}), "|")
        with pytest.raises(DataError, match="not a 0 or 1 for each label"):
            TASK.read_labels(table, "a.csv: column 'label'")

    def test_two_numbers_in_each_row_may_be_labels(self) -> None:
        assert read([[0, 1], [2, 0]], List(Value("int64"))) == [["0", "1"], ["2", "0"]]
        assert read([[0, 1], [1]], List(Value("int64"))) == [["0", "1"], ["1"]]

    @pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
    def test_every_form_of_a_source_gives_the_same_labels(self, tmp_path: Path, suffix: str) -> None:
        lists = [["fire"], ["flood", "storm"], [], ["storm", "fire", "flood"]] * 20
        dataset = judged(write_rows(tmp_path, suffix, lists)).dataset
        assert dataset["train"].features["label"] == List(ClassLabel(names=list(NAMES)))
        for split in dataset.values():
            for row in split:
                expected = lists[int(row["text"].split()[1])]
                assert row["label"] == sorted(NAMES.index(name) for name in expected)

    def test_the_separator_is_a_setting(self, tmp_path: Path) -> None:
        rows = [{"text": f"message {row}", "label": "a|b;c"} for row in range(30)]
        pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
        data = DataSettings(source=str(tmp_path / "rows.csv"), label_separator=";")
        assert load_dataset(data, SETTINGS, seed=0)["train"][0]["label"] == ["a|b", "c"]

    def test_a_missing_list_is_not_an_empty_one(self, tmp_path: Path) -> None:
        lists = [["fire"], ["flood", "storm"], [], ["storm"]] * 20
        lists[5] = None  # type: ignore[call-overload] # a row whose labels are not known
        validation = judged(write_rows(tmp_path, "jsonl", lists))
        assert [(finding.rule, finding.rows) for finding in validation.findings] == [("missing", (6,))]

    @pytest.mark.parametrize("bad", [["hail"], ["fire", "hail"], ["fire", None], ["fire", ""]])
    def test_a_label_that_is_not_declared_breaks_a_rule(self, tmp_path: Path, bad: list[Any]) -> None:
        path = write_rows(tmp_path, "jsonl", [*[["fire"], ["flood", "storm"]] * 20, bad])
        with pytest.raises(DataQualityError, match=r"unknown_label: 1 row with a label other than 'fire', 'flood', '"):
            judged(path, DECLARED)

    def test_declared_labels_may_be_given_by_number(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path, "jsonl", [[0], [2, 1]] * 20)
        dataset = judged(path, DECLARED).dataset
        assert dataset["train"].features["label"].feature.names == list(NAMES)
        assert {tuple(labels) for labels in dataset["train"]["label"]} == {(0,), (1, 2)}

    def test_the_order_of_labels_does_not_make_them_differ(self, tmp_path: Path) -> None:
        for name, count in (("train", 20), ("validation", 5), ("test", 5)):
            rows = [{"text": f"{name} {row}", "label": ["fire", "flood"]} for row in range(count)]
            rows[1] = {"text": f"{name} 0", "label": ["flood", "fire"]}
            rows[2] = {"text": f"{name} 3", "label": ["flood"]}
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
        findings = judged(tmp_path, max_excluded_fraction=0.9, leakage="exclude").findings
        assert [(finding.rule, finding.rows) for finding in findings if finding.split == "train"] == [
            ("conflicting_labels", (3, 4)),
            ("duplicates", (2,)),
        ]

    def test_rare_labels_are_refused_in_training_rows_only(self, tmp_path: Path) -> None:
        for name, rare in (("train", 5), ("validation", 0), ("test", 1)):
            folder = write_rows(tmp_path / f"rows-{name}", "jsonl", [["fire"]] * 20 + [["storm"]] * rare)
            text = folder.read_text(encoding="utf-8").replace("message", name)
            (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
        assert len(judged(tmp_path).dataset["train"]) == 25
        with pytest.raises(DataQualityError, match=r"^train: min_rows_per_class: too few rows of 'storm' 5; .* is 6$"):
            judged(tmp_path, min_rows_per_class=6)

    def test_a_split_without_any_label_is_refused(self) -> None:
        column = pa.chunked_array([[[], []]], pa.list_(pa.string()))
        assert TASK.too_few(np.zeros(2), column, NAMES, 0) == "no row has a label"
        assert TASK.too_few(np.zeros(2), column, ("fire",), 0).startswith("the labels are ['fire']")


class TestLosses:
    def test_a_batch_holds_a_row_of_indicators_per_text_and_marks_unknown_ones(self) -> None:
        tokenizer = new_tokenizer()
        data = new_data("multi_label", unlabelled=2, train=4)
        task = MultiLabel(SETTINGS, TOPICS)
        features, labelled = training_features(data, tokenizer, task, DataSettings(max_length=16))
        batch = collator(tokenizer, task)(list(features))
        expected = [[int(topic in labels) for topic in range(2)] for labels in data["train"]["label"]]
        assert batch["labels"][:labelled].tolist() == expected
        assert task.labelled(batch["labels"]).tolist() == [True] * 4 + [False] * 2
        assert task.num_labelled(batch, MASK).item() == 4

    def test_the_task_loss_is_torchs_mean_over_labels_of_labelled_rows(self) -> None:
        torch.manual_seed(0)
        logits = torch.randn(4, 3, requires_grad=True)
        labels = torch.tensor([[1, 0, 1], [-100, -100, -100], [0, 0, 0], [1, 1, 1]])
        known = labels[:, 0] >= 0
        loss = TASK.task_loss(logits, {"labels": labels}, MASK, num_items=torch.tensor(3))
        torch.testing.assert_close(
            loss, functional.binary_cross_entropy_with_logits(logits[known], labels[known].float())
        )
        assert torch.autograd.grad(loss, logits)[0][1].abs().sum() == 0


GENERATOR = np.random.default_rng(0)
LOGITS_NC = GENERATOR.normal(size=(60, 3)).astype(np.float32)
REFERENCES_NC = (GENERATOR.random((60, 3)) < 0.3).astype(np.int8)
OUTPUTS = {"logits": LOGITS_NC}


class TestAnswers:
    @pytest.mark.parametrize("threshold", [0.5, 0.8])
    def test_metrics_equal_scikit_learn(self, threshold: float) -> None:
        task = MultiLabel(SETTINGS.model_copy(update={"threshold": threshold}), NAMES)
        predicted_NC = (1 / (1 + np.exp(-LOGITS_NC)) > threshold).astype(int)
        metrics = task.metrics(OUTPUTS, REFERENCES_NC)
        assert (REFERENCES_NC.sum(1) + predicted_NC.sum(1) == 0).any()
        entropy = functional.binary_cross_entropy_with_logits(
            torch.tensor(LOGITS_NC), torch.tensor(REFERENCES_NC, dtype=torch.float32)
        )
        assert metrics == {
            "micro_f1": pytest.approx(f1_score(REFERENCES_NC, predicted_NC, average="micro")),
            "macro_f1": pytest.approx(f1_score(REFERENCES_NC, predicted_NC, average="macro")),
            "samples_f1": pytest.approx(f1_score(REFERENCES_NC, predicted_NC, average="samples", zero_division=1)),
            "subset_accuracy": pytest.approx(accuracy_score(REFERENCES_NC, predicted_NC)),
            "binary_cross_entropy": pytest.approx(entropy.item(), rel=1e-5),
        }
        assert task.primary(task.scores(OUTPUTS, REFERENCES_NC)) == pytest.approx(metrics["micro_f1"])
        quality_N = [
            jaccard_score(reference[None], predicted[None], average="samples", zero_division=1)
            for reference, predicted in zip(REFERENCES_NC, predicted_NC, strict=True)
        ]
        np.testing.assert_allclose(task.row_quality(OUTPUTS, REFERENCES_NC), quality_N)

    def test_nothing_to_find_and_nothing_answered_is_right(self) -> None:
        nothing = {"logits": np.full((3, 3), -5.0)}
        references_NC = np.zeros((3, 3), dtype=np.int8)
        metrics = TASK.metrics(nothing, references_NC)
        assert (metrics["micro_f1"], metrics["samples_f1"], metrics["subset_accuracy"]) == (1.0, 1.0, 1.0)
        assert TASK.primary(TASK.scores(nothing, references_NC)) == 1.0
        assert TASK.row_quality(nothing, references_NC).tolist() == [1.0] * 3

    def test_every_label_has_a_row_and_a_slice(self) -> None:
        rows = TASK.label_rows(OUTPUTS, REFERENCES_NC)
        predicted_N = LOGITS_NC[:, 1] > 0
        right = (predicted_N & (REFERENCES_NC[:, 1] == 1)).sum()
        assert [row["label"] for row in rows] == list(NAMES)
        assert rows[1]["precision"] == pytest.approx(right / predicted_N.sum())
        assert rows[1]["recall"] == pytest.approx(right / REFERENCES_NC[:, 1].sum())
        assert rows[1]["rows"] == REFERENCES_NC[:, 1].sum()
        title, rows_N = TASK.slices(REFERENCES_NC)["label=flood"]
        assert title == "label flood"
        assert rows_N.tolist() == (REFERENCES_NC[:, 1] == 1).tolist()

    def test_answers_are_named_and_have_a_probability(self) -> None:
        outputs = {"logits": np.log([[3.0, 1 / 3, 4.0], [0.25, 0.25, 1.0]])}
        assert TASK.named(TASK.predictions(outputs)).tolist() == ["fire, storm", "(none)"]
        assert TASK.confidences(outputs).tolist() == pytest.approx([0.75 * 0.75 * 0.8, 0.8 * 0.8 * 0.5])

    def test_serving_answers_as_the_evaluation_does(self) -> None:
        task = MultiLabel(SETTINGS.model_copy(update={"threshold": 0.6}), NAMES)
        answerer = new_answerer({"kind": "multi_label", "labels": list(NAMES), **task.serving()}, TOKENIZER)
        named = task.named(task.predictions(OUTPUTS))
        for logits_C, expected in zip(LOGITS_NC, named, strict=True):
            answer = answerer.answer("", [], [logits_C])
            assert (", ".join(answer["labels"]) or "(none)") == expected
            probabilities = torch.sigmoid(torch.tensor(logits_C)).tolist()
            assert answer["probabilities"] == pytest.approx(dict(zip(NAMES, probabilities, strict=True)), rel=1e-5)


def test_from_rows_to_served_answers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    dataset = new_data("multi_label", unlabelled=12)
    assert [] in dataset["train"]["label"][:]
    dataset.save_to_disk(str(data))
    write_backbone(tmp_path / "backbone")
    settings = new_settings(tmp_path, task={"kind": "multi_label", "threshold": 0.4}, export={"name": "topics"})
    metrics = run_stages(settings, tmp_path)
    assert metrics["log_history"][0]["prediction_loss"] > 0
    config = load_trained(tmp_path / "student").model.config
    assert (config.id2label, config.problem_type) == (dict(enumerate(TOPICS)), "multi_label_classification")

    models = {name: tmp_path / name for name in ("teacher", "student_start", "student")}
    evaluation = evaluate_models(settings, data, models, tmp_path / "evaluation")
    table = pd.read_parquet(tmp_path / "evaluation" / "predictions.parquet")
    expected = [", ".join(TOPICS[topic] for topic in labels) or "(none)" for labels in dataset["test"]["label"]]
    assert table["label"].tolist() == expected
    assert {"label=acting", "label=praise"} < set(evaluation["models"]["student"]["slices"])
    assert evaluation["models"]["teacher"]["agreement"] == 1.0

    manifest = export_bundle(settings, tmp_path / "student", data, evaluation, 1, tmp_path / "bundles")
    assert manifest["task"] == {"kind": "multi_label", "labels": list(TOPICS), "threshold": 0.4}
    answers = Predictor(open_bundle(tmp_path / "bundles")).predict(dataset["test"]["text"][:])
    assert (
        manifest["int8"]["accepted"]
        or [", ".join(answer["labels"]) or "(none)" for answer in answers] == table["student_prediction"].tolist()
    )
    assert manifest["served_metrics"]["metrics"].keys() == evaluation["models"]["student"]["metrics"].keys()
