"""Put the run on one page."""

from pathlib import Path
from typing import Annotated, Any

from zenml import ArtifactConfig, step
from zenml.types import HTMLString

from steps._cache import cached_by, code_digest
from steps._run import new_page
from steps._settings import StepSettings


def _code() -> str:
    return code_digest(__name__)


@step(cache_policy=cached_by(_code))
def build_report(
    settings: StepSettings,
    data_findings: dict[str, Any],
    metrics: list[dict[str, Any]],
    evaluation_files: Path,
    evaluation: dict[str, Any],
    bundle_manifest: dict[str, Any],
) -> Annotated[HTMLString, ArtifactConfig(name="report")]:
    """Return the report as HTML.

    Args:
        settings: All sections.
        data_findings: Broken rules and rows per split.
        metrics: What each training step returned, in order.
        evaluation_files: Predictions of every model.
        evaluation: Figures of every model, judged.
        bundle_manifest: Content of the bundle's bundle.json.
    """
    return new_page(settings, data_findings, metrics, evaluation_files, evaluation, bundle_manifest)
