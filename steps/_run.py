"""What a run says of itself: how long its steps took, and on what it ran."""

import os
import platform

from zenml import get_step_context
from zenml.client import Client

from ted.run_record import git_commit, library_versions


def step_times() -> tuple[dict[str, float], list[str]]:
    """Return the seconds of each finished step of the running pipeline, and which steps an earlier run had done.

    A step that was not run again has the seconds of the run that did it.
    """
    client = Client()
    run = client.get_pipeline_run(get_step_context().pipeline_run.id)
    seconds: dict[str, float] = {}
    cached = []
    for name, found in run.steps.items():
        step_run = found
        if found.original_step_run_id is not None:
            step_run = client.get_run_step(found.original_step_run_id)
            cached.append(name)
        if step_run.start_time is not None and step_run.end_time is not None:
            seconds[name] = (step_run.end_time - step_run.start_time).total_seconds()
    return seconds, cached


def environment() -> dict[str, str]:
    """Return commit, machine and library versions by name."""
    return {
        "commit": git_commit() or "none",
        "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "python": platform.python_version(),
        **library_versions(),
    }
