"""Fine-tuning the teacher."""

from pathlib import Path
from typing import Any

from ted.files import read_json


def test_the_folder_explains_itself(teacher: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = teacher
    assert metrics["step"] == "finetune_teacher"
    assert read_json(folder / "metrics.json")["steps"] == metrics["steps"]
    record = read_json(folder / "run_record.json")
    assert record["settings"]["data"]["max_length"] == 16
    assert "gates" not in record["settings"]
    assert (folder / "model.safetensors").is_file()
    assert metrics["steps"] == 8
