"""The model card of a bundle: what it is, how good it is, how to use it."""

from collections.abc import Mapping
from typing import Any

import yaml

from ted.report import text


def render(manifest: Mapping[str, Any]) -> str:
    """Return the card as Markdown with a YAML front matter.

    The card states what the manifest holds. The licence is `unknown`: it follows from data and teacher, and whoever
    publishes the bundle has to say it.

    Args:
        manifest: content of `bundle.json`.
    """
    pair = ("A first text.", "A second text.")
    checks = (("Parity with the trained model", manifest["parity"]), ("8-bit candidate", manifest["int8"]))
    template = text.templates().get_template("model_card.md.jinja")
    return template.render(
        manifest=manifest,
        measured=manifest["metrics"],
        served=manifest["served_metrics"],
        front_matter=yaml.safe_dump(_front_matter(manifest), sort_keys=False),
        example=repr(pair if manifest["pair"] else pair[0]),
        checks=[(title, values) for title, values in checks if values],
    )


def _front_matter(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "license": "unknown",
        "library_name": "onnxruntime",
        "pipeline_tag": manifest["pipeline_tag"],
        "tags": ["onnx", "knowledge-distillation", manifest["task"]["kind"]],
        "model_name": manifest["name"],
    }
