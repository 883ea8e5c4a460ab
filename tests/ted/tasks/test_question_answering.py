from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import BertModel, PreTrainedTokenizerBase

from benchmarks.tiny import (
    NO_ANSWERS,
    distillation_inputs,
    new_config,
    new_data,
    new_settings,
    new_tokenizer,
    write_backbone,
)
from ted import stages
from ted.config import DataSettings, FilterSettings, TaskSettings
from ted.data.preparation import collator, tokenize
from ted.errors import DataError
from ted.evaluation import evaluate_models
from ted.export.bundle import export_bundle
from ted.heads import TokenHead
from ted.losses import prediction_kl
from ted.serving.bundle import Bundle, open_bundle
from ted.serving.predictor import Predictor
from ted.serving.spans import OUTSIDE
from ted.tasks.question_answering import QuestionAnswering

SETTINGS = TaskSettings(kind="question_answering")
TASK = QuestionAnswering(SETTINGS)
DATA = DataSettings(max_length=16, stride=4, text_pair_column="text_pair")
WHOLE = torch.ones(3, 5)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return new_tokenizer()


def answers(*texts: str, context: str = "a b") -> dict[str, list[Any]]:
    return {"text": list(texts), "answer_start": [context.index(text) for text in texts]}


def outputs(*texts: str) -> dict[str, Any]:
    return {"answer": np.array(texts, dtype=object)}


def references(*rows: list[str]) -> Any:  # noqa: ANN401 - an array of tuples
    labels = [{"text": texts, "answer_start": [0] * len(texts)} for texts in rows]
    return TASK.references(Dataset.from_dict({"label": labels}))


class TestLabels:
    def test_answers_become_lists_of_text_and_places(self) -> None:
        table = Dataset.from_dict({"label": [{"answer_start": [3], "extra": 1, "text": ["a"]}, None]})
        column = TASK.read_labels(table, "x.jsonl: column 'answers'")
        assert column.to_pylist() == [{"text": ["a"], "answer_start": [3]}, None]

    @pytest.mark.parametrize("label", ["an answer", 3, {"text": ["a"]}, {"text": "a", "answer_start": 3}])
    def test_other_columns_are_refused(self, label: object) -> None:
        with pytest.raises(DataError, match=r"^x\.csv: column 'answers' holds .* give \{text: "):
            TASK.read_labels(Dataset.from_dict({"label": [label]}), "x.csv: column 'answers'")

    @pytest.mark.parametrize(
        ("label", "known"),
        [
            ({"text": ["film"], "answer_start": [2]}, True),
            (NO_ANSWERS, True),
            ({"text": ["film", "dull"], "answer_start": [2, 10]}, True),
            ({"text": ["film", "dull"], "answer_start": [2, 9]}, False),
            ({"text": ["film"], "answer_start": [-6]}, False),
            ({"text": ["film"], "answer_start": []}, False),
            ({"text": [""], "answer_start": [0]}, False),
            ({"text": ["films"], "answer_start": [2]}, False),
            ({"text": ["film", "dull"], "answer_start": [2, None]}, False),
        ],
    )
    def test_an_answer_must_stand_where_it_says(self, label: dict[str, Any], known: bool) -> None:
        rows = Dataset.from_dict({"label": [label, NO_ANSWERS], "text_pair": ["a film is dull"] * 2})
        numbers = TASK.label_numbers(rows.to_pandas(), ())
        assert numbers.notna().tolist() == [known, True]

    def test_equal_answers_have_equal_numbers(self) -> None:
        labels = [answers("a"), answers("a"), answers("a", "a"), NO_ANSWERS, None]
        frame = Dataset.from_dict({"label": labels, "text_pair": ["a b"] * 5}).to_pandas()
        numbers = TASK.label_numbers(frame, ())
        assert numbers[0] == numbers[1]
        assert len(set(numbers[:4])) == 3
        assert np.isnan(numbers[4])


