"""What a training leaves on the dashboard beside its step."""

from collections.abc import Mapping
from typing import Any

from zenml import log_metadata


def log_training(metrics: Mapping[str, Any], **more: str) -> None:
    """Log the single figures of a training's metrics; its curves are in the artifact."""
    figures = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
    log_metadata({**figures, **more})
