"""Hold the student against the rules; a student that fails one ends the run."""

from typing import Annotated, Any

from zenml import ArtifactConfig, log_metadata, step

from steps._cache import cached_by, code_digest
from steps._settings import StepSettings


def _code() -> str:
    return code_digest(__name__)


@step(cache_policy=cached_by(_code))
def check_gates(
    settings: StepSettings, evaluation: dict[str, Any]
) -> Annotated[dict[str, Any], ArtifactConfig(name="judged_evaluation")]:
    """Return the evaluation with a verdict per rule.

    Args:
        settings: Section gates.
        evaluation: Figures of every model.

    Raises:
        GateError: the student failed a rule.
    """
    from ted import gates

    verdicts = gates.check(evaluation, settings.gates)
    log_metadata({verdict.rule: verdict.message for verdict in verdicts})
    gates.enforce(verdicts)
    return {**evaluation, "gates": [verdict.as_dict() for verdict in verdicts]}
