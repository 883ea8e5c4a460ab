"""From the logits of a text's windows to the answer that a user gets; one class per kind of task.

Letters in names: L positions, C outputs.
"""

import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ted.errors import BundleError, DataError
from ted.serving.spans import Window, best_span
from ted.serving.tags import NO_TAG, NO_WORD, answered_words, find_spans, mark_entities, word_bounds

Text = str | tuple[str, str]
Answer = dict[str, Any]
Logits = NDArray[np.floating]


class Answerer(ABC):
    """Answers for one kind of task."""

    facts: ClassVar[frozenset[str]] = frozenset()
    """What the block `task` of bundle.json has to hold."""

    def __init__(self, task: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        self.task = task
        """The block `task` of bundle.json."""
        self.tokenizer = tokenizer
        self.labels: list[str] = task.get("labels") or []

    @abstractmethod
    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the answer to a text from the tokens and the logits of its windows."""


class ClassAnswerer(Answerer):
    """`{"label", "probabilities"}`."""

    facts = frozenset({"labels"})

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the most probable class."""
        probabilities = [float(value) for value in softmax(logits[0])]
        return {
            "label": self.labels[int(np.argmax(logits[0]))],
            "probabilities": dict(zip(self.labels, probabilities, strict=True)),
        }


class LabelsAnswerer(Answerer):
    """`{"labels", "probabilities"}`; a text may have no label."""

    facts = frozenset({"labels", "threshold"})

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the labels that are more probable than the threshold, and all probabilities."""
        probabilities = {name: float(value) for name, value in zip(self.labels, sigmoid(logits[0]), strict=True)}
        chosen = [name for name, value in probabilities.items() if value > self.task["threshold"]]
        return {"labels": chosen, "probabilities": probabilities}


class NumberAnswerer(Answerer):
    """`{"value"}`."""

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the number."""
        return {"value": float(logits[0][0])}


class SpanAnswerer(Answerer):
    """`{"answer", "start", "end", "score"}`: `context[start:end]` is the answer, empty where there is none."""

    facts = frozenset({"max_answer_tokens", "null_threshold"})

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the best span of the second text."""
        context = text[1]
        parts = [Window.of(encoding, values) for encoding, values in zip(windows, logits, strict=True)]
        span = best_span(
            context, parts, max_answer_tokens=self.task["max_answer_tokens"], null_threshold=self.task["null_threshold"]
        )
        return {"answer": context[span.start : span.end], **span._asdict()}


class TagAnswerer(Answerer):
    """`{"spans"}`: a `{"label", "start", "end", "text", "score"}` per entity, or per word where tags mark no entities.

    `start` and `end` count characters of the text; the score of an entity is the mean over its words.
    """

    facts = frozenset({"labels"})

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the spans from left to right."""
        assert isinstance(text, str)
        words = word_bounds(text)
        tags, scores = [NO_TAG] * len(words), np.zeros(len(words))
        # An encoding may have been padded since.
        tokens = [window.offsets[: len(values)] for window, values in zip(windows, logits, strict=True)]
        for answered, values in zip(answered_words(tokens, words), logits, strict=True):
            for token in np.flatnonzero(answered != NO_WORD):
                word = int(answered[token])
                tags[word] = self.labels[int(np.argmax(values[token]))]
                scores[word] = softmax(values[token]).max()
        spans = []
        for label, first, end in find_spans(tags, entities=mark_entities(self.labels)):
            place = {"start": words[first][0], "end": words[end - 1][1]}
            score = float(scores[first:end].mean())
            spans.append({"label": label, **place, "text": text[place["start"] : place["end"]], "score": score})
        return {"spans": [span for span in spans if span["label"] != NO_TAG]}


class MaskAnswerer(Answerer):
    """`{"tokens"}`: a `{"token", "probability"}` for each mask of the text."""

    facts = frozenset({"mask_token"})

    def answer(self, text: Text, windows: Sequence[Encoding], logits: Sequence[Logits]) -> Answer:
        """Return the likeliest token for each mask.

        Raises:
            DataError: a mask stands behind the last token that is read.
        """
        assert isinstance(text, str)
        mask = self.task["mask_token"]
        masks = [place for place, token in enumerate(windows[0].tokens) if token == mask]
        if len(masks) < (wanted := text.count(mask)):
            raise DataError(
                f"{reprlib.repr(text)} holds {wanted} {mask}, but {len(masks)} of them stand within the "
                f"{len(windows[0].ids)} tokens that are read; shorten the text"
            )
        tokens = []
        for place in masks:
            likeliest = int(np.argmax(logits[0][place]))
            probability = float(softmax(logits[0][place])[likeliest])
            tokens.append({"token": self.tokenizer.id_to_token(likeliest), "probability": probability})
        return {"tokens": tokens}


ANSWERERS: dict[str, type[Answerer]] = {
    "classification": ClassAnswerer,
    "multi_label": LabelsAnswerer,
    "regression": NumberAnswerer,
    "question_answering": SpanAnswerer,
    "token_classification": TagAnswerer,
    "masked_lm": MaskAnswerer,
}


def new_answerer(task: Mapping[str, Any], tokenizer: Tokenizer) -> Answerer:
    """Return what answers for the task of a bundle.

    Raises:
        BundleError: the kind of task is unknown, or the bundle does not say what its answers need.
    """
    kind = task.get("kind")
    if kind not in ANSWERERS:
        remedy = "install the version of ted that made it"
        if kind == "causal_lm":
            remedy = "open it with ted.serving.generation.open_predictor"
        raise BundleError(f"the bundle is for the task {kind!r}; a Predictor answers {', '.join(ANSWERERS)}; {remedy}")
    if missing := sorted(ANSWERERS[kind].facts - task.keys()):
        raise BundleError(f"the block task of bundle.json lacks {', '.join(missing)}; export the bundle again")
    return ANSWERERS[kind](task, tokenizer)


def softmax(logits_C: Logits) -> NDArray[np.float64]:
    """Return probabilities along the last axis."""
    shifted = logits_C.astype(np.float64) - logits_C.max(axis=-1, keepdims=True)
    exponential = np.exp(shifted)
    return np.asarray(exponential / exponential.sum(axis=-1, keepdims=True))


def sigmoid(logits: Logits) -> NDArray[np.float64]:
    """Return the probability of each output by itself."""
    return np.asarray((1 + np.tanh(logits.astype(np.float64) / 2)) / 2)
