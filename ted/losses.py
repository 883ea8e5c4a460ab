"""Losses as pure functions of tensors.

Letters in names: B rows, C model outputs, L positions, D features. Every mask is 1 where an entry counts. Each loss
is a sum over what its mask lets through, divided by `num_items`: the number of such entries in the whole batch of an
optimiser update. A batch cut into micro-batches then gives the gradient of the uncut batch.

With a vocabulary for classes, what a loss makes of the logits on its way is several times as large as they are: it is
then taken a few rows at a time, and computed again for the gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_NUMBERS = 2**22
"""Logits that a loss over rows is computed on at a time: 16 MiB in float32."""


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values with 0 in place of what does not count, which may be anything, NaN included.

    The mask has the leading dimensions of the values. It has to be applied before anything that is not linear: behind
    that, the gradient of an entry that does not count is 0 times its derivative, and that is NaN where the entry is.
    """
    counts = mask.bool().reshape(mask.shape + (1,) * (values.dim() - mask.dim()))
    return torch.where(counts, values, 0)


def masked_sum(values_B: Tensor, mask_B: Tensor, num_items: Tensor) -> Tensor:
    """Return the sum of the entries that count over their number in the batch; 0 where none counts."""
    return keep(values_B, mask_B).sum() / num_items.clamp(min=1)


def cross_entropy(logits_BC: Tensor, labels_B: Tensor, mask_B: Tensor, *, num_items: Tensor) -> Tensor:
    """Return the mean cross-entropy of class indices (int64) over the rows that count."""

    def summed(logits_BC: Tensor, labels_B: Tensor, mask_B: Tensor) -> Tensor:
        losses_B = functional.cross_entropy(keep(logits_BC, mask_B), keep(labels_B, mask_B), reduction="none")
        return keep(losses_B, mask_B).sum()

    return _by_chunks(summed, logits_BC, labels_B, mask_B) / num_items.clamp(min=1)


def _by_chunks(summed: Callable[..., Tensor], logits_BC: Tensor, *others: Tensor) -> Tensor:
    """Return the sum of a loss over rows, a chunk of rows at a time where the logits are many."""
    rows = max(1, CHUNK_NUMBERS // logits_BC.shape[-1])
    if len(logits_BC) <= rows:
        return summed(logits_BC, *others)
    chunks = zip(*(torch.split(tensor, rows) for tensor in (logits_BC, *others)), strict=True)
    sums = [checkpoint(summed, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return torch.stack(sums).sum()


def binary_cross_entropy(logits_BC: Tensor, targets_BC: Tensor, mask_B: Tensor, *, num_items: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over all outputs of the rows that count; targets are probabilities."""
    targets_BC = keep(targets_BC, mask_B).to(logits_BC)
    losses_BC = functional.binary_cross_entropy_with_logits(keep(logits_BC, mask_B), targets_BC, reduction="none")
    return masked_sum(losses_BC.mean(-1), mask_B, num_items)


def squared_error(predictions_B: Tensor, targets_B: Tensor, mask_B: Tensor, *, num_items: Tensor) -> Tensor:
    """Return the mean squared difference over the rows that count."""
    return masked_sum(keep(predictions_B - targets_B, mask_B) ** 2, mask_B, num_items)


def prediction_kl(
    student_BC: Tensor, teacher_BC: Tensor, mask_B: Tensor, *, temperature: float, num_items: Tensor
) -> Tensor:
    """Return T^2 times the mean divergence KL(teacher || student) of softened predictions over the rows that count.

    Source: `ted_glue_no_trainer.py` of the published code, where T is 2.

    Args:
        student_BC: logits; further leading dimensions, such as positions, count as rows.
        teacher_BC: logits of the same shape.
        mask_B: of the leading dimensions.
        temperature: T.
        num_items: rows that count in the whole batch of an update.
    """

    def summed(student_BC: Tensor, teacher_BC: Tensor, mask_B: Tensor) -> Tensor:
        student_log_BC = functional.log_softmax(keep(student_BC, mask_B) / temperature, dim=-1)
        teacher_log_BC = functional.log_softmax(keep(teacher_BC, mask_B) / temperature, dim=-1)
        divergence_B = functional.kl_div(student_log_BC, teacher_log_BC, reduction="none", log_target=True).sum(-1)
        return keep(divergence_B, mask_B).sum()

    total = _by_chunks(summed, student_BC.flatten(0, -2), teacher_BC.flatten(0, -2), mask_B.flatten())
    return temperature**2 * total / num_items.clamp(min=1)


def prediction_bce(
    student_BC: Tensor, teacher_BC: Tensor, mask_B: Tensor, *, temperature: float, num_items: Tensor
) -> Tensor:
    """Return T^2 times the mean binary cross-entropy of softened predictions, the teacher's as targets.

    Its gradient at a logit is T (sigmoid(student / T) - sigmoid(teacher / T)), which for large T approaches a quarter
    of the difference of the logits: T^2 keeps its size, as in :func:`prediction_kl`. It is least where both agree, and
    then the entropy of the targets.
    """
    targets_BC = torch.sigmoid(teacher_BC / temperature)
    loss = binary_cross_entropy(student_BC / temperature, targets_BC, mask_B, num_items=num_items)
    return temperature**2 * loss


def batch_softmax_kl(student_B: Tensor, teacher_B: Tensor, *, temperature: float) -> Tensor:
    """Return the divergence that the published code computes for one output: a softmax over the rows of the batch.

    It has no meaning as a divergence between predictions and is here for comparison with published numbers only.
    """
    rows = torch.tensor(student_B.shape[0], device=student_B.device)
    whole = torch.ones(1, device=student_B.device)
    return prediction_kl(student_B[None], teacher_B[None], whole, temperature=temperature, num_items=rows)


def layer_mse(student_BLD: Tensor, teacher_BLD: Tensor, mask_BL: Tensor, *, num_items: Tensor) -> Tensor:
    """Return the mean squared difference of filtered states over the positions that count and all features.

    Source: D_TED of arXiv 2210.01351, one summand. The published code counts padding too: a mask of ones gives that.
    """
    difference_BLD = keep(student_BLD - teacher_BLD, mask_BL)
    return masked_sum((difference_BLD**2).mean(-1), mask_BL, num_items)
