"""Checkpoints of a training: those on this machine, and their copies in a store that outlives it.

A checkpoint is a folder `checkpoint-<step>`. Its file `complete.json` is written last, here and in the store, so that
what a kill cut off is known for it.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from fsspec import AbstractFileSystem

from ted.files import atomic_folder, remove_folder

COMPLETE = "complete.json"
PREFIX = "checkpoint-"


@dataclass(frozen=True)
class CheckpointStore:
    """A folder in a file system that other machines reach too."""

    filesystem: AbstractFileSystem
    folder: str

    def put(self, checkpoint: Path) -> None:
        """Copy a complete checkpoint, and remove older ones of its training."""
        target = self._of(checkpoint)
        for file in checkpoint.rglob("*"):
            if file.is_file() and file.name != COMPLETE:
                self.filesystem.put_file(str(file), f"{target}/{file.relative_to(checkpoint).as_posix()}")
        self.filesystem.put_file(str(checkpoint / COMPLETE), f"{target}/{COMPLETE}")
        for step in self._steps(checkpoint.parent.name):
            if step < step_of(checkpoint):
                self.filesystem.rm(self._of(checkpoint.with_name(f"{PREFIX}{step}")), recursive=True)

    def fetch(self, folder: Path) -> None:
        """Copy the newest complete checkpoint of a training into its folder, unless one as new lies there."""
        stored = [step for step in self._steps(folder.name) if self.filesystem.exists(self._marker(folder, step))]
        here = newest(folder)
        if not stored or (here is not None and step_of(here) >= max(stored)):
            return
        target = folder / f"{PREFIX}{max(stored)}"
        with atomic_folder(target) as temporary:
            self.filesystem.get(f"{self._of(target)}/", str(temporary), recursive=True)

    def remove(self, folder: Path) -> None:
        """Remove the checkpoints of a training."""
        if self.filesystem.exists(f"{self.folder}/{folder.name}"):
            self.filesystem.rm(f"{self.folder}/{folder.name}", recursive=True)

    def _of(self, checkpoint: Path) -> str:
        return f"{self.folder}/{checkpoint.parent.name}/{checkpoint.name}"

    def _marker(self, folder: Path, step: int) -> str:
        return f"{self.folder}/{folder.name}/{PREFIX}{step}/{COMPLETE}"

    def _steps(self, training: str) -> list[int]:
        self.filesystem.invalidate_cache()
        found = self.filesystem.glob(f"{self.folder}/{training}/{PREFIX}*")
        return [step_of(Path(path)) for path in found]


def complete(checkpoint: Path) -> None:
    """Mark a checkpoint as complete."""
    (checkpoint / COMPLETE).write_text(json.dumps({"step": step_of(checkpoint)}))


def newest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a folder, after removing those that a kill left half-written."""
    found = []
    for checkpoint in folder.glob(f"{PREFIX}*"):
        if (checkpoint / COMPLETE).is_file():
            found.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(found, key=step_of, default=None)


def remove(folder: Path, store: CheckpointStore | None) -> None:
    """Remove the checkpoints of a training that has written its result."""
    remove_folder(folder)
    if store is not None:
        store.remove(folder)


def step_of(checkpoint: Path) -> int:
    """Return the update after which a checkpoint was made."""
    return int(checkpoint.name.removeprefix(PREFIX))
