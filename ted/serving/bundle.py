"""Finding a bundle in a folder and verifying it before anything of it is used; standard library only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted.errors import BundleError
from ted.files import sha256_file

FORMAT = 1
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.json"
# What serving reads, and as what JSON holds it.
REQUIRED_KEYS: Mapping[str, type] = {
    "name": str,
    "version": int,
    "task": dict,
    "max_length": int,
    "max_characters": int,
    "pair": bool,
    "inputs": list,
    "outputs": list,
    "model": str,
    "files": dict,
    "self_test": dict,
}


@dataclass(frozen=True)
class Bundle:
    """A version folder and the content of its bundle.json."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def model_path(self) -> Path:
        """File of the model that serving loads."""
        return self.folder / str(self.manifest["model"])

    @property
    def tokenizer_path(self) -> Path:
        """File of the tokenizer."""
        return self.folder / TOKENIZER

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the outputs; empty for a regression."""
        return tuple(self.manifest["task"]["labels"] or ())


def open_bundle(path: Path) -> Bundle:
    """Return the bundle in a folder after comparing every file with the digest that was written for it.

    Files that bundle.json does not list are never read, so they are let be.

    Args:
        path: version folder, name folder (its highest version counts) or a folder that holds one name folder.

    Raises:
        BundleError: there is no bundle, a file is missing or differs, or the format is not the one read here.
    """
    folder = _version_folder(path)
    manifest = _read_manifest(folder / MANIFEST)
    _verify_files(folder, manifest["files"])
    return Bundle(folder, manifest)


def _version_folder(path: Path) -> Path:
    if not path.is_dir():
        raise BundleError(f"{path} is not a folder; give the folder of a bundle")
    if (path / MANIFEST).exists() or any(path.glob("*.onnx")):
        return path
    if versions := _versions(path):
        return max(versions, key=lambda version: int(version.name))
    names = sorted(child for child in path.iterdir() if child.is_dir() and _versions(child))
    if not names:
        raise BundleError(f"{path} holds no bundle: no {MANIFEST}, no numbered version folder, no folder with versions")
    if len(names) > 1:
        raise BundleError(f"{path} holds several bundles: {', '.join(name.name for name in names)}; give one of them")
    return _version_folder(names[0])


def _versions(path: Path) -> list[Path]:
    return [child for child in path.iterdir() if child.name.isdecimal() and child.is_dir()]


def _read_manifest(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise BundleError(f"{path.parent} is incomplete: {MANIFEST} is missing; copy or export the bundle again")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}); copy or export the bundle again") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise BundleError(
            f"{path} has format {found!r}; this version reads format {FORMAT}: install the one that wrote it"
        )
    if missing := sorted(REQUIRED_KEYS.keys() - manifest.keys()):
        raise BundleError(f"{path} lacks {', '.join(missing)}; export the bundle again")
    if wrong := _wrong_types(manifest):
        raise BundleError(f"{path}: {'; '.join(wrong)}; export the bundle again")
    if unlisted := {manifest["model"], TOKENIZER} - manifest["files"].keys():
        raise BundleError(f"{path} lists no digest of {', '.join(sorted(unlisted))}; export the bundle again")
    return dict(manifest)


def _wrong_types(manifest: Mapping[str, Any]) -> list[str]:
    """Return what of a manifest with all keys serving could not read."""
    wrong = [
        f"{key} must be of type {kind.__name__}, not {type(manifest[key]).__name__}"
        for key, kind in REQUIRED_KEYS.items()
        if type(manifest[key]) is not kind
    ]
    if wrong:
        return wrong
    labels = manifest["task"].get("labels", "")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        wrong.append("task.labels must be a list of names, or null")
    return wrong + [
        f"files.{name} must hold a sha256"
        for name, facts in manifest["files"].items()
        if not (isinstance(facts, dict) and isinstance(facts.get("sha256"), str))
    ]


def _verify_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare every listed file with its digest; all problems stand in one error."""
    problems = []
    for name, expected in files.items():
        path = folder / name
        if Path(name).name != name:
            problems.append(f"{name} is not a plain file name")
        elif not path.is_file():
            problems.append(f"{name} is missing")
        elif (actual := sha256_file(path)) != expected["sha256"]:
            problems.append(f"{name} has sha256 {actual}, not the {expected['sha256']} that was written")
    if problems:
        raise BundleError(f"{folder} is damaged: {'; '.join(problems)}; copy or export the bundle again")
