"""Continuations and log-probabilities of texts from the bundle of a causal language model.

Texts are answered one at a time: a batch would have to be padded, and the texts in it would end at different tokens.

Dimensions: B rows, L tokens of a run, H heads of keys and values, P tokens in the cache, D size of a head, V tokens
of the vocabulary.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ted.errors import DataError
from ted.serving.answers import Answer, Logits, Text
from ted.serving.bundle import Bundle
from ted.serving.predictor import Predictor, ServedModel

CAUSAL_KIND: Final = "causal_lm"
# Beginning of the names of the inputs that hold the cache; outputs follow in the same order after the logits.
PAST: Final = "past_key_values"
# What a decoder writes for bytes that do not make up a character, or not yet.
INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"

Outputs = Mapping[str, NDArray[np.floating]]


def open_predictor(bundle: Bundle, threads: int = 1) -> "Predictor | Generator":
    """Return what answers texts with a bundle.

    Raises:
        BundleError: the kind of task is unknown, or the tokenizer is not the one of the bundle.
    """
    if bundle.manifest["task"].get("kind") == CAUSAL_KIND:
        return Generator(bundle, threads)
    return Predictor(bundle, threads)


class Generator(ServedModel):
    """Continues texts greedily, and says how probable they are.

    The most probable token is taken at each step until the model ends the text, `max_new_tokens` are made, or text and
    continuation fill the `max_length` of the bundle. Keys and values of earlier tokens are kept and not computed again.
    """

    # Logits of the whole vocabulary at each position fill the memory with few rows.
    rows_per_run = 1

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        super().__init__(bundle, threads)
        task = bundle.manifest["task"]
        self.max_length: int = bundle.manifest["max_length"]
        self.max_new_tokens: int = task["max_new_tokens"]
        self.start_token: int = task["start_token"]
        self.end_tokens: frozenset[int] = frozenset(task["end_tokens"])
        self._past = [name for name in bundle.manifest["inputs"] if name.startswith(PAST)]

    def predict(self, texts: Sequence[str]) -> list[Answer]:
        """Return an answer per text.

        Returns:
            `text`, `continuation`, `log_probability` (natural logarithm) and `tokens`, the part of the text and the
            log-probability of each of its tokens.

        Raises:
            DataError: an item is not a text, has no tokens, or so many that none can follow.
        """
        return [self._answer(text) for text in texts]

    def stream(self, text: str) -> Iterator[str]:
        """Return the continuation of a text in pieces, each as soon as its characters are complete.

        Raises:
            DataError: it is not a text, has no tokens, or so many that none can follow.
        """
        ids, _ = self.prompt(text)
        return decode_pieces(self.tokenizer, ids, self._spoken(token for token, _ in self.steps(ids)))

    def steps(self, ids: Sequence[int]) -> Iterator[tuple[int, Logits]]:
        """Yield the most probable next token, again and again; the last one may be an end token.

        Args:
            ids: tokens of a text.

        Yields:
            The token, and the logits (L, V) of the run that it came from: first those of the whole text, then (1, V).
        """
        tokens, cache = list(ids), dict[str, NDArray[np.floating]]()
        for length in range(len(ids), len(ids) + self.room(ids)):
            outputs = self.run({**_feeds(tokens, length), **cache})
            logits_LV = outputs["logits"][0]
            token = int(logits_LV[-1].argmax())
            yield token, logits_LV
            if token in self.end_tokens:
                return
            tokens, cache = [token], self._cache(outputs)

    def room(self, ids: Sequence[int]) -> int:
        """Return how many tokens may follow a text."""
        return min(self.max_new_tokens, self.max_length - len(ids))

    def prompt(self, text: str) -> tuple[list[int], list[str]]:
        """Return the tokens of a text that is to be continued, and what each stands for.

        As in training, a start token is put before the text, for which nothing stands. The text is never cut.

        Raises:
            DataError: it is not a text, has no tokens, or so many that none can follow.
        """
        encoding = self.tokenizer.encode(self._checked(text), add_special_tokens=False)
        ids = [self.start_token, *encoding.ids]
        if not encoding.ids:
            raise DataError("an empty text cannot be continued; give a text of at least one token")
        characters, tokens = self.bundle.manifest["max_characters"], self.max_length - 2
        if len(text) > characters or encoding.overflowing or len(encoding.ids) > tokens:
            raise DataError(
                f"bundle {self.bundle.manifest['name']} continues texts of at most {characters} characters and {tokens}"
                f" tokens; this one has {len(text)} characters and at least {len(encoding.ids)} tokens: shorten it"
            )
        return ids, [text[start:end] for start, end in encoding.offsets]

    def runs(self, texts: Sequence[Text]) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the inputs that read whole texts, and those that read the last token of a text after the others."""
        ((name, whole),) = super().runs(texts).items()
        if len(texts) > 1 or whole["input_ids"].shape[1] == 1:
            return {name: whole}
        before = {part: values[:, :-1] for part, values in whole.items()}
        step = {**whole, "input_ids": whole["input_ids"][:, -1:], **self._cache(self.run(before))}
        return {name: whole, " next token": step}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.floating]]:
        """Return the raw outputs of one run by name; without a cache among the feeds, the cache is empty."""
        if not feeds.keys() >= set(self._past):
            feeds = {**empty_cache(self.session, len(feeds["input_ids"])), **feeds}
        return super().run(feeds)

    def _answer(self, text: str) -> Answer:
        ids, parts = self.prompt(text)
        steps = list(self.steps(ids))
        scores = log_probabilities(steps[0][1], ids)
        new = self._spoken(token for token, _ in steps)
        return {
            "text": text,
            "continuation": "".join(decode_pieces(self.tokenizer, ids, new)),
            "log_probability": float(scores.sum()),
            "tokens": [
                {"token": part, "log_probability": float(score)} for part, score in zip(parts, scores, strict=True)
            ],
        }

    def _spoken(self, tokens: Iterable[int]) -> Iterator[int]:
        return (token for token in tokens if token not in self.end_tokens)

    def _cache(self, outputs: Outputs) -> dict[str, NDArray[np.floating]]:
        """Return the inputs that hold the keys and values of a run."""
        present = [array for name, array in outputs.items() if name != "logits"]
        return dict(zip(self._past, present, strict=True))


