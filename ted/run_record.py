"""What a run was made of: settings, commit, library versions, data. Lies beside every model that a run writes."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

from ted import __version__
from ted.config import Settings

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "onnx", "onnxruntime", "numpy", "zenml")


def run_record(settings: Settings, data_fingerprint: str) -> dict[str, Any]:
    """Return the record of a run with these settings on data with this fingerprint."""
    return {
        "ted": __version__,
        "commit": git_commit(),
        "settings": settings.model_dump(mode="json"),
        "data_fingerprint": data_fingerprint,
        "libraries": library_versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that decide a run's numbers, as far as they are installed."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


@functools.cache
def code_digest() -> str:
    """Return a digest of this package's code and of the library versions, for what must not outlive either."""
    digest = hashlib.sha256(json.dumps(library_versions(), sort_keys=True).encode())
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def git_commit() -> str | None:
    """Return the commit of the working folder, with `-dirty` for uncommitted changes; None outside a repository."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match="]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
