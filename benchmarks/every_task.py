"""Run every stage and the export on real data, for each configuration in `benchmarks/configs` and some seeds.

    python -m benchmarks.every_task --data DIR --work FOLDER [--seeds 2] [--only NAME ...]

The `data.source` of a configuration is the name of a folder in DIR. A cell (configuration and seed) is kept in FOLDER
as it ends, so that a killed run loses one cell; the result of all cells is written at the end.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.distillation_gain import MODELS, run_seed
from benchmarks.results import write_result
from ted.config import Settings
from ted.export.bundle import export_bundle
from ted.files import read_json, write_json
from ted.settings_file import read_parameters

CONFIGS = Path(__file__).parent / "configs"


def run_cell(settings: Settings, folder: Path) -> dict[str, Any]:
    """Return what every model of one seed reaches, how equal the exported student is, and the seconds it all took."""
    started = time.monotonic()
    run_seed(settings, folder)
    evaluation = read_json(folder / "evaluation" / "evaluation.json")
    manifest = export_bundle(settings, folder / "student", folder / "data", evaluation, 1, folder / "models")
    models = evaluation["models"]
    return {
        "seed": settings.seed,
        "rows": {"test": evaluation["rows"]},
        "metric": evaluation["primary_metric"],
        **{name: models[name]["primary"] for name in MODELS},
        "student_metrics": models["student"]["metrics"],
        "parity": manifest["parity"]["max_abs_difference"],
        "greedy": manifest["parity"].get("greedy"),
        "served": manifest["served_metrics"]["primary"],
        "int8": manifest["int8"]["accepted"],
        "seconds": round(time.monotonic() - started),
    }


def settings_of(config: Path, data: Path, folder: Path, seed: int) -> Settings:
    """Return the settings of a configuration, with its data set in a folder, for a seed."""
    settings = read_parameters(config).resolved()
    source = settings.data.model_copy(update={"source": str(data / settings.data.source)})
    run = settings.run.model_copy(update={"output_dir": str(folder / "runs")})
    return settings.model_copy(update={"data": source, "run": run, "seed": seed})


def main() -> None:
    """Run the cells that are not kept and write all of them."""
    known = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds a folder per data set")
    parser.add_argument("--work", type=Path, required=True, help="folder for models and kept cells")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, from 0 on")
    parser.add_argument("--only", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    arguments = parser.parse_args()
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.only}
    for name in arguments.only:
        for seed in range(arguments.seeds):
            folder = arguments.work / f"{name}-{seed}"
            kept = folder / "cell.json"
            if not kept.is_file():
                settings = settings_of(CONFIGS / f"{name}.yaml", arguments.data, folder, seed)
                write_json(kept, run_cell(settings, folder))
            cells[name].append(read_json(kept))
            sys.stdout.write(f"{name}: {cells[name][-1]}\n")
            sys.stdout.flush()
    write_result("every-task", {"cells": cells})


if __name__ == "__main__":
    main()
