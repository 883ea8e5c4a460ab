"""Task-aware filters: modules beside the model that map each matched layer's states to what the task needs.

Letters in names: B rows, L positions, D features of a model's states, F features of filtered states.
Source: section 3 of arXiv 2210.01351 as restated, and `modeling_ted_deberta_v2.py` of the published code.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ted.errors import ModelError
from ted.files import read_json, write_json

FilterKind = Literal["identity", "linear", "nonlinear"]

WEIGHTS = "filters.safetensors"
CONFIG = "filters.json"
FLAT_SHARE = 1e-3
"""Share of the mean square of a target below which its variance is small for a unit of errors."""


class TaskAwareFilters(nn.Module):
    """One filter per matched layer of a model.

    Attributes:
        layers: 0-based layer indices; filter k reads `hidden_states[layers[k] + 1]`.
    """

    def __init__(self, layers: Sequence[int], input_dim: int, output_dim: int, kind: FilterKind) -> None:
        super().__init__()
        if kind == "identity" and input_dim != output_dim:
            raise ModelError(f"an identity filter keeps the width, {input_dim}; it cannot give {output_dim}")
        self.layers = tuple(layers)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.kind = kind
        self.filters = nn.ModuleList(_new_filter(input_dim, output_dim, kind) for _ in self.layers)

    def forward(self, hidden_states: Sequence[Tensor]) -> list[Tensor]:
        """Return the filtered states (B, L, F), a tensor per matched layer, of a model's hidden states."""
        return self.filter_states([hidden_states[layer + 1] for layer in self.layers])

    def filter_states(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Return the filtered states (B, L, F) of the matched layers' states (B, L, D)."""
        return [module(state_BLD) for module, state_BLD in zip(self.filters, states, strict=True)]

    def initialise(self, std: float, generator: torch.Generator) -> Self:
        """Draw all weights from N(0, std^2) and set all biases to 0, as the published code does; return self."""
        initialise(self, std, generator)
        return self

    def save(self, folder: Path) -> None:
        """Write weights and shape into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        shape = {"kind": self.kind, "layers": list(self.layers)}
        write_json(folder / CONFIG, {**shape, "input_dim": self.input_dim, "output_dim": self.output_dim})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the filters that :meth:`save` wrote.

        Raises:
            ModelError: the folder holds no filters.
        """
        if not (folder / CONFIG).is_file():
            raise ModelError(f"{folder} holds no {CONFIG}; give a folder that learn_filters has written")
        filters = cls(**read_json(folder / CONFIG))
        filters.load_state_dict(load_file(folder / WEIGHTS))
        return filters


def initialise(module: nn.Module, std: float, generator: torch.Generator) -> None:
    """Draw the weights of all linear layers from N(0, std^2) and set their biases to 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std, generator=generator)
            nn.init.zeros_(layer.bias)


def _new_filter(input_dim: int, output_dim: int, kind: FilterKind) -> nn.Module:
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(input_dim, output_dim)
    return nn.Sequential(nn.Linear(input_dim, input_dim), nn.GELU(), nn.Linear(input_dim, output_dim))


class RidgeStatistics:
    """Running sums from which each student filter is aligned with its teacher filter by ridge regression.

    The affine map that predicts the teacher's filtered states F from the student's states D with least squared error,
    penalised by `penalty` times the mean variance of D. Sums are in float64, so that the order of batches hardly
    matters.
    """

    def __init__(self, num_layers: int, input_dim: int, output_dim: int) -> None:
        width = input_dim + 1
        self.gram = torch.zeros(num_layers, width, width, dtype=torch.float64)
        self.cross = torch.zeros(num_layers, width, output_dim, dtype=torch.float64)
        self.target_squares = torch.zeros(num_layers, output_dim, dtype=torch.float64)

    @torch.no_grad()
    def add(self, states: Sequence[Tensor], targets: Sequence[Tensor], mask_BL: Tensor) -> None:
        """Add one batch: student states (B, L, D) and filtered teacher states (B, L, F) per pair, padding left out."""
        kept_BL = mask_BL.bool()
        for layer, (state_BLD, target_BLF) in enumerate(zip(states, targets, strict=True)):
            inputs = state_BLD[kept_BL].double().cpu()
            inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
            outputs = target_BLF[kept_BL].double().cpu()
            self.gram[layer] += inputs.T @ inputs
            self.cross[layer] += inputs.T @ outputs
            self.target_squares[layer] += (outputs**2).sum(0)

    def target_variances(self) -> Tensor:
        """Return the mean variance over features of each pair's target."""
        count = self.gram[:, -1, -1]
        means = self.cross[:, -1] / count[:, None]
        return (self.target_squares / count[:, None] - means**2).mean(1)

    def flat_targets(self) -> list[int]:
        """Return the places of the pairs whose target is nearly the same for all tokens."""
        squares = (self.target_squares / self.gram[:, -1, -1:]).mean(1)
        return torch.nonzero(self.target_variances() <= FLAT_SHARE * squares).flatten().tolist()

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Return the weights (pair, F, D) and biases (pair, F) of the aligned affine maps."""
        count = self.gram[:, -1, -1]
        means = self.gram[:, -1, :-1] / count[:, None]
        diagonal = self.gram.diagonal(dim1=1, dim2=2)[:, :-1]
        variances = (diagonal / count[:, None] - means**2).mean(1)
        penalised = self.gram.clone()
        penalised.diagonal(dim1=1, dim2=2)[:, :-1] += (penalty * variances * count)[:, None]
        solution = torch.linalg.solve(penalised, self.cross)
        return solution[:, :-1].transpose(1, 2).float(), solution[:, -1].float()

    def align(self, filters: TaskAwareFilters, penalty: float) -> None:
        """Set linear student filters to the ridge solution.

        Raises:
            ModelError: the filters are not linear.
        """
        if filters.kind != "linear":
            raise ModelError(
                f"ridge regression aligns linear filters, not {filters.kind} ones; "
                "set distillation.student_filter_init to stage_one or filters.filter_nonlinear to false"
            )
        weights, biases = self.solve(penalty)
        for module, weight, bias in zip(filters.filters, weights, biases, strict=True):
            module.load_state_dict({"weight": weight, "bias": bias})
