import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ted.config import DataSettings, QualitySettings, TaskKind, TaskSettings
from ted.data import sources
from ted.data.labels import found_names
from ted.data.quality import Validation, validate
from ted.data.sources import dataset_fingerprint, load_dataset, text_keys
from ted.errors import DataError, DataQualityError
from ted.tasks import get_task

DATA = DataSettings()
CLASSIFICATION = TaskSettings()
REGRESSION = TaskSettings(kind="regression")
LENIENT = QualitySettings(max_excluded_fraction=1.0, min_rows_per_class=1)
GOOD = {
    "train": [("a good film", "good"), ("a bad film", "bad"), ("a long film", "bad")],
    "validation": [("a fine day", "good"), ("a grey day", "bad")],
    "test": [("a warm soup", "good"), ("a cold soup", "bad")],
}


def split(rows: list[tuple[Any, ...]], source: str) -> Dataset:
    columns: dict[str, list[Any]] = {"text": [row[0] for row in rows]}
    features = {"text": Value("string"), "row": Value("int64"), "source": Value("string")}
    if source != "unlabelled":
        columns["label"] = [row[1] for row in rows]
        numbers = any(isinstance(label, float) for label in columns["label"])
        features["label"] = Value("float64" if numbers else "string")
    columns |= {"row": list(range(1, len(rows) + 1)), "source": [source] * len(rows)}
    return Dataset.from_dict(columns, features=Features(features))


def dataset(**rows: list[tuple[Any, ...]]) -> DatasetDict:
    return DatasetDict({name: split(table, name) for name, table in {**GOOD, **rows}.items()})


def check(
    rows: Mapping[str, list[tuple[Any, ...]]], quality: QualitySettings = LENIENT, task: TaskSettings = CLASSIFICATION
) -> Validation:
    return validate(dataset(**rows), DATA, quality, task)


def excluded(validation: Validation) -> list[tuple[str, str, int]]:
    return [(row["split"], row["rule"], row["row"]) for row in validation.excluded]


def test_clean_rows_pass_with_final_labels() -> None:
    validation = check({}, QualitySettings(min_rows_per_class=1))
    assert validation.findings == ()
    assert len(validation.excluded) == 0
    assert validation.dataset["train"].features["label"] == ClassLabel(names=["bad", "good"])
    assert validation.dataset["train"]["label"][:] == [1, 0, 0]
    assert validation.dataset["train"]["row"][:] == [1, 2, 3]


def test_declared_classes_keep_their_order_and_accept_their_numbers() -> None:
    rows = {"train": [("one film", "good"), ("two films", "0"), ("six films", "1")]}
    task = TaskSettings(labels=("good", "bad"))
    train = check(rows, task=task).dataset["train"]
    assert train.features["label"] == ClassLabel(names=["good", "bad"])
    assert train["label"][:] == [0, 0, 1]


@pytest.mark.parametrize("kind", ["classification", "multi_label", "token_classification"])
def test_numbers_have_to_be_named(kind: TaskKind) -> None:
    labels = ["10", "2"] if kind == "classification" else [["10"], ["2"]]
    message = r"the labels are numbers: 2, 10; write task.labels: \['2', '10'\] if they are called so$"
    with pytest.raises(DataError, match=message):
        get_task(TaskSettings(kind=kind)).find_labels(Dataset.from_dict({"label": labels}))


def test_numbers_from_zero_on_may_stand_for_names() -> None:
    with pytest.raises(DataError, match=r"0, 1; give the names .* with that of 0, or write task.labels: \['0"):
        found_names({"1", "0"})
    for spelt in (["01", "02"], ["0.0", "1.0"], ["-1", "1"]):
        with pytest.raises(DataError, match=rf"write task.labels: \['{spelt[0]}', '{spelt[1]}'\] if"):
            found_names(spelt)
    assert found_names({"7"}) == ("7",)
    assert found_names({"7", "other"}) == ("7", "other")


def test_numbers_are_names_where_they_are_declared() -> None:
    rows = {name: [("one " + name, "10"), ("two " + name, "2")] for name in GOOD}
    task = TaskSettings(labels=("10", "2"))
    assert check(rows, task=task).dataset["train"]["label"][:] == [0, 1]
    with pytest.raises(DataQualityError, match="unknown_label: 1 row with a label other than '10', '2': row 1 of test"):
        check({**rows, "test": [("x", "0"), ("y", "2"), ("z", "10")]}, task=task)


