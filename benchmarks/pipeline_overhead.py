"""Measure what the pipeline costs over the same calls without ZenML: one run of each, one after the other.

    python -m benchmarks.pipeline_overhead [--config zenml_config.yaml]

The pipeline runs in a process of its own, on a store of its own, so that nothing is taken from a cache. Its seconds
include the start of the command and the import of all libraries; those of the calls include neither.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.distillation_gain import run_seed
from benchmarks.results import write_result
from ted.config import Settings, parse_settings
from ted.export.bundle import export_bundle
from ted.files import read_json


def main() -> int:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("zenml_config.yaml"), help="settings of the run")
    path = parser.parse_args().config
    configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        configuration["parameters"]["run"] = {"output_dir": str(Path(folder, "piped"))}
        piped = _run_pipeline(configuration, Path(folder))
        configuration["parameters"]["run"] = {"output_dir": str(Path(folder, "called"))}
        called = _call(parse_settings(configuration["parameters"]).resolved(), Path(folder, "calls"))
    percent = 100 * (piped - called) / called
    write_result("pipeline-overhead", {"pipeline_seconds": piped, "calls_seconds": called, "overhead_percent": percent})
    return 0


def _run_pipeline(configuration: dict[str, object], folder: Path) -> float:
    file = folder / "configuration.yaml"
    file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    command = [str(Path(sys.executable).parent / "zenml"), "pipeline", "run", "ted_pipeline", "-c", str(file)]
    environment = {**os.environ, "ZENML_CONFIG_PATH": str(folder / "zenml"), "ZENML_ANALYTICS_OPT_IN": "false"}
    started = time.monotonic()
    subprocess.run(command, check=True, env=environment)
    return time.monotonic() - started


def _call(settings: Settings, folder: Path) -> float:
    started = time.monotonic()
    run_seed(settings, folder)
    evaluation = read_json(folder / "evaluation" / "evaluation.json")
    export_bundle(settings, folder / "student", folder / "data", evaluation, 1, folder / "bundle")
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
