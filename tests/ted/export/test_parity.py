from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import Tensor
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from ted.config import ExportSettings, Settings
from ted.errors import DataError, ParityError
from ted.export.parity import check_parity, padded_batch, parity_batches, within
from ted.serving.answers import Text

MAX_LENGTH = 40
TEXTS = ["a good film", "bad", "the plot, the actor and the joyful film"]
PAIRS = list(zip(TEXTS, TEXTS[::-1], strict=True))

Edit = Callable[[onnx.ModelProto], object]


@pytest.fixture
def batches(tokenizer: PreTrainedTokenizerFast) -> list[dict[str, Tensor]]:
    return parity_batches(tokenizer, TEXTS, MAX_LENGTH)


@pytest.fixture
def edited(exported: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """Return a function that writes a changed copy of the exported file."""

    def write(edit: Edit) -> Path:
        written = onnx.load(exported / "ted-student" / "3" / "model.onnx")
        edit(written)
        onnx.save(written, tmp_path / "edited.onnx")
        return tmp_path / "edited.onnx"

    return write


@pytest.mark.parametrize("texts", [TEXTS, PAIRS])
@pytest.mark.parametrize(("batch_size", "length"), [(1, 8), (3, 8), (5, 33)])
def test_rows_are_real_text_and_all_but_the_first_are_padded(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[Text], batch_size: int, length: int
) -> None:
    batch = padded_batch(tokenizer, texts, batch_size, length)
    assert {array.shape for array in batch.values()} == {(batch_size, length)}
    tokens_B = batch["attention_mask"].sum(-1).tolist()
    assert tokens_B[0] == length
    assert all(6 <= tokens < length for tokens in tokens_B[1:])
    for row, tokens in enumerate(tokens_B):
        # Padding is on the right and nowhere else, and the row ends as a text does.
        assert batch["attention_mask"][row, :tokens].all()
        assert (batch["input_ids"][row, tokens:] == tokenizer.pad_token_id).all()
        assert batch["input_ids"][row, tokens - 1] == tokenizer.sep_token_id
        assert batch["input_ids"][row, 0] == tokenizer.cls_token_id
    assert bool(batch["token_type_ids"].any()) == isinstance(texts[0], tuple)


def test_texts_without_tokens_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="1 validation texts do not fill 8 tokens"):
        padded_batch(tokenizer, [" "], 1, 8)


@pytest.mark.parametrize(("max_length", "lengths"), [(8, [8]), (64, [8, 33, 64]), (128, [8, 33, 96, 128])])
def test_the_grid_ends_at_the_longest_text(
    tokenizer: PreTrainedTokenizerFast, max_length: int, lengths: list[int]
) -> None:
    shapes = [tuple(batch["input_ids"].shape) for batch in parity_batches(tokenizer, TEXTS, max_length)]
    assert shapes == [(size, length) for size in (1, 3, 5) for length in lengths]


def test_an_equal_model_passes_at_every_shape(
    model: BertForSequenceClassification, exported: Path, batches: list[dict[str, Tensor]], settings: Settings
) -> None:
    path = exported / "ted-student" / "3" / "model.onnx"
    rows = check_parity(model.train(), path, batches, settings.export)
    assert [(row["batch"], row["length"]) for row in rows] == [
        (size, length) for size in (1, 3, 5) for length in (8, 33, 40)
    ]
    assert all(row["passed"] and row["max_abs_difference"] < 1e-5 for row in rows)


def test_a_corrupted_weight_fails_at_every_shape_in_one_error(
    model: BertForSequenceClassification,
    edited: Callable[[Edit], Path],
    batches: list[dict[str, Tensor]],
    settings: Settings,
) -> None:
    def shift_bias(written: onnx.ModelProto) -> None:
        (bias,) = [tensor for tensor in written.graph.initializer if tensor.name.endswith("classifier.bias")]
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))

    with pytest.raises(ParityError, match=r"at 9 of 9 shapes .*1 x 8: 0\.5; 1 x 33: 0\.5; .*5 x 40: 0\.5; raise"):
        check_parity(model, edited(shift_bias), batches, settings.export)


def test_a_model_that_ignores_the_mask_fails_only_where_rows_are_padded(
    model: BertForSequenceClassification,
    edited: Callable[[Edit], Path],
    batches: list[dict[str, Tensor]],
    settings: Settings,
) -> None:
    def attend_to_padding(written: onnx.ModelProto) -> None:
        ones = onnx.helper.make_node("Equal", ["input_ids", "input_ids"], ["every_position"])
        cast = onnx.helper.make_node("Cast", ["every_position"], ["ignored_mask"], to=onnx.TensorProto.INT64)
        for node in written.graph.node:
            node.input[:] = ["ignored_mask" if name == "attention_mask" else name for name in node.input]
        nodes = [ones, cast, *written.graph.node]
        del written.graph.node[:]
        written.graph.node.extend(nodes)

    with pytest.raises(ParityError, match=r"at 6 of 9 shapes .*: 3 x 8: "):
        check_parity(model, edited(attend_to_padding), batches, settings.export)


def test_a_graph_bound_to_one_shape_says_why_it_does_not_run(
    model: BertForSequenceClassification,
    edited: Callable[[Edit], Path],
    batches: list[dict[str, Tensor]],
    settings: Settings,
) -> None:
    def bind(written: onnx.ModelProto) -> None:
        for value in written.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = 1

    with pytest.raises(ParityError, match=r"at 6 of 9 shapes .*3 x 8: .*Got: 3 Expected: 1"):
        check_parity(model, edited(bind), batches, settings.export)


def test_an_output_of_another_shape_fails(
    model: BertForSequenceClassification,
    edited: Callable[[Edit], Path],
    batches: list[dict[str, Tensor]],
    settings: Settings,
) -> None:
    def add_axis(written: onnx.ModelProto) -> None:
        written.graph.node[-1].output[0] = "flat"
        written.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axis"))
        written.graph.node.append(onnx.helper.make_node("Unsqueeze", ["flat", "axis"], ["logits"]))
        written.graph.output[0].type.tensor_type.ClearField("shape")

    with pytest.raises(ParityError, match=r"1 x 8: output of shape \(1, 1, 2\) for \(1, 2\)"):
        check_parity(model, edited(add_axis), batches, settings.export)


@pytest.mark.parametrize(
    ("difference", "close"), [([0.0, 0.004], True), ([0.004, 0.0], True), ([0.006, 0.0], False), ([np.nan, 0.0], False)]
)
def test_a_small_output_may_differ_as_much_as_the_largest_beside_it(difference: list[float], close: bool) -> None:
    expected = np.array([[0.01, 50.0], [0.01, 5.0]], np.float32)
    actual = expected + np.array([[0.05, 0.05], difference], np.float32)
    assert within(actual, expected, ExportSettings()) is close
