"""The start trained on without a teacher."""

from pathlib import Path
from typing import Any

from ted.files import read_json


def test_the_folder_explains_itself(control: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = control
    assert metrics["step"] == "finetune_control"
    assert read_json(folder / "metrics.json")["steps"] == metrics["steps"]
    record = read_json(folder / "run_record.json")
    assert record["settings"]["data"]["max_length"] == 16
    assert "gates" not in record["settings"]
    assert (folder / "model.safetensors").is_file()
    assert metrics["steps"] == 8
