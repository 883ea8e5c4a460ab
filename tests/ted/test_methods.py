"""Terms against torch's own losses, and which terms each method has."""

from dataclasses import replace
from typing import Any, Literal, get_args

import pytest
import torch
from torch.nn import functional

from ted.config import MethodName, Settings, parse_settings
from ted.methods import (
    METHODS,
    BatchSoftmaxKL,
    Counts,
    LayerMSE,
    Matched,
    PredictionBCE,
    PredictionKL,
    PredictionMSE,
    build_terms,
)
from ted.settings_rules import LAYER_METHODS, STAGE_ONE_METHODS

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])
ROWS = torch.ones(2)
COUNTS = Counts(torch.tensor(2), labelled=torch.tensor(1), predictions=torch.tensor(2), positions=MASK.sum())


@pytest.fixture
def matched() -> Matched:
    torch.manual_seed(0)
    states = [[torch.randn(2, 3, 4) for _ in range(2)] for _ in range(2)]
    return Matched(torch.randn(2, 3), torch.randn(2, 3), states[0], states[1], MASK, ROWS)


def one_output() -> Matched:
    torch.manual_seed(1)
    return Matched(torch.randn(2, 1), torch.randn(2, 1), [], [], MASK, ROWS)


def test_every_method_of_the_settings_is_made_of_something() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    assert {name for name, method in METHODS.items() if method.uses_layers} == LAYER_METHODS
    assert {name for name, method in METHODS.items() if method.teacher_filters == "learned"} == STAGE_ONE_METHODS
    assert {name for name, method in METHODS.items() if not method.uses_teacher} == {"finetune"}


def test_prediction_kl_counts_every_row(matched: Matched) -> None:
    """Unlabelled rows too: the teacher speaks about all of them."""
    term = PredictionKL(weight=3.0, temperature=2.0)
    expected = 4 * functional.kl_div(
        functional.log_softmax(matched.student_logits / 2, -1),
        functional.softmax(matched.teacher_logits / 2, -1),
        reduction="batchmean",
    )
    torch.testing.assert_close(term(matched, COUNTS), expected)


def test_prediction_bce_counts_every_row(matched: Matched) -> None:
    term = PredictionBCE(weight=3.0, temperature=2.0)
    expected = 4 * functional.binary_cross_entropy_with_logits(
        matched.student_logits / 2, torch.sigmoid(matched.teacher_logits / 2)
    )
    torch.testing.assert_close(term(matched, COUNTS), expected)


def test_prediction_mse_equals_torch() -> None:
    matched = one_output()
    expected = functional.mse_loss(matched.student_logits, matched.teacher_logits)
    torch.testing.assert_close(PredictionMSE(1.0)(matched, COUNTS), expected)


def test_batch_softmax_kl_weighs_micro_batches_by_their_rows() -> None:
    matched = one_output()
    published = 4 * functional.kl_div(
        functional.log_softmax(matched.student_logits[:, 0] / 2, -1),
        functional.softmax(matched.teacher_logits[:, 0] / 2, -1),
        reduction="batchmean",
    )
    term = BatchSoftmaxKL(1.0, 2.0)
    # The published code gives kl_div one-dimensional logits, so that "batchmean" divides by the rows.
    torch.testing.assert_close(term(matched, COUNTS), published)
    halved = Counts(torch.tensor(4), labelled=torch.tensor(0), predictions=torch.tensor(4), positions=MASK.sum())
    torch.testing.assert_close(term(matched, halved), published / 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_layer_loss_joins_the_pairs(reduction: Literal["mean", "sum"], matched: Matched) -> None:
    kept = MASK.bool()
    pairs = zip(matched.student_states, matched.teacher_states, strict=True)
    expected = torch.stack([functional.mse_loss(ours[kept], theirs[kept]) for ours, theirs in pairs])
    torch.testing.assert_close(LayerMSE(1.0, reduction).per_pair(matched, COUNTS), expected)
    joined = expected.mean() if reduction == "mean" else expected.sum()
    torch.testing.assert_close(LayerMSE(1.0, reduction)(matched, COUNTS), joined)


def test_layer_loss_in_variances_does_not_hang_on_the_scale_of_the_states(matched: Matched) -> None:
    large = Matched(
        matched.student_logits,
        matched.teacher_logits,
        [10 * state for state in matched.student_states],
        [10 * state for state in matched.teacher_states],
        MASK,
        ROWS,
    )
    small_units, large_units = torch.tensor([0.5, 2.0]), torch.tensor([50.0, 200.0])
    plain = LayerMSE(1.0, "mean", small_units)(matched, COUNTS)
    torch.testing.assert_close(LayerMSE(1.0, "mean", large_units)(large, COUNTS), plain)
    raw = LayerMSE(1.0, "mean").per_pair(matched, COUNTS)
    torch.testing.assert_close(plain, (raw / small_units).mean())


def test_pairs_must_be_complete(matched: Matched) -> None:
    short = replace(matched, student_states=matched.student_states[:1])
    with pytest.raises(ValueError, match="longer than argument 1"):
        LayerMSE(1.0, "mean")(short, COUNTS)


VARIANCES = torch.tensor([2.0])
REGRESSION = {"task": {"kind": "regression"}}
MULTI_LABEL = {"task": {"kind": "multi_label"}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"method": "finetune"}, ()),
        ({"method": "kd"}, (PredictionKL(5.0, 2.0),)),
        ({"method": "lwd"}, (PredictionKL(5.0, 2.0), LayerMSE(10.0, "mean", VARIANCES))),
        ({"method": "random_filter"}, (PredictionKL(5.0, 2.0), LayerMSE(10.0, "mean", VARIANCES))),
        ({}, (PredictionKL(5.0, 2.0), LayerMSE(10.0, "mean", VARIANCES))),
        ({"distillation": {"kl_alpha": 0}}, (LayerMSE(10.0, "mean", VARIANCES),)),
        ({"distillation": {"mse_alpha": 0}}, (PredictionKL(5.0, 2.0),)),
        ({"distillation": {"layer_loss_units": "raw", "layer_reduction": "sum", "temperature": 1.0}},
         (PredictionKL(5.0, 1.0), LayerMSE(10.0, "sum"))),
        (MULTI_LABEL, (PredictionBCE(5.0, 2.0), LayerMSE(10.0, "mean", VARIANCES))),
        (MULTI_LABEL | {"compatibility": "official"}, (PredictionBCE(5.0, 2.0), LayerMSE(10.0, "mean"))),
        (REGRESSION, (PredictionMSE(1.0), LayerMSE(10.0, "mean", VARIANCES))),
        (REGRESSION | {"distillation": {"batch_softmax_kl": True}},
         (BatchSoftmaxKL(5.0, 2.0), LayerMSE(10.0, "mean", VARIANCES))),
        (REGRESSION | {"compatibility": "official"}, (BatchSoftmaxKL(5.0, 2.0), LayerMSE(10.0, "mean"))),
        ({"compatibility": "official"}, (PredictionKL(5.0, 2.0), LayerMSE(10.0, "mean"))),
    ],
)  # fmt: skip
def test_terms_are_those_of_the_method_and_the_task(values: dict[str, Any], expected: tuple[object, ...]) -> None:
    assert build_terms(parse_settings(values).resolved(), VARIANCES) == expected


def test_the_weights_are_those_of_the_settings() -> None:
    settings = Settings()
    weights = {term.name: term.weight for term in build_terms(settings, VARIANCES)}
    assert weights == {
        "prediction_loss": settings.distillation.kl_alpha,
        "layer_loss": settings.distillation.mse_alpha,
    }
