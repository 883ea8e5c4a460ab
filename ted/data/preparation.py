"""From validated rows to the batches that a model reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from ted.config import DataSettings
from ted.data.sources import no_progress_bars
from ted.tasks import Task

Batch = dict[str, Tensor]
FORWARD_BATCH = Task.forward_rows
"""Rows of a pass without gradients."""

Encode = Callable[[Mapping[str, Any], PreTrainedTokenizerBase, DataSettings], dict[str, list[Any]]]
Collator = Callable[[Sequence[Mapping[str, Any]]], Batch]


@no_progress_bars()
def tokenize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    data: DataSettings,
    *,
    encode: Encode | None = None,
) -> Dataset:
    """Return the features of a split in the order of its rows.

    A feature holds the tokenizer's inputs, what the task adds to them (`labels`), `length` (tokens), `index` (its place
    among the features) and `example` (the place of its row).

    Args:
        dataset: rows of a split.
        tokenizer: of the model.
        task: of the run.
        data: gives the lengths.
        encode: makes the features; without it, the task's own `encode` does.
    """
    encode = encode or task.encode

    def encode_batch(rows: Mapping[str, Any], places: list[int]) -> dict[str, list[Any]]:
        columns = encode(rows, tokenizer, data)
        columns["example"] = [places[place] for place in columns["example"]]
        return {**columns, "length": [len(ids) for ids in columns["input_ids"]]}

    features = dataset.map(
        encode_batch,
        batched=True,
        with_indices=True,
        remove_columns=dataset.column_names,
        keep_in_memory=True,
        load_from_cache_file=False,
    )
    return features.add_column("index", np.arange(len(features)))


@no_progress_bars()
def training_features(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, task: Task, data: DataSettings
) -> tuple[Dataset, int]:
    """Return the features of the labelled training rows, then those of the unlabelled ones, and how many come first."""
    labelled = tokenize(dataset["train"], tokenizer, task, data, encode=task.encode_training)
    if "unlabelled" not in dataset or len(dataset["unlabelled"]) == 0:
        return labelled, len(labelled)
    unlabelled = tokenize(dataset["unlabelled"], tokenizer, task, data, encode=task.encode_training)
    unlabelled = unlabelled.cast(labelled.features)
    joined = concatenate_datasets([labelled, unlabelled]).remove_columns("index")
    return joined.add_column("index", np.arange(len(joined))), len(labelled)


def collator(tokenizer: PreTrainedTokenizerBase, task: Task) -> Collator:
    """Return a function that pads features to the longest of their batch, on the right.

    A batch holds what the tokenizer makes, each (B, L), `labels` in the task's form, and `index` (B).
    """

    def collate(rows: Sequence[Mapping[str, Any]]) -> Batch:
        inputs = [{name: row[name] for name in tokenizer.model_input_names if name in row} for row in rows]
        batch: Batch = dict(tokenizer.pad(inputs, return_tensors="pt"))
        if "labels" in rows[0]:
            batch["labels"] = task.stack_labels([row["labels"] for row in rows], batch["input_ids"].shape[1])
        batch["index"] = torch.tensor([row["index"] for row in rows])
        return batch

    return collate


def forward_batches(rows: Dataset, collate: Collator, batch_size: int = FORWARD_BATCH) -> "DataLoader[Batch]":
    """Return all features in batches of similar length, for passes without gradients; the order hangs on them alone."""
    lengths = rows["length"][:]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    # A generator of its own: looking at rows must not move the random numbers of training.
    return DataLoader(rows, batch_sampler=chunks, collate_fn=collate, generator=torch.Generator())


def to_device(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches on the accelerator, or on the CPU where there is none."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    for batch in batches:
        yield {name: tensor.to(device) for name, tensor in batch.items()}
