"""A bundle made by hand, so that serving is tested without the libraries that make real ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ted.files import sha256_file, write_json

MAX_LENGTH = 8
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "plot", "and", "a"]

WriteBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def weights_VC() -> NDArray[np.float32]:
    """Score that each token adds to each class."""
    return np.random.default_rng(0).normal(size=(len(VOCABULARY), 2)).astype(np.float32)


@pytest.fixture
def write_bundle(tmp_path: Path, weights_VC: NDArray[np.float32]) -> WriteBundle:
    """Return a function that writes a bundle below a folder, with changes to its manifest."""

    def write(name: str = "tiny", version: int = 1, **changes: Any) -> Path:
        folder = tmp_path / "models" / name / str(version)
        folder.mkdir(parents=True)
        onnx.save(_graph(weights_VC[:, : 2 if changes.get("task") is None else 1]), folder / "model.onnx")
        _tokenizer().save(str(folder / "tokenizer.json"))
        write_json(folder / "bundle.json", _manifest(folder, name, version) | changes)
        return folder

    return write


def _manifest(folder: Path, name: str, version: int) -> dict[str, Any]:
    return {
        "format": 1,
        "name": name,
        "version": version,
        "task": {"kind": "classification", "labels": ["negative", "positive"]},
        "max_length": MAX_LENGTH,
        "max_characters": 1000,
        "pair": False,
        "inputs": ["input_ids", "token_type_ids", "attention_mask"],
        "outputs": ["logits"],
        "model": "model.onnx",
        "self_test": {"text": "good film", "answer": {}},
        "files": {
            path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
        },
    }


def _tokenizer() -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of the vocabulary
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(MAX_LENGTH)
    # A fixed length, as some files have it.
    tokenizer.enable_padding(pad_id=0, length=64)
    return tokenizer


def _graph(weights_VC: NDArray[np.float32]) -> onnx.ModelProto:
    """Return a model that adds the scores of all tokens, once more for tokens of the second text."""
    axes = ["batch_size", "sequence_length"]
    names = ["input_ids", "attention_mask", "token_type_ids"]
    nodes = [
        helper.make_node("Add", ["attention_mask", "token_type_ids"], ["count"]),
        helper.make_node("Cast", ["count"], ["count_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["count_float", "last"], ["factor"]),
        helper.make_node("Gather", ["weights", "input_ids"], ["scores"]),
        helper.make_node("Mul", ["scores", "factor"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "one"], ["logits"], keepdims=0),
    ]
    constants = {"weights": weights_VC, "last": np.array([-1]), "one": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", weights_VC.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
