"""Versions of the model in ZenML's model control plane.

A version stands for a student's weights and the way they are exported. A run that ends with what a version already
stands for takes that version, so that running again makes no copies.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from zenml import link_artifact_to_model
from zenml.client import Client
from zenml.enums import ModelStages
from zenml.models import ArtifactVersionResponse, ModelVersionResponse

from ted.config import Settings
from ted.errors import ModelError
from ted.files import sha256_file

STUDENT_ARTIFACT = "student"


def find_champion(name: str) -> ModelVersionResponse | None:
    """Return the version of a model that stands in production."""
    if not _exists(name):
        return None
    return next(iter(Client().list_model_versions(model=name, stage=ModelStages.PRODUCTION)), None)


def load_champion(name: str) -> Path | None:
    """Return the folder of the student in production, if there is one.

    Raises:
        ModelError: the version in production has no student.
    """
    version = find_champion(name)
    if version is None:
        return None
    student = version.get_artifact(STUDENT_ARTIFACT)
    if student is None:
        raise ModelError(
            f"version {version.number} of {name} stands in production without a student to compare with; archive it: "
            f"zenml model version update {name} {version.number} --stage archived --force"
        )
    folder: Path = student.load()
    return folder


def reserve_version(settings: Settings, student: Path) -> int:
    """Return the number of the version that stands for a student exported like this; a new one if there is none.

    Args:
        settings: What the export acts on.
        student: Folder of the trained model.
    """
    weights = [sha256_file(file) for file in sorted(student.glob("*.safetensors"))]
    content = " ".join([*weights, settings.model_dump_json()])
    tag = f"bundle-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    name, client = settings.export.name, Client()
    if not _exists(name):
        client.create_model(name)
    known = client.list_model_versions(model=name, tags=tag)
    version = next(iter(known), None) or client.create_model_version(name, tags=[tag])
    return int(version.number)


def promote(name: str, number: int, stage: str, artifacts: Iterable[ArtifactVersionResponse]) -> str:
    """Link artifacts to a version, give it its stage, and return the stage that it is in.

    The version that had the stage is archived. A version in production stays there with what it was promoted with:
    whoever fetches it gets the bundle that its gates were passed with.
    """
    version = Client().get_model_version(name, number)
    if version.stage == ModelStages.PRODUCTION:
        return ModelStages.PRODUCTION.value
    # This knows the version by its id: of a number, ZenML remarks for each artifact that it is one.
    model = version.to_model_class()
    for artifact in artifacts:
        link_artifact_to_model(artifact, model)
    version.set_stage(stage, force=True)
    return stage


def _exists(name: str) -> bool:
    return bool(Client().list_models(name=name, size=1).items)
