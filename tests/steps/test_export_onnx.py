"""The bundle and its version."""

from pathlib import Path
from typing import Any

from ted.serving.bundle import open_bundle
from ted.serving.predictor import Predictor


def test_the_bundle_has_a_version_and_answers(exported: tuple[Path, dict[str, Any]], logged: dict[str, Any]) -> None:
    folder, manifest = exported
    bundle = open_bundle(folder)
    assert bundle.folder == folder / "steps-test" / str(manifest["version"])
    assert Predictor(bundle).predict(["a good film"])[0]["label"] in bundle.labels
    assert logged["version"] == manifest["version"] == 1
