"""An 8-bit copy of an exported model, and whether it is good, fast and small enough to be served."""

import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from ted.config import ExportSettings
from ted.serving.answers import Text
from ted.serving.predictor import ServedModel

# Named, because the default list also rewrites standard Attention into an invalid graph.
OP_TYPES: Final = ("MatMul", "Gemm", "Gather")

Feeds = Mapping[str, NDArray[Any]]
Verdict = dict[str, Any]


@dataclass(frozen=True)
class Validation:
    """Texts of the validation split, and the primary metric of a served model on it."""

    texts: Sequence[Text]
    score: Callable[[ServedModel], float]
    higher_is_better: bool


def quantize(source: Path, target: Path) -> None:
    """Write a copy of a float32 ONNX file whose weights are signed 8-bit integers with a scale per channel.

    Activations are scaled while the model runs, so no calibration data is needed. Processors without VNNI instructions
    add such products with saturation: a verdict holds for processors like the one it was measured on.

    Args:
        source: float32 file, without fused nodes.
        target: file to write.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        with _quiet():
            # Fused nodes would hide the matrix products from the quantiser.
            quant_pre_process(source, prepared, skip_optimization=True, skip_symbolic_shape=True)
            quantize_dynamic(
                prepared, target, op_types_to_quantize=list(OP_TYPES), per_channel=True, weight_type=QuantType.QInt8
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop the quantiser's remarks on each tensor, which it gives to the root logger; warnings pass."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno > logging.INFO or "onnxruntime" not in record.pathname

    root = logging.getLogger()
    root.addFilter(is_wanted)
    try:
        yield
    finally:
        root.removeFilter(is_wanted)


def judge_int8(
    reference: ServedModel,
    candidate: ServedModel,
    validation: Validation,
    export: ExportSettings,
    *,
    batch_sizes: Sequence[int],
    repeats: int,
) -> Verdict:
    """Measure an 8-bit model against the float32 one and hold it against the bounds of the settings.

    Args:
        reference: serves the float32 model.
        candidate: serves the 8-bit model of the same bundle, on as many threads.
        validation: texts and their score.
        export: the bounds.
        batch_sizes: texts of the runs that are timed.
        repeats: timed runs per batch size and kind of run.

    Returns:
        `accepted`, `reasons` against it, `metric_drop`, `latency_ratio` (the worst run), `size_ratio`, and the
        figures behind them: `metric`, `latency_ratios`, `bytes`.
    """
    metric = {"float32": validation.score(reference), "int8": validation.score(candidate)}
    drop = (metric["float32"] - metric["int8"]) * (1 if validation.higher_is_better else -1)
    ratios = latency_ratios(reference, candidate, validation.texts, batch_sizes, repeats)
    size = {"float32": _size(reference), "int8": _size(candidate)}
    measured = {
        "metric_drop": (drop, export.int8_max_metric_drop),
        "latency_ratio": (max(ratios.values()), export.int8_max_latency_ratio),
        "size_ratio": (size["int8"] / size["float32"], export.int8_max_size_ratio),
    }
    reasons = [_reason(name, value, bound) for name, (value, bound) in measured.items() if not value <= bound]
    finite = {name: value if math.isfinite(value) else None for name, (value, _) in measured.items()}
    return {
        "accepted": not reasons,
        **finite,
        "reasons": reasons,
        "metric": {name: value if math.isfinite(value) else None for name, value in metric.items()},
        "latency_ratios": ratios,
        "bytes": size,
    }


def refused_int8(reason: str) -> Verdict:
    """Return the verdict on an 8-bit model that was not built."""
    return {"accepted": False, "metric_drop": None, "latency_ratio": None, "size_ratio": None, "reasons": [reason]}


def latency_ratios(
    reference: ServedModel, candidate: ServedModel, texts: Sequence[Text], batch_sizes: Sequence[int], repeats: int
) -> dict[str, float]:
    """Return the candidate's latency divided by the reference's, by batch size and kind of run.

    Both run in turn on the same tokens, so that a machine that slows down slows both; the median of the repeats counts.
    """
    ratios = {}
    for batch_size in batch_sizes:
        texts_B = [texts[index % len(texts)] for index in range(batch_size)]
        for kind, feeds in reference.runs(texts_B).items():
            # The first run of a shape allocates its memory.
            _pair_seconds(reference, candidate, feeds)
            pairs = [_pair_seconds(reference, candidate, feeds) for _ in range(repeats)]
            ratios[f"{batch_size}{kind}"] = statistics.median(ours / theirs for theirs, ours in pairs)
    return ratios


def _pair_seconds(reference: ServedModel, candidate: ServedModel, feeds: Feeds) -> tuple[float, float]:
    return _seconds(reference, feeds), _seconds(candidate, feeds)


def _seconds(predictor: ServedModel, feeds: Feeds) -> float:
    start = time.perf_counter()
    predictor.run(feeds)
    return time.perf_counter() - start


def _size(predictor: ServedModel) -> int:
    return predictor.bundle.model_path.stat().st_size


def _reason(name: str, value: float, bound: float) -> str:
    return f"{name} {value:.4g} is above export.int8_max_{name} {bound:g}"
