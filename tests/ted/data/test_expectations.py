import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from ted.config import QualitySettings
from ted.data.expectations import Engine, row_expectations, table_expectations


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


def broken(engine: Engine, texts: list[object]) -> dict[str, list[int]]:
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object)})
    quality = QualitySettings(min_characters=2, max_characters=9)
    return {rule: rows.tolist() for rule, rows in engine.broken(frame, row_expectations(["text"], quality))}


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        ("missing", [None, np.nan]),
        ("types", [7, 1.5]),
        ("empty_text", ["  ", "\t\n", "\u00a0\u00a0", "\u3000\u2003", "\u200b\ufeff"]),
        ("broken_text", ["a\x00", "b\x1b[", "it\x92s", "caf\ufffd", "a\x7f", "a\x0eb"]),
        ("text_length", ["x", "0123456789"]),
    ],
)
def test_row_rules(engine: Engine, rule: str, bad: list[object]) -> None:
    good = ["fine", "two\nlines", "tab\there", "日本語", "a\r\nb", "naïve", "a\x0cb", "a\x0bb"]
    assert broken(engine, list(good)) == {}
    assert broken(engine, [*good, *bad])[rule] == list(range(len(good), len(good) + len(bad)))


def test_label_rules(engine: Engine) -> None:
    frame = pd.DataFrame({"label": ["a", "c", None], "number": [0.0, np.nan, np.nan]})
    quality = QualitySettings()
    found = {rule: rows.tolist() for rule, rows in engine.broken(frame, row_expectations(["label"], quality))}
    assert found == {"missing": [2], "unknown_label": [1, 2]}


def test_positions_do_not_depend_on_the_index(engine: Engine) -> None:
    frame = pd.DataFrame({"text": ["fine", None]}, index=[70, 71])
    found = list(engine.broken(frame, row_expectations(["text"], QualitySettings())))
    assert [(rule, rows.tolist()) for rule, rows in found] == [("missing", [1])]


def test_table_needs_its_columns(engine: Engine) -> None:
    frame = pd.DataFrame({"text": ["a"], "more": [1]})
    assert list(engine.broken(frame, table_expectations(["text"]))) == []
    assert [rule for rule, _ in engine.broken(frame, table_expectations(["text", "label"]))] == ["columns"]


def test_expectation_that_cannot_be_evaluated_is_not_passed_over(engine: Engine) -> None:
    with pytest.raises(AssertionError, match="column"):
        list(engine.broken(pd.DataFrame({"other": ["a"]}), row_expectations(["text"], QualitySettings())))


def test_module_loads_without_great_expectations_and_an_engine_sends_nothing() -> None:
    code = (
        "import sys, ted.data.quality; assert 'great_expectations' not in sys.modules\n"
        "from ted.data.expectations import Engine; engine = Engine()\n"
        "import great_expectations as gx; context = gx.get_context(mode='ephemeral')\n"
        "assert 'posthog' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
