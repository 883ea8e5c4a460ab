"""Folders that steps write, and digests of those from outside."""

from pathlib import Path

from steps._folders import new_folder, outside_digest


def test_a_new_folder_is_not_there_yet_and_has_a_parent_of_its_own() -> None:
    first, second = new_folder("model"), new_folder("model")
    assert first.name == second.name == "model"
    assert first.parent != second.parent
    assert first.parent.is_dir()
    assert not first.exists()


def test_the_digest_follows_the_content_of_files_and_folders(tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.csv", tmp_path / "model"
    folder.mkdir()
    file.write_text("a")
    (folder / "config.json").write_text("{}")
    before = outside_digest(str(file), str(folder))
    assert outside_digest(str(file), str(folder)) == before
    file.write_text("b")
    changed = outside_digest(str(file), str(folder))
    (folder / "config.json").write_text("[]")
    assert len({before, changed, outside_digest(str(file), str(folder))}) == 3


def test_a_name_without_files_stands_for_itself() -> None:
    assert outside_digest("someone/model") == outside_digest("someone/model")
    assert outside_digest("someone/model") != outside_digest("someone/other")
    assert outside_digest(None) != outside_digest(None, None)
