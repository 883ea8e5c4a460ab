"""Give the version its stage and link what it was made of."""

from typing import Annotated, Any

from zenml import ArtifactConfig, log_metadata, step
from zenml.artifacts.unmaterialized_artifact import UnmaterializedArtifact

from steps._cache import cached_by, code_digest
from steps._registry import promote
from steps._settings import StepSettings


def _code() -> str:
    return code_digest(__name__)


@step(cache_policy=cached_by(_code))
def promote_model(  # noqa: PLR0913, PLR0917 - one argument per artifact
    settings: StepSettings,
    bundle_manifest: dict[str, Any],
    validated_data: UnmaterializedArtifact,
    teacher: UnmaterializedArtifact,
    teacher_filters: UnmaterializedArtifact,
    student: UnmaterializedArtifact,
    student_filters: UnmaterializedArtifact,
    bundle: UnmaterializedArtifact,
) -> Annotated[dict[str, Any], ArtifactConfig(name="promotion")]:
    """Return name, version and stage of the promoted model version.

    Args:
        settings: Sections export and promotion.
        bundle_manifest: Content of the bundle's bundle.json, which names the version.
        validated_data: Rows of the run; this and the following are linked to the version, not read.
        teacher: Fine-tuned teacher.
        teacher_filters: What the teacher's layers were seen through.
        student: Distilled student.
        student_filters: What the student's layers started to be seen through.
        bundle: The exported student.
    """
    name, version = settings.export.name, int(bundle_manifest["version"])
    made_of = (validated_data, teacher, teacher_filters, student, student_filters, bundle)
    stage = promote(name, version, settings.promotion.model_stage, made_of)
    log_metadata({"name": name, "version": version, "stage": stage})
    return {"name": name, "version": version, "stage": stage}
