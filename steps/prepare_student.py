"""Build or load the student and fine-tune it: the start that every method shares."""

from pathlib import Path
from typing import Annotated, Any

from zenml import ArtifactConfig, step
from zenml.enums import ArtifactType

from steps._cache import cached_by, code_digest
from steps._checkpoints import checkpoint_store
from steps._folders import new_folder
from steps._materializers import FolderMaterializer
from steps._metrics import log_training
from steps._settings import StepSettings


def _code() -> str:
    return code_digest(__name__)


@step(cache_policy=cached_by(_code), output_materializers={"student_start": FolderMaterializer})
def prepare_student(
    settings: StepSettings,
    validated_data: Path,
    model_digest: str,
) -> tuple[
    Annotated[Path, ArtifactConfig(name="student_start", artifact_type=ArtifactType.MODEL, tags=["model"])],
    Annotated[dict[str, Any], ArtifactConfig(name="student_start_metrics")],
]:
    """Return the student start and how its training went.

    Args:
        settings: Sections data, task, teacher, student, run.
        validated_data: Rows of the run.
        model_digest: Digest of the pre-trained models' files, where they are folders; here for the cache key.
    """
    from ted import stages

    folder = new_folder("student_start")
    metrics = stages.prepare_student(settings, validated_data, folder, checkpoint_store())
    log_training(metrics, model_digest=model_digest)
    return folder, {"step": "prepare_student", **metrics}
