import pytest
import torch
from torch.nn import functional

from ted.heads import SequenceHead, TokenHead


@pytest.fixture
def states() -> torch.Tensor:
    return torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def test_outputs_are_pooling_linear_gelu_linear(states: torch.Tensor) -> None:
    head = SequenceHead(6, 3, pooling="first_token", dropout=0.5).eval()
    pooled = states[:, 0]
    expected = head.out(functional.gelu(head.dense(pooled)))
    torch.testing.assert_close(head(states, MASK), expected)


def test_mean_pooling_reads_real_positions_only(states: torch.Tensor) -> None:
    head = SequenceHead(6, 3, pooling="mean", dropout=0.0).eval()
    short = head(states[1:, :2], MASK[1:, :2])
    torch.testing.assert_close(head(states, MASK)[1:], short)


def test_last_token_pooling_reads_the_last_real_position(states: torch.Tensor) -> None:
    head = SequenceHead(6, 3, pooling="last_token", dropout=0.0).eval()
    pooled = torch.stack([states[0, 3], states[1, 1]])
    torch.testing.assert_close(head(states, MASK), head.out(functional.gelu(head.dense(pooled))))
    assert torch.isfinite(head(states, torch.zeros(2, 4))).all()


def test_mean_pooling_of_no_position_is_finite(states: torch.Tensor) -> None:
    head = SequenceHead(6, 3, pooling="mean", dropout=0.0)
    assert torch.isfinite(head(states, torch.zeros(2, 4))).all()


def test_dropout_acts_in_training_only(states: torch.Tensor) -> None:
    head = SequenceHead(6, 3, pooling="mean", dropout=0.5)
    assert not torch.equal(head(states, MASK), head(states, MASK))
    head.eval()
    assert torch.equal(head(states, MASK), head(states, MASK))


def test_a_token_head_maps_each_position_by_itself(states: torch.Tensor) -> None:
    head = TokenHead(6, 3, dropout=0.0)
    expected = functional.linear(states, head.out.weight, head.out.bias)
    torch.testing.assert_close(head(states, MASK), expected)


def test_dropout_of_a_token_head_acts_in_training_only(states: torch.Tensor) -> None:
    head = TokenHead(6, 3, dropout=0.5)
    assert not torch.equal(head(states, MASK), head(states, MASK))
    head.eval()
    assert torch.equal(head(states, MASK), head(states, MASK))
