"""Fine-tune the teacher on the labelled rows."""

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


@step(cache_policy=cached_by(_code), output_materializers={"teacher": FolderMaterializer})
def finetune_teacher(
    settings: StepSettings,
    validated_data: Path,
    model_digest: str,
) -> tuple[
    Annotated[Path, ArtifactConfig(name="teacher", artifact_type=ArtifactType.MODEL, tags=["model"])],
    Annotated[dict[str, Any], ArtifactConfig(name="teacher_metrics")],
]:
    """Return the fine-tuned teacher and how its training went.

    Args:
        settings: Sections data, task, teacher, run.
        validated_data: Rows of the run.
        model_digest: Digest of the pre-trained model's files, where it is a folder; here for the cache key.
    """
    from ted import stages

    folder = new_folder("teacher")
    metrics = stages.finetune_teacher(settings, validated_data, folder, checkpoint_store())
    log_training(metrics, model_digest=model_digest)
    return folder, {"step": "finetune_teacher", **metrics}
