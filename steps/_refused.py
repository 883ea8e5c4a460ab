"""What is left of a run whose student failed a gate: its figures, and a page that tells them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zenml import get_step_context, save_artifact
from zenml.client import Client

from steps._run import new_page, output
from ted.config import Settings
from ted.files import atomic_folder, write_json

# Each training step of a run, in the order of the page, and the output that says how it went.
TRAININGS = {
    "finetune_teacher": "teacher_metrics",
    "prepare_student": "student_start_metrics",
    "learn_teacher_filters": "teacher_filters_metrics",
    "learn_student_filters": "student_filters_metrics",
    "finetune_control": "control_metrics",
    "distill_student": "student_metrics",
}


def keep_refused(evaluation: Mapping[str, Any]) -> Path:
    """Write evaluation.json and report.html of the running pipeline under `run.output_dir`, and return the page's path.

    The page is an artifact of the running step too. It reads what the run has made so far; the step takes none of it as
    an input, since its verdicts do not depend on it.

    Args:
        evaluation: Figures of every model, judged.
    """
    run = Client().get_pipeline_run(get_step_context().pipeline_run.id)
    settings = Settings.model_validate(run.config.parameters).resolved()
    page = new_page(
        settings,
        output(run, "validate_data", "data_findings").load(),
        [output(run, step, name).load() for step, name in TRAININGS.items() if step in run.steps],
        output(run, "evaluate_models", "evaluation_files").load(),
        evaluation,
        None,
    )
    save_artifact(page, "report")
    folder = Path(settings.run.output_dir) / "refused" / run.name
    with atomic_folder(folder) as temporary:
        write_json(temporary / "evaluation.json", evaluation)
        (temporary / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"
