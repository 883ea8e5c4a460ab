"""How folders are stored."""

import json
from pathlib import Path

import pytest
from zenml.client import Client

from steps._materializers import FolderMaterializer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "1" / "deep").mkdir(parents=True)
    (made / "config.pbtxt").write_text("x")
    (made / "1" / "deep" / "model.onnx").write_bytes(bytes(range(256)))
    return made


@pytest.fixture
def materializer(tmp_path: Path) -> FolderMaterializer:
    (tmp_path / "store").mkdir()
    return FolderMaterializer(str(tmp_path / "store"), Client().active_stack.artifact_store)


def test_a_folder_comes_back_as_it_was(materializer: FolderMaterializer, folder: Path) -> None:
    materializer.save(folder)
    copy = materializer.load(Path)
    assert copy != folder
    assert materializer.compute_content_hash(copy) == materializer.compute_content_hash(folder)
    assert (copy / "1/deep/model.onnx").read_bytes() == bytes(range(256))
    assert folder.is_dir()


def test_the_files_are_stored_as_they_are(materializer: FolderMaterializer, folder: Path, tmp_path: Path) -> None:
    materializer.save(folder)
    assert (tmp_path / "store/files/1/deep/model.onnx").read_bytes() == bytes(range(256))
    assert materializer.extract_metadata(folder) == {"num_files": 2, "bytes": 257}


@pytest.mark.parametrize("name", ["../secret", "1/../../secret", "/etc/passwd", "", ".."])
def test_an_index_that_leaves_the_folder_is_refused(
    materializer: FolderMaterializer, folder: Path, tmp_path: Path, name: str
) -> None:
    materializer.save(folder)
    (tmp_path / "store/index.json").write_text(json.dumps(["config.pbtxt", name]))
    with pytest.raises(ValueError, match="which lie outside the folder"):
        materializer.load(Path)


def test_what_is_not_a_folder_is_refused(materializer: FolderMaterializer, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="not a folder"):
        materializer.save(tmp_path / "nothing")


def test_paths_are_otherwise_stored_as_zenml_stores_them() -> None:
    from zenml.materializers.materializer_registry import materializer_registry

    assert materializer_registry[Path] is not FolderMaterializer
