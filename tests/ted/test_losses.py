"""Each loss against torch's own or an independent formula; masks, padding, accumulation, gradients."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ted import losses


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_masked_sum_divides_what_counts_by_the_given_number() -> None:
    values = torch.tensor([1.0, 2.0, float("nan"), 4.0])
    mask = torch.tensor([1, 1, 0, 1])
    assert losses.masked_sum(values, mask, torch.tensor(3)).item() == pytest.approx(7 / 3)
    assert losses.masked_sum(values, mask, torch.tensor(6)).item() == pytest.approx(7 / 6)


def test_masked_sum_of_nothing_is_zero() -> None:
    values = torch.full((3,), float("nan"))
    assert losses.masked_sum(values, torch.zeros(3), torch.tensor(0)).item() == 0.0


def test_cross_entropy_equals_torch() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, -100, 1, -100])
    ours = losses.cross_entropy(logits, labels, labels != -100, num_items=torch.tensor(4))
    torch.testing.assert_close(ours, functional.cross_entropy(logits, labels, ignore_index=-100))


def test_binary_cross_entropy_equals_torch() -> None:
    logits, targets = torch.randn(5, 3), torch.randint(0, 2, (5, 3))
    targets[[1, 3]] = -100
    known = targets[:, 0] >= 0
    ours = losses.binary_cross_entropy(logits, targets, known, num_items=torch.tensor(3))
    expected = functional.binary_cross_entropy_with_logits(logits[known], targets[known].float())
    torch.testing.assert_close(ours, expected)


def test_squared_error_equals_torch() -> None:
    predictions, targets = torch.randn(5), torch.tensor([0.5, float("nan"), -1.0, 2.0, float("nan")])
    known = ~torch.isnan(targets)
    ours = losses.squared_error(predictions, targets, known, num_items=torch.tensor(3))
    torch.testing.assert_close(ours, functional.mse_loss(predictions[known], targets[known]))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_prediction_kl_equals_the_sum_over_classes(temperature: float) -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    p = np.exp(teacher.double().numpy() / temperature)
    q = np.exp(student.double().numpy() / temperature)
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    expected = temperature**2 * (p * np.log(p / q)).sum(1).mean()
    ours = losses.prediction_kl(student, teacher, torch.ones(4), temperature=temperature, num_items=torch.tensor(4))
    assert ours.item() == pytest.approx(expected, rel=1e-5)


def test_prediction_kl_has_the_teacher_as_reference() -> None:
    """KL is not symmetric: a student that is certain of the wrong class pays more than one that is unsure."""
    teacher, certain, unsure = torch.tensor([[4.0, 0.0]]), torch.tensor([[-9.0, 9.0]]), torch.zeros(1, 2)
    one = torch.ones(1)

    def divergence(student: Tensor) -> float:
        return losses.prediction_kl(student, teacher, one, temperature=1.0, num_items=torch.tensor(1)).item()

    assert divergence(certain) > 10 * divergence(unsure) > 0
    assert divergence(teacher) == 0.0


def test_prediction_kl_survives_extreme_logits() -> None:
    student, teacher = torch.tensor([[1e4, -1e4]], requires_grad=True), torch.tensor([[-1e4, 1e4]])
    loss = losses.prediction_kl(student, teacher, torch.ones(1), temperature=1.0, num_items=torch.tensor(1))
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_prediction_bce_equals_torch_on_softened_probabilities(temperature: float) -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    expected = temperature**2 * functional.binary_cross_entropy_with_logits(
        student / temperature, torch.sigmoid(teacher / temperature)
    )
    ours = losses.prediction_bce(student, teacher, torch.ones(4), temperature=temperature, num_items=torch.tensor(4))
    torch.testing.assert_close(ours, expected)


def test_prediction_bce_draws_the_student_to_the_teacher_with_a_force_that_outlasts_the_temperature() -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    one, four = torch.ones(4), torch.tensor(4)

    def gradient(leaf: Tensor, temperature: float) -> Tensor:
        loss = losses.prediction_bce(leaf, teacher, one, temperature=temperature, num_items=four)
        return torch.autograd.grad(loss, leaf)[0]

    assert gradient(teacher.clone().requires_grad_(), 2.0).abs().max() < 1e-7
    torch.testing.assert_close(gradient(student, 1e3), (student - teacher) / 4 / 12, rtol=1e-2, atol=1e-4)


def test_batch_softmax_kl_equals_the_published_arithmetic() -> None:
    """The published code: kl_div(log_softmax(s / T, -1), softmax(t / T, -1), reduction="batchmean") * T^2 on (B,)."""
    student, teacher = torch.randn(16), torch.randn(16)
    published = 4 * functional.kl_div(
        functional.log_softmax(student / 2, dim=-1), functional.softmax(teacher / 2, dim=-1), reduction="batchmean"
    )
    torch.testing.assert_close(losses.batch_softmax_kl(student, teacher, temperature=2.0), published)


def test_layer_mse_equals_torch_on_the_real_positions() -> None:
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    ours = losses.layer_mse(student, teacher, mask, num_items=mask.sum())
    kept = mask.bool()
    torch.testing.assert_close(ours, functional.mse_loss(student[kept], teacher[kept]))


def test_layer_mse_with_a_mask_of_ones_is_the_published_mean() -> None:
    student, teacher = torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    mask = torch.ones(3, 5)
    ours = losses.layer_mse(student, teacher, mask, num_items=mask.sum())
    torch.testing.assert_close(ours, functional.mse_loss(student, teacher))


def test_layer_mse_is_the_same_padded_and_unpadded() -> None:
    student, teacher, mask = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.tensor([[1, 1, 1], [1, 1, 0]])
    plain = losses.layer_mse(student, teacher, mask, num_items=mask.sum())
    wide = [functional.pad(states, (0, 0, 0, 4), value=7.0) for states in (student, -teacher)]
    padded = losses.layer_mse(wide[0], -wide[1], functional.pad(mask, (0, 4)), num_items=mask.sum())
    torch.testing.assert_close(padded, plain)


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
MASKED: dict[str, Loss] = {
    "squared_error": lambda s, t, m, n: losses.squared_error(s[:, 0, 0], t[:, 0, 0], m[:, 0], num_items=n),
    "prediction_kl": lambda s, t, m, n: losses.prediction_kl(s[:, 0], t[:, 0], m[:, 0], temperature=2.0, num_items=n),
    "prediction_bce": lambda s, t, m, n: losses.prediction_bce(s[:, 0], t[:, 0], m[:, 0], temperature=2.0, num_items=n),
    "binary_cross_entropy": lambda s, t, m, n: losses.binary_cross_entropy(
        s[:, 0], (t[:, 0] > 0).float(), m[:, 0], num_items=n
    ),
    "layer_mse": lambda s, t, m, n: losses.layer_mse(s, t, m, num_items=n),
    "cross_entropy": lambda s, _, m, n: losses.cross_entropy(
        s[:, 0], torch.zeros(len(s), dtype=torch.int64), m[:, 0], num_items=n
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_what_is_masked_may_be_nan_in_either_input_and_gets_no_gradient(name: str) -> None:
    student, teacher, mask = torch.randn(4, 3, 2), torch.randn(4, 3, 2), torch.ones(4, 3)
    mask[1] = 0
    clean = MASKED[name](student, teacher, mask, torch.tensor(3))
    student[1], teacher[1] = float("nan"), float("nan")
    student.requires_grad_()
    loss = MASKED[name](student, teacher, mask, torch.tensor(3))
    torch.testing.assert_close(loss, clean)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(gradient).all()
    assert gradient[1].abs().sum() == 0
    assert gradient[0].abs().sum() > 0


@pytest.mark.parametrize("name", MASKED)
def test_parts_of_a_batch_add_up_to_its_loss_and_gradient(name: str) -> None:
    student, teacher = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
    num_items = mask.sum() if name == "layer_mse" else torch.tensor(4)
    gradients, values = [], []
    for cuts in ([slice(0, 4)], [slice(0, 1), slice(1, 4)]):
        leaf = student.clone().requires_grad_()
        parts = [MASKED[name](leaf[cut], teacher[cut], mask[cut], num_items) for cut in cuts]
        values.append(torch.stack(parts).sum())
        gradients.append(torch.autograd.grad(values[-1], leaf)[0])
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", MASKED)
def test_gradients_equal_finite_differences(name: str) -> None:
    student, teacher = torch.randn(2, 3, 2, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64)
    mask, num_items = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor(2)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda leaf: MASKED[name](leaf, teacher, mask, num_items), (student,))


@pytest.mark.parametrize("name", ["cross_entropy", "prediction_kl"])
def test_a_vocabulary_of_logits_is_taken_in_chunks_that_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher = torch.randn(7, 1, 50, requires_grad=True), torch.randn(7, 1, 50)
    mask = torch.tensor([[1], [1], [0], [1], [1], [0], [1]])
    results = []
    for numbers in (1, 100, 10_000):
        monkeypatch.setattr(losses, "CHUNK_NUMBERS", numbers)
        loss = MASKED[name](student, teacher, mask, torch.tensor(5))
        results.append((loss, torch.autograd.grad(loss, student)[0]))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_chunks_keep_no_probabilities_for_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the passes nothing of the size of all logits is held but what was given."""
    student, teacher = torch.randn(64, 100, requires_grad=True), torch.randn(64, 100)
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(0 if tensor.untyped_storage().data_ptr() in given else tensor.numel())
        return tensor

    given = {tensor.untyped_storage().data_ptr() for tensor in (student, teacher)}
    sizes = {}
    for numbers in (400, 10_000):
        monkeypatch.setattr(losses, "CHUNK_NUMBERS", numbers)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            losses.prediction_kl(student, teacher, torch.ones(64), temperature=2.0, num_items=torch.tensor(64))
        sizes[numbers] = sum(saved)
    assert sizes[400] < 1000
    assert sizes[10_000] > student.numel()


def test_further_dimensions_count_as_rows() -> None:
    student, teacher, mask = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.tensor([[1, 1, 0], [1, 0, 0]])
    together = losses.prediction_kl(student, teacher, mask, temperature=2.0, num_items=mask.sum())
    flat = losses.prediction_kl(
        student.reshape(6, 5), teacher.reshape(6, 5), mask.reshape(6), temperature=2.0, num_items=mask.sum()
    )
    torch.testing.assert_close(together, flat)
