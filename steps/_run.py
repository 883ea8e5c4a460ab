"""What a run says of itself: what its steps gave, how long they took, on what it ran, and all of it on one page."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zenml import get_step_context
from zenml.client import Client
from zenml.models import ArtifactVersionResponse, PipelineRunResponse
from zenml.types import HTMLString

from ted.config import Settings
from ted.run_record import git_commit, library_versions


def output(run: PipelineRunResponse, step: str, name: str) -> ArtifactVersionResponse:
    """Return an output of a step by the name of its artifact."""
    found: ArtifactVersionResponse = run.steps[step].outputs[name][0]
    return found


def new_page(
    settings: Settings,
    data_findings: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    evaluation_files: Path,
    evaluation: Mapping[str, Any],
    bundle_manifest: Mapping[str, Any] | None,
) -> HTMLString:
    """Return the report of the running pipeline as HTML.

    Args:
        settings: All sections.
        data_findings: Broken rules and rows per split.
        metrics: What each training step returned, in order.
        evaluation_files: Predictions of every model.
        evaluation: Figures of every model, judged.
        bundle_manifest: Content of the bundle's bundle.json, if there is one.
    """
    from ted import report

    seconds, cached = step_times()
    version = {"model version": "{name} {version}".format(**bundle_manifest)} if bundle_manifest else {}
    inputs = report.ReportInputs(
        settings=settings.model_dump(mode="json"),
        split_rows=data_findings["split_rows"],
        findings=data_findings["findings"],
        stages={entry["step"]: entry for entry in metrics},
        evaluation=evaluation,
        predictions=evaluation_files / "predictions.parquet",
        bundle=bundle_manifest,
        environment={**environment(), **version},
        step_seconds=seconds,
        cached_steps=cached,
    )
    return HTMLString(report.build_report(inputs))


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
