"""Writing a dated result that names what it was measured on."""

import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from ted.files import write_json
from ted.run_record import git_commit, library_versions

FOLDER = Path(__file__).parent / "results"


def provenance() -> dict[str, Any]:
    """Return date, commit, library versions and machine."""
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": git_commit(),
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "libraries": library_versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": psutil.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
        },
    }


def write_result(name: str, values: dict[str, Any]) -> Path:
    """Print values and write them with their provenance to `results/<date>-<name>.json`; return the path."""
    record = provenance()
    path = FOLDER / f"{record['date']}-{name}.json"
    write_json(path, {**record, **values})
    sys.stdout.write(f"{json.dumps(values, indent=2)}\n{path}\n")
    return path


def _module() -> str:
    path = Path(sys.argv[0]).resolve()
    return path.parent.name if path.stem == "__main__" else f"{path.parent.name}.{path.stem}"
