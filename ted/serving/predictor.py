"""Raw text in, answers out: the tokenizer and the ONNX Runtime session of a bundle.

Dimensions: B windows, L tokens of the longest one, C outputs.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ted.errors import BundleError, DataError
from ted.serving.answers import Answer, Text, new_answerer
from ted.serving.bundle import Bundle
from ted.serving.spans import QuestionCutter

# Name of a model input -> the field of a tokenizers.Encoding that feeds it.
ENCODING_FIELDS: Final = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
ROWS_PER_RUN: Final = 32


def create_session(path: str, threads: int) -> onnxruntime.InferenceSession:
    """Return a CPU session that computes on `threads` threads and lets them sleep between requests."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads halve the throughput when several sessions share the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class ServedModel:
    """The tokenizer and the model of a bundle: tokens of texts, and raw outputs for tokens."""

    rows_per_run: ClassVar[int] = ROWS_PER_RUN

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle = bundle
        self.tokenizer, self._padding = _load_tokenizer(bundle)
        self._questions = _question_cutter(self.tokenizer)
        self.session = create_session(str(bundle.model_path), threads)

    def logits(self, encodings: Sequence[Sequence[Encoding]]) -> list[list[NDArray[np.floating]]]:
        """Return the logits of each window of each text: (C), or (L, C) of its real tokens.

        Windows of similar length share a run, which spares most of the padding.
        """
        windows = [(text, window) for text, parts in enumerate(encodings) for window in range(len(parts))]
        windows.sort(key=lambda place: len(encodings[place[0]][place[1]].ids))
        found: dict[tuple[int, int], NDArray[np.floating]] = {}
        for start in range(0, len(windows), self.rows_per_run):
            places = windows[start : start + self.rows_per_run]
            lengths = [len(encodings[text][window].ids) for text, window in places]
            outputs = self.run(self.feeds([encodings[text][window] for text, window in places]))
            for place, length, row in zip(places, lengths, logits_of(outputs), strict=True):
                found[place] = row[:length] if row.ndim > 1 else row
        return [[found[text, window] for window in range(len(parts))] for text, parts in enumerate(encodings)]

    def runs(self, texts: Sequence[Text]) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the inputs of each kind of run that answers take, for some texts at once: the name of one is empty."""
        return {"": self.feeds([windows[0] for windows in self.encode(texts)])}

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.floating]]:
        """Return the raw outputs of one run by name."""
        names: list[str] = self.bundle.manifest["outputs"]
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))

    def encode(self, texts: Sequence[Text]) -> list[list[Encoding]]:
        """Return the tokens of each text, not padded: its windows, or one encoding that is cut to the max_length.

        Raises:
            DataError: an item is not a text, or not a pair where the bundle takes pairs.
        """
        checked = [self._checked(text) for text in texts]
        if self._questions is not None:
            questions = self._questions.cut([text[0] for text in checked])
            checked = [(question, text[1]) for question, text in zip(questions, checked, strict=True)]
        encodings = self.tokenizer.encode_batch(checked)
        windows = self.bundle.manifest["task"].get("windows", False)
        return [[encoding, *(encoding.overflowing if windows else ())] for encoding in encodings]

    def feeds(self, encodings: Sequence[Encoding]) -> dict[str, NDArray[np.int64]]:
        """Return the inputs of one run that come from texts, each (B, L), padded on the right to the longest text."""
        length = max(len(encoding.ids) for encoding in encodings)
        for encoding in encodings:
            encoding.pad(length, **self._padding)
        return {
            name: np.array([getattr(encoding, ENCODING_FIELDS[name]) for encoding in encodings], np.int64)
            for name in self.bundle.manifest["inputs"]
            if name in ENCODING_FIELDS
        }

    def _checked(self, text: Text) -> Text:
        """Return the text cut to a length that no training text exceeds; the tokenizer reads all before it cuts."""
        pair: bool = self.bundle.manifest["pair"]
        if not pair and isinstance(text, str):
            return self._cut(text)
        if pair and isinstance(text, list | tuple) and [type(part) for part in text] == [str, str]:
            return (self._cut(text[0]), self._cut(text[1]))
        wanted = "pairs of two texts" if pair else "single texts"
        raise DataError(f"bundle {self.bundle.manifest['name']} answers {wanted}, not {reprlib.repr(text)}")

    def _cut(self, text: str) -> str:
        limit: int = self.bundle.manifest["max_characters"]
        if len(text) > limit and self.bundle.manifest["task"].get("windows", False):
            raise DataError(
                f"a text has {len(text):,} characters, and bundle {self.bundle.manifest['name']} reads at most "
                f"{limit:,}; give it in parts"
            )
        try:
            text[:limit].encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{reprlib.repr(text)} holds {text[error.start]!r} at character {error.start}, half of a character; "
                "decode its source anew"
            ) from error
        return text[:limit]


class Predictor(ServedModel):
    """Answers texts with the model of a bundle; :func:`ted.serving.generation.open_predictor` chooses it, or another.

    An 8-bit model scales its activations by batch: its answers move a little with the texts beside them.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        super().__init__(bundle, threads)
        self.answerer = new_answerer(bundle.manifest["task"], self.tokenizer)

    def predict(self, texts: Sequence[Text]) -> list[Answer]:
        """Return an answer per text, in the order of the texts.

        Args:
            texts: texts, or (text, second text) where the bundle takes pairs.

        Returns:
            `text` with what the task answers: see :mod:`ted.serving.answers`.

        Raises:
            DataError: an item is not a text, or not a pair where the bundle takes pairs.
        """
        encodings = self.encode(texts)
        logits = self.logits(encodings)
        return [
            {"text": text, **self.answerer.answer(text, windows, values)}
            for text, windows, values in zip(texts, encodings, logits, strict=True)
        ]


def logits_of(outputs: Mapping[str, NDArray[np.floating]]) -> NDArray[np.floating]:
    """Return the logits of a run; those of the start and the end of an answer as the last axis of one array."""
    if "logits" in outputs:
        return outputs["logits"]
    return np.stack([outputs["start_logits"], outputs["end_logits"]], axis=-1)


def _question_cutter(tokenizer: Tokenizer) -> QuestionCutter | None:
    """Return what cuts the first text where the tokenizer cuts the second one only."""
    truncation = tokenizer.truncation or {}
    if truncation.get("strategy") != "only_second":
        return None
    return QuestionCutter(tokenizer, truncation["max_length"], truncation["stride"])


def _load_tokenizer(bundle: Bundle) -> tuple[Tokenizer, dict[str, Any]]:
    """Return the tokenizer and how it pads: a run pads to its longest text, which only the run knows."""
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    padding, max_length = tokenizer.padding, bundle.manifest["max_length"]
    if padding is None or (tokenizer.truncation or {}).get("max_length") != max_length:
        raise BundleError(
            f"{bundle.tokenizer_path} does not pad and cut to {max_length} tokens; export the bundle again"
        )
    tokenizer.no_padding()
    return tokenizer, {key: padding[key] for key in ("pad_id", "pad_type_id", "pad_token", "direction")}
