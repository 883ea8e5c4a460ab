import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from typer.testing import CliRunner

from ted.cli import app
from ted.errors import BundleError, DataError
from ted.files import sha256_file, write_json
from ted.serving.bundle import open_bundle
from ted.serving.generation import Generator, decode_pieces, log_probabilities, open_predictor
from ted.serving.predictor import Predictor

END = 0
MAX_LENGTH = 32
# After each byte of it comes one other byte only, so that a table of pairs can recite it.
RECITED = "né🎉 so!"

WriteBundle = Callable[..., Path]
Table = NDArray[np.float32]
Shape = list[str | int | None]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(["<end>", *alphabet])}, []))
    made.add_special_tokens(["<end>"])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


@pytest.fixture(scope="session")
def table_VV(tokenizer: Tokenizer) -> Table:
    """Logits of the next token by the last one: those of the recited text stand out, its end too."""
    table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(),) * 2).astype(np.float32)
    ids = [*tokenizer.encode(RECITED).ids, END]
    table[ids[:-1], ids[1:]] = 100.0
    return table


@pytest.fixture
def write_causal(tmp_path: Path, tokenizer: Tokenizer, table_VV: Table) -> WriteBundle:
    """Return a function that writes the bundle of a causal language model, with some facts of its task."""

    def write(max_new_tokens: int = 16, end_tokens: tuple[int, ...] = (END,)) -> Path:
        folder = tmp_path / "causal" / "1"
        folder.mkdir(parents=True)
        onnx.save(_graph(table_VV), folder / "model.onnx")
        stored = Tokenizer.from_str(tokenizer.to_str())
        stored.enable_truncation(MAX_LENGTH)
        stored.enable_padding(pad_id=END, pad_token="<end>")  # noqa: S106 - a token of the vocabulary
        stored.save(str(folder / "tokenizer.json"))
        task = {"kind": "causal_lm", "labels": None, "max_new_tokens": max_new_tokens}
        manifest = {
            "format": 1,
            "name": "tiny",
            "version": 1,
            "task": {**task, "start_token": END, "end_tokens": list(end_tokens)},
            "max_length": MAX_LENGTH,
            "max_characters": 1000,
            "pair": False,
            "inputs": ["input_ids", "attention_mask", "past_key_values.0.key", "past_key_values.0.value"],
            "outputs": ["logits", "present.0.key", "present.0.value"],
            "model": "model.onnx",
            "self_test": {"text": "n", "answer": {}},
            "files": {path.name: {"sha256": sha256_file(path)} for path in folder.iterdir()},
        }
        write_json(folder / "bundle.json", manifest)
        return folder

    return write


