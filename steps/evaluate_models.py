"""Measure teacher, student start, control, student and champion on the test split."""

from pathlib import Path
from typing import Annotated, Any

from zenml import ArtifactConfig, log_metadata, step

from steps._cache import cached_by, champion_digest, code_digest
from steps._folders import new_folder
from steps._materializers import FolderMaterializer
from steps._registry import load_champion
from steps._settings import StepSettings


def _code_and_champion() -> str:
    return f"{code_digest(__name__)} {champion_digest()}"


@step(
    cache_policy=cached_by(_code_and_champion),
    output_materializers={"evaluation_files": FolderMaterializer},
)
def evaluate_models(
    settings: StepSettings,
    validated_data: Path,
    teacher: Path,
    student_start: Path,
    control: Path | None,
    student: Path,
) -> tuple[
    Annotated[Path, ArtifactConfig(name="evaluation_files")],
    Annotated[dict[str, Any], ArtifactConfig(name="evaluation")],
]:
    """Return the predictions of every model, and its figures.

    Args:
        settings: Sections data, task, evaluation and export.
        validated_data: Rows of the run.
        teacher: Fine-tuned teacher.
        student_start: Student as every method starts it.
        control: The start trained on without a teacher, where the run has it.
        student: Distilled student.
    """
    from ted import evaluation

    named = {"teacher": teacher, "student_start": student_start, "control": control, "student": student}
    named["champion"] = load_champion(settings.export.name)
    folder = new_folder("evaluation")
    models = {name: model for name, model in named.items() if model is not None}
    figures = evaluation.evaluate_models(settings, validated_data, models, folder)
    log_metadata({name: {"primary": model["primary"]} for name, model in figures["models"].items()})
    return folder, figures
