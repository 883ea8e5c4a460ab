"""Checkpoints here and in a store."""

from pathlib import Path

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from ted import checkpoints
from ted.checkpoints import CheckpointStore


@pytest.fixture(params=[LocalFileSystem(auto_mkdir=True), MemoryFileSystem()], ids=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CheckpointStore:
    filesystem: AbstractFileSystem = request.param
    return CheckpointStore(filesystem, f"{tmp_path}/store")


def write(folder: Path, step: int, *, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "part").mkdir(parents=True)
    (checkpoint / "part/weights").write_text(f"weights {step}")
    if complete:
        checkpoints.complete(checkpoint)
    return checkpoint


def test_the_newest_complete_one_counts_and_half_written_ones_go(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) is None
    write(tmp_path, 9)
    write(tmp_path, 10)
    cut_off = write(tmp_path, 11, complete=False)
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-10"
    assert not cut_off.exists()


def test_another_machine_gets_the_newest_complete_one(tmp_path: Path, store: CheckpointStore) -> None:
    for step in (9, 10):
        store.put(write(tmp_path / "here/teacher-1", step))
    other = tmp_path / "there/teacher-1"
    store.fetch(other)
    assert [path.name for path in other.iterdir()] == ["checkpoint-10"]
    assert (other / "checkpoint-10/part/weights").read_text() == "weights 10"
    assert checkpoints.newest(other) == other / "checkpoint-10"


def test_what_a_kill_cut_off_in_the_store_is_not_fetched(tmp_path: Path, store: CheckpointStore) -> None:
    store.put(write(tmp_path / "here/teacher-1", 2))
    store.filesystem.pipe(f"{store.folder}/teacher-1/checkpoint-4/part/weights", b"half")
    store.fetch(tmp_path / "there/teacher-1")
    assert checkpoints.newest(tmp_path / "there/teacher-1") == tmp_path / "there/teacher-1/checkpoint-2"


def test_a_newer_one_here_stays(tmp_path: Path, store: CheckpointStore) -> None:
    store.put(write(tmp_path / "here/teacher-1", 2))
    newer = write(tmp_path / "there/teacher-1", 4)
    store.fetch(newer.parent)
    assert [path.name for path in newer.parent.iterdir()] == ["checkpoint-4"]


def test_older_ones_leave_the_store_and_other_trainings_stay(tmp_path: Path, store: CheckpointStore) -> None:
    store.put(write(tmp_path / "teacher-1", 2))
    store.put(write(tmp_path / "teacher-1", 4))
    store.put(write(tmp_path / "student-1", 2))
    left = {Path(path).relative_to(store.folder).as_posix() for path in store.filesystem.glob(f"{store.folder}/*/*")}
    assert left == {"teacher-1/checkpoint-4", "student-1/checkpoint-2"}


def test_a_training_that_has_ended_leaves_nothing(tmp_path: Path, store: CheckpointStore) -> None:
    store.put(write(tmp_path / "teacher-1", 2))
    checkpoints.remove(tmp_path / "teacher-1", store)
    checkpoints.remove(tmp_path / "never-trained", store)
    assert not (tmp_path / "teacher-1").exists()
    assert not store.filesystem.exists(f"{store.folder}/teacher-1")
