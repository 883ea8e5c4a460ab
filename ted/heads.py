"""Heads that read the task off one layer's filtered states in stage I.

Letters in names: B rows, C outputs, L positions, D features.
"""

from typing import Literal

import torch
from torch import Tensor, nn

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
