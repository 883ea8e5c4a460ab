import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.modeling_outputs import SequenceClassifierOutput

from ted.errors import ModelError
from ted.export import onnx as export
from ted.export.onnx import export_onnx, input_names
from ted.filters import TaskAwareFilters

OPSET = 20

Patch = Callable[[Callable[..., Any]], None]


@pytest.fixture
def example() -> dict[str, Tensor]:
    ids = torch.randint(4, 19, (2, 7), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}


def test_the_file_has_dynamic_axes_the_wanted_opset_and_every_parameter(
    model: BertForSequenceClassification,
    example: dict[str, Tensor],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "model.onnx"
    graph = export_onnx(model.train(), example, ["logits"], OPSET, path)
    written = onnx.load(path)
    shapes = {value.name: export._axes(value) for value in [*written.graph.input, *written.graph.output]}
    assert shapes == {**{name: ["batch_size", "sequence_length"] for name in example}, "logits": ["batch_size", 2]}
    assert (graph.inputs, graph.outputs, graph.opset) == (tuple(example), ("logits",), OPSET)
    assert graph.graph_parameters == graph.model_parameters == sum(value.numel() for value in model.parameters())
    assert not any("Dropout" in node.op_type for node in written.graph.node)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_equal_models_give_equal_files_that_name_no_file_of_this_machine(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path
) -> None:
    digests = set()
    for name in ("first.onnx", "second.onnx"):
        export_onnx(model, example, ["logits"], OPSET, tmp_path / name)
        content = (tmp_path / name).read_bytes()
        digests.add(hashlib.sha256(content).hexdigest())
        assert b".py" not in content
    assert len(digests) == 1


def test_a_model_with_filters_attached_is_refused(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path
) -> None:
    model.filters = nn.ModuleList([nn.Linear(32, 8)])
    with pytest.raises(ModelError, match=r"'filters\.0\.bias', 'filters\.0\.weight'.*never exported"):
        export_onnx(model, example, ["logits"], OPSET, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_module_of_the_training_without_parameters_is_refused(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path
) -> None:
    model.filters = TaskAwareFilters([0], 32, 32, "identity")
    with pytest.raises(ModelError, match=r"modules of the training: .*TaskAwareFilters"):
        export_onnx(model, example, ["logits"], OPSET, tmp_path / "model.onnx")


def test_a_wrapped_model_is_refused(example: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped: Any = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="Linear is not a transformers model"):
        export_onnx(wrapped, example, ["logits"], OPSET, tmp_path / "model.onnx")


def test_a_half_precision_model_is_refused(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"torch\.bfloat16; load it with dtype=torch\.float32"):
        export_onnx(model.bfloat16(), example, ["logits"], OPSET, tmp_path / "model.onnx")


def test_a_model_too_large_for_one_file_is_refused(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ModelError, match="holds at most 1000"):
        export_onnx(model, example, ["logits"], OPSET, tmp_path / "model.onnx")


class _Branching(BertForSequenceClassification):  # type: ignore[no-untyped-call]
    def forward(self, *args: Any, **kwargs: Any) -> SequenceClassifierOutput:
        output = super().forward(*args, **kwargs)
        return output if output.logits.sum() > 0 else SequenceClassifierOutput(logits=-output.logits)


class _WithConstant(BertForSequenceClassification):  # type: ignore[no-untyped-call]
    def forward(self, *args: Any, **kwargs: Any) -> SequenceClassifierOutput:
        output = super().forward(*args, **kwargs)
        return SequenceClassifierOutput(logits=output.logits + torch.tensor([0.25, 0.75]))


def test_a_model_that_cannot_be_traced_is_refused(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"_Branching cannot be exported by torch\.onnx"):
        export_onnx(_Branching(model.config), example, ["logits"], OPSET, tmp_path / "model.onnx")


def test_an_array_that_is_no_weight_of_the_model_is_refused(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="arrays that are no weights of the model"):
        export_onnx(_WithConstant(model.config), example, ["logits"], OPSET, tmp_path / "model.onnx")


def test_another_opset_than_asked_for_is_refused(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = export._trace
    monkeypatch.setattr(export, "_trace", lambda wrapper, inputs, _: trace(wrapper, inputs, 18))
    with pytest.raises(ModelError, match=r"wrote opset 18, not 20; set export\.opset: 18"):
        export_onnx(model, example, ["logits"], OPSET, tmp_path / "model.onnx")


def test_frozen_axes_are_refused(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_trace", lambda *args: _trace_with_axes(None, *args))
    with pytest.raises(ModelError, match=re.escape("has the axes [2, 7], not ['batch_size', 'sequence_length']")):
        export_onnx(model, example, ["logits"], OPSET, tmp_path / "model.onnx")


def test_other_names_than_asked_for_are_refused(
    model: BertForSequenceClassification, example: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = export._trace

    def rename(*args: Any) -> torch.onnx.ONNXProgram:
        program = trace(*args)
        program.model.graph.outputs[0].name = "scores"
        return program

    monkeypatch.setattr(export, "_trace", rename)
    with pytest.raises(ModelError, match=r"outputs \('scores',\), not"):
        export_onnx(model, example, ["logits"], OPSET, tmp_path / "model.onnx")


def test_inputs_are_those_the_tokenizer_makes(tokenizer: PreTrainedTokenizerFast) -> None:
    assert input_names(tokenizer) == ("input_ids", "token_type_ids", "attention_mask")


def test_an_input_that_serving_cannot_make_is_refused() -> None:
    class Boxes:
        model_input_names = ("input_ids", "bbox")

        def __call__(self, _: str) -> dict[str, list[int]]:
            return {"input_ids": [1], "bbox": [0]}

    tokenizer: Any = Boxes()
    with pytest.raises(ModelError, match="inputs bbox, which serving cannot make"):
        input_names(tokenizer)


def _trace_with_axes(axes: None, wrapper: nn.Module, example: tuple[Tensor, ...], opset: int) -> Any:  # noqa: ANN401
    """Export as a caller does who forgets the dynamic axes."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return torch.onnx.export(
        wrapper,
        example,
        dynamo=True,
        verbose=False,
        input_names=names,
        output_names=["logits"],
        opset_version=opset,
        dynamic_shapes=axes,
        optimize=False,
    )