def test_targets_become_float32_and_others_are_named() -> None:
    rows = {name: [("one " + name, "1.5"), ("two " + name, " -2e1 ")] for name in GOOD}
    train = check(rows, task=REGRESSION).dataset["train"]
    assert train.features["label"] == Value("float32")
    assert train["label"][:] == [1.5, -20.0]
    rows["test"] = [("a", "inf"), ("b", "nan"), ("c", "high"), ("d", "1")]
    with pytest.raises(DataQualityError, match="test: unknown_label: 3 rows with a label other than a finite number"):
        check(rows, task=REGRESSION)
    values = {"one": 1.0, "two": float("nan"), "six": float("inf"), "ten": 2.0}
    numbers = {name: [(f"{word} {name}", value) for word, value in values.items()] for name in GOOD}
    quality = LENIENT.model_copy(update={"unknown_label": "exclude"})
    assert excluded(check(numbers, quality, REGRESSION))[:2] == [("train", "missing", 2), ("train", "unknown_label", 3)]


BROKEN: dict[str, list[tuple[Any, ...]]] = {
    "missing": [(None, "good"), ("no label", None)],
    "empty_text": [(" \n", "good")],
    "broken_text": [("caf\ufffd", "good"), ("nul\x00", "bad")],
    "text_length": [("x" * 51, "good")],
    "unknown_label": [("a new film", "neutral")],
    "duplicates": [("A  good film", "good")],
    "conflicting_labels": [("the same", "good"), ("the same", "bad"), ("The Same", "bad")],
    "leakage": [("A grey day", "bad"), ("a warm soup ", "good")],
}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_excludes_and_records_or_stops(rule: str) -> None:
    rows = {"train": GOOD["train"] + BROKEN[rule]}
    task = TaskSettings(labels=("good", "bad"))
    policies = {"max_characters": 50, rule: "exclude"}
    validation = check(rows, LENIENT.model_copy(update=policies), task)
    numbers = list(range(4, 4 + len(BROKEN[rule])))
    assert excluded(validation) == [("train", rule, number) for number in numbers]
    assert [finding.as_dict() | {"message": ""} for finding in validation.findings] == [
        {"rule": rule, "policy": "exclude", "split": "train", "count": len(numbers), "rows": numbers, "message": ""}
    ]
    assert validation.dataset["train"]["row"][:] == [1, 2, 3]
    places = f"{'row' if len(numbers) == 1 else 'rows'} {', '.join(map(str, numbers))} of train"
    with pytest.raises(
        DataQualityError, match=rf"^train: {rule}: {len(numbers)} rows? with.*: {places}; the first has"
    ):
        check(rows, LENIENT.model_copy(update={**policies, rule: "stop"}), task)


def test_findings_are_json_and_name_ten_rows_at_most() -> None:
    rows = {"train": GOOD["train"] + [("", "good")] * 25}
    (finding,) = check(rows).findings
    assert finding.count == 25
    assert finding.rows == tuple(range(4, 14))
    assert json.loads(json.dumps(finding.as_dict()))["rows"] == list(finding.rows)


def test_a_row_counts_under_its_first_rule() -> None:
    rows = {"train": [*GOOD["train"], ("", "neutral"), ("\x00", None)]}
    assert excluded(check(rows, task=TaskSettings(labels=("good", "bad")))) == [
        ("train", "empty_text", 4),
        ("train", "missing", 5),
    ]


def test_leaks_leave_the_earlier_split() -> None:
    rows = {
        "validation": [*GOOD["validation"], ("a cold soup", "bad")],
        "train": [*GOOD["train"], ("A COLD SOUP", "good")],
    }
    assert excluded(check(rows)) == [("train", "leakage", 4), ("validation", "leakage", 3)]


def test_unlabelled_text_meets_text_rules_and_must_not_leak() -> None:
    texts = [("a good film",), ("new",), ("new",), ("",), ("a cold soup",), ("A grey  day",)]
    validation = check({"unlabelled": texts})
    assert excluded(validation) == [
        ("unlabelled", rule, row) for rule, row in (("empty_text", 4), ("leakage", 5), ("leakage", 6))
    ]
    assert validation.dataset["unlabelled"]["text"][:] == ["a good film", "new", "new"]
    assert "label" not in validation.dataset["unlabelled"].column_names


def test_all_stops_come_in_one_error() -> None:
    quality = LENIENT.model_copy(update={"empty_text": "stop"})
    rows = {
        "train": [*GOOD["train"], ("", "good")],
        "test": [*GOOD["test"], ("so", "so")],
        "validation": [("a fine day", "good")],
    }
    with pytest.raises(DataQualityError) as caught:
        check(rows, quality)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["train", "empty_text"],
        ["test", "unknown_label"],
        ["validation", "min_rows_per_class"],
    ]


