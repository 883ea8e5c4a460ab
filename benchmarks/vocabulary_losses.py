"""Measure memory and time of the losses over a vocabulary, in chunks of rows and at once.

    python -m benchmarks.vocabulary_losses [--rows 2048] [--vocabulary 49152] [--repeats 5]

Cross-entropy and divergence of random logits and their gradient, each way in a process of its own, so that its peak is
its own.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import torch

from benchmarks.own_process import in_own_process, peak_mib
from benchmarks.results import write_result
from ted import losses

WAYS = {"chunks": losses.CHUNK_NUMBERS, "at once": sys.maxsize}


def measure(way: str, rows: int, vocabulary: int) -> dict[str, float]:
    """Return seconds, and MiB of this process's peak above the logits themselves, of a loss and its gradient."""
    losses.CHUNK_NUMBERS = WAYS[way]
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(rows, vocabulary, generator=generator).requires_grad_()
    teacher = torch.randn(rows, vocabulary, generator=generator)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    mask, count = torch.ones(rows), torch.tensor(rows)
    before = peak_mib()
    started = time.perf_counter()
    loss = losses.cross_entropy(student, labels, mask, num_items=count)
    loss = loss + losses.prediction_kl(student, teacher, mask, temperature=2.0, num_items=count)
    torch.autograd.grad(loss, student)
    seconds = time.perf_counter() - started
    return {"loss": loss.item(), "seconds": round(seconds, 2), "mib_above_logits": round(peak_mib() - before)}


def _summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    seconds, peaks = ([run[name] for run in runs] for name in ("seconds", "mib_above_logits"))
    return {"loss": runs[0]["loss"], "seconds": statistics.median(seconds), "mib_above_logits": sorted(peaks)}


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048, help="positions of a batch")
    parser.add_argument("--vocabulary", type=int, default=49152, help="tokens of the vocabulary")
    parser.add_argument("--repeats", type=int, default=5, help="processes per way; the allocator's peaks vary")
    arguments = parser.parse_args()
    size = (arguments.rows, arguments.vocabulary)
    measured = {way: [in_own_process(measure, way, *size) for _ in range(arguments.repeats)] for way in WAYS}
    sizes = {"rows": size[0], "vocabulary": size[1], "logits_mib": 4 * size[0] * size[1] / 2**20}
    write_result("vocabulary-losses", {**sizes, "ways": {way: _summary(runs) for way, runs in measured.items()}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
