from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ted.config import GateSettings, parse_settings
from ted.gates import check
from ted.report.html import ReportInputs

LABELS = ["negative", "positive"]
ROWS = 40


def measured(primary: float, labels: list[str]) -> dict[str, Any]:
    slices: dict[str, dict[str, float | None]]
    slices = {f"length_q{group}": {"rows": 10, "primary": primary} for group in (1, 2, 3, 4)}
    slices |= {f"label={label}": {"rows": 20, "primary": None} for label in labels}
    return {
        "primary": primary,
        "metrics": {"accuracy" if labels else "pearson": primary, "other_metric": 0.5},
        "slices": slices,
        "agreement": 0.9,
        "parameters": 1_234_567,
        "size_bytes": 3 * 2**20,
        "latency_ms": {"1": 2.5, "32": 120.0},
        "latency_ratio": {"1": 0.5, "32": 0.6},
    }


def make_evaluation(names: tuple[str, ...], labels: list[str]) -> dict[str, Any]:
    models = {name: measured(0.7 + index / 100, labels) for index, name in enumerate(names)}
    interval = {"difference": 0.01, "low": -0.02, "high": 0.04}
    evaluation = {
        "task": "classification" if labels else "regression",
        "labels": labels,
        "primary_metric": "accuracy" if labels else "pearson",
        "higher_is_better": True,
        "quality_name": "",
        "rows": ROWS,
        "confidence": 0.95,
        "slice_titles": {"length_q1": "3 to 9 characters"},
        "models": models,
        "comparisons": {f"student_vs_{name}": interval for name in names if name != "student"},
    }
    gates = GateSettings(max_size_ratio=0.5, min_slice_rows=1)
    return {**evaluation, "gates": [verdict.as_dict() for verdict in check(evaluation, gates)]}


def make_predictions(path: Path, names: tuple[str, ...], labels: list[str]) -> Path:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"row": range(1, ROWS + 1), "text": [f"text <b>{row}</b> & more" for row in range(ROWS)]})
    frame["label"] = generator.choice(labels, ROWS) if labels else generator.normal(size=ROWS)
    for name in names:
        frame[f"{name}_prediction"] = generator.choice(labels, ROWS) if labels else generator.normal(size=ROWS)
        if labels:
            frame[f"{name}_probability"] = generator.uniform(0.5, 1.0, ROWS)
            frame[f"{name}_quality"] = (frame[f"{name}_prediction"] == frame["label"]).astype(float)
        else:
            frame[f"{name}_quality"] = -(frame[f"{name}_prediction"] - frame["label"]).abs()
    frame.to_parquet(path)
    return path


@pytest.fixture
def manifest() -> dict[str, Any]:
    student = measured(0.73, LABELS)
    return {
        "format": 1,
        "name": "small-critic",
        "version": 3,
        "task": {"kind": "classification", "labels": LABELS},
        "pipeline_tag": "text-classification",
        "max_length": 64,
        "pair": False,
        "inputs": ["input_ids", "attention_mask"],
        "outputs": ["logits"],
        "opset": 20,
        "model": "model.onnx",
        "files": {"model.onnx": {"sha256": "ab" * 32, "bytes": 3 * 2**20}},
        "metrics": {
            "model": "trained student, float32",
            "primary_metric": "accuracy",
            "higher_is_better": True,
            "rows": ROWS,
            **student,
        },
        "served_metrics": {"model": "model.onnx", "rows": ROWS, "primary": 0.7125, "metrics": {"accuracy": 0.7125}},
        "parity": {
            "atol": 1e-4,
            "shapes": [{"batch": 3, "length": 33, "max_abs_difference": 2.5e-7, "passed": True}],
            "raw_text": {"texts": 8},
        },
        "int8": {"accepted": False, "metric_drop": 0.25, "reasons": ["metric_drop 0.25 is above 0.01"]},
        "run_record": {},
    }


@pytest.fixture
def full(tmp_path: Path, manifest: dict[str, Any]) -> ReportInputs:
    names = ("teacher", "student_start", "control", "student", "champion")
    history = [{"step": step, "loss": 1 / step, "task_loss": 0.1, "layer_loss": 0.2} for step in range(1, 40)]
    layers = [{**entry, "layer_loss_0": 0.1, "layer_loss_1": 0.3} for entry in history]
    match = [{"student_layer": 0, "teacher_layer": 1, "before": 0.5, "after": 0.25}]
    finding = {
        "rule": "duplicates",
        "policy": "exclude",
        "split": "train",
        "count": 2,
        "rows": [7, 9],
        "message": "<i>2</i>",
    }
    return ReportInputs(
        settings=parse_settings({"report": {"price_per_hour": 36.0}}).model_dump(mode="json"),
        split_rows={"train": 100, "test": ROWS},
        findings=[finding],
        stages={
            "finetune_teacher": {"log_history": [{"step": 1, "loss": 0.7}, {"step": 2, "train_runtime": 3.0}]},
            "distill_student": {"log_history": layers, "seconds": 75.0, "steps": 39, "layer_match": match},
        },
        evaluation=make_evaluation(names, LABELS),
        predictions=make_predictions(tmp_path / "predictions.parquet", names, LABELS),
        bundle=manifest,
        environment={"torch": "2.13.0"},
        step_seconds={"load_data": 1.0, "distill_student": 100.0},
        cached_steps=["load_data"],
    )


@pytest.fixture
def bare(tmp_path: Path) -> ReportInputs:
    """A regression without layers, control, champion, start, bundle and findings."""
    names = ("teacher", "student")
    return ReportInputs(
        settings=parse_settings({"task": {"kind": "regression"}, "method": "kd"}).model_dump(mode="json"),
        split_rows={"train": 100, "test": ROWS},
        findings=[],
        stages={"distill_student": {"log_history": []}},
        evaluation={**make_evaluation(names, []), "gates": []},
        predictions=make_predictions(tmp_path / "predictions.parquet", names, []),
        bundle=None,
        environment={},
        step_seconds={},
    )
