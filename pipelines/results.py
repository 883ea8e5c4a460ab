"""What a person takes from a finished run: a folder under `runs/`, linked as `runs/latest`, and a table."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from zenml.models import PipelineRunResponse

from steps._run import output
from ted.errors import SettingsError
from ted.files import atomic_folder, read_json, write_json

LATEST = "latest"
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Results:
    """The folder of a run's results and what its evaluation says."""

    folder: Path
    evaluation: Mapping[str, Any]


def publish(run: PipelineRunResponse, output_dir: Path) -> Results:
    """Write evaluation.json, report.html and bundle/ of a run into a folder, point `latest` to it and return both.

    Results are named after their report, so a run whose steps were all cached finds those of the run that made them.
    """
    report = output(run, "build_report", "report")
    folder = output_dir / "results" / f"{report.created:%Y-%m-%d-%H%M%S}-{report.id.hex[:8]}"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            write_json(temporary / "evaluation.json", output(run, "check_gates", "judged_evaluation").load())
            (temporary / "report.html").write_text(report.load(), encoding="utf-8")
            bundle: Path = output(run, "export_onnx", "bundle").load()
            shutil.copytree(bundle, temporary / "bundle", copy_function=shutil.move)
            shutil.rmtree(bundle)
    _link(output_dir / LATEST, folder)
    return Results(output_dir / LATEST, read_json(folder / "evaluation.json"))


def check_place(output_dir: Path) -> None:
    """Refuse a folder in which the link to the last run's results could not be set.

    Raises:
        SettingsError: something that is not a link stands in its place.
    """
    link = output_dir / LATEST
    if link.exists() and not link.is_symlink():
        raise SettingsError(
            f"{link} is not a link, and the results of the run would be linked there; "
            f"move it away, or set run.output_dir to another folder"
        )


def show(results: Results) -> None:
    """Print the table of a run's models and its verdicts, and where report and bundle lie."""
    evaluation, console = results.evaluation, Console()
    batches = list(evaluation["models"]["teacher"]["latency_ms"])
    table = Table(title=f"{evaluation['rows']:,} test rows, latency in ms per batch", title_justify="left")
    table.add_column("model", no_wrap=True)
    for column in (evaluation["primary_metric"], "agreement", "M params", "MiB", *(f"ms/{size}" for size in batches)):
        table.add_column(column, justify="right", no_wrap=True)
    for name, model in evaluation["models"].items():
        table.add_row(
            name.replace("_", " "),
            f"{model['primary']:.4f}",
            "" if model["agreement"] is None else f"{model['agreement']:.4f}",
            f"{model['parameters'] / 1e6:.2f}",
            f"{model['size_bytes'] / MEBIBYTE:.1f}",
            *(f"{model['latency_ms'][size]:.1f}" for size in batches),
        )
    console.print(table)
    for gate in evaluation["gates"]:
        mark = {True: "passed", False: "failed", None: "open"}[gate["passed"]]
        console.print(f"{mark}  {gate['rule']}: {gate['message']}", highlight=False)
    console.print(f"report  {results.folder / 'report.html'}", highlight=False)
    console.print(f"bundle  {results.folder / 'bundle'}", highlight=False)


def _link(link: Path, target: Path) -> None:
    """Point a link to a folder, so that a reader finds the old or the new one at any time."""
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.relative_to(link.parent))
    temporary.replace(link)
