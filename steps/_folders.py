"""Folders that a step writes, and digests of those that it reads from outside the pipeline."""

import atexit
import hashlib
import shutil
import tempfile
from pathlib import Path

from ted.files import sha256_file, sha256_folder


def new_folder(name: str) -> Path:
    """Return the path of a folder to be written; what lies there goes when the process ends."""
    parent = Path(tempfile.mkdtemp(prefix="ted-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    return parent / name


def outside_digest(*names: str | None) -> str:
    """Return a digest of what local files hold, for the cache key of a step that reads them.

    Args:
        names: Files, folders, or names that stand for nothing local, which count as they are.
    """
    digest = hashlib.sha256()
    for name in names:
        path = Path(name or "")
        if name and path.is_dir():
            content = sha256_folder(path)
        elif name and path.is_file():
            content = sha256_file(path)
        else:
            content = str(name)
        digest.update(f"{content}\0".encode())
    return digest.hexdigest()
