"""Hold the student against the rules; a student that fails one ends the run, and leaves a report."""

from typing import Annotated, Any

from zenml import ArtifactConfig, log_metadata, step

from steps._cache import cached_by, code_digest
from steps._settings import StepSettings


def _code() -> str:
    # The verdicts, that is: how the page of a refused student looks is no part of what this step returns.
    return code_digest("ted.gates")


@step(cache_policy=cached_by(_code))
def check_gates(
    settings: StepSettings, evaluation: dict[str, Any]
) -> Annotated[dict[str, Any], ArtifactConfig(name="judged_evaluation")]:
    """Return the evaluation with a verdict per rule.

    Args:
        settings: Section gates.
        evaluation: Figures of every model.

    Raises:
        GateError: the student failed a rule; the message ends with the place of the report.
    """
    from steps._refused import keep_refused
    from ted import gates
    from ted.errors import GateError

    verdicts = gates.check(evaluation, settings.gates)
    log_metadata({verdict.rule: verdict.message for verdict in verdicts})
    judged = {**evaluation, "gates": [verdict.as_dict() for verdict in verdicts]}
    try:
        gates.enforce(verdicts)
    except GateError as error:
        try:
            page = keep_refused(judged)
        except OSError as failure:
            raise GateError(f"{error}\nthe report could not be written: {failure}") from failure
        raise GateError(f"{error}\nreport  {page}") from None
    return judged