def empty_cache(session: onnxruntime.InferenceSession, rows: int) -> dict[str, NDArray[np.float32]]:
    """Return the inputs (B, H, 0, D) that hold keys and values where nothing has been read yet."""
    inputs = [item for item in session.get_inputs() if item.name.startswith(PAST)]
    return {item.name: np.zeros((rows, item.shape[1], 0, item.shape[3]), np.float32) for item in inputs}


def log_probabilities(logits_LV: Logits, ids: Sequence[int]) -> NDArray[np.float64]:
    """Return the log-probability of each token but the first, (L - 1), given those before it."""
    before_LV = logits_LV[:-1]
    largest_L = before_LV.max(-1)
    totals_L = np.exp(before_LV - largest_L[:, None]).sum(-1, dtype=np.float64)
    chosen_L = before_LV[np.arange(len(before_LV)), list(ids[1:])]
    return np.asarray(chosen_L - largest_L - np.log(totals_L), np.float64)


def decode_pieces(tokenizer: Tokenizer, ids: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens that follow others; a piece ends only where a character does.

    Decoding starts a piece early, because how a token reads can hang on the one before it: most have a space in front
    except at the start of a text.

    Args:
        tokenizer: of the model.
        ids: tokens of the text before.
        tokens: tokens that follow, as they come.
    """
    window, known = list(ids), len(ids)
    shown = tokenizer.decode(window)
    for token in tokens:
        window.append(token)
        text = tokenizer.decode(window)
        if len(text) > len(shown) and not text.endswith(INCOMPLETE):
            yield text[len(shown) :]
            window, known = window[known:], len(window) - known
            shown = tokenizer.decode(window)
    if rest := tokenizer.decode(window)[len(shown) :]:
        yield rest


def _feeds(ids: Sequence[int], length: int) -> dict[str, NDArray[np.int64]]:
    """Return the inputs for one row of tokens that are the last ones of a text of so many."""
    return {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, length), np.int64)}
