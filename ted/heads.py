"""Heads that read the task off one layer's filtered states in stage I.

Letters in names: B rows, C outputs, L positions, D features.
"""

from typing import Literal

from torch import Tensor, nn


class SequenceHead(nn.Module):
    """Pooling, Linear, GELU, dropout, Linear: one vector of outputs per text.

    Source: pooler and classifier of a stage-I filter in the published `modeling_ted_deberta_v2.py`.
    """

    def __init__(self, dim: int, num_outputs: int, *, pooling: Literal["mean", "first_token"], dropout: float) -> None:
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
        else:
            weights_BL1 = mask_BL.unsqueeze(-1).to(states_BLD.dtype)
            pooled_BD = (states_BLD * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1)
        outputs: Tensor = self.out(self.dropout(self.activation(self.dense(pooled_BD))))
        return outputs


class TokenHead(nn.Module):
    """Dropout, Linear: a vector of outputs per position."""

    def __init__(self, dim: int, num_outputs: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, num_outputs)

    def forward(self, states_BLD: Tensor, mask_BL: Tensor) -> Tensor:  # noqa: ARG002 - heads are called alike
        """Return the outputs (B, L, C) for filtered states; each position is read alone."""
        outputs: Tensor = self.out(self.dropout(states_BLD))
        return outputs
