from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional

from ted.errors import ModelError
from ted.filters import FilterKind, RidgeStatistics, TaskAwareFilters, initialise


def hidden_states(num_layers: int = 4, width: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 5, width, generator=generator) for _ in range(num_layers + 1)]


def test_filter_k_reads_the_state_after_its_layer() -> None:
    states = hidden_states()
    filters = TaskAwareFilters([1, 3], 6, 6, "identity")
    filtered = filters(states)
    assert torch.equal(filtered[0], states[2])
    assert torch.equal(filtered[1], states[4])


def test_a_linear_filter_is_one_affine_map() -> None:
    states, filters = hidden_states(), TaskAwareFilters([0], 6, 9, "linear")
    weight, bias = (filters.state_dict()[f"filters.0.{name}"] for name in ("weight", "bias"))
    torch.testing.assert_close(filters(states)[0], states[1] @ weight.T + bias)


def test_a_nonlinear_filter_is_linear_gelu_linear() -> None:
    states, filters = hidden_states(), TaskAwareFilters([0], 6, 9, "nonlinear")
    weights = filters.state_dict()
    inner = functional.gelu(states[1] @ weights["filters.0.0.weight"].T + weights["filters.0.0.bias"])
    outer = inner @ weights["filters.0.2.weight"].T + weights["filters.0.2.bias"]
    torch.testing.assert_close(filters(states)[0], outer)


def test_identity_cannot_change_the_width() -> None:
    with pytest.raises(ModelError, match="identity filter keeps the width, 6; it cannot give 9"):
        TaskAwareFilters([0], 6, 9, "identity")


def test_states_must_be_as_many_as_filters() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        TaskAwareFilters([0, 1], 6, 6, "linear").filter_states(hidden_states()[:1])


def test_initial_weights_have_the_published_distribution_and_depend_on_the_seed_alone() -> None:
    filters = TaskAwareFilters([0, 1], 100, 100, "nonlinear").initialise(0.02, torch.Generator().manual_seed(3))
    again = TaskAwareFilters([0, 1], 100, 100, "nonlinear").initialise(0.02, torch.Generator().manual_seed(3))
    for name, value in filters.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if name.endswith("bias"):
            assert value.abs().sum() == 0
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.05)
            assert value.mean().item() == pytest.approx(0.0, abs=1e-3)


def test_initialise_reaches_nested_linear_layers_only() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 4)))
    initialise(module, 0.02, torch.Generator().manual_seed(0))
    weights = module.state_dict()
    assert weights["2.0.bias"].abs().sum() == 0
    assert weights["2.0.weight"].abs().max() < 0.2
    assert torch.equal(weights["1.weight"], torch.ones(4))


@pytest.mark.parametrize("kind", ["identity", "linear", "nonlinear"])
def test_saved_filters_come_back(kind: FilterKind, tmp_path: Path) -> None:
    filters = TaskAwareFilters([1, 3], 6, 6, kind)
    filters.save(tmp_path / "filters")
    loaded = TaskAwareFilters.load(tmp_path / "filters")
    assert (loaded.layers, loaded.kind, loaded.input_dim, loaded.output_dim) == ((1, 3), kind, 6, 6)
    for ours, theirs in zip(filters(hidden_states()), loaded(hidden_states()), strict=True):
        assert torch.equal(ours, theirs)
    assert set(load_file(tmp_path / "filters" / "filters.safetensors")) == set(filters.state_dict())


def test_a_folder_without_filters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no filters.json; give a folder that learn_filters has written"):
        TaskAwareFilters.load(tmp_path)