class TestFeatures:
    QUESTION = "the good"
    CONTEXT = "the film was bad and the plot is dull with a very fine scene of it"

    def encode(self, tokenizer: PreTrainedTokenizerBase, label: dict[str, Any] | None) -> Dataset:
        columns: dict[str, list[Any]] = {"text": [self.QUESTION] * 2, "text_pair": [self.CONTEXT] * 2}
        columns |= {} if label is None else {"label": [label] * 2}
        return tokenize(Dataset.from_dict(columns), tokenizer, TASK, DATA)

    def test_windows_cover_every_token_and_share_the_stride(self, tokenizer: PreTrainedTokenizerBase) -> None:
        features = self.encode(tokenizer, None)
        assert features["example"][:] == [0, 0, 1, 1]
        assert max(features["length"]) == 16
        first, second = (
            [self.CONTEXT[s:e] for s, e in zip(row["char_starts"], row["char_ends"], strict=True) if s != OUTSIDE]
            for row in features.select(range(2))
        )
        assert first[-4:] == second[:4]
        assert [*first, *second[4:]] == self.CONTEXT.split()
        assert features["labels"][:] == [[-100, -100]] * 4

    def test_only_the_windows_with_the_answer_point_at_it(self, tokenizer: PreTrainedTokenizerBase) -> None:
        features = self.encode(tokenizer, answers("very fine", "bad", context=self.CONTEXT))
        assert features["labels"][0] == [0, 0]
        start, end = features["labels"][1]
        words = tokenizer.convert_ids_to_tokens(features[1]["input_ids"])
        assert words[start : end + 1] == ["very", "fine"]

    def test_an_answer_in_the_shared_part_is_in_both(self, tokenizer: PreTrainedTokenizerBase) -> None:
        features = self.encode(tokenizer, answers("dull", context=self.CONTEXT))
        found = [tokenizer.convert_ids_to_tokens(row["input_ids"])[row["labels"][0]] for row in features]
        assert found == ["dull"] * 4

    def test_no_answer_is_the_first_token(self, tokenizer: PreTrainedTokenizerBase) -> None:
        assert self.encode(tokenizer, NO_ANSWERS)["labels"][:] == [[0, 0]] * 4

    def test_long_questions_are_cut(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = Dataset.from_dict({"text": ["good film " * 50], "text_pair": [self.CONTEXT]})
        features = tokenize(rows, tokenizer, TASK, DATA)
        assert str(tokenizer.decode(features[0]["input_ids"])).startswith(
            "[CLS] good film good film [SEP] the film was"
        )

    def test_a_batch_has_the_places_of_start_and_end(self, tokenizer: PreTrainedTokenizerBase) -> None:
        batch = collator(tokenizer, TASK)(list(self.encode(tokenizer, NO_ANSWERS)))
        assert batch["labels"].tolist() == [[0, 0]] * 4
        assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels", "index"}


class TestLosses:
    LABELS = torch.tensor([[1, 3], [-100, -100], [0, 0]])
    MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])

    def logits(self) -> torch.Tensor:
        return torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def test_the_task_loss_is_the_published_one_where_all_positions_count(self) -> None:
        logits, batch = self.logits(), {"labels": self.LABELS}
        loss = TASK.task_loss(logits, batch, WHOLE, num_items=TASK.num_labelled(batch, WHOLE))
        start = functional.cross_entropy(logits[:, :, 0], self.LABELS[:, 0])
        end = functional.cross_entropy(logits[:, :, 1], self.LABELS[:, 1])
        torch.testing.assert_close(loss, (start + end) / 2)

    def test_padded_positions_do_not_count(self) -> None:
        logits, batch = self.logits(), {"labels": self.LABELS}
        loss = TASK.task_loss(logits, batch, self.MASK, num_items=TASK.num_labelled(batch, self.MASK))
        parts = [
            functional.cross_entropy(logits[row, :length, side], self.LABELS[row, side])
            for row, length in ((0, 5), (2, 2))
            for side in (0, 1)
        ]
        torch.testing.assert_close(loss, torch.stack(parts).mean())
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient[2, 2:].abs().sum() == 0
        assert gradient[1].abs().sum() == 0

    def test_the_divergence_is_over_real_positions_the_mean_of_start_and_end(self) -> None:
        student, teacher, temperature = self.logits(), 3 * self.logits().flip(0), 2.0
        batch = {"labels": self.LABELS}
        mask = TASK.prediction_mask(batch, self.MASK)
        assert mask.shape == (3, 2)
        loss = prediction_kl(
            TASK.prediction_logits(student, self.MASK),
            TASK.prediction_logits(teacher, self.MASK),
            mask,
            temperature=temperature,
            num_items=mask.sum(),
        )
        parts = []
        for row, length in enumerate((5, 3, 2)):
            for side in (0, 1):
                wanted = (teacher[row, :length, side] / temperature).softmax(0)
                given = (student[row, :length, side] / temperature).softmax(0)
                parts.append((wanted * (wanted / given).log()).sum())
        torch.testing.assert_close(loss, temperature**2 * torch.stack(parts).mean())
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(gradient).all()
        assert gradient[2, 2:].abs().sum() == 0

    def test_a_filter_head_reads_every_position(self) -> None:
        head = TASK.filter_head(8, FilterSettings(head_dropout=0.3), BertModel(new_config()))
        assert isinstance(head, TokenHead)
        assert (head.out.out_features, head.dropout.p) == (2, 0.3)