def test_share_of_excluded_rows_is_bounded() -> None:
    rows = {"train": [*GOOD["train"], ("", "good")]}
    check(rows, QualitySettings(max_excluded_fraction=0.25, min_rows_per_class=1))
    with pytest.raises(
        DataQualityError, match=r"train: max_excluded_fraction: 1 of 4 rows \(25\.0%\).*\n  train: empty_text"
    ):
        check(rows, QualitySettings(max_excluded_fraction=0.24, min_rows_per_class=1))


def test_each_class_needs_rows_in_each_split() -> None:
    with pytest.raises(DataQualityError, match=r"test: min_rows_per_class: too few rows of 'bad' 0; .* is 1"):
        check({"test": [("a warm soup", "good")]})
    with pytest.raises(DataQualityError, match="test: min_rows_per_class: the only class is 'good'"):
        check({name: [(f"a {name}", "good")] for name in GOOD})
    numbers = {name: [("one " + name, 1.0)] for name in GOOD}
    with pytest.raises(DataQualityError, match=r"validation: min_rows_per_class: one row is left; .* need two"):
        check({**numbers, "train": [("one", 1.0)], "test": [("six", 1.0), ("ten", 2.0)]}, task=REGRESSION)
    with pytest.raises(DataQualityError, match="train: min_rows_per_class: no row is left"):
        check({**numbers, "train": [("", 1.0)]}, task=REGRESSION)


def test_pairs_are_judged_on_both_texts() -> None:
    def pairs(name: str, rows: list[tuple[Any, ...]]) -> Dataset:
        table = split([(first, label) for first, _, label in rows], name)
        return table.add_column("text_pair", [second for _, second, _ in rows], feature=Value("string"))

    good: list[tuple[Any, ...]] = [("same", "x", "good"), ("same", "y", "bad")]
    splits = {name: pairs(name, [(f"{a} {name}", b, c) for a, b, c in good]) for name in GOOD}
    train = [*good, ("same", "x", "good"), ("a", None, "bad"), ("b", "\ufffd", "bad")]
    validation = validate(
        DatasetDict({**splits, "train": pairs("train", train)}),
        DataSettings(text_pair_column="b"),
        LENIENT,
        CLASSIFICATION,
    )
    assert excluded(validation) == [("train", "duplicates", 3), ("train", "missing", 4), ("train", "broken_text", 5)]
    assert validation.excluded["text_pair"][:] == ["x", None, "\ufffd"]


def test_columns_and_types_are_checked_first() -> None:
    given = dataset()
    given["test"] = given["test"].remove_columns("row")
    with pytest.raises(DataQualityError, match="test: columns: expected text, label, row, source but the split has"):
        validate(given, DATA, LENIENT, CLASSIFICATION)
    given = dataset()
    numbers = Dataset.from_dict({"text": [1, 2], "label": ["good", "bad"], "row": [1, 2], "source": ["t", "t"]})
    given["test"] = numbers
    with pytest.raises(DataQualityError, match="test: types: 2 rows with something other than text: rows 1, 2 of t"):
        validate(given, DATA, LENIENT, CLASSIFICATION)


def test_batches_do_not_change_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    train = [(f"film {number}", ["good", "bad"][number % 2]) for number in generator.integers(0, 40, size=60)]
    train += [("", "good"), ("x", None), ("a grey day", "bad")]
    whole = check({"train": train})
    monkeypatch.setattr(sources, "BATCH_ROWS", 7)
    parts = check({"train": train})
    assert parts.findings == whole.findings
    assert dataset_fingerprint(parts.dataset) == dataset_fingerprint(whole.dataset)


@pytest.mark.parametrize("seed", range(3))
def test_clean_splits_share_no_text_and_repeat_none(seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = {
        name: [(f"film {number}", ["good", "bad"][number % 2]) for number in generator.integers(0, 80, size=40)]
        for name in GOOD
    }
    clean = check(rows).dataset
    keys = [text_keys(clean[name].to_pandas()).tolist() for name in GOOD]
    assert len({key for part in keys for key in part}) == sum(map(len, keys))
    assert set(clean["test"]["text"]) == {text for text, _ in rows["test"]}


def test_packaged_sample_loses_what_its_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    validation = validate(load_dataset(DATA, CLASSIFICATION, 0), DATA, QualitySettings(), CLASSIFICATION)
    counts = {(finding.split, finding.rule): finding.count for finding in validation.findings}
    assert counts.pop(("train", "duplicates")) == counts.pop(("train", "leakage")) == 1
    assert {rule for _, rule in counts} == {"broken_text"}
    assert sum(counts.values()) == 28
