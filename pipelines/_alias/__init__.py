"""Importable as ``ted_pipeline``: the module is the pipeline, so that ``zenml pipeline run ted_pipeline`` finds it."""

import sys

from pipelines.ted_pipeline import ted_pipeline

sys.modules[__name__] = ted_pipeline  # type: ignore[assignment]