class TestMetrics:
    @pytest.mark.parametrize(
        ("answer", "wanted", "f1", "exact"),
        [
            ("The Denver Broncos!", ["denver broncos"], 1.0, 1.0),
            ("Broncos", ["Denver Broncos"], 2 / 3, 0.0),
            ("the Denver team", ["Denver Broncos", "a Denver team of men"], 2 * 2 / (2 + 4), 0.0),
            ("to to be", ["to be be"], 2 * 2 / (3 + 3), 0.0),
            ("Carolina", ["Denver Broncos"], 0.0, 0.0),
            ("", ["Denver"], 0.0, 0.0),
            ("", [], 1.0, 1.0),
            ("Denver", [], 0.0, 0.0),
            ("U.S.", ["US", "United States"], 1.0, 1.0),
            ("the", [], 1.0, 1.0),  # nothing is left of it
        ],
    )
    def test_an_answer_is_judged_as_the_script_of_squad_does(
        self, answer: str, wanted: list[str], f1: float, exact: float
    ) -> None:
        scores = TASK.scores(outputs(answer), references(wanted))
        assert scores.tolist() == [[pytest.approx(f1), exact]]

    def test_metrics_are_means_over_rows(self) -> None:
        found, wanted = outputs("Broncos", "", "x"), references(["Denver Broncos"], [], ["y", "x"])
        metrics = TASK.metrics(found, wanted)
        assert metrics == {"f1": pytest.approx((2 / 3 + 1 + 1) / 3), "exact_match": pytest.approx(2 / 3)}
        assert TASK.primary(TASK.scores(found, wanted)) == metrics["f1"]
        assert TASK.row_quality(found, wanted).tolist() == [pytest.approx(2 / 3), 1, 1]

    def test_a_models_answers_can_be_references(self) -> None:
        found = outputs("Broncos", "")
        assert TASK.scores(found, TASK.predictions(found)).tolist() == [[1, 1], [1, 1]]

    def test_answers_are_named_once_each(self) -> None:
        assert TASK.named(references(["a", "a", "b"], [])).tolist() == ["a | b", "(no answer)"]

    def test_slices_part_questions_with_and_without_an_answer(self) -> None:
        parts = TASK.slices(references(["a"], [], ["b"]))
        assert {name: rows.tolist() for name, (_, rows) in parts.items()} == {
            "answerable": [True, False, True],
            "unanswerable": [False, True, False],
        }
        assert TASK.slices(references(["a"])) == {}


