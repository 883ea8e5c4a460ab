import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from ted.files import atomic_file, atomic_folder, read_json, remove_folder, sha256_file, sha256_folder, write_json


def test_a_folder_appears_in_one_piece(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    with atomic_folder(target) as folder:
        (folder / "weights").write_text("new")
        assert not target.exists()
    assert (target / "weights").read_text() == "new"
    assert os.listdir(target.parent) == ["model"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_a_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale").touch()
    with atomic_folder(target) as folder:
        (folder / "weights").touch()
    assert os.listdir(target) == ["weights"]
    assert os.listdir(tmp_path) == ["model"]


def test_an_error_leaves_the_older_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "kept").touch()
    with pytest.raises(FileExistsError), atomic_folder(target) as folder:  # noqa: PT012
        (folder / "half").mkdir()
        (folder / "half").mkdir()
    assert os.listdir(target) == ["kept"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_kill_while_the_older_folder_is_removed_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ted.files.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:
        (folder / "new").touch()
    assert os.listdir(target) == ["new"]


def test_a_folder_is_removed_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle must not leave a folder that looks whole by its name and is not."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    removed: list[Path] = []
    monkeypatch.setattr("ted.files.shutil.rmtree", lambda path, **_: removed.append(Path(path)))
    remove_folder(folder)
    assert not folder.exists()
    assert removed
    assert all(path.name.startswith(".") for path in removed)


def test_removing_a_folder_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "checkpoint-2").mkdir(parents=True)
    remove_folder(folder)
    remove_folder(folder)  # a folder that is not there is no error
    assert os.listdir(tmp_path) == []


def test_a_file_appears_in_one_piece(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["report.html"]


def test_an_error_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    with pytest.raises(NotADirectoryError), atomic_file(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        (temporary / "below").touch()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"name": "größer", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"loss": value})
    assert os.listdir(tmp_path) == []


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"ted" * 100_000)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"ted" * 100_000).hexdigest()


def test_the_digest_of_a_folder_is_that_of_its_names_and_contents(tmp_path: Path) -> None:
    def digest(name: str, contents: dict[str, str]) -> str:
        for path, content in contents.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(content)
        return sha256_folder(tmp_path / name)

    base = digest("a", {"x": "1", "deep/y": "2"})
    assert digest("b", {"deep/y": "2", "x": "1"}) == base
    assert digest("c", {"x": "2", "deep/y": "1"}) != base
    assert digest("d", {"x": "1", "y": "2"}) != base
    assert digest("e", {"x": "1", "deep/y": "2", "z": ""}) != base
