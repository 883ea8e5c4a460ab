"""What a frozen model says of each row: computed live on the student's batch, or once and then read from disk.

Letters in names: B rows, C model outputs, L positions, D features, T tokens of all rows, K matched layers.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from ted.data.preparation import Batch
from ted.files import atomic_folder, remove_folder, sha256_file
from ted.run_record import code_digest

LOGITS = "logits.npy"
STATES = "states.npy"
OFFSETS = "offsets.npy"
KEPT_STORES = 2


class ModelOutputs(NamedTuple):
    """Outputs of a model on a batch."""

    logits: Tensor
    """(B, C)"""
    states: list[Tensor]
    """(B, L, D) per asked layer."""


class OutputSource(Protocol):
    """Anything that gives a frozen model's outputs for a batch."""

    def __call__(self, batch: Batch) -> ModelOutputs:
        """Return the outputs for a batch of the collator."""


def run_model(model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> ModelOutputs:
    """Return a model's logits and the states after the given layers; `labels` and `index` of the batch are not read."""
    inputs = {name: tensor for name, tensor in batch.items() if name not in {"labels", "index"}}
    with _precision(model, batch["input_ids"].device):
        outputs = model(**inputs, output_hidden_states=bool(layers), return_dict=True)
    states = [outputs.hidden_states[layer + 1] for layer in layers] if layers else []
    return ModelOutputs(outputs.logits, states)


def _precision(model: PreTrainedModel, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which the model's attention can run: flash attention has no kernels for float32."""
    if model.config._attn_implementation != "flash_attention_2":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device in place."""
    model.to(device)


class FrozenModel:
    """A model that is run without gradients; with `dropout`, as the published stage I does, in training mode."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[int], *, dropout: bool = False) -> None:
        self.model = model.requires_grad_(False).train(dropout)
        self.layers = tuple(layers)

    def __call__(self, batch: Batch) -> ModelOutputs:
        """Return the outputs as plain float32 tensors that later gradients may be computed with."""
        move(self.model, batch["input_ids"].device)
        with torch.inference_mode():
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


def store_bytes(num_rows: int, num_tokens: int, num_outputs: int, num_layers: int, hidden_size: int) -> int:
    """Return the size of kept outputs in bytes: float32 logits per row and states per token and layer."""
    return 4 * (num_rows * num_outputs + num_tokens * num_layers * hidden_size)


class OutputStore:
    """Outputs of a frozen model for rows in order, kept as memory-mapped float32 arrays.

    They are computed in a pass of their own, in an order that depends on the rows alone: whoever computes them again
    gets the same bits, whatever batches the student sees.
    """

    def __init__(self, folder: Path) -> None:
        self.logits_NC = np.load(folder / LOGITS, mmap_mode="r", allow_pickle=False)
        stored = folder / STATES
        self.states_TKD = np.load(stored, mmap_mode="r", allow_pickle=False) if stored.is_file() else None
        self.offsets = np.load(folder / OFFSETS, allow_pickle=False)

    def __call__(self, batch: Batch) -> ModelOutputs:
        """Return the kept outputs of the rows that `index` names; states of padded positions are 0."""
        device = batch["input_ids"].device
        rows = batch["index"].tolist()
        logits_BC = torch.from_numpy(np.array(self.logits_NC[rows])).to(device)
        if self.states_TKD is None:
            return ModelOutputs(logits_BC, [])
        num_layers, width = self.states_TKD.shape[1:]
        states_KBLD = torch.zeros(num_layers, *batch["input_ids"].shape, width)
        for place, row in enumerate(rows):
            start, end = self.offsets[row], self.offsets[row + 1]
            row_TKD = torch.from_numpy(np.array(self.states_TKD[start:end]))
            states_KBLD[:, place, : end - start] = row_TKD.transpose(0, 1)
        return ModelOutputs(logits_BC, list(states_KBLD.to(device)))


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
    logits_NC = np.zeros((len(offsets) - 1, source.model.config.num_labels or 1), dtype=np.float32)
    shape = (int(offsets[-1]), len(source.layers), source.model.config.hidden_size)
    states_TKD = None
    if source.layers:
        states_TKD = np.lib.format.open_memmap(folder / STATES, mode="w+", dtype=np.float32, shape=shape)
    for batch in batches:
        outputs = source(batch)
        rows = batch["index"].tolist()
        logits_NC[rows] = outputs.logits.float().cpu().numpy()
        if states_TKD is not None:
            stacked_BLKD = torch.stack(outputs.states, dim=2).float().cpu().numpy()
            for place, row in enumerate(rows):
                start, end = offsets[row], offsets[row + 1]
                states_TKD[start:end] = stacked_BLKD[place, : end - start]
    if states_TKD is not None:
        states_TKD.flush()
    np.save(folder / LOGITS, logits_NC, allow_pickle=False)


def _remove_old_stores(folder: Path) -> None:
    stores = [item for item in folder.parent.iterdir() if (item / OFFSETS).is_file()]
    for old in sorted(stores, key=lambda item: item.stat().st_mtime, reverse=True)[KEPT_STORES:]:
        remove_folder(old)
