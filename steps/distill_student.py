"""Stage II: train the student with the method's loss."""

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


@step(cache_policy=cached_by(_code), output_materializers={"student": FolderMaterializer})
def distill_student(
    settings: StepSettings,
    validated_data: Path,
    teacher: Path,
    teacher_filters: Path,
    student_start: Path,
    student_filters: Path,
) -> tuple[
    Annotated[Path, ArtifactConfig(name="student", artifact_type=ArtifactType.MODEL, tags=["model"])],
    Annotated[dict[str, Any], ArtifactConfig(name="student_metrics")],
]:
    """Return the distilled student and how its training went.

    Args:
        settings: Sections method, compatibility, data, task, teacher, student, filters, distillation and run.
        validated_data: Rows of the run.
        teacher: Fine-tuned teacher.
        teacher_filters: What the teacher's layers are seen through.
        student_start: Student as every method starts it.
        student_filters: What the student's layers are seen through.
    """
    from ted import stages

    folder = new_folder("student")
    inputs = stages.DistillationInputs(
        data=validated_data,
        teacher=teacher,
        teacher_filters=teacher_filters,
        student=student_start,
        student_filters=student_filters,
    )
    metrics = stages.distill_student(settings, inputs, folder, checkpoint_store())
    log_training(metrics)
    return folder, {"step": "distill_student", **metrics}
