"""From the logits of a text's windows to the answer that a user gets; one class per kind of task.

Letters in names: L positions, C outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ted.errors import BundleError
from ted.serving.spans import Window, best_span

Text = str | tuple[str, str]
Answer = dict[str, Any]
Logits = NDArray[np.floating]


class Answerer(Protocol):
    """Answers for one kind of task."""

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the answer to a text from the tokens and the logits of its windows."""


class ClassAnswerer:
    """`{"label", "probabilities"}`."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.labels: list[str] = task["labels"]

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the most probable class."""
        probabilities = [float(value) for value in softmax(logits[0])]
        return {
            "label": self.labels[int(np.argmax(logits[0]))],
            "probabilities": dict(zip(self.labels, probabilities, strict=True)),
        }


class LabelsAnswerer:
    """`{"labels", "probabilities"}`; a text may have no label."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.labels: list[str] = task["labels"]
        self.threshold: float = task["threshold"]

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the labels that are more probable than the threshold, and all probabilities."""
        probabilities = {name: float(value) for name, value in zip(self.labels, sigmoid(logits[0]), strict=True)}
        chosen = [name for name, value in probabilities.items() if value > self.threshold]
        return {"labels": chosen, "probabilities": probabilities}


class NumberAnswerer:
    """`{"value"}`."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        del task

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the number."""
        return {"value": float(logits[0][0])}


class SpanAnswerer:
    """`{"answer", "start", "end", "score"}`: `context[start:end]` is the answer, empty where there is none."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.max_answer_tokens: int = task["max_answer_tokens"]
        self.null_threshold: float | None = task["null_threshold"]

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the best span of the second text."""
        context = text[1]
        parts = [Window.of(encoding, values) for encoding, values in zip(windows, logits, strict=True)]
        span = best_span(context, parts, max_answer_tokens=self.max_answer_tokens, null_threshold=self.null_threshold)
        return {"answer": context[span.start : span.end], **span._asdict()}


ANSWERERS: dict[str, Callable[[Mapping[str, Any]], Answerer]] = {
    "classification": ClassAnswerer,
    "multi_label": LabelsAnswerer,
    "regression": NumberAnswerer,
    "question_answering": SpanAnswerer,
}


def new_answerer(task: Mapping[str, Any]) -> Answerer:
    """Return what answers for the task of a bundle.

    Raises:
        BundleError: the kind of task is unknown.
    """
    kind = task.get("kind")
    if kind not in ANSWERERS:
        raise BundleError(f"the bundle is for the task {kind!r}; this version answers {', '.join(ANSWERERS)}")
    return ANSWERERS[kind](task)


def softmax(logits_C: Logits) -> NDArray[np.float64]:
    """Return probabilities along the last axis."""
    shifted = logits_C.astype(np.float64) - logits_C.max(axis=-1, keepdims=True)
    exponential = np.exp(shifted)
    return np.asarray(exponential / exponential.sum(axis=-1, keepdims=True))


def sigmoid(logits: Logits) -> NDArray[np.float64]:
    """Return the probability of each output by itself."""
    return np.asarray((1 + np.tanh(logits.astype(np.float64) / 2)) / 2)
