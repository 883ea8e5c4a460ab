"""Proof that an exported file computes what the trained model computes.

Dimensions: B rows, L tokens.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ted.config import ExportSettings
from ted.errors import DataError, ParityError
from ted.serving.answers import Text
from ted.serving.predictor import create_session

BATCH_SIZES: Final = (1, 3, 5)
LENGTHS: Final = (8, 33, 96)
# Special tokens of a pair and a token of each text fit into a row.
MIN_ROW_LENGTH: Final = 6

Row = dict[str, Any]
Outputs = NDArray[np.floating]


def padded_batch(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], batch_size: int, length: int
) -> dict[str, Tensor]:
    """Return a real batch of the given shape: the first row fills the length, each further one is shorter and padded.

    Args:
        tokenizer: makes the inputs; its padding goes to the right.
        texts: material; texts are joined until they fill a row.
        batch_size: B, number of rows.
        length: L, tokens per row, special tokens and padding included.

    Returns:
        The tokenizer's inputs by name, each of shape (B, L).

    Raises:
        DataError: all texts together have hardly a token.
    """
    lengths = [max(length * (batch_size - row) // batch_size, MIN_ROW_LENGTH) for row in range(batch_size)]
    rows = [_filled_row(tokenizer, [*texts[row:], *texts[:row]], tokens) for row, tokens in enumerate(lengths)]
    padded = tokenizer.pad(rows, padding="max_length", max_length=length, padding_side="right", return_tensors="pt")
    return dict(padded)


def check_parity(
    model: PreTrainedModel, path: Path, batches: Sequence[Mapping[str, Tensor]], settings: ExportSettings
) -> list[Row]:
    """Compare the trained model with its exported file on every batch.

    Args:
        model: the trained model; put into evaluation mode.
        path: the exported file; its output names are fields of the model's output.
        batches: inputs by name, each of shape (B, L).
        settings: gives the tolerances.

    Returns:
        A row per batch: `batch`, `length`, `max_abs_difference` over all outputs, `passed`.

    Raises:
        ParityError: outputs differ beyond the tolerances; every failing shape stands in the message.
    """
    model.train(mode=False)
    session = create_session(str(path), torch.get_num_threads())
    rows = [_compare(model, session, batch, settings) for batch in batches]
    refuse_differences(rows, settings)
    return rows


def within(actual: Outputs, expected: Outputs, settings: ExportSettings) -> bool:
    """Return whether outputs are equal within the tolerances, relative to the largest output beside each.

    Logits of a vocabulary are summed up from states that may be a hundred times as large: the rounding of a small logit
    is that of the large ones, and only their differences count in a softmax.

    Args:
        actual: of the exported model, (..., C).
        expected: of the trained model, (..., C).
        settings: gives the tolerances.
    """
    scale = np.abs(expected).max(-1, keepdims=True, initial=0.0)
    return bool(np.all(np.abs(actual - expected) <= settings.atol + settings.rtol * scale))


def refuse_differences(rows: Sequence[Row], settings: ExportSettings) -> None:
    """Refuse an export of which a row of a comparison did not pass.

    Raises:
        ParityError: every failing shape stands in the message.
    """
    if failed := [row for row in rows if not row["passed"]]:
        shapes = "; ".join(f"{_shape(row)}: {_difference(row)}" for row in failed)
        raise ParityError(
            f"the exported model differs from the trained one at {len(failed)} of {len(rows)} shapes (batch x length:"
            f" largest difference), beyond atol {settings.atol:g} and rtol {settings.rtol:g}: {shapes};"
            " raise export.atol or export.rtol only if a difference of that size cannot change an answer"
        )


def parity_batches(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], max_length: int
) -> list[dict[str, Tensor]]:
    """Return a real batch of every shape at which parity is proved, up to `max_length` tokens."""
    lengths = [*(length for length in LENGTHS if length < max_length), max_length]
    return [padded_batch(tokenizer, texts, size, length) for size in BATCH_SIZES for length in lengths]


def _filled_row(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text], length: int) -> dict[str, list[int]]:
    """Return the inputs of as many joined texts as fill `length` tokens."""
    count = 1
    while count <= 4 * length:
        chosen = list(islice(cycle(texts), count))
        text = " ".join(item if isinstance(item, str) else item[0] for item in chosen)
        pair = None if isinstance(chosen[0], str) else " ".join(item[1] for item in chosen)
        row = tokenizer(text, pair, truncation=True, max_length=length)
        if len(row["input_ids"]) == length:
            return dict(row)
        count *= 2
    raise DataError(
        f"{len(texts)} validation texts do not fill {length} tokens; give texts that the tokenizer can read"
    )


def _compare(
    model: PreTrainedModel,
    session: onnxruntime.InferenceSession,
    batch: Mapping[str, Tensor],
    settings: ExportSettings,
) -> Row:
    names = [output.name for output in session.get_outputs()]
    batch_size, length = next(iter(batch.values())).shape
    row: Row = {"batch": batch_size, "length": length, "max_abs_difference": math.inf, "passed": False}
    with torch.inference_mode():
        outputs = model(**batch)
    try:
        actual = session.run(names, {name: tensor.numpy() for name, tensor in batch.items()})
    except (Fail, InvalidArgument, RuntimeException) as error:
        return {**row, "problem": " ".join(str(error).split())}
    pairs = [(outputs[name].numpy(), array) for name, array in zip(names, actual, strict=True)]
    if wrong := [f"{right.shape} for {left.shape}" for left, right in pairs if left.shape != right.shape]:
        return {**row, "problem": f"output of shape {', '.join(wrong)}"}
    pairs = [(_real(left, batch), _real(right, batch)) for left, right in pairs]
    row["max_abs_difference"] = max(float(np.abs(left - right).max()) for left, right in pairs)
    row["passed"] = all(np.allclose(right, left, settings.rtol, settings.atol) for left, right in pairs)
    return row


def _real(output: NDArray[np.floating], batch: Mapping[str, Tensor]) -> NDArray[np.floating]:
    """Return the values of real tokens, or all of an output that has no axis of tokens."""
    mask_BL = batch["attention_mask"].numpy().astype(bool)
    return output[mask_BL] if output.shape[:2] == mask_BL.shape else output


def _shape(row: Row) -> str:
    return f"{row['batch']} x {row['length']}" + (f" after {row['past']}" if row.get("past") else "")


def _difference(row: Row) -> str:
    return str(row["problem"]) if "problem" in row else f"{row['max_abs_difference']:.3g}"