def _graph(table_VV: Table) -> onnx.ModelProto:
    """Return a model whose logits are those of the last token plus, by its cache, the sum of all tokens so far."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["floats", "outer"], ["new"]),
        helper.make_node("Concat", ["past_key_values.0.key", "new"], ["present.0.key"], axis=2),
        helper.make_node("Concat", ["past_key_values.0.value", "new"], ["present.0.value"], axis=2),
        helper.make_node("CumSum", ["present.0.key", "two"], ["sums"]),
        helper.make_node("Shape", ["input_ids"], ["length"], start=1, end=2),
        helper.make_node("Neg", ["length"], ["start"]),
        helper.make_node("Slice", ["sums", "start", "last", "axis"], ["sums_of_run"]),
        helper.make_node("Squeeze", ["sums_of_run", "one"], ["history"]),
        helper.make_node("Mul", ["history", "weights"], ["from_history"]),
        helper.make_node("Gather", ["table", "input_ids"], ["from_last"]),
        helper.make_node("Add", ["from_last", "from_history"], ["logits"]),
    ]
    constants: dict[str, NDArray[Any]] = {
        "outer": np.array([1, 3]),
        "two": np.array(2),
        "last": np.array([2**31]),
        "axis": np.array([2]),
        "one": np.array([1]),
        "weights": _weights(len(table_VV)),
        "table": table_VV,
    }
    past: Shape = ["B", 1, "P", 1]
    present: Shape = ["B", 1, "T", 1]
    logits: Shape = ["B", "L", len(table_VV)]
    inputs = {"past_key_values.0.key": past, "past_key_values.0.value": past}
    outputs = {"logits": logits, "present.0.key": present, "present.0.value": present}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "L"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["B", "T"]),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _weights(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(scale=0.001, size=size).astype(np.float32)


def expected_logits(table_VV: Table, ids: list[int]) -> NDArray[np.float64]:
    history_L1 = np.cumsum(ids)[:, None]
    return np.asarray(table_VV[ids] + history_L1 * _weights(len(table_VV)), np.float64)


@pytest.fixture
def generator(write_causal: WriteBundle) -> Generator:
    predictor = open_predictor(open_bundle(write_causal()))
    assert isinstance(predictor, Generator)
    return predictor


def test_the_kind_of_task_chooses_what_answers(write_bundle: WriteBundle) -> None:
    assert isinstance(open_predictor(open_bundle(write_bundle())), Predictor)


def test_a_predictor_says_what_opens_a_language_model(write_causal: WriteBundle) -> None:
    with pytest.raises(
        BundleError, match=r"task 'causal_lm'; a Predictor answers .* ted\.serving\.generation\.open_predictor"
    ):
        Predictor(open_bundle(write_causal()))


def test_a_continuation_ends_where_the_model_ends_it(generator: Generator) -> None:
    (answer,) = generator.predict(["n"])
    assert (answer["text"], answer["continuation"]) == ("n", RECITED[1:])
    json.dumps(answer)


def test_pieces_are_whole_characters_as_soon_as_they_are_known(generator: Generator) -> None:
    assert list(generator.stream("n")) == list(RECITED[1:])


def test_every_step_sees_all_tokens_before_it(generator: Generator, table_VV: Table) -> None:
    ids, _ = generator.prompt("a prompt")
    steps = list(generator.steps(ids))
    assert len(steps) == 16
    assert [logits.shape[0] for _, logits in steps] == [9, *[1] * 15]
    everything = [*ids, *(token for token, _ in steps)]
    expected_TV = expected_logits(table_VV, everything)
    np.testing.assert_allclose(np.concatenate([logits for _, logits in steps]), expected_TV[:-1], rtol=1e-4, atol=1e-4)
    assert everything[len(ids) :] == expected_TV.argmax(-1)[len(ids) - 1 : -1].tolist()


def test_the_log_probability_is_that_of_each_token_after_those_before(generator: Generator, table_VV: Table) -> None:
    text = "oh é"
    (answer,) = generator.predict([text])
    ids, parts = generator.prompt(text)
    probabilities = np.exp(expected_logits(table_VV, ids)[:-1])
    probabilities /= probabilities.sum(-1, keepdims=True)
    expected = np.log(probabilities[np.arange(len(ids) - 1), ids[1:]])
    assert [token["token"] for token in answer["tokens"]] == parts == ["o", "h", " ", "é", "é"]
    np.testing.assert_allclose([token["log_probability"] for token in answer["tokens"]], expected, rtol=1e-4)
    assert answer["log_probability"] == pytest.approx(expected.sum(), rel=1e-4)


def test_large_logits_have_finite_log_probabilities() -> None:
    logits_LV = np.array([[1000.0, 0.0], [0.0, -1000.0], [0.0, 0.0]], np.float32)
    np.testing.assert_allclose(log_probabilities(logits_LV, [0, 0, 1]), [0.0, -1000.0], atol=1e-6)


def test_a_continuation_is_bounded_by_its_tokens_and_by_the_length(write_causal: WriteBundle) -> None:
    generator = Generator(open_bundle(write_causal(max_new_tokens=6, end_tokens=())))
    for length, new in ((5, 6), (25, 6), (28, 3), (30, 1)):
        ids, _ = generator.prompt("a" * length)
        assert len(list(generator.steps(ids))) == new


def test_texts_that_are_continued_at_once_do_not_disturb_each_other(generator: Generator) -> None:
    texts = ["n", "a prompt", "né"]
    together: list[Iterator[str]] = [generator.stream(text) for text in texts]
    pieces: list[list[str]] = [[] for _ in texts]
    for _ in range(20):
        for place, stream in enumerate(together):
            pieces[place] += [piece for piece in [next(stream, "")] if piece]
    assert ["".join(part) for part in pieces] == [answer["continuation"] for answer in generator.predict(texts)]


def test_a_text_may_fill_the_length_but_for_one_token(generator: Generator) -> None:
    generator.predict(["a" * (MAX_LENGTH - 2)])
    for length in (MAX_LENGTH - 1, MAX_LENGTH, MAX_LENGTH + 1, 900):
        with pytest.raises(DataError, match="texts of at most 1000 characters and 30 tokens; this one has"):
            generator.predict(["a" * length])


def test_a_text_of_too_many_characters_is_refused_before_it_is_read(generator: Generator) -> None:
    with pytest.raises(DataError, match="this one has 50000000 characters and at least 32 tokens"):
        generator.stream("a" * 50_000_000)


@pytest.mark.parametrize("text", ["", None, 3, ("a", "b")])
def test_what_is_no_text_is_refused_at_once(generator: Generator, text: str) -> None:
    with pytest.raises(DataError, match=r"empty text cannot be continued|answers single texts, not"):
        generator.stream(text)
    with pytest.raises(DataError, match=r"empty text cannot be continued|answers single texts, not"):
        generator.predict([text])


def test_the_command_prints_continuations(write_causal: WriteBundle) -> None:
    done = CliRunner().invoke(app, ["predict", str(write_causal()), "n", "né"])
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["continuation"] for answer in answers] == [RECITED[1:], RECITED[2:]]


def fallback_tokenizer() -> Tokenizer:
    """Return a tokenizer in the manner of SentencePiece: spaces are part of tokens, rare characters are bytes."""
    words = ["▁", "▁a", "▁film", "s", "▁the", "é"]
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -10.0) for byte in range(256)), *((word, -1.0) for word in words)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
@pytest.mark.parametrize("text", ["a film", "the films  a\n\nfilm", "Größe 漢字 🎉 👩‍👩‍👧 the", " é 🎉é"])
def test_the_pieces_of_a_text_make_up_the_text_wherever_it_is_cut(tokenizer: Tokenizer, kind: str, text: str) -> None:
    used = tokenizer if kind == "bytes" else fallback_tokenizer()
    ids = used.encode(text).ids
    for cut in range(1, len(ids)):
        before = used.decode(ids[:cut])
        if before.endswith("\N{REPLACEMENT CHARACTER}"):
            continue
        pieces = list(decode_pieces(used, ids[:cut], iter(ids[cut:])))
        assert before + "".join(pieces) == used.decode(ids)
        assert not [piece for piece in pieces if "\N{REPLACEMENT CHARACTER}" in piece or not piece]


def test_bytes_that_never_make_up_a_character_come_at_the_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🎉").ids
    assert list(decode_pieces(tokenizer, ids[:1], ids[1:4])) == ["\N{REPLACEMENT CHARACTER}"]


def test_a_piece_is_there_before_the_next_token_is_asked_for(tokenizer: Tokenizer) -> None:
    asked: list[int] = []

    def tokens() -> Iterator[int]:
        for token in tokenizer.encode("bc").ids:
            asked.append(token)
            yield token

    pieces = decode_pieces(tokenizer, tokenizer.encode("a").ids, tokens())
    assert next(pieces) == "b"
    assert len(asked) == 1
