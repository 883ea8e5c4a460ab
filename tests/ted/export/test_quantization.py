from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ted.config import ExportSettings, Settings
from ted.export import quantization
from ted.export.quantization import Validation, judge_int8, latency_ratios, quantize, refused_int8
from ted.serving.bundle import Bundle, open_bundle
from ted.serving.predictor import Predictor

TEXTS = ["a good film", "bad", "the plot, the actor and the joyful film"]


@pytest.fixture
def predictors(exported: Path) -> tuple[Predictor, Predictor]:
    """Return the float32 model and its 8-bit copy."""
    bundle = open_bundle(exported)
    return Predictor(Bundle(bundle.folder, {**bundle.manifest, "model": "model.onnx"})), Predictor(bundle)


@pytest.fixture
def ratios(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Measured latency ratios, as the test sets them."""
    measured = {"1": 0.5, "32": 0.7}
    monkeypatch.setattr(quantization, "latency_ratios", lambda *_: measured)
    return measured


def scored(*scores: float, higher_is_better: bool = True) -> Validation:
    """Return a validation that gives the float32 model the first score and the 8-bit model the second."""
    remaining = list(scores)
    return Validation(TEXTS, lambda _: remaining.pop(0), higher_is_better)


def test_weights_are_signed_bytes_with_a_scale_per_channel(
    exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    quantize(exported / "ted-student" / "3" / "model.onnx", tmp_path / "int8.onnx")
    written = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(written)
    signed = {tensor.name for tensor in written.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    products = [node for node in written.graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 2 * 6 + 2
    assert all(node.input[1] in signed for node in products)
    scales = {tensor.name: tuple(tensor.dims) for tensor in written.graph.initializer if tensor.name.endswith("_scale")}
    assert (48,) in scales.values()
    assert [file.name for file in tmp_path.iterdir()] == ["int8.onnx"]
    assert not caplog.records


def test_a_copy_within_all_bounds_is_accepted(
    predictors: tuple[Predictor, Predictor], ratios: dict[str, float]
) -> None:
    bounds = ExportSettings(int8_max_size_ratio=0.9)
    verdict = judge_int8(*predictors, scored(0.9, 0.895), bounds, batch_sizes=[1], repeats=3)
    sizes = [predictor.bundle.model_path.stat().st_size for predictor in predictors]
    assert verdict == {
        "accepted": True,
        "reasons": [],
        "metric_drop": pytest.approx(0.005),
        "latency_ratio": 0.7,
        "size_ratio": pytest.approx(sizes[1] / sizes[0]),
        "metric": {"float32": 0.9, "int8": 0.895},
        "latency_ratios": ratios,
        "bytes": {"float32": sizes[0], "int8": sizes[1]},
    }


@pytest.mark.parametrize(
    ("scores", "bounds", "reason"),
    [
        ((0.9, 0.88), {}, r"metric_drop 0\.02 is above export\.int8_max_metric_drop 0\.01"),
        (
            (0.9, 0.9),
            {"int8_max_latency_ratio": 0.6},
            r"latency_ratio 0\.7 is above export\.int8_max_latency_ratio 0\.6",
        ),
        ((0.9, 0.9), {"int8_max_size_ratio": 0.01}, r"size_ratio .* is above export\.int8_max_size_ratio 0\.01"),
        ((0.9, float("nan")), {}, r"metric_drop nan is above"),
    ],
)
def test_a_copy_beyond_a_bound_is_refused_with_the_reason(
    predictors: tuple[Predictor, Predictor],
    ratios: dict[str, float],
    scores: tuple[float, float],
    bounds: dict[str, Any],
    reason: str,
) -> None:
    export = ExportSettings(**{"int8_max_size_ratio": 0.9, **bounds})
    verdict = judge_int8(*predictors, scored(*scores), export, batch_sizes=[1], repeats=3)
    assert not verdict["accepted"]
    assert verdict["latency_ratios"] == ratios
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError("\n".join(verdict["reasons"]))


def test_a_metric_where_less_is_better_drops_by_rising(
    predictors: tuple[Predictor, Predictor], ratios: dict[str, float], settings: Settings
) -> None:
    worse = scored(0.5, 0.6, higher_is_better=False)
    verdict = judge_int8(*predictors, worse, settings.export, batch_sizes=[1], repeats=3)
    assert verdict["metric_drop"] == pytest.approx(0.1)
    assert verdict["latency_ratio"] == max(ratios.values())


def test_both_models_run_in_turn_on_the_same_tokens(
    predictors: tuple[Predictor, Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[int, tuple[int, ...]]] = []

    def seconds(predictor: Predictor, feeds: Mapping[str, NDArray[np.int64]]) -> float:
        side = predictors.index(predictor)
        runs.append((side, feeds["input_ids"].shape))
        return [2.0, 1.0][side]

    monkeypatch.setattr(quantization, "_seconds", seconds)
    assert latency_ratios(*predictors, TEXTS, (1, 5), 3) == {"1": 0.5, "5": 0.5}
    assert runs == [(0, (1, 5)), (1, (1, 5))] * 4 + [(0, (5, 13)), (1, (5, 13))] * 4


def test_measured_latency_is_a_positive_ratio(predictors: tuple[Predictor, Predictor]) -> None:
    ratios = latency_ratios(*predictors, TEXTS, (1, 4), 3)
    assert list(ratios) == ["1", "4"]
    assert all(ratio > 0 for ratio in ratios.values())


def test_a_copy_that_was_not_built_is_refused() -> None:
    verdict = refused_int8("export.int8 is false")
    assert (verdict["accepted"], verdict["reasons"]) == (False, ["export.int8 is false"])
