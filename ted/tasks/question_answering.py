"""The span of a context that answers a question, or that there is none.

Letters in names: S = 2, start and end of an answer.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from datasets import Dataset, List, Value
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ted import losses
from ted.config import DataSettings, FilterSettings
from ted.data.labels import hash_numbers, type_name
from ted.errors import DataError, ModelError
from ted.heads import TokenHead
from ted.serving.spans import QuestionCutter, Span, Window, best_span, context_places, token_span
from ted.tasks.base import Array, Batch, Columns, FloatArray, Outputs, Task

ANSWERS = {"text": pa.list_(pa.string()), "answer_start": pa.list_(pa.int64())}
UNLABELLED = -100
FIRST_TOKEN = 0
# Logit of a position that does not count: finite, so that nothing it is multiplied with becomes NaN.
MASKED = -1e9
NO_ANSWER = "(no answer)"
ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class QuestionAnswering(Task):
    """Cross-entropy of start and end; F1 of shared words and exact match with the best of the reference answers.

    A context that is too long is read in overlapping windows. Where a window does not hold the answer, or the question
    has none, start and end are the window's first token.
    """

    kind = "question_answering"
    auto_class = "AutoModelForQuestionAnswering"
    pipeline_tag = "question-answering"
    output_names = ("start_logits", "end_logits")
    primary_metric = "f1"
    prediction_loss = "kl"
    kept_together = ("text_pair",)

    def right_label(self, names: Sequence[str]) -> str:
        """Return what an answer must be."""
        return "answers that stand in their context at answer_start"

    @property
    def output_labels(self) -> tuple[str, ...]:
        """One output for the start of the answer, one for its end."""
        return ("start", "end")

    def read_labels(self, table: Dataset, place: str) -> pa.ChunkedArray:
        """Return answers as a struct of `text` and `answer_start`, each a list."""
        column = table.data.column("label").combine_chunks()
        if not pa.types.is_struct(column.type) or not ANSWERS.keys() <= {field.name for field in column.type}:
            raise DataError(
                f"{place} holds {type_name(table.features['label'])}, not answers; give {{text: [...], answer_start: "
                "[...]}, as JSONL and Parquet hold it and CSV cannot, or a file in the layout of SQuAD"
            )
        try:
            lists = [column.field(name).cast(type_) for name, type_ in ANSWERS.items()]
        except pa.ArrowException as error:
            reason = f"{place} holds answers that are no lists of texts and of numbers ({error})"
            raise DataError(f"{reason}; give {{text: [...], answer_start: [...]}}") from error
        return pa.chunked_array([pa.StructArray.from_arrays(lists, names=list(ANSWERS), mask=column.is_null())])

    def label_numbers(self, frame: pd.DataFrame, names: Sequence[str]) -> "pd.Series[float]":
        """Return a hash of the answers; NaN where one of them does not stand in the context where it says."""
        labels = zip(frame["label"], frame["text_pair"], strict=True)
        spelt = [_spelt(label) if label is not None and _stands(label, context) else None for label, context in labels]
        return pd.Series(hash_numbers(spelt), index=frame.index)

    def clean_labels(
        self, numbers_N: FloatArray, column: pa.ChunkedArray, names: Sequence[str]
    ) -> tuple[pa.Array, Any]:
        """Return the answers as they are."""
        return column.combine_chunks(), {"text": List(Value("string")), "answer_start": List(Value("int64"))}

    def encode(self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> Columns:
        """Return a feature per window, with the characters of the context that each token covers."""
        if not tokenizer.is_fast:
            raise ModelError(f"{type(tokenizer).__name__} does not tell where tokens stand; use a fast tokenizer")
        questions = QuestionCutter(tokenizer.backend_tokenizer, data.max_length, data.stride).cut(rows["text"])
        encoded = tokenizer(
            questions,
            rows["text_pair"],
            max_length=data.max_length,
            return_overflowing_tokens=True,
            truncation="only_second",
            stride=data.stride,
        )
        examples = encoded.pop("overflow_to_sample_mapping")
        places = [context_places(window) for window in encoded.encodings or ()]
        starts, ends = [start for start, _ in places], [end for _, end in places]
        answers = rows.get("label") or [None] * len(questions)
        windows = zip(starts, ends, examples, strict=True)
        labels = [_target(np.array(start), np.array(end), answers[row]) for start, end, row in windows]
        return {**encoded, "labels": labels, "example": examples, "char_starts": starts, "char_ends": ends}

    def truncation(self, data: DataSettings) -> dict[str, Any]:
        """Return that windows share tokens and only the context is cut."""
        return {"stride": data.stride, "strategy": "only_second"}

    def stack_labels(self, rows: Sequence[Any], length: int) -> Tensor:
        """Return the tokens of start and end (B, S)."""
        return torch.tensor(list(rows))

    def num_logits(self, num_rows: int, num_tokens: int, vocabulary: int) -> int:
        """Return two per token."""
        return 2 * num_tokens

    def num_labelled(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return the number of known starts and ends."""
        return (batch["labels"] != UNLABELLED).sum()

    def task_loss(self, logits: Tensor, batch: Batch, mask_BL: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the mean cross-entropy over the positions, of known starts and ends."""
        labels = batch["labels"].flatten()
        logits_BS_L = self.prediction_logits(logits, mask_BL).flatten(0, 1)
        return losses.cross_entropy(logits_BS_L, labels, labels != UNLABELLED, num_items=num_items)

    def prediction_mask(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return (B, S): the start and the end of every feature count."""
        return mask_BL.new_ones(len(mask_BL), 2)

    def prediction_logits(self, logits: Tensor, mask_BL: Tensor) -> Tensor:
        """Return (B, S, L): the logits of a start and an end are over positions."""
        logits_BSL = logits.transpose(1, 2)
        return torch.where(mask_BL[:, None].bool(), logits_BSL, MASKED)

    def filter_head(self, dim: int, filters: FilterSettings, model: PreTrainedModel) -> nn.Module:
        """Return a head that reads every position."""
        return TokenHead(dim, 2, dropout=filters.head_dropout)

    def reduce(self, logits: Array, batch: Mapping[str, Array]) -> Outputs:
        """Return the logits of the real tokens (L, S), an array per feature."""
        kept = np.empty(len(logits), dtype=object)
        for place, length in enumerate(batch["attention_mask"].sum(-1)):
            kept[place] = logits[place, :length]
        return {"logits": kept}

    def join(self, reduced: Outputs, features: Dataset, rows: Dataset) -> Outputs:
        """Return `answer`, its `start` and `end` in the context, and `score` of each row."""
        windows: list[list[Window]] = [[] for _ in range(len(rows))]
        places = features.select_columns(["example", "char_starts", "char_ends"]).with_format("numpy")
        for feature, logits in zip(places, reduced["logits"], strict=True):
            windows[feature["example"]].append(Window(logits, feature["char_starts"], feature["char_ends"]))
        contexts = rows["text_pair"]
        spans = [self._best_span(context, parts) for context, parts in zip(contexts, windows, strict=True)]
        answers = [context[span.start : span.end] for context, span in zip(contexts, spans, strict=True)]
        return {
            "answer": np.array(answers, dtype=object),
            "start": np.array([span.start for span in spans]),
            "end": np.array([span.end for span in spans]),
            "score": np.array([span.score for span in spans]),
        }

    def _best_span(self, context: str, windows: Sequence[Window]) -> Span:
        return best_span(
            context,
            windows,
            max_answer_tokens=self.settings.max_answer_tokens,
            null_threshold=self.settings.null_threshold,
        )

    def references(self, rows: Dataset) -> Array:
        """Return a tuple of the reference answers per row, empty where there is none."""
        return _tuples([tuple(label["text"]) for label in rows["label"]])

    def predictions(self, outputs: Outputs) -> Array:
        """Return a tuple with the answer per row, empty where there is none."""
        return _tuples([(answer,) if answer else () for answer in outputs["answer"]])

    def scores(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return F1 and exact match per row, each with the reference that fits best."""
        pairs = zip(outputs["answer"], references_N, strict=True)
        return np.array([_score(answer, references) for answer, references in pairs])

    def primary(self, scores_NK: FloatArray) -> float:
        """Return the mean F1."""
        return float(scores_NK[:, 0].mean())

    def metrics(self, outputs: Outputs, references_N: Array) -> dict[str, float]:
        """Return f1 and exact_match, between 0 and 1."""
        f1, exact_match = self.scores(outputs, references_N).mean(0).tolist()
        return {"f1": f1, "exact_match": exact_match}

    def row_quality(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return the F1 of each row."""
        return self.scores(outputs, references_N)[:, 0]

    def named(self, references_N: Array) -> Array:
        """Return the different answers of each row in one text."""
        texts = [" | ".join(dict.fromkeys(answers)) or NO_ANSWER for answers in references_N]
        return np.array(texts, dtype=object)

    def confidences(self, outputs: Outputs) -> FloatArray:
        """Return the probability of each answer."""
        return outputs["score"]

    def slices(self, references_N: Array) -> dict[str, tuple[str, npt.NDArray[np.bool_]]]:
        """Return the rows with an answer and those without, if there are both."""
        known_N = np.array([bool(answers) for answers in references_N])
        if known_N.all() or not known_N.any():
            return {}
        return {"answerable": ("with an answer", known_N), "unanswerable": ("without an answer", ~known_N)}

    def serving(self) -> dict[str, Any]:
        """Return that there are windows, and how an answer is chosen."""
        return {
            "windows": True,
            "max_answer_tokens": self.settings.max_answer_tokens,
            "null_threshold": self.settings.null_threshold,
        }


def _stands(label: Mapping[str, Any], context: object) -> bool:
    """Return whether every answer stands in the context at its place."""
    if not isinstance(context, str) or label["text"] is None or label["answer_start"] is None:
        return False
    texts, starts = label["text"], label["answer_start"]
    if len(texts) != len(starts):
        return False
    return all(
        text and _is_place(start) and context.startswith(text, int(start))
        for text, start in zip(texts, starts, strict=True)
    )


def _spelt(label: Mapping[str, Any]) -> str:
    return repr((list(label["text"]), [int(start) for start in label["answer_start"]]))


def _is_place(start: float | None) -> bool:
    """Return whether a number counts characters; pandas makes the others of a list with a gap fractions."""
    return start is not None and math.isfinite(start) and start >= 0


def _target(starts_L: Array, ends_L: Array, label: Mapping[str, Any] | None) -> list[int]:
    """Return the tokens of a window that the first reference answer starts and ends with."""
    if label is None:
        return [UNLABELLED, UNLABELLED]
    if not label["text"]:
        return [FIRST_TOKEN, FIRST_TOKEN]
    start = label["answer_start"][0]
    return list(token_span(starts_L, ends_L, start, start + len(label["text"][0])) or (FIRST_TOKEN, FIRST_TOKEN))


def _tuples(values: Sequence[tuple[str, ...]]) -> Array:
    """Return an array of tuples, which NumPy would take for another dimension."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _score(answer: str, references: Sequence[str]) -> tuple[float, float]:
    """Return F1 and exact match with the reference that fits best.

    Source: the evaluation script of SQuAD 2.0: a question without an answer is right or wrong as a whole.
    """
    found = _words(answer)
    wanted = [words for words in map(_words, references) if words] or [[]]
    return max(_f1(found, words) for words in wanted), float(found in wanted)


def _words(text: str) -> list[str]:
    """Return the words of an answer without case, punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))