@pytest.mark.parametrize("padded", [0, 7])
def test_answers_do_not_depend_on_padding(padded: int, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = new_data("question_answering")["test"]
    features = tokenize(rows, tokenizer, TASK, DATA)
    lengths = np.array(features["length"])
    generator = np.random.default_rng(0)
    alone = [generator.normal(size=(1, length, 2)) for length in lengths]
    ones = [{"attention_mask": np.ones((1, length), np.int64)} for length in lengths]
    reduced = [TASK.reduce(values, batch)["logits"] for values, batch in zip(alone, ones, strict=True)]
    expected = TASK.join({"logits": np.concatenate(reduced)}, features, rows)
    longest = max(lengths) + padded
    together = np.full((len(lengths), longest, 2), 100.0)
    for place, values in enumerate(alone):
        together[place, : lengths[place]] = values[0]
    mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
    found = TASK.join(TASK.reduce(together, {"attention_mask": mask}), features, rows)
    assert found["answer"].tolist() == expected["answer"].tolist()
    np.testing.assert_allclose(found["score"], expected["score"])
    for row, answer, start, end in zip(rows, found["answer"], found["start"], found["end"], strict=True):
        assert row["text_pair"][start:end] == answer


def test_a_run_ends_in_a_bundle_that_answers_as_the_evaluation_did(tmp_path: Path) -> None:
    data = tmp_path / "data"
    dataset = new_data("question_answering", unlabelled=9)
    dataset.save_to_disk(str(data))
    write_backbone(tmp_path / "backbone")
    settings = new_settings(
        tmp_path,
        task={"kind": "question_answering", "max_answer_tokens": 3, "null_threshold": None},
        evaluation={"latency_repeats": 3, "bootstrap_samples": 100},
        export={"int8_max_metric_drop": 1.0, "int8_max_latency_ratio": 1e6},
    )
    inputs = distillation_inputs(tmp_path)
    stages.finetune_teacher(settings, data, inputs.teacher)
    stages.prepare_student(settings, data, inputs.student)
    stages.learn_filters(settings, data, inputs.teacher, "teacher", inputs.teacher_filters)
    stages.learn_filters(settings, data, inputs.student, "student", inputs.student_filters)
    stages.distill_student(settings, inputs, tmp_path / "student")
    models = {"teacher": inputs.teacher, "student_start": inputs.student, "student": tmp_path / "student"}
    evaluation = evaluate_models(settings, data, models, tmp_path / "evaluation")
    assert set(evaluation["models"]["student"]["metrics"]) == {"f1", "exact_match"}
    assert {"answerable", "unanswerable"} <= set(evaluation["slice_titles"])

    manifest = export_bundle(settings, tmp_path / "student", data, evaluation, 1, tmp_path / "bundles")
    assert manifest["outputs"] == ["start_logits", "end_logits"]
    bundle = open_bundle(tmp_path / "bundles")
    exact = Predictor(Bundle(bundle.folder, {**bundle.manifest, "model": "model.onnx"}))
    test = dataset["test"]
    served = exact.predict(list(zip(test["text"], test["text_pair"], strict=True)))
    table = pd.read_parquet(tmp_path / "evaluation" / "predictions.parquet")
    assert [answer["answer"] or "(no answer)" for answer in served] == table["student_prediction"].tolist()
    assert [answer["score"] for answer in served] == pytest.approx(table["student_probability"].tolist(), rel=1e-4)
    assert {len(answer["answer"].split()) for answer in served} - {0}
    for answer in served:
        assert answer["text"][1][answer["start"] : answer["end"]] == answer["answer"]

    # Serving cuts questions and contexts into the very tokens of training, and a context may hold nothing.
    pair = ("good film " * 50, "the plot was dull " * 9)
    features = tokenize(Dataset.from_dict({"text": [pair[0]], "text_pair": [pair[1]]}), new_tokenizer(), TASK, DATA)
    assert [window.ids for window in exact.encode([pair])[0]] == features["input_ids"][:]
    assert exact.predict([("good", "")])[0] == {"text": ("good", ""), "answer": "", "start": 0, "end": 0, "score": 1.0}
