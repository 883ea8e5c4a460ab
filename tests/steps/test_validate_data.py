"""Rules, exclusions and the rows that are used."""

from pathlib import Path
from typing import Any

import pandas as pd
from datasets import ClassLabel, DatasetDict

from benchmarks.tiny import LABELS


def test_rows_are_excluded_recorded_and_counted(validated: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, excluded, findings = validated
    rows = DatasetDict.load_from_disk(str(folder))
    assert rows["train"].features["label"] == ClassLabel(names=list(LABELS))
    assert len(rows["train"]) == 30
    assert {name: len(split) for name, split in rows.items()} == findings["split_rows"]
    assert "  " in pd.read_parquet(excluded / "excluded.parquet")["text"].tolist()
    (finding,) = (finding for finding in findings["findings"] if finding["rule"] == "empty_text")
    assert (finding["policy"], finding["split"], finding["count"]) == ("exclude", "train", 1)


def test_rows_that_lose_their_label_stay_as_unlabelled_text(validated: tuple[Path, Path, dict[str, Any]]) -> None:
    rows = DatasetDict.load_from_disk(str(validated[0]))
    assert "label" not in rows["unlabelled"].column_names
    assert len(rows["unlabelled"]) > 0
