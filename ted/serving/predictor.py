"""Raw text in, answers out: the tokenizer and the ONNX Runtime session of a bundle.

Dimensions: B texts, L tokens of the longest one, C outputs.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ted.errors import BundleError, DataError
from ted.serving.bundle import Bundle

Text = str | tuple[str, str]
Answer = dict[str, Any]

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


def softmax(logits_BC: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the probabilities of each row, shape (B, C)."""
    shifted_BC = logits_BC.astype(np.float64) - logits_BC.max(axis=-1, keepdims=True)
    exponential_BC = np.exp(shifted_BC)
    return np.asarray(exponential_BC / exponential_BC.sum(axis=-1, keepdims=True))


class Predictor:
    """Answers texts with the model of a bundle.

    An 8-bit model scales its activations by batch: its answers move a little with the texts beside them.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self.bundle = bundle
        self.tokenizer, self._padding = _load_tokenizer(bundle)
        self.session = create_session(str(bundle.model_path), threads)

    def predict(self, texts: Sequence[Text]) -> list[Answer]:
        """Return an answer per text, in the order of the texts.

        Args:
            texts: texts, or (text, second text) where the bundle takes pairs.

        Returns:
            `{"text", "label", "probabilities"}` for a classification, `{"text", "value"}` for a regression.

        Raises:
            DataError: an item is not a text, or not a pair where the bundle takes pairs.
        """
        if not texts:
            return []
        logits_BC = self.outputs(texts)["logits"]
        if not self.bundle.labels:
            return [{"text": text, "value": float(row_C[0])} for text, row_C in zip(texts, logits_BC, strict=True)]
        rows = zip(texts, softmax(logits_BC), strict=True)
        return [{"text": text, **self._classification(row_C)} for text, row_C in rows]

    def outputs(self, texts: Sequence[Text]) -> dict[str, NDArray[np.floating]]:
        """Return the raw outputs for one or more texts by name, a row per text, such as logits of shape (B, C).

        Texts of similar length share a run, which spares most of the padding. Only outputs whose shape does not
        depend on the length can be joined.
        """
        encodings = self.encode(texts)
        order = np.argsort([len(encoding.ids) for encoding in encodings], kind="stable")
        runs = [
            self.run(self.feeds([encodings[index] for index in order[start : start + ROWS_PER_RUN]]))
            for start in range(0, len(order), ROWS_PER_RUN)
        ]
        places = np.argsort(order)
        return {name: np.concatenate([run[name] for run in runs])[places] for name in self.bundle.manifest["outputs"]}

    def run(self, feeds: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.floating]]:
        """Return the raw outputs of one run by name."""
        names: list[str] = self.bundle.manifest["outputs"]
        return dict(zip(names, self.session.run(names, dict(feeds)), strict=True))

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """Return the tokens of each text, cut to the bundle's max_length and not padded.

        Raises:
            DataError: an item is not a text, or not a pair where the bundle takes pairs.
        """
        return list(self.tokenizer.encode_batch([self._checked(text) for text in texts]))

    def feeds(self, encodings: Sequence[Encoding]) -> dict[str, NDArray[np.int64]]:
        """Return the model inputs of one run, each of shape (B, L), padded on the right to the longest text."""
        length = max(len(encoding.ids) for encoding in encodings)
        for encoding in encodings:
            encoding.pad(length, **self._padding)
        return {
            name: np.array([getattr(encoding, ENCODING_FIELDS[name]) for encoding in encodings], np.int64)
            for name in self.bundle.manifest["inputs"]
        }

    def _checked(self, text: Text) -> Text:
        """Return the text cut to a length that no training text exceeds; the tokenizer reads all before it cuts."""
        limit: int = self.bundle.manifest["max_characters"]
        pair: bool = self.bundle.manifest["pair"]
        if not pair and isinstance(text, str):
            return text[:limit]
        if pair and isinstance(text, list | tuple) and [type(part) for part in text] == [str, str]:
            return (text[0][:limit], text[1][:limit])
        wanted = "pairs of two texts" if pair else "single texts"
        raise DataError(f"bundle {self.bundle.manifest['name']} answers {wanted}, not {reprlib.repr(text)}")

    def _classification(self, probabilities_C: NDArray[np.floating]) -> Answer:
        labels = self.bundle.labels
        values = [float(value) for value in probabilities_C]
        return {
            "label": labels[int(np.argmax(probabilities_C))],
            "probabilities": dict(zip(labels, values, strict=True)),
        }


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