class TestRidge:
    """The running sums against scikit-learn on the concatenated rows."""

    PENALTY = 0.05

    @pytest.fixture
    def batches(self) -> list[tuple[list[Tensor], list[Tensor], Tensor]]:
        torch.manual_seed(0)
        maps = [torch.randn(5, 3) for _ in range(2)]
        made = []
        for rows, length in ((3, 7), (2, 4), (5, 2)):
            states = [torch.randn(rows, length, 5) * torch.arange(1, 6) + 3 for _ in range(2)]
            targets = [
                state @ weight + 2 + torch.randn(rows, length, 3) for state, weight in zip(states, maps, strict=True)
            ]
            mask = (torch.rand(rows, length) > 0.3).long()
            mask[:, 0] = 1
            for tensor in (*states, *targets):
                tensor[mask == 0] = float("nan")
            made.append((states, targets, mask))
        return made

    def statistics(self, batches: list[tuple[list[Tensor], list[Tensor], Tensor]]) -> RidgeStatistics:
        statistics = RidgeStatistics(2, 5, 3)
        for states, targets, mask in batches:
            statistics.add(states, targets, mask)
        return statistics

    def rows(
        self, batches: list[tuple[list[Tensor], list[Tensor], Tensor]], pair: int
    ) -> tuple[np.ndarray, np.ndarray]:
        inputs = torch.cat([states[pair][mask.bool()] for states, _, mask in batches])
        outputs = torch.cat([targets[pair][mask.bool()] for _, targets, mask in batches])
        return inputs.double().numpy(), outputs.double().numpy()

    def test_solution_equals_scikit_learn(self, batches: list[tuple[list[Tensor], list[Tensor], Tensor]]) -> None:
        weights, biases = self.statistics(batches).solve(self.PENALTY)
        for pair in range(2):
            inputs, outputs = self.rows(batches, pair)
            alpha = self.PENALTY * inputs.var(0).mean() * len(inputs)
            expected = Ridge(alpha=alpha).fit(inputs, outputs)
            np.testing.assert_allclose(weights[pair].numpy(), expected.coef_, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(biases[pair].numpy(), expected.intercept_, rtol=1e-4, atol=1e-5)

    def test_variances_equal_numpy(self, batches: list[tuple[list[Tensor], list[Tensor], Tensor]]) -> None:
        variances = self.statistics(batches).target_variances()
        for pair in range(2):
            assert variances[pair].item() == pytest.approx(self.rows(batches, pair)[1].var(0).mean(), rel=1e-6)

    def test_targets_that_hardly_vary_are_flat(self, batches: list[tuple[list[Tensor], list[Tensor], Tensor]]) -> None:
        assert self.statistics(batches).flat_targets() == []
        flat = [(states, [targets[0], targets[1] + 1e5], mask) for states, targets, mask in batches]
        assert self.statistics(flat).flat_targets() == [1]

    def test_the_order_of_batches_does_not_matter(
        self, batches: list[tuple[list[Tensor], list[Tensor], Tensor]]
    ) -> None:
        forward, backward = self.statistics(batches), self.statistics(batches[::-1])
        torch.testing.assert_close(forward.solve(1e-3)[0], backward.solve(1e-3)[0], rtol=1e-6, atol=1e-7)

    def test_aligned_filters_predict_the_targets(
        self, batches: list[tuple[list[Tensor], list[Tensor], Tensor]]
    ) -> None:
        filters = TaskAwareFilters([0, 1], 5, 3, "linear")
        self.statistics(batches).align(filters, 1e-9)
        for states, targets, mask in batches:
            for ours, target in zip(filters.filter_states(states), targets, strict=True):
                difference = (ours - target)[mask.bool()]
                assert difference.var().item() < 2.0  # the noise has variance 1

    @pytest.mark.parametrize("kind", ["identity", "nonlinear"])
    def test_only_linear_filters_can_be_aligned(
        self, kind: FilterKind, batches: list[tuple[list[Tensor], list[Tensor], Tensor]]
    ) -> None:
        with pytest.raises(ModelError, match=f"aligns linear filters, not {kind} ones; set"):
            self.statistics(batches).align(TaskAwareFilters([0, 1], 5, 5, kind), 1e-3)
