"""What a frozen model says of each row: computed live on the student's batch, or once and then read from disk.

Letters in names: B rows, C model outputs, L positions, D features, T tokens of all rows, K matched layers.
"""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from ted.data.preparation import Batch
from ted.files import atomic_folder, remove_folder, sha256_file
from ted.run_record import code_digest

LOGITS = "logits.npy"
TOKEN_LOGITS = "token_logits.npy"  # noqa: S105 - of tokens in a text
STATES = "states.npy"
OFFSETS = "offsets.npy"
KEPT_STORES = 2
TOKENIZER_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class ModelOutputs(NamedTuple):
    """Outputs of a model on a batch."""

    logits: Tensor
    """(B, C), or (B, L, C) of a task that answers per position."""
    states: list[Tensor]
    """(B, L, D) per asked layer."""


class OutputSource(Protocol):
    """Anything that gives a frozen model's outputs for a batch."""

    def __call__(self, batch: Batch) -> ModelOutputs:
        """Return the outputs for a batch of the collator."""


def run_model(model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> ModelOutputs:
    """Return a model's logits and the states after the given layers.

    Of the batch it reads what a tokenizer makes and its class takes: the other model of a pair may read more.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name in model_inputs(model)}
    with _precision(model, batch["input_ids"].device):
        outputs = model(**inputs, output_hidden_states=bool(layers), return_dict=True)
    states = [outputs.hidden_states[layer + 1] for layer in layers] if layers else []
    return ModelOutputs(logits_of(outputs), states)


def model_inputs(model: PreTrainedModel) -> frozenset[str]:
    """Return the inputs of a tokenizer that a model's class takes."""
    return TOKENIZER_INPUTS & inspect.signature(model.forward).parameters.keys()


def logits_of(outputs: Mapping[str, Any]) -> Tensor:
    """Return a model's logits; those of the start and the end of an answer as the last axis of one tensor (B, L, 2)."""
    if "logits" in outputs:
        logits: Tensor = outputs["logits"]
        return logits
    return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)


def _precision(model: PreTrainedModel, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which the model's attention can run: flash attention has no kernels for float32."""
    if model.config._attn_implementation != "flash_attention_2":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device in place."""
    model.to(device)


class FrozenModel:
    """A model that is run without gradients; with `dropout`, as the published stage I does, in training mode.

    It computes in the precision of its weights, whatever that of the training around it: a teacher that is run on each
    batch says the same as one whose outputs are kept.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[int], *, dropout: bool = False) -> None:
        self.model = model.requires_grad_(False).train(dropout)
        self.layers = tuple(layers)

    def __call__(self, batch: Batch) -> ModelOutputs:
        """Return the outputs as plain float32 tensors that later gradients may be computed with."""
        device = batch["input_ids"].device
        move(self.model, device)
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            outputs = run_model(self.model, batch, self.layers)
        logits_BC, *states = (output.to(torch.float32, copy=True) for output in (outputs.logits, *outputs.states))
        return ModelOutputs(logits_BC, states)

    @property
    def arithmetic(self) -> str:
        """What the model computes in, which its outputs depend on to the last bit."""
        return f"{self.model.dtype} {self.model.config._attn_implementation}"


def store_key(rows: Dataset, model_folder: Path, layers: Sequence[int], arithmetic: str) -> str:
    """Return a digest of all that the outputs depend on: token ids, weights, configuration, layers, code, versions.

    `arithmetic` is what the model computes in.

    Filters are applied to what is read, so their weights need not enter.
    """
    digest = hashlib.sha256(json.dumps([*layers, arithmetic, code_digest()]).encode())
    for name in ("model.safetensors", "config.json"):
        digest.update(sha256_file(model_folder / name).encode())
    for name in ("input_ids", "token_type_ids"):
        if name in rows.column_names:
            for chunk in rows.with_format("arrow")[name].chunks:
                digest.update(np.asarray(chunk.offsets).tobytes())
                digest.update(np.asarray(chunk.values).tobytes())
    return digest.hexdigest()[:24]


def store_bytes(num_logits: int, num_tokens: int, num_layers: int, hidden_size: int) -> int:
    """Return the size of kept outputs in bytes: float32 logits, and states per token and layer."""
    return 4 * (num_logits + num_tokens * num_layers * hidden_size)


