"""The span of a context that answers a question: what training, evaluation and serving share of it.

Letters in names: L tokens of a window, K tokens of its context, A tokens of the longest answer.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

OUTSIDE = -1
"""Place of a token that is not of the context."""

Places = NDArray[np.integer]


class Window(NamedTuple):
    """A window of a context: logits (L, 2) of start and end, and the characters of the context that each token covers.

    Tokens outside the context have the place `OUTSIDE`.
    """

    logits_L2: NDArray[np.floating]
    starts_L: Places
    ends_L: Places

    @classmethod
    def of(cls, encoding: Encoding, logits_L2: NDArray[np.floating]) -> "Window":
        """Return the window of an encoding, which may be padded, and the logits of its real tokens."""
        starts, ends = context_places(encoding)
        return cls(logits_L2, np.array(starts[: len(logits_L2)]), np.array(ends[: len(logits_L2)]))


class Span(NamedTuple):
    """An answer: `context[start:end]`, empty where there is none, and its probability."""

    start: int
    end: int
    score: float


class QuestionCutter:
    """Cuts questions to a length at which every window of the context still has more new tokens than shared ones.

    Args:
        tokenizer: of the model; it is copied.
        max_length: tokens of a window, special ones included.
        stride: tokens that neighbouring windows share.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, stride: int) -> None:
        self.limit = (max_length - tokenizer.num_special_tokens_to_add(is_pair=True) - stride) // 2
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def cut(self, questions: Sequence[str]) -> list[str]:
        """Return the questions, those that are too long without their end."""
        encodings = self.tokenizer.encode_batch(list(questions), add_special_tokens=False)
        return [
            text[: encoding.offsets[self.limit - 1][1]] if len(encoding.ids) > self.limit else text
            for text, encoding in zip(questions, encodings, strict=True)
        ]


def context_places(encoding: Encoding) -> tuple[list[int], list[int]]:
    """Return the first character of the context that each token covers and the one behind its last."""
    tokens = list(zip(encoding.offsets, encoding.sequence_ids, strict=True))
    starts = [offsets[0] if sequence == 1 else OUTSIDE for offsets, sequence in tokens]
    ends = [offsets[1] if sequence == 1 else OUTSIDE for offsets, sequence in tokens]
    return starts, ends


def token_span(starts_L: Places, ends_L: Places, start: int, end: int) -> tuple[int, int] | None:
    """Return the first and the last token that cover the characters `start` to `end` of the context.

    None where the window does not hold all of them.
    """
    inside = np.flatnonzero(starts_L != OUTSIDE)
    if not len(inside) or starts_L[inside[0]] > start or ends_L[inside[-1]] < end:
        return None
    first = int(np.searchsorted(ends_L[inside], start, side="right"))
    last = int(np.searchsorted(starts_L[inside], end, side="left")) - 1
    return (int(inside[first]), int(inside[last])) if first <= last else None


def best_span(context: str, windows: Sequence[Window], *, max_answer_tokens: int, null_threshold: float | None) -> Span:
    """Return the answer that the windows of a context give.

    The score of a span is the sum of the logits of its start and its end. Having no answer scores the sum of both
    logits of the first token, in the window where that is least. The answer is empty where that exceeds the best span
    by more than `null_threshold`. The probability of an answer is its share in a softmax over all spans of all windows
    and having no answer.

    Source: `compute_predictions_logits` of the code published with BERT for SQuAD 2.0.

    Args:
        context: the text that the windows are of.
        windows: all of them.
        max_answer_tokens: tokens of the longest span.
        null_threshold: None never gives an empty answer where the context has a token.
    """
    null = min(float(window.logits_L2[0].astype(np.float64).sum()) for window in windows)
    spans = [_window_span(window, max_answer_tokens) for window in windows]
    best, start, end = max((span[:3] for span in spans), key=lambda span: span[0])
    total = np.logaddexp.reduce([null, *(span[3] for span in spans)])
    if best == -math.inf or (null_threshold is not None and null - best > null_threshold):
        return Span(0, 0, math.exp(null - total))
    return Span(*_without_space(context, start, end), math.exp(best - total))


def _window_span(window: Window, max_answer_tokens: int) -> tuple[float, int, int, float]:
    """Return score and characters of the best span of a window, and the log of the sum of exponentials of all."""
    inside = np.flatnonzero(window.starts_L != OUTSIDE)
    if not len(inside):
        return -math.inf, 0, 0, -math.inf
    logits_K2 = window.logits_L2[inside].astype(np.float64)
    longest = min(max_answer_tokens, len(inside))
    ends = np.pad(logits_K2[:, 1], (0, longest - 1), constant_values=-np.inf)
    scores_KA = logits_K2[:, :1] + sliding_window_view(ends, longest)
    first, more = divmod(int(scores_KA.argmax()), longest)
    start, end = window.starts_L[inside[first]], window.ends_L[inside[first + more]]
    return float(scores_KA[first, more]), int(start), int(end), float(np.logaddexp.reduce(scores_KA, axis=None))


def _without_space(context: str, start: int, end: int) -> tuple[int, int]:
    """Return a span without white space at its ends, which the tokens of some models cover too."""
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), max(start + len(text.rstrip()), start)
