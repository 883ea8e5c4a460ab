import math

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from benchmarks.tiny import LABELS, new_data, new_tokenizer
from ted.config import DataSettings, TaskSettings
from ted.data.preparation import FORWARD_BATCH, collator, forward_batches, to_device, tokenize, training_features
from ted.tasks.base import SequenceTask
from ted.tasks.classification import Classification
from ted.tasks.regression import Regression

CLASSIFICATION = Classification(TaskSettings(), LABELS)
REGRESSION = Regression(TaskSettings(kind="regression"))
SHORT = DataSettings(max_length=16)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return new_tokenizer()


def test_rows_keep_their_place_their_length_and_their_label(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["a good film", "bad", "the plot is dull and the actor is poor"]
    rows = tokenize(
        Dataset.from_dict({"text": texts, "label": [1, 0, 0], "row": [5, 6, 7]}),
        tokenizer,
        CLASSIFICATION,
        DataSettings(max_length=8),
    )
    assert set(rows.column_names) == {
        *("input_ids", "token_type_ids", "attention_mask", "length", "index", "example", "labels")
    }
    assert rows["index"][:] == [0, 1, 2]
    assert rows["length"][:] == [5, 3, 8]
    assert rows["labels"][:] == [1, 0, 0]
    for row, text in zip(rows, texts, strict=True):
        assert row["input_ids"] == tokenizer(text, truncation=True, max_length=8)["input_ids"]


def test_pairs_are_cut_to_the_length_together(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize(
        Dataset.from_dict({"text": ["a good film"], "text_pair": ["the dull plot is bad"]}),
        tokenizer,
        CLASSIFICATION,
        DataSettings(max_length=9),
    )
    assert rows[0]["length"] == 9
    assert rows[0]["token_type_ids"] == [0] * 5 + [1] * 4


def test_rows_without_labels_say_so(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize(Dataset.from_dict({"text": ["a"]}), tokenizer, CLASSIFICATION, DataSettings(max_length=8))
    assert collator(tokenizer, CLASSIFICATION)([rows[0]])["labels"].tolist() == [CLASSIFICATION.unlabelled]


def test_index_and_length_cover_more_than_one_chunk(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize(
        Dataset.from_dict({"text": ["a"] * 1001 + ["a good film"] * 500}),
        tokenizer,
        CLASSIFICATION,
        DataSettings(max_length=8),
    )
    assert rows["index"][:] == list(range(1501))
    assert rows["length"][-1] == 5


@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=lambda task: task.kind)
def test_unlabelled_rows_follow_the_labelled_ones(task: SequenceTask, tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = new_data(task.kind, unlabelled=5)
    features, num_labelled = training_features(dataset, tokenizer, task, SHORT)
    assert (len(features), num_labelled) == (53, 48)
    texts = [*dataset["train"]["text"][:], *dataset["unlabelled"]["text"][:]]
    assert features["input_ids"][:] == tokenizer(texts, truncation=True, max_length=16)["input_ids"]
    assert features["index"][:] == list(range(53))
    assert features["example"][:] == [*range(48), *range(5)]
    assert features["labels"][:48] == dataset["train"]["label"][:]
    labels = collator(tokenizer, task)(list(features))["labels"]
    assert task.labelled(labels).tolist() == [True] * 48 + [False] * 5
    assert labels.dtype == (torch.int64 if task is CLASSIFICATION else torch.float32)


@pytest.mark.parametrize("unlabelled", [None, 0])
def test_without_unlabelled_rows_there_are_labelled_ones_only(
    unlabelled: int | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    dataset = new_data("classification")
    if unlabelled == 0:
        dataset["unlabelled"] = dataset["train"].select([]).remove_columns("label")
    features, num_labelled = training_features(dataset, tokenizer, CLASSIFICATION, SHORT)
    assert len(features) == num_labelled == 48


def test_unlabelled_pairs_keep_both_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    labelled = Dataset.from_dict({"text": ["a"], "text_pair": ["film"], "label": [0]})
    unlabelled = Dataset.from_dict({"text": ["the"], "text_pair": ["plot"], "row": [1], "source": ["x"]})
    features, _ = training_features(
        DatasetDict(train=labelled, unlabelled=unlabelled), tokenizer, CLASSIFICATION, SHORT
    )
    assert features["input_ids"][:] == tokenizer(["a", "the"], ["film", "plot"])["input_ids"]


def test_a_batch_is_padded_on_the_right_to_its_longest_row(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["a good film", "bad"]
    rows = tokenize(Dataset.from_dict({"text": texts, "label": [1, 0]}), tokenizer, CLASSIFICATION, SHORT)
    batch = collator(tokenizer, CLASSIFICATION)([rows[1], rows[0]])
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels", "index"}
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"][0, 3:].tolist() == [tokenizer.pad_token_id] * 2
    assert batch["labels"].tolist() == [0, 1]
    assert batch["index"].tolist() == [1, 0]


def test_numbers_and_missing_numbers_survive_a_batch(tokenizer: PreTrainedTokenizerBase) -> None:
    rows, _ = training_features(new_data("regression", unlabelled=2), tokenizer, REGRESSION, SHORT)
    labels = collator(tokenizer, REGRESSION)([rows[0], rows[49]])["labels"]
    assert labels.dtype == torch.float32
    assert math.isfinite(labels[0].item())
    assert math.isnan(labels[1].item())


def test_a_pass_sees_every_row_once_sorted_by_length(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize(new_data("classification", train=2 * FORWARD_BATCH + 7)["train"], tokenizer, CLASSIFICATION, SHORT)
    batches = list(forward_batches(rows, collator(tokenizer, CLASSIFICATION)))
    assert [len(batch["index"]) for batch in batches] == [FORWARD_BATCH, FORWARD_BATCH, 7]
    seen = torch.cat([batch["index"] for batch in batches]).tolist()
    assert sorted(seen) == list(range(len(rows)))
    lengths = [rows["length"][:][row] for row in seen]
    assert lengths == sorted(lengths)


def test_a_pass_moves_no_random_numbers(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize(new_data("classification")["train"], tokenizer, CLASSIFICATION, SHORT)
    state = torch.random.get_rng_state()
    list(to_device(forward_batches(rows, collator(tokenizer, CLASSIFICATION))))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_order_of_a_pass_hangs_on_the_rows_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize(new_data("classification")["train"], tokenizer, CLASSIFICATION, SHORT)
    first, second = (
        [batch["index"].tolist() for batch in forward_batches(rows, collator(tokenizer, CLASSIFICATION))]
        for _ in range(2)
    )
    assert first == second
