"""A tag for each word of a text: spans of entities, or tags that stand for themselves, such as parts of speech.

A word is what stands between white space. Its tag is learnt and answered at its first token; a text of more tokens than
fit the model is read in windows that overlap, and each word belongs to one of them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, List
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ted import losses
from ted.config import DataSettings, FilterSettings, TaskSettings
from ted.data.labels import found_names, hash_numbers, read_tags, read_words
from ted.heads import TokenHead
from ted.serving.answers import softmax
from ted.serving.tags import (
    NO_TAG,
    NO_WORD,
    Span,
    answered_words,
    find_spans,
    mark_entities,
    span_labels,
    word_bounds,
)
from ted.tasks.base import Array, Batch, Columns, FloatArray, Outputs, Task

UNLABELLED = -100


class TokenClassification(Task):
    """Cross-entropy on the first token of each word; F1 of whole entities, or where tags mark none, word accuracy.

    The primary metric is micro-averaged F1 over entities of equal type and words if the tags mark entities (BIO and its
    kin), else accuracy.
    """

    kind = "token_classification"
    auto_class = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
    primary_metric = "accuracy"
    prediction_loss = "kl"
    # A name is told from a word by its case.
    cased = True
    every_split_has_all = False

    def __init__(self, settings: TaskSettings, label_names: tuple[str, ...] = ()) -> None:
        super().__init__(settings, label_names)
        self.marks_entities = mark_entities(label_names)
        if self.marks_entities:
            self.primary_metric = "f1"

    def read_text(self, table: Dataset, name: str) -> Dataset:
        """Return the table with words joined by single spaces."""
        return read_words(table, name)

    def read_labels(self, table: Dataset, place: str) -> pa.ChunkedArray:
        """Return lists of tag names; a whole number stands for the declared tag of that index, if none is called so."""
        declared = self.settings.labels or ()
        named = not any(name.isdecimal() for name in declared)
        return read_tags(table, place, {str(index): name for index, name in enumerate(declared) if named})

    def find_labels(self, train: Dataset) -> tuple[str, ...]:
        """Return the declared tags, or those of the training rows in order."""
        if self.settings.labels is not None:
            return self.settings.labels
        return found_names({tag for tags in train["label"] for tag in tags or () if tag is not None})

    def label_numbers(self, frame: pd.DataFrame, names: Sequence[str]) -> "pd.Series[float]":
        """Return a hash of the tags; NaN where one is unknown or their number is not that of the words."""
        known = set(names)
        rows = zip(frame["text"], frame["label"], strict=True)
        spelt = ["\x1f".join(tags) if _fit(tags, text) and known.issuperset(tags) else None for text, tags in rows]
        return pd.Series(hash_numbers(spelt), index=frame.index)

    def right_label(self, names: Sequence[str]) -> str:
        """Return that each word must have one of the tags."""
        return f"a tag per word out of {super().right_label(names)}"

    def wrong_label(self, label: Any, text: str, names: Sequence[str]) -> str:  # noqa: ANN401 - as the base class
        """Return how many tags there are for how many words, or the first tag that is unknown."""
        words = len(text.split())
        if len(label) != words:
            return f"{len(label)} tags for {words} words between white space"
        return f"tag {next(tag for tag in label if tag not in names)!r}"

    def too_few(self, numbers_N: FloatArray, column: Any, names: Sequence[str], least: int) -> str:  # noqa: ANN401 - a column of any type
        """Return which types of entity, or tags, stand in too few rows."""
        if len(names) == 1:
            return f"the only tag is {names[0]!r}; two are needed to tell words apart"
        entities = mark_entities(names)
        spans = (find_spans(tags, entities=entities) for tags in column.to_pylist())
        rows_of = Counter(label for row in spans for label in {span.label for span in row})
        if entities and not rows_of:
            return "no row has an entity"
        few = [f"{label!r} {rows_of[label]}" for label in span_labels(names) if rows_of[label] < least]
        return f"too few rows with {', '.join(few)}; quality.min_rows_per_class is {least}" if few else ""

    def clean_labels(
        self, numbers_N: FloatArray, column: pa.ChunkedArray, names: Sequence[str]
    ) -> tuple[pa.Array, Any]:
        """Return lists of tag indices."""
        index = {name: number for number, name in enumerate(names)}
        rows = zip(column.to_pylist(), np.isnan(numbers_N), strict=True)
        values = [None if unknown else [index[tag] for tag in tags] for tags, unknown in rows]
        return pa.array(values, pa.list_(pa.int64())), List(ClassLabel(names=list(names)))

    def encode(self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> Columns:
        """Return the windows of each row, with `words`: the word that each token answers."""
        texts: list[str] = rows["text"]
        encoded = dict(
            tokenizer(
                texts,
                truncation=True,
                max_length=data.max_length,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                **self.truncation(data),
            )
        )
        examples: list[int] = encoded.pop("overflow_to_sample_mapping")
        windows: list[list[Any]] = [[] for _ in texts]
        for example, offsets in zip(examples, encoded.pop("offset_mapping"), strict=True):
            windows[example].append(offsets)
        answered = [answered_words(parts, word_bounds(text)) for text, parts in zip(texts, windows, strict=True)]
        words = [words_L for parts in answered for words_L in parts]
        tags: list[Array | None] = [None] * len(texts)
        if "label" in rows:
            tags = [np.asarray(row) for row in rows["label"]]
        labels = [_token_labels(words_L, tags[example]) for example, words_L in zip(examples, words, strict=True)]
        return {**encoded, "labels": labels, "words": words, "example": examples}

    def truncation(self, data: DataSettings) -> dict[str, Any]:
        """Return what neighbouring windows share."""
        return {"stride": data.stride}

    def stack_labels(self, rows: Sequence[Any], length: int) -> Tensor:
        """Return the labels (B, L)."""
        return torch.tensor([[*row, *[UNLABELLED] * (length - len(row))] for row in rows])

    def num_logits(self, num_rows: int, num_tokens: int, vocabulary: int) -> int:
        """Return the outputs of all tokens."""
        return num_tokens * len(self.label_names)

    def num_labelled(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return the number of words with a tag."""
        return (batch["labels"] != UNLABELLED).sum()

    def task_loss(self, logits: Tensor, batch: Batch, mask_BL: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the cross-entropy over the words with a tag."""
        labels = batch["labels"].flatten()
        return losses.cross_entropy(logits.flatten(0, 1), labels, labels != UNLABELLED, num_items=num_items)

    def prediction_mask(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return (B, L): every real token counts."""
        return mask_BL

    def filter_head(self, dim: int, filters: FilterSettings, model: PreTrainedModel) -> nn.Module:
        """Return a head that reads each position."""
        return TokenHead(dim, len(self.label_names), dropout=filters.head_dropout)

    def reduce(self, logits: Array, batch: Mapping[str, Array]) -> Outputs:
        """Return the likeliest tag of each token and its probability."""
        return {"tags": _ragged(logits.argmax(-1)), "probabilities": _ragged(softmax(logits).max(-1))}

    def join(self, reduced: Outputs, features: Dataset, rows: Dataset) -> Outputs:
        """Return tag and probability of each word of each row: -1 and 0 of a word that the tokenizer drops."""
        counts = [len(text.split()) for text in rows["text"]]
        tags = [np.full(count, -1) for count in counts]
        probabilities = [np.zeros(count) for count in counts]
        columns = (features["example"], features["words"], reduced["tags"], reduced["probabilities"])
        for example, words, tags_L, probabilities_L in zip(*columns, strict=True):
            words_L = np.asarray(words)
            tokens = np.flatnonzero(words_L != NO_WORD)
            tags[example][words_L[tokens]] = tags_L[tokens]
            probabilities[example][words_L[tokens]] = probabilities_L[tokens]
        return {"tags": _ragged(tags), "probabilities": _ragged(probabilities)}

    def references(self, rows: Dataset) -> Array:
        """Return the tag indices of each row."""
        return _ragged(map(np.asarray, rows["label"]))

    def scores(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return the number of right, answered and labelled spans: entities, or words where tags mark none."""
        pairs = self._span_pairs(outputs, references_N)
        return np.array([(len(ours & theirs), len(ours), len(theirs)) for ours, theirs in pairs], dtype=np.float64)

    def primary(self, scores_NK: FloatArray) -> float:
        """Return F1 over all spans, which for words is the accuracy: every word is answered and labelled."""
        return _figures(*scores_NK.sum(0))["f1"]

    def predictions(self, outputs: Outputs) -> Array:
        """Return the tag index of each word."""
        return outputs["tags"]

    def row_quality(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return F1 of the row, 1 where there is nothing to find and nothing is found; for words the accuracy."""
        right_N, answered_N, labelled_N = self.scores(outputs, references_N).T
        total_N = answered_N + labelled_N
        return np.where(total_N > 0, 2 * right_N / np.maximum(total_N, 1), 1.0)

    def metrics(self, outputs: Outputs, references_N: Array) -> dict[str, float]:
        """Return accuracy of words, and precision, recall and f1 of entities, or macro_f1 of tags."""
        right_W = np.concatenate(outputs["tags"]) == np.concatenate(references_N)
        values = {"accuracy": float(right_W.mean())}
        if self.marks_entities:
            return {**_figures(*self.scores(outputs, references_N).sum(0)), **values}
        return {**values, "macro_f1": float(np.mean([row["f1"] for row in self.label_rows(outputs, references_N)]))}

    def label_rows(self, outputs: Outputs, references_N: Array) -> list[dict[str, Any]]:
        """Return precision, recall, F1 and number of each type of entity, or of each tag."""
        right, answered, labelled = Counter[str](), Counter[str](), Counter[str]()
        for ours, theirs in self._span_pairs(outputs, references_N):
            for counter, spans in ((right, ours & theirs), (answered, ours), (labelled, theirs)):
                counter.update(span.label for span in spans)
        unit = "entities" if self.marks_entities else "words"
        return [
            {"label": label, **_figures(right[label], answered[label], labelled[label]), unit: labelled[label]}
            for label in span_labels(self.label_names)
        ]

    def named(self, references_N: Array) -> Array:
        """Return the tags of each row as one text."""
        return np.array([" ".join(self._names(tags_W)) for tags_W in references_N], dtype=object)

    def confidences(self, outputs: Outputs) -> FloatArray:
        """Return the mean probability over the words of each row."""
        return np.array([probabilities_W.mean() for probabilities_W in outputs["probabilities"]])

    def slices(self, references_N: Array) -> dict[str, tuple[str, npt.NDArray[np.bool_]]]:
        """Return the rows with an entity of each type; none for tags of words, which nearly every row has."""
        if not self.marks_entities:
            return {}
        found = [{span.label for span in self._spans(tags_W)} for tags_W in references_N]
        return {
            f"label={label}": (f"with {label}", np.array([label in labels for labels in found]))
            for label in span_labels(self.label_names)
        }

    def serving(self) -> dict[str, Any]:
        """Return that long texts are answered in windows."""
        return {"windows": True}

    def _names(self, tags_W: Array) -> list[str]:
        return [NO_TAG if tag < 0 else self.label_names[tag] for tag in tags_W]

    def _spans(self, tags_W: Array) -> set[Span]:
        return set(find_spans(self._names(tags_W), entities=self.marks_entities))

    def _span_pairs(self, outputs: Outputs, references_N: Array) -> Iterator[tuple[set[Span], set[Span]]]:
        for ours_W, theirs_W in zip(outputs["tags"], references_N, strict=True):
            yield self._spans(ours_W), self._spans(theirs_W)


def _figures(right: float, answered: float, labelled: float) -> dict[str, float]:
    """Return precision, recall and F1; 0 where there is nothing to divide by."""
    return {
        "precision": float(right / max(answered, 1)),
        "recall": float(right / max(labelled, 1)),
        "f1": float(2 * right / max(answered + labelled, 1)),
    }


def _fit(tags: Sequence[str] | None, text: object) -> bool:
    return tags is not None and isinstance(text, str) and len(tags) == len(text.split())


def _token_labels(words_L: Array, tags_W: Array | None) -> list[int]:
    """Return the tag of the word that each token answers."""
    if tags_W is None:
        return [UNLABELLED] * len(words_L)
    labels_L: list[int] = np.where(words_L == NO_WORD, UNLABELLED, tags_W[words_L]).tolist()
    return labels_L


def _ragged(rows: Iterable[Array]) -> Array:
    """Return arrays of different lengths as the entries of one array."""
    return np.fromiter(rows, dtype=object)
