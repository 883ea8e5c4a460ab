"""Reading the source."""

from pathlib import Path

import pytest
from datasets import DatasetDict

from steps._settings import part
from steps.load_data import load_data
from ted.config import Settings
from ted.errors import DataError


def test_the_splits_of_the_source_come_unchecked(raw_data: Path) -> None:
    dataset = DatasetDict.load_from_disk(str(raw_data))
    assert set(dataset) == {"train", "validation", "test"}
    assert set(dataset["train"].column_names) == {"text", "label", "row", "source"}
    assert "  " in dataset["train"]["text"]


def test_a_missing_source_is_refused(settings: Settings) -> None:
    data = settings.data.model_copy(update={"source": "nowhere.csv"})
    given = part(settings.model_copy(update={"data": data}), "data", "task")
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        load_data.entrypoint(given, "digest")
