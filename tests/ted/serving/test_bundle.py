import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ted.errors import BundleError
from ted.files import sha256_file
from ted.serving.bundle import open_bundle

WriteBundle = Callable[..., Path]


def test_a_version_folder_a_name_folder_and_their_parent_open_the_highest_version(write_bundle: WriteBundle) -> None:
    for version in (1, 2, 10):
        folder = write_bundle(version=version)
    for path in (folder, folder.parent, folder.parent.parent):
        bundle = open_bundle(path)
        assert bundle.folder == folder
        assert bundle.manifest["version"] == 10
    assert bundle.model_path == folder / "model.onnx"
    assert bundle.labels == ("negative", "positive")


def test_an_older_version_opens_by_its_folder(write_bundle: WriteBundle) -> None:
    old = write_bundle(version=1)
    write_bundle(version=2)
    assert open_bundle(old).manifest["version"] == 1


def test_a_parent_with_a_number_for_its_name_opens(write_bundle: WriteBundle, tmp_path: Path) -> None:
    write_bundle()
    parent = (tmp_path / "models").rename(tmp_path / "2024")
    assert open_bundle(parent).manifest["name"] == "tiny"


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_flipped_bit_is_detected_with_both_digests(write_bundle: WriteBundle, name: str) -> None:
    folder = write_bundle()
    path = folder / name
    written = sha256_file(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} has sha256 {sha256_file(path)}, not the {written}"):
        open_bundle(folder)


def test_a_truncated_file_is_detected(write_bundle: WriteBundle) -> None:
    path = write_bundle() / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"model\.onnx has sha256"):
        open_bundle(path.parent)


def test_every_damaged_file_stands_in_one_error(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    (folder / "tokenizer.json").unlink()
    (folder / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.onnx has sha256.*; tokenizer\.json is missing"):
        open_bundle(folder)


def test_files_that_are_not_listed_are_let_be(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    (folder / "notes.txt").write_text("mine")
    assert open_bundle(folder).manifest["name"] == "tiny"


def test_a_missing_manifest_is_an_incomplete_bundle(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    (folder / "bundle.json").unlink()
    for path in (folder, folder.parent):
        with pytest.raises(BundleError, match=r"incomplete: bundle\.json is missing"):
            open_bundle(path)


def test_a_manifest_that_is_not_json_is_refused(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    (folder / "bundle.json").write_text('{"format": 1,')
    with pytest.raises(BundleError, match="is not JSON"):
        open_bundle(folder)


@pytest.mark.parametrize("content", [{"format": 2}, {}, [1], {"format": "1"}])
def test_another_format_is_refused(write_bundle: WriteBundle, content: object) -> None:
    folder = write_bundle()
    (folder / "bundle.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match="this version reads format 1"):
        open_bundle(folder)


def test_a_manifest_without_a_key_names_it(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    manifest = json.loads((folder / "bundle.json").read_text())
    del manifest["max_length"]
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="lacks max_length"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("files", ["model.onnx"], "files must be of type dict, not list"),
        ("files", {"model.onnx": "abc"}, r"files\.model\.onnx must hold a sha256"),
        ("files", {"model.onnx": {"sha256": 1}}, r"files\.model\.onnx must hold a sha256"),
        ("task", "classification", "task must be of type dict, not str"),
        ("task", {"kind": "classification"}, r"task\.labels must be a list of names, or null"),
        ("task", {"kind": "classification", "labels": [1]}, r"task\.labels must be a list of names, or null"),
        ("version", True, "version must be of type int, not bool"),
        ("model", None, "model must be of type str, not NoneType"),
    ],
)
def test_a_manifest_with_a_value_of_another_type_is_refused(
    write_bundle: WriteBundle, key: str, value: object, message: str
) -> None:
    folder = write_bundle()
    manifest = json.loads((folder / "bundle.json").read_text())
    (folder / "bundle.json").write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(BundleError, match=message):
        open_bundle(folder)


def test_a_model_without_a_digest_is_refused(write_bundle: WriteBundle) -> None:
    folder = write_bundle(model="other.onnx")
    with pytest.raises(BundleError, match=r"no digest of other\.onnx"):
        open_bundle(folder)


def test_a_file_outside_the_folder_is_refused(write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"]["../secret"] = {"sha256": "0", "bytes": 0}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"\.\./secret is not a plain file name"):
        open_bundle(folder)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder"):
        open_bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match="holds no bundle"):
        open_bundle(tmp_path)


def test_a_folder_with_several_names_asks_for_one(write_bundle: WriteBundle) -> None:
    write_bundle("first")
    folder = write_bundle("second")
    with pytest.raises(BundleError, match="several bundles: first, second; give one"):
        open_bundle(folder.parent.parent)
