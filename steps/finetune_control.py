"""Train the student start on without a teacher, as the control that distillation is compared with."""

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


@step(cache_policy=cached_by(_code), output_materializers={"control": FolderMaterializer})
def finetune_control(
    settings: StepSettings,
    validated_data: Path,
    student_start: Path,
) -> tuple[
    Annotated[Path, ArtifactConfig(name="control", artifact_type=ArtifactType.MODEL, tags=["model"])],
    Annotated[dict[str, Any], ArtifactConfig(name="control_metrics")],
]:
    """Return the control and how its training went.

    Args:
        settings: Sections data, task, run, student, distillation.
        validated_data: Rows of the run.
        student_start: Student as every method starts it.
    """
    from ted import stages

    folder = new_folder("control")
    metrics = stages.train_control(settings, validated_data, student_start, folder, checkpoint_store())
    log_training(metrics)
    return folder, {"step": "finetune_control", **metrics}
