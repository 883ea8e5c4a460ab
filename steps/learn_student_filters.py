"""Stage I on the student's side."""

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


@step(cache_policy=cached_by(_code), output_materializers={"student_filters": FolderMaterializer})
def learn_student_filters(
    settings: StepSettings,
    validated_data: Path,
    student_start: Path,
) -> tuple[
    Annotated[Path, ArtifactConfig(name="student_filters", artifact_type=ArtifactType.MODEL, tags=["model"])],
    Annotated[dict[str, Any], ArtifactConfig(name="student_filters_metrics")],
]:
    """Return the student's filters and how their training went.

    Args:
        settings: Sections method, data, task, teacher, student, filters, distillation, run.
        validated_data: Rows of the run.
        student_start: Student as every method starts it.
    """
    from ted import stages

    folder = new_folder("student_filters")
    metrics = stages.learn_filters(settings, validated_data, student_start, "student", folder, checkpoint_store())
    log_training(metrics)
    return folder, {"step": "learn_student_filters", **metrics}
