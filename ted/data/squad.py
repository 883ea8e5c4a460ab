"""Reading a file in the layout of SQuAD: articles of paragraphs, each a context with its questions."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from ted.errors import DataError

FEATURES = Features(
    {
        **{name: Value("string") for name in ("id", "title", "context", "question")},
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int64"))},
    }
)
COLUMNS = {"text": "question", "text_pair": "context", "label": "answers"}
"""Which columns of the layout, in any form, a run reads as what."""
# How such a file begins; enough of it to tell is read first, for a file of rows may be large.
BEGINNING = re.compile(rb'\s*\{\s*("version"\s*:\s*"[^"]*"\s*,\s*)?"data"\s*:\s*\[')
BEGINNING_BYTES = 1024


def read_squad(path: Path) -> Dataset | None:
    """Return a row per question: id, title, context, question and answers; None where a file has another layout.

    Raises:
        DataError: the file begins like one of SQuAD but lacks something that such a file has.
    """
    with path.open("rb") as file:
        if not BEGINNING.match(file.read(BEGINNING_BYTES)):
            return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    try:
        return Dataset.from_list(list(_questions(content["data"])), features=FEATURES)
    except (KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: begins like a file of SQuAD, but not all of it has that layout ({reason}); mend it, or give a "
            "JSON object per question"
        ) from error


def _questions(articles: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for article in articles:
        for paragraph in article["paragraphs"]:
            for item in paragraph["qas"]:
                answers = {name: [answer[name] for answer in item["answers"]] for name in ("text", "answer_start")}
                yield {
                    "id": item.get("id"),
                    "title": article.get("title"),
                    "context": paragraph["context"],
                    "question": item["question"],
                    "answers": answers,
                }