class OutputStore:
    """Outputs of a frozen model for features in order, kept as memory-mapped float32 arrays.

    They are computed in a pass of their own, in an order that depends on the features alone: whoever computes them
    again gets the same bits, whatever batches the student sees.
    """

    def __init__(self, folder: Path) -> None:
        self.logits = _open(folder / LOGITS)
        self.token_logits = _open(folder / TOKEN_LOGITS)
        self.states_TKD = _open(folder / STATES)
        self.offsets = np.load(folder / OFFSETS, allow_pickle=False)

    def __call__(self, batch: Batch) -> ModelOutputs:
        """Return the kept outputs of the features that `index` names; at padded positions they are 0."""
        device, length = batch["input_ids"].device, batch["input_ids"].shape[1]
        rows = batch["index"].tolist()
        if self.logits is not None:
            logits = torch.from_numpy(np.array(self.logits[rows]))
        else:
            assert self.token_logits is not None
            logits = self._padded(self.token_logits, rows, length)
        states: list[Tensor] = []
        if self.states_TKD is not None:
            states = list(self._padded(self.states_TKD, rows, length).permute(2, 0, 1, 3).contiguous().to(device))
        return ModelOutputs(logits.to(device), states)

    def _padded(self, stored_T: np.ndarray, rows: list[int], length: int) -> Tensor:
        """Return what is stored per token as (B, L, ...)."""
        padded = torch.zeros(len(rows), length, *stored_T.shape[1:])
        for place, row in enumerate(rows):
            start, end = self.offsets[row], self.offsets[row + 1]
            padded[place, : end - start] = torch.from_numpy(np.array(stored_T[start:end]))
        return padded


def _open(path: Path) -> np.ndarray | None:
    return np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else None


def keep_outputs(source: FrozenModel, rows: Dataset, batches: Iterable[Batch], folder: Path) -> OutputStore:
    """Return the kept outputs of all rows, computing them unless the folder already holds them.

    Args:
        source: the frozen model.
        rows: tokenised rows; `index` is the row's place.
        batches: every row once, in any order.
        folder: where the outputs are kept; named after :func:`store_key`. Older neighbours are removed.
    """
    if not folder.is_dir():
        offsets = np.concatenate([[0], np.cumsum(np.asarray(rows["length"], dtype=np.int64))])
        with atomic_folder(folder) as temporary:
            _compute(source, batches, offsets, temporary)
        _remove_old_stores(folder)
    # The time of a store is that of its last use.
    folder.touch()
    return OutputStore(folder)


def _compute(source: FrozenModel, batches: Iterable[Batch], offsets: np.ndarray, folder: Path) -> None:
    np.save(folder / OFFSETS, offsets, allow_pickle=False)
    logits = states_TKD = None
    for batch in batches:
        outputs = source(batch)
        rows = batch["index"].tolist()
        per_token = outputs.logits.dim() > 2  # noqa: PLR2004 - rows, positions, outputs
        if logits is None:
            name, count = (TOKEN_LOGITS, int(offsets[-1])) if per_token else (LOGITS, len(offsets) - 1)
            logits = _new(folder / name, (count, outputs.logits.shape[-1]))
        if per_token:
            _scatter(logits, outputs.logits, rows, offsets)
        else:
            logits[rows] = outputs.logits.float().cpu().numpy()
        if outputs.states:
            stacked_BLKD = torch.stack(outputs.states, dim=2)
            if states_TKD is None:
                states_TKD = _new(folder / STATES, (int(offsets[-1]), *stacked_BLKD.shape[2:]))
            _scatter(states_TKD, stacked_BLKD, rows, offsets)
    for array in (logits, states_TKD):
        if array is not None:
            array.flush()


def _new(path: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)


def _scatter(stored_T: np.ndarray, values_BL: Tensor, rows: list[int], offsets: np.ndarray) -> None:
    """Store the values (B, L, ...) of real tokens."""
    values = values_BL.float().cpu().numpy()
    for place, row in enumerate(rows):
        start, end = offsets[row], offsets[row + 1]
        stored_T[start:end] = values[place, : end - start]


def _remove_old_stores(folder: Path) -> None:
    stores = [item for item in folder.parent.iterdir() if (item / OFFSETS).is_file()]
    for old in sorted(stores, key=lambda item: item.stat().st_mtime, reverse=True)[KEPT_STORES:]:
        remove_folder(old)
