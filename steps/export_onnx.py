"""Export the student to a bundle and prove it equal to the trained model."""

from pathlib import Path
from typing import Annotated, Any

from zenml import ArtifactConfig, log_metadata, step
from zenml.enums import ArtifactType

from steps._cache import cached_by, code_digest
from steps._folders import new_folder
from steps._materializers import FolderMaterializer
from steps._registry import reserve_version
from steps._settings import StepSettings


def _code() -> str:
    return code_digest(__name__)


@step(cache_policy=cached_by(_code), output_materializers={"bundle": FolderMaterializer})
def export_onnx(
    settings: StepSettings,
    validated_data: Path,
    student: Path,
    evaluation: dict[str, Any],
) -> tuple[
    Annotated[Path, ArtifactConfig(name="bundle", artifact_type=ArtifactType.MODEL, tags=["bundle"])],
    Annotated[dict[str, Any], ArtifactConfig(name="bundle_manifest")],
]:
    """Return the bundle and the content of its bundle.json.

    Args:
        settings: Sections data, quality, task, evaluation and export.
        validated_data: Rows of the run.
        student: Distilled student.
        evaluation: Figures of every model, judged.
    """
    from ted.export.bundle import export_bundle

    folder = new_folder("bundle")
    version = reserve_version(settings, student)
    manifest = export_bundle(settings, student, validated_data, evaluation, version, folder)
    log_metadata({"version": version, "served": manifest["model"], "files": manifest["files"]})
    return folder, manifest
