"""The start of every method."""

from pathlib import Path
from typing import Any

from ted.files import read_json


def test_the_folder_explains_itself(student_start: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = student_start
    assert metrics["step"] == "prepare_student"
    assert read_json(folder / "metrics.json")["steps"] == metrics["steps"]
    record = read_json(folder / "run_record.json")
    assert record["settings"]["data"]["max_length"] == 16
    assert "gates" not in record["settings"]
    assert (folder / "model.safetensors").is_file()
    assert read_json(folder / "config.json")["num_hidden_layers"] == 2
