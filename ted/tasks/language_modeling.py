"""Language models: the next token of a text, or masked tokens of it. There are no labels but the text itself.

Letters in names: B features of a batch, N rows of a split, L positions, V tokens of the vocabulary, K scores.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ted import losses
from ted.config import DataSettings, FilterSettings
from ted.errors import ModelError
from ted.heads import OutputEmbedding, VocabularyHead
from ted.tasks.base import Array, Batch, Columns, FloatArray, Outputs, Task

NO_LABEL = -100
# Of the tokens to be guessed, so many become the mask; half of the others become any token, half stay (Devlin et al.).
MASKED_SHARE, REPLACED_SHARE = 0.8, 0.1


class LanguageModel(Task):
    """A distribution over the vocabulary at each position; perplexity."""

    primary_metric = "perplexity"
    higher_is_better = False
    quality_name = "mean log-likelihood of a token"
    prediction_loss = "kl"
    has_labels = False
    forward_rows = 4
    latency_batch_sizes = (1, 4)

    @property
    def output_labels(self) -> None:
        """Outputs are tokens."""
        return

    def read_labels(self, table: Dataset, place: str) -> pa.ChunkedArray:
        """Not called: rows have no label."""
        raise NotImplementedError

    def label_numbers(self, frame: pd.DataFrame, names: Sequence[str]) -> "pd.Series[float]":
        """Not called: rows have no label."""
        raise NotImplementedError

    def clean_labels(
        self, numbers_N: FloatArray, column: pa.ChunkedArray, names: Sequence[str]
    ) -> tuple[pa.Array, Any]:
        """Not called: rows have no label."""
        raise NotImplementedError

    def encode_served(self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> Columns:
        """Return the tokens of each text, cut to the length, with the tokenizer's own special tokens."""
        encoded = dict(tokenizer(rows["text"], truncation=True, max_length=data.max_length))
        return {**encoded, "example": list(range(len(encoded["input_ids"])))}

    def num_logits(self, num_rows: int, num_tokens: int, vocabulary: int) -> int:
        """Return the outputs of all tokens."""
        return num_tokens * vocabulary

    @abstractmethod
    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the token that each position has to predict and a mask of the positions that count, both (B, L)."""

    def num_labelled(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return the number of tokens to be predicted."""
        return self.targets(batch)[1].sum()

    def task_loss(self, logits: Tensor, batch: Batch, mask_BL: Tensor, *, num_items: Tensor) -> Tensor:
        """Return the cross-entropy over the tokens to be predicted."""
        labels_BL, counts_BL = self.targets(batch)
        return losses.cross_entropy(logits.flatten(0, 1), labels_BL.flatten(), counts_BL.flatten(), num_items=num_items)

    def filter_head(self, dim: int, filters: FilterSettings, model: PreTrainedModel) -> nn.Module:
        """Return the model's own output embedding as a head."""
        return VocabularyHead(dim, _output_embedding(model))

    def filter_heads(self, count: int, dim: int, filters: FilterSettings, model: PreTrainedModel) -> nn.ModuleList:
        """Return heads that share the model's own output embedding."""
        shared = _output_embedding(model)
        return nn.ModuleList(VocabularyHead(dim, shared) for _ in range(count))

    def reduce(self, logits: Array, batch: Mapping[str, Array]) -> Outputs:
        """Return per feature `log_loss` (nats, summed), `tokens` (how many were predicted) and what the kind adds."""
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        labels_BL, counts_BL = self.targets(tensors)
        rows = zip(torch.from_numpy(logits), labels_BL, counts_BL, tensors["attention_mask"], strict=True)
        reduced = [self._reduce_row(*row) for row in rows]
        return {name: np.array([row[name] for row in reduced], dtype=np.float64) for name in reduced[0]}

    def _reduce_row(self, logits_LV: Tensor, labels_L: Tensor, counts_L: Tensor, real_L: Tensor) -> dict[str, float]:
        """Return the figures of one feature; a feature at a time, so that no copy of all logits is made."""
        counted = counts_L.bool()
        losses_L = functional.cross_entropy(logits_LV[counted], labels_L[counted], reduction="none")
        return {"log_loss": losses_L.double().sum().item(), "tokens": counted.sum().item()}

    def join(self, reduced: Outputs, features: Dataset, rows: Dataset) -> Outputs:
        """Return the sums over each row's features."""
        example = np.asarray(features["example"][:])
        return {name: np.bincount(example, values, minlength=len(rows)) for name, values in reduced.items()}

    def references(self, rows: Dataset) -> Array:
        """Return the bytes of each text in UTF-8."""
        return np.array([len(text.encode()) for text in rows["text"]])

    def scores(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return log loss and number of tokens."""
        return np.stack([outputs["log_loss"], outputs["tokens"]], axis=1)

    def primary(self, scores_NK: FloatArray) -> float:
        """Return the perplexity: over all tokens of all rows, not the mean of the rows' perplexities."""
        log_loss, tokens = scores_NK.sum(0)
        return float(np.exp(log_loss / tokens))

    def predictions(self, outputs: Outputs) -> None:
        """Return nothing: one model's text does not judge another's."""
        return

    def row_quality(self, outputs: Outputs, references_N: Array) -> FloatArray:
        """Return the mean log-likelihood of a token."""
        quality_N: FloatArray = -outputs["log_loss"] / np.maximum(outputs["tokens"], 1)
        return quality_N


class CausalLM(LanguageModel):
    """The next token; perplexity, bits per byte, and the share of texts whose last word is predicted.

    Every token of a text is predicted once, the first one from a token that is put before it. Features carry in
    `labels` how many of their last tokens count: what a window repeats of the one before is context only.
    """

    kind = "causal_lm"
    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"

    def encode(self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> Columns:
        """Return windows of each text; the last one reaches back as far as the length allows.

        `last_word` is the number of tokens of the text's last word where the window is its last, else 0.
        """
        columns: Columns = {name: [] for name in ("input_ids", "attention_mask", "labels", "example", "last_word")}
        encoded = tokenizer(rows["text"], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens = zip(rows["text"], encoded["input_ids"], encoded["offset_mapping"], strict=True)
        for place, (text, ids, offsets) in enumerate(tokens):
            word = len(text.rstrip()) - len(text.split()[-1])
            last_word = sum(end > word for _, end in offsets)
            joined = [start_token(tokenizer), *ids]
            for start, end, counted in _windows(len(joined), data.max_length):
                columns["input_ids"].append(joined[start:end])
                columns["attention_mask"].append([1] * (end - start))
                columns["labels"].append(counted)
                columns["example"].append(place)
                columns["last_word"].append(last_word if end == len(joined) else 0)
        return columns

    def encode_training(
        self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings
    ) -> Columns:
        """Return blocks of the joined texts, each behind its start token and before an end token.

        Where the end token is also the start token, one stands between two texts.

        Blocks overlap by one token, so that each token but the very first is predicted once; the last one is shorter.
        `example` is the row of a block's first token. Attention crosses the end tokens inside a block.
        """
        before, behind = start_token(tokenizer), _end_token(tokenizer)
        stream: list[int] = []
        row_of_token: list[int] = []
        encoded = tokenizer(rows["text"], add_special_tokens=False, verbose=False)["input_ids"]
        for place, ids in enumerate(encoded):
            joined = [*([] if stream and before == behind else [before]), *ids, behind]
            stream += joined
            row_of_token += [place] * len(joined)
        starts = range(0, len(stream) - 1, data.max_length - 1)
        blocks = [stream[start : start + data.max_length] for start in starts]
        return {
            "input_ids": blocks,
            "attention_mask": [[1] * len(block) for block in blocks],
            "labels": [len(block) - 1 for block in blocks],
            "example": [row_of_token[start] for start in starts],
        }

    def stack_labels(self, rows: Sequence[Any], length: int) -> Tensor:
        """Return how many of each feature's last tokens count (B)."""
        return torch.tensor(list(rows))

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the next token of each position and a mask of the positions whose next token counts, both (B, L)."""
        input_ids_BL = batch["input_ids"]
        lengths_B1 = batch["attention_mask"].sum(1, keepdim=True)
        next_L = torch.arange(1, input_ids_BL.shape[1] + 1, device=input_ids_BL.device)
        counts_BL = (next_L < lengths_B1) & (next_L >= lengths_B1 - batch["labels"][:, None])
        return input_ids_BL.roll(-1, dims=1), counts_BL

    def prediction_mask(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return (B, L): every real position, the last one of a block too."""
        return mask_BL

    def _reduce_row(self, logits_LV: Tensor, labels_L: Tensor, counts_L: Tensor, real_L: Tensor) -> dict[str, float]:
        """Add `run`: how many tokens at the end of the feature are all the likeliest ones."""
        length = int(real_L.sum()) - 1
        right_L = logits_LV[:length].argmax(-1) == labels_L[:length]
        run = right_L.flip(0).cumprod(0).sum().item()
        return {**super()._reduce_row(logits_LV, labels_L, counts_L, real_L), "run": run}

    def join(self, reduced: Outputs, features: Dataset, rows: Dataset) -> Outputs:
        """Return the sums over each row's windows and whether its last word was predicted."""
        last_word = np.asarray(features["last_word"][:])
        right = (last_word > 0) & (reduced["run"] >= last_word)
        sums = {"log_loss": reduced["log_loss"], "tokens": reduced["tokens"], "last_word": right.astype(np.float64)}
        return super().join(sums, features, rows)

    def metrics(self, outputs: Outputs, references_N: Array) -> dict[str, float]:
        """Return perplexity, bits_per_byte and last_word_accuracy.

        A text's last word is what follows its last inner white space; it is predicted if each of its tokens, and of
        what stands behind it, is the likeliest one after the true text before.
        """
        bits = outputs["log_loss"].sum() / math.log(2)
        return {
            "perplexity": self.primary(self.scores(outputs, references_N)),
            "bits_per_byte": float(bits / references_N.sum()),
            "last_word_accuracy": float(outputs["last_word"].mean()),
        }

    def serving(self) -> dict[str, Any]:
        """Return how many tokens are added to a text."""
        return {"max_new_tokens": self.settings.max_new_tokens}


class MaskedLM(LanguageModel):
    """Masked tokens; perplexity and accuracy on them.

    Which tokens of a feature are masked, and with what, hangs on its tokens and the settings alone: every epoch, every
    seed and every model sees the same masks.
    """

    kind = "masked_lm"
    auto_class = "AutoModelForMaskedLM"
    pipeline_tag = "fill-mask"
    special_tokens = ("mask_token",)

    def encode(self, rows: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, data: DataSettings) -> Columns:
        """Return windows that cover each text, with masks in place of some tokens; `labels` are the tokens there."""
        if tokenizer.mask_token_id is None:
            raise ModelError(
                "the tokenizer has no mask token, which a masked language model needs; set task.kind to causal_lm or "
                "take another model"
            )
        options = {"return_overflowing_tokens": True, "return_special_tokens_mask": True}
        columns = dict(tokenizer(rows["text"], truncation=True, max_length=data.max_length, **options))
        special = columns.pop("special_tokens_mask")
        masked = [self._mask(*feature, tokenizer) for feature in zip(columns["input_ids"], special, strict=True)]
        columns["input_ids"], columns["labels"] = map(list, zip(*masked, strict=True))
        return {**columns, "example": columns.pop("overflow_to_sample_mapping")}

    def _mask(
        self, ids: list[int], special: list[int], tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[int], list[int]]:
        generator = np.random.default_rng(ids)
        inputs_L, labels_L = np.array(ids), np.full(len(ids), NO_LABEL)
        plain = np.flatnonzero(np.asarray(special) == 0)
        count = min(len(plain), max(1, round(self.settings.mask_probability * len(plain))))
        chosen = generator.choice(plain, count, replace=False)
        labels_L[chosen] = inputs_L[chosen]
        fate = generator.random(count)
        inputs_L[chosen[fate < MASKED_SHARE]] = tokenizer.mask_token_id
        replaced = chosen[fate >= 1 - REPLACED_SHARE]
        inputs_L[replaced] = generator.integers(len(tokenizer), size=len(replaced))
        return inputs_L.tolist(), labels_L.tolist()

    def stack_labels(self, rows: Sequence[Any], length: int) -> Tensor:
        """Return the masked tokens (B, L)."""
        return torch.tensor([[*row, *[NO_LABEL] * (length - len(row))] for row in rows])

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the masked tokens and where they are, both (B, L)."""
        return batch["labels"], batch["labels"] != NO_LABEL

    def prediction_mask(self, batch: Batch, mask_BL: Tensor) -> Tensor:
        """Return (B, L): the masked positions."""
        return self.targets(batch)[1]

    def _reduce_row(self, logits_LV: Tensor, labels_L: Tensor, counts_L: Tensor, real_L: Tensor) -> dict[str, float]:
        """Add `right`: how many masked tokens are the likeliest ones."""
        right = (logits_LV.argmax(-1) == labels_L).sum().item()
        return {**super()._reduce_row(logits_LV, labels_L, counts_L, real_L), "right": right}

    def metrics(self, outputs: Outputs, references_N: Array) -> dict[str, float]:
        """Return perplexity and masked_accuracy."""
        return {
            "perplexity": self.primary(self.scores(outputs, references_N)),
            "masked_accuracy": float(outputs["right"].sum() / outputs["tokens"].sum()),
        }


def _output_embedding(model: PreTrainedModel) -> OutputEmbedding:
    return OutputEmbedding(model.get_output_embeddings())  # type: ignore[no-untyped-call] # by transformers


def _windows(count: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Yield start, end and number of new tokens of windows over so many tokens, the first of which is given."""
    end = min(count, length)
    yield 0, end, end - 1
    while end < count:
        before, end = end, min(end + length - 1, count)
        yield end - length, end, end - before


def start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return what stands before a text: the start token where the tokenizer itself puts it there, else the end token.

    Raises:
        ModelError: the tokenizer has no end token.
    """
    first = next(iter(tokenizer("a")["input_ids"]))
    return int(first) if first == tokenizer.bos_token_id else _end_token(tokenizer)


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no end token, which parts the texts of a causal language model; set its eos_token or "
            "take another model"
        )
    token: int = tokenizer.eos_token_id
    return token
