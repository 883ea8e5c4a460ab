"""What a training leaves on the dashboard."""

from typing import Any

import pytest

from steps import _metrics


def test_single_figures_are_logged_and_curves_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, Any] = {}
    monkeypatch.setattr(_metrics, "log_metadata", logged.update)
    _metrics.log_training({"steps": 8, "seconds": 1.5, "log_history": [{"loss": 1.0}]}, model_digest="abc")
    assert logged == {"steps": 8, "seconds": 1.5, "model_digest": "abc"}
