"""Stage I on the teacher's side."""

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


@step(cache_policy=cached_by(_code), output_materializers={"teacher_filters": FolderMaterializer})
def learn_teacher_filters(
    settings: StepSettings,
    validated_data: Path,
    teacher: Path,
) -> tuple[
    Annotated[Path, ArtifactConfig(name="teacher_filters", artifact_type=ArtifactType.MODEL, tags=["model"])],
    Annotated[dict[str, Any], ArtifactConfig(name="teacher_filters_metrics")],
]:
    """Return the teacher's filters and how their training went.

    Args:
        settings: Sections method, data, task, teacher, student, filters, distillation, run.
        validated_data: Rows of the run.
        teacher: Fine-tuned teacher.
    """
    from ted import stages

    folder = new_folder("teacher_filters")
    metrics = stages.learn_filters(settings, validated_data, teacher, "teacher", folder, checkpoint_store())
    log_training(metrics)
    return folder, {"step": "learn_teacher_filters", **metrics}
