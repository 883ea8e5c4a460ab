"""From validated rows to the batches that a model reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Value, concatenate_datasets
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from ted.data.sources import no_progress_bars
from ted.tasks import Task

Batch = dict[str, Tensor]
FORWARD_BATCH = 64
"""Rows of a pass without gradients."""

Collator = Callable[[Sequence[Mapping[str, Any]]], Batch]


@no_progress_bars()
def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Return token ids cut to `max_length`, with `length` (tokens), `index` (row) and, if given, `label`."""
    pairs = "text_pair" in dataset.column_names

    def encode(rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        second = rows["text_pair"] if pairs else None
        encoded = dict(tokenizer(rows["text"], second, truncation=True, max_length=max_length))
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]], "index": indices}

    unused = [name for name in dataset.column_names if name != "label"]
    return dataset.map(
        encode, batched=True, with_indices=True, remove_columns=unused, keep_in_memory=True, load_from_cache_file=False
    )


@no_progress_bars()
def training_rows(dataset: DatasetDict, task: Task) -> Dataset:
    """Return the labelled training rows followed by the unlabelled ones, whose label is the task's `unlabelled`."""
    labelled = dataset["train"]
    if "unlabelled" not in dataset or len(dataset["unlabelled"]) == 0:
        return labelled
    texts = [name for name in ("text", "text_pair") if name in labelled.column_names]
    unlabelled = dataset["unlabelled"].select_columns(texts)
    unlabelled = unlabelled.add_column("label", [task.unlabelled] * len(unlabelled))
    unlabelled = unlabelled.cast_column("label", _plain_label(labelled).features["label"])
    return concatenate_datasets([_plain_label(labelled).select_columns([*texts, "label"]), unlabelled])


def _plain_label(dataset: Dataset) -> Dataset:
    """Return the rows with class indices as plain integers, which a label outside the classes can stand beside."""
    if not isinstance(dataset.features["label"], ClassLabel):
        return dataset
    return dataset.cast_column("label", Value("int64"))


def collator(tokenizer: PreTrainedTokenizerBase) -> Collator:
    """Return a function that pads rows to the longest of their batch, on the right.

    A batch holds what the tokenizer makes, each (B, L), `labels` (B) if the rows have a label, and `index` (B).
    """

    def collate(rows: Sequence[Mapping[str, Any]]) -> Batch:
        inputs = [{name: row[name] for name in tokenizer.model_input_names if name in row} for row in rows]
        batch: Batch = dict(tokenizer.pad(inputs, return_tensors="pt"))
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        batch["index"] = torch.tensor([row["index"] for row in rows])
        return batch

    return collate


def forward_batches(rows: Dataset, collate: Collator) -> "DataLoader[Batch]":
    """Return all rows in batches of similar length, for passes without gradients; the order hangs on the rows alone."""
    lengths = rows["length"][:]
    order = sorted(range(len(rows)), key=lengths.__getitem__)
    chunks = [order[start : start + FORWARD_BATCH] for start in range(0, len(order), FORWARD_BATCH)]
    # A generator of its own: looking at rows must not move the random numbers of training.
    return DataLoader(rows, batch_sampler=chunks, collate_fn=collate, generator=torch.Generator())


def to_device(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches on the accelerator, or on the CPU where there is none."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    for batch in batches:
        yield {name: tensor.to(device) for name, tensor in batch.items()}
