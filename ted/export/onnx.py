"""Export of a Hugging Face model to one ONNX file, and the proof that the file holds that model's weights only."""

import hashlib
import logging
import reprlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateInitializersPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
)
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ted.errors import ModelError
from ted.serving.predictor import ENCODING_FIELDS

logger = logging.getLogger(__name__)

DYNAMIC_AXES: Final = {0: "batch_size", 1: "sequence_length"}
# Protobuf holds at most 2 GiB in one message.
MAX_FILE_BYTES: Final = 2**31 - 2**20
# Loggers that comment on the exporter's own doings at every export.
CHATTY_LOGGERS: Final = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Graph:
    """What an exported file holds, as read back from it."""

    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_dims: dict[str, tuple[int, ...]]
    """Axes of each input after the batch; -1 is one whose length varies."""
    output_dims: dict[str, tuple[int, ...]]
    """Axes of each output after the batch."""
    model_parameters: int
    """Parameters of the trained model."""
    graph_parameters: int
    """Parameters of the trained model that stand in the file; those that no output depends on do not."""


class Positional(nn.Module):
    """The model with its inputs by position and chosen outputs as a tuple, as an ONNX graph has them."""

    def __init__(self, model: PreTrainedModel, input_names: Sequence[str], output_names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.input_names = tuple(input_names)
        self.output_names = tuple(output_names)

    def axes(self, name: str) -> dict[int, str]:
        """Return the axes of an input whose length varies, by place."""
        del name
        return DYNAMIC_AXES

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs."""
        outputs = self.model(**dict(zip(self.input_names, inputs, strict=True)))
        return tuple(outputs[name] for name in self.output_names)


def input_names(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the model inputs that the tokenizer makes, in the order of its own list.

    Raises:
        ModelError: it makes an input that serving cannot make from the tokenizer file.
    """
    made = tuple(name for name in tokenizer.model_input_names if name in tokenizer("a"))
    if unknown := [name for name in made if name not in ENCODING_FIELDS]:
        raise ModelError(
            f"the tokenizer makes the inputs {', '.join(unknown)}, which serving cannot make;"
            f" use a model whose tokenizer makes no others than {', '.join(ENCODING_FIELDS)}"
        )
    return made


def export_onnx(
    model: PreTrainedModel, example: Mapping[str, Tensor], output_names: Sequence[str], opset: int, path: Path
) -> Graph:
    """Write the model as one ONNX file with dynamic batch and sequence axes, and return what the file holds.

    The model is put into evaluation mode. Parity with the model is not checked here (see `ted.export.parity`).

    Args:
        model: a float32 transformers model without anything attached to it.
        example: inputs by name, each of shape (batch, length); their values do not matter.
        output_names: fields of the model's output that become outputs of the graph.
        opset: ONNX operator set; the file is refused if it comes out with another.
        path: file to write.

    Raises:
        ModelError: the model holds more than its architecture (filters, heads of stage I), is not float32 or too
            large, cannot be traced, or the file has another opset, a frozen axis or a foreign weight.
    """
    check_exportable(model)
    return write_graph(Positional(model, tuple(example), output_names), tuple(example.values()), opset, path)


def write_graph(wrapper: Positional, example: tuple[Tensor, ...], opset: int, path: Path) -> Graph:
    """Write a wrapped model as one ONNX file and return what the file holds.

    Args:
        wrapper: names inputs, outputs and the axes whose length varies.
        example: inputs by position; their values do not matter.
        opset: ONNX operator set.
        path: file to write.

    Raises:
        ModelError: as :func:`export_onnx`.
    """
    wrapper.eval()
    with _quiet():
        program = _trace(wrapper, example, opset)
        held = _count_parameters(program.model, wrapper.model)
        program.optimize()
        # The remarks name files of this machine, and shared layers would be stored once per use.
        ClearMetadataAndDocStringPass()(program.model)
        DeduplicateInitializersPass(size_limit=MAX_FILE_BYTES)(program.model)
        program.save(path, external_data=False)
    onnx.checker.check_model(path, full_check=True)
    return _read_back(path, wrapper, example, opset, held)


def check_exportable(model: PreTrainedModel) -> None:
    """Refuse a model that is not exactly the architecture its configuration names, in float32, for one file.

    Raises:
        ModelError: it is not; the message names what is too much.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{type(model).__name__} is not a transformers model; export the trained student by itself")
    with torch.device("meta"):
        plain = {name for name, _ in type(model)(model.config).named_parameters()}
    if attached := sorted({name for name, _ in model.named_parameters()} - plain):
        raise ModelError(
            f"{type(model).__name__} holds parameters that its architecture does not have: {reprlib.repr(attached)};"
            " filters and heads of stage I stay beside the student and are never exported"
        )
    own = sorted({type(module).__name__ for module in model.modules() if type(module).__module__.startswith("ted.")})
    if own:
        raise ModelError(
            f"{type(model).__name__} holds modules of the training: {reprlib.repr(own)}; export the plain student"
        )
    if wrong := sorted({str(value.dtype) for value in model.parameters() if value.dtype != torch.float32}):
        raise ModelError(f"the model has parameters of type {', '.join(wrong)}; load it with dtype=torch.float32")
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > MAX_FILE_BYTES:
        raise ModelError(
            f"the model has {size} bytes; one ONNX file holds at most {MAX_FILE_BYTES}; use a smaller student"
        )


def _trace(wrapper: Positional, example: tuple[Tensor, ...], opset: int) -> torch.onnx.ONNXProgram:
    try:
        program = torch.onnx.export(
            wrapper,
            example,
            dynamo=True,
            verbose=False,
            input_names=wrapper.input_names,
            output_names=wrapper.output_names,
            opset_version=opset,
            dynamic_shapes={"inputs": tuple(wrapper.axes(name) for name in wrapper.input_names)},
            external_data=False,
            # Folded constants are no longer the model's arrays; they are looked at first.
            optimize=False,
        )
    except torch.onnx.OnnxExporterError as error:
        name = type(wrapper.model).__name__
        raise ModelError(
            f"{name} cannot be exported by torch.onnx: {error}; choose another student architecture"
        ) from error
    assert program is not None
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own doings for the debug log; errors pass."""
    levels = {name: logging.getLogger(name).level for name in CHATTY_LOGGERS}
    try:
        for name in CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    for warning in caught:
        logger.debug("%s: %s", warning.category.__name__, warning.message)


def _read_back(path: Path, wrapper: Positional, example: Sequence[Tensor], opset: int, held: int) -> Graph:
    """Compare the file with what was asked for; the exporter can leave another opset or frozen axes without a word."""
    written = onnx.load(path)
    actual_opset = next(entry.version for entry in written.opset_import if entry.domain == "")
    if actual_opset != opset:
        raise ModelError(f"the exporter wrote opset {actual_opset}, not {opset}; set export.opset: {actual_opset}")
    names = tuple(value.name for value in written.graph.input)
    outputs = tuple(value.name for value in written.graph.output)
    if names != wrapper.input_names or outputs != wrapper.output_names:
        raise ModelError(
            f"the graph has inputs {names} and outputs {outputs}, not {wrapper.input_names} and"
            f" {wrapper.output_names}: the model does not use every input that the tokenizer makes"
        )
    for value, tensor in zip(written.graph.input, example, strict=True):
        axes = [wrapper.axes(value.name).get(place, size) for place, size in enumerate(tensor.shape)]
        if (found := _axes(value)) != axes:
            raise ModelError(f"input {value.name} has the axes {found}, not {axes}: the model is bound to one shape")
    total = sum(parameter.numel() for parameter in wrapper.model.parameters())
    return Graph(actual_opset, names, outputs, _dims(written.graph.input), _dims(written.graph.output), total, held)


def _dims(values: Iterable[onnx.ValueInfoProto]) -> dict[str, tuple[int, ...]]:
    return {value.name: tuple(_length(axis) for axis in _axes(value)[1:]) for value in values}


def _length(axis: str | int) -> int:
    return axis if isinstance(axis, int) else -1


def _axes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def _count_parameters(traced: onnx_ir.Model, model: PreTrainedModel) -> int:
    """Return how many parameters of the model a traced graph holds, by content.

    Constant folding, which comes after this, makes new arrays out of those of the graph: weights are transposed,
    merged, added to one. So every floating-point array must be a parameter or a buffer of the model before that.

    Raises:
        ModelError: the graph holds an array that is not the model's.
    """
    LiftConstantsToInitializersPass()(traced)
    RemoveUnusedNodesPass()(traced)
    constants = {name: value.const_value for name, value in traced.graph.initializers.items()}
    arrays = {name: constant.numpy() for name, constant in constants.items() if constant is not None}
    weights = {name: _digest(array) for name, array in arrays.items() if array.dtype.kind == "f" and array.size > 1}
    owned = [*model.named_parameters(), *model.named_buffers()]
    known = {name: _digest(tensor.detach().numpy()) for name, tensor in owned}
    if foreign := [name for name, digest in weights.items() if digest not in known.values()]:
        raise ModelError(f"the exported graph holds arrays that are no weights of the model: {reprlib.repr(foreign)}")
    held = set(weights.values())
    return sum(parameter.numel() for name, parameter in model.named_parameters() if known[name] in held)


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
