"""Heads that read the task off one layer's filtered states in stage I.

Letters in names: B rows, C outputs, L positions, D features, V tokens of the vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Pooling = Literal["mean", "first_token", "last_token"]


class TokenHead(nn.Module):
    """Dropout, Linear: outputs for every position.

    Source: head of a stage-I filter for question answering in the published `modeling_ted_deberta_v2.py`, which has no
    dropout.
    """

    def __init__(self, dim: int, num_outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, num_outputs)

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the outputs (B, L, C) for filtered states; the mask is not read."""
        del mask_BL
        outputs: Tensor = self.out(self.dropout(states_BLD))
        return outputs


class SequenceHead(nn.Module):
    """Pooling, Linear, GELU, dropout, Linear: one vector of outputs per text.

    Source: pooler and classifier of a stage-I filter in the published `modeling_ted_deberta_v2.py`.
    """

    def __init__(self, dim: int, num_outputs: int, *, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.pooling = pooling
        self.dense = nn.Linear(dim, dim)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, num_outputs)

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the outputs (B, C) for filtered states and the attention mask."""
        if self.pooling == "first_token":
            pooled_BD = states_BLD[:, 0]
        elif self.pooling == "last_token":
            # Rows are padded on the right.
            last_B = mask_BL.sum(1).long().clamp(min=1) - 1
            pooled_BD = states_BLD[torch.arange(len(states_BLD), device=states_BLD.device), last_B]
        else:
            weights_BL1 = mask_BL.unsqueeze(-1).to(states_BLD.dtype)
            pooled_BD = (states_BLD * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1)
        outputs: Tensor = self.out(self.dropout(self.activation(self.dense(pooled_BD))))
        return outputs


class OutputEmbedding(nn.Module):
    """A language model's own output embedding, frozen: it shares the model's storage and is in no state dict."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        bias = getattr(layer, "bias", None)
        # A frozen teacher may be kept in bfloat16, its states come in float32; of float32 weights this makes no copy.
        self.register_buffer("weight", layer.get_parameter("weight").detach().float(), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)

    def forward(self, states_BLD: Tensor) -> Tensor:
        """Return the logits (B, L, V) of states."""
        return functional.linear(states_BLD, self.weight, self.bias)


class VocabularyHead(nn.Module):
    """Filtered states through a norm and an output embedding that heads share; of another width, a Linear before both.

    An output embedding was trained on states behind a norm; those of the layers below the last are larger by orders of
    magnitude, and what it makes of them is no distribution that a few updates could mend.
    """

    def __init__(self, dim: int, shared: OutputEmbedding) -> None:
        super().__init__()
        width = shared.weight.shape[1]
        self.widen = nn.Identity() if dim == width else nn.Linear(dim, width)
        self.norm = nn.LayerNorm(width)
        self.shared = shared

    def forward(self, states_BLF: Tensor, mask_BL: Tensor) -> Tensor:
        """Return the logits (B, L, V) of filtered states; the attention mask plays no part."""
        del mask_BL
        logits_BLV: Tensor = self.shared(self.norm(self.widen(states_BLF)))
        return logits_BLV
