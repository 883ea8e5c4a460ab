import json
from pathlib import Path
from typing import Any

import pytest

from ted.config import DataSettings, TaskSettings
from ted.data.sources import load_dataset
from ted.data.squad import read_squad
from ted.errors import DataError

CONTEXT = "Paper is made in mills."
IMPOSSIBLE: dict[str, Any] = {"id": "2", "question": "Why?", "is_impossible": True, "answers": []}
QUESTION: dict[str, Any] = {"id": "1", "question": "Where?", "answers": [{"text": "mills", "answer_start": 17}]}


def write(path: Path, content: object, indent: int | None = None) -> Path:
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    return path


def articles(*contexts: str) -> list[dict[str, Any]]:
    return [{"title": "Paper", "paragraphs": [{"context": text, "qas": [QUESTION, IMPOSSIBLE]} for text in contexts]}]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("version", [{}, {"version": "v2.0"}])
def test_a_file_of_squad_has_a_row_per_question(indent: int | None, version: dict[str, str], tmp_path: Path) -> None:
    rows = read_squad(write(tmp_path / "train.json", {**version, "data": articles(CONTEXT)}, indent))
    assert rows is not None
    assert rows.to_list() == [
        {
            "id": "1",
            "title": "Paper",
            "context": CONTEXT,
            "question": "Where?",
            "answers": {"text": ["mills"], "answer_start": [17]},
        },
        {
            "id": "2",
            "title": "Paper",
            "context": CONTEXT,
            "question": "Why?",
            "answers": {"text": [], "answer_start": []},
        },
    ]


@pytest.mark.parametrize("text", ['{"text": "a"}\n', '{"data": [1], "label": 1}\n{"data": [2], "label": 2}\n', ""])
def test_a_file_of_rows_is_none_of_squad(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text)
    assert read_squad(tmp_path / "rows.json") is None


@pytest.mark.parametrize("data", [[{"title": "x"}], [3], [{"paragraphs": [{"context": "a", "qas": [{"id": "1"}]}]}]])
def test_what_a_file_of_squad_lacks_is_named(data: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"begins like a file of SQuAD, but not all of it has that layout \("):
        read_squad(write(tmp_path / "train.json", {"data": data}))


def test_columns_that_are_not_set_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "train.json", {"data": articles(CONTEXT)})
    data = DataSettings(source=str(path), text_pair_column="context")
    lines = "set data.text_column: question, data.text_pair_column: context, data.label_column: answers"
    with pytest.raises(DataError, match=f"no column 'text' among .*; for task.kind: question_answering, {lines}"):
        load_dataset(data, TaskSettings(kind="question_answering"), seed=0)


def test_splits_cut_from_it_share_no_context(tmp_path: Path) -> None:
    source = write(tmp_path / "squad.json", {"data": articles(*(f"{CONTEXT} {place}" for place in range(20)))})
    data = DataSettings(source=str(source), text_column="question", text_pair_column="context", label_column="answers")
    splits = load_dataset(data, TaskSettings(kind="question_answering"), seed=0)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 32, "validation": 4, "test": 4}
    contexts = [set(rows["text_pair"]) for rows in splits.values()]
    assert sum(map(len, contexts)) == 20
