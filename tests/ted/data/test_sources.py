import json
import os
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from ted.config import DataSettings, TaskSettings
from ted.data.sources import dataset_fingerprint, load_dataset, select_rows, text_keys
from ted.errors import DataError

CLASSIFICATION = TaskSettings()
REGRESSION = TaskSettings(kind="regression")
SPLITS = ("train", "validation", "test")


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    labels = ["bad", "good", "good", "good"]
    return [{"text": f"film {number}", "label": labels[number % 4]} for number in range(start, start + count)]


def write(path: Path, table: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        pd.DataFrame(table).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return path


def load(source: Path | str, task: TaskSettings = CLASSIFICATION, seed: int = 0, **data: Any) -> DatasetDict:
    return load_dataset(DataSettings(source=str(source), **data), task, seed)


def texts(dataset: DatasetDict) -> dict[str, list[str]]:
    return {name: list(split["text"]) for name, split in dataset.items()}


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    for number, name in enumerate(SPLITS):
        write(tmp_path / f"{name}.{suffix}", rows(8, 100 * number))
    dataset = load(tmp_path)
    assert list(dataset) == list(SPLITS)
    first = dataset["validation"][0]
    assert first == {"text": "film 100", "label": "bad", "row": 1, "source": f"validation.{suffix}"}
    assert dataset["test"]["row"][:] == list(range(1, 9))
    assert dataset["train"].features["text"] == Value("string")


def test_files_without_split_names_are_joined_and_cut(tmp_path: Path) -> None:
    write(tmp_path / "b.csv", rows(40, 40))
    write(tmp_path / "a.jsonl", rows(40))
    dataset = load(tmp_path)
    assert {name: len(split) for name, split in dataset.items()} == {"train": 64, "validation": 8, "test": 8}
    for split in dataset.values():
        for row in split:
            assert row["text"] == f"film {row['row'] - 1 + (40 if row['source'] == 'b.csv' else 0)}"


@pytest.mark.parametrize("name", ["reviews_test.csv", "reviews.Train.csv", "2024-dev-00000.jsonl", "a test.parquet"])
def test_a_split_word_elsewhere_in_a_name_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "reviews.csv", rows(40))
    write(tmp_path / name, rows(8, 100))
    with pytest.raises(DataError, match=rf"starts with train, validation or test; rename {name} \(as \w+_{name}\), or"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "test1.csv",
        "testset_2.jsonl",
        "training_data.csv",
        "TestingSet.csv",
        "tests.csv",
        "testdataset.csv",
        "testfile.csv",
        "validset.parquet",
    ],
)
def test_a_table_that_is_only_called_like_a_split_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "reviews.csv", rows(40))
    write(tmp_path / name, rows(8, 100))
    with pytest.raises(DataError, match=rf": {name} would not be read as a split; end the word train, validation or"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["test.tsv", "test1.tsv", "validation.csv.gz", "dev/part.csv", "testset/part.csv"])
def test_a_split_that_would_be_left_out_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.csv", rows(40))
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("text,label\na,b\n")
    with pytest.raises(DataError, match=rf": {name.partition('/')[0]} would not be read; .*convert it, or move"):
        load(tmp_path)


def test_what_lies_beside_the_tables_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(40))
    for name in ("train.csv.dvc", "README.md", "testimonials.txt", ".test.csv.swp"):
        (tmp_path / name).write_text("x")
    (tmp_path / "pictures").mkdir()
    assert len(load(tmp_path)["train"]) == 32


def test_a_folder_with_the_name_of_a_table_is_no_table(tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", rows(40))
    write(tmp_path / "more.csv" / "part.csv", rows(40, 40))
    with pytest.raises(DataError, match=r"more\.csv: is a folder with the name of a table; give the folder itself"):
        load(tmp_path)


def test_a_split_word_inside_another_word_or_of_a_single_file_is_only_a_name(tmp_path: Path) -> None:
    write(tmp_path / "latest_trained_evaluations.csv", rows(40))
    assert len(load(tmp_path)["train"]) == 32
    assert len(load(write(tmp_path / "reviews_test.csv", rows(40)))["train"]) == 32


@pytest.mark.parametrize("name", ["valid.csv", "dev-00000-of-00001.csv", "VAL.csv"])
def test_other_names_of_the_validation_split(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / name, rows(8, 100))
    dataset = load(tmp_path)
    assert texts(dataset)["validation"] == [row["text"] for row in rows(8, 100)]
    assert len(dataset["test"]) == 4


def test_cut_is_stratified_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", rows(400))
    first, again, other = load(path, seed=1), load(path, seed=1), load(path, seed=2)
    assert texts(first) == texts(again)
    assert texts(first) != texts(other)
    for name in SPLITS:
        share = np.mean([label == "bad" for label in first[name]["label"]])
        assert share == pytest.approx(0.25, abs=0.03)
        assert first[name]["row"][:] == sorted(first[name]["row"][:])


@pytest.mark.parametrize("seed", range(5))
def test_no_text_stands_in_two_splits(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    words = generator.integers(0, 60, size=300)
    forms = ["Film {}", "film  {}", "FILM {} ", "film\u00a0{}", "\uff46ilm {}"]
    table = [
        {"text": forms[generator.integers(len(forms))].format(word), "label": "ab"[generator.integers(2)]}
        for word in words
    ]
    dataset = load(write(tmp_path / "data.jsonl", table), seed=seed)
    keys = [set(text_keys(dataset[name].to_pandas()).tolist()) for name in SPLITS]
    assert sum(map(len, keys)) == len(set.union(*keys)) == len(set(words.tolist()))
    assert sum(len(split) for split in dataset.values()) == len(table)


def test_text_keys_tell_pairs_apart() -> None:
    frame = pd.DataFrame({"text": ["a b", "a", "A", None], "text_pair": ["c", "b c", "B C", ""]})
    keys = text_keys(frame)
    assert keys[1] == keys[2]
    assert len(set(keys.tolist())) == 3


def test_csv_fields_stay_as_spelt(tmp_path: Path) -> None:
    for name in SPLITS:
        (tmp_path / f"{name}.csv").write_text('id,text,label\n1,NA,007\n2,,None\n3,"two\nlines",\n', encoding="utf-8")
    train = load(tmp_path)["train"]
    assert train["text"][:] == ["NA", None, "two\nlines"]
    assert train["label"][:] == ["007", "None", None]


def test_class_numbers_become_names(tmp_path: Path) -> None:
    columns: list[list[float | None]] = [[0, 1, None], [0.0, 1.0, float("nan")], [True, False, None]]
    for name, labels in zip(SPLITS, columns, strict=True):
        write(tmp_path / f"{name}.parquet", [{"text": "x", "label": label} for label in labels])
    dataset = load(tmp_path)
    assert dataset["train"]["label"][:] == dataset["validation"]["label"][:] == ["0", "1", None]
    assert dataset["test"]["label"][:] == ["true", "false", None]


def test_labels_of_mixed_types_become_text(tmp_path: Path) -> None:
    for name in SPLITS:
        write(tmp_path / f"{name}.jsonl", [{"text": "x", "label": label} for label in (1, "one", None, 1.5)])
    assert load(tmp_path)["train"]["label"][:] == ["1", "one", None, "1.5"]


def test_targets_are_numbers_or_else_text_in_every_split(tmp_path: Path) -> None:
    for name in SPLITS:
        write(tmp_path / f"{name}.jsonl", [{"text": "x", "label": label} for label in (1, 2)])
    assert load(tmp_path, REGRESSION)["test"]["label"][:] == [1.0, 2.0]
    write(tmp_path / "test.jsonl", [{"text": "x", "label": "high"}])
    dataset = load(tmp_path, REGRESSION)
    assert {str(split.features["label"].dtype) for split in dataset.values()} == {"string"}


def test_pairs_other_column_names_and_large_strings(tmp_path: Path) -> None:
    table = pa.table(
        {"a": pa.array(["x", "y"] * 20, pa.large_string()), "b": [f"z{n}" for n in range(40)], "c": [0, 1] * 20}
    )
    pq.write_table(table, tmp_path / "data.parquet")
    dataset = load(tmp_path / "data.parquet", text_column="a", text_pair_column="b", label_column="c")
    assert set(dataset["train"].column_names) == {"text", "text_pair", "label", "row", "source"}
    assert dataset["train"].features["text"] == Value("string")


def test_unlabelled_source_needs_text_only(tmp_path: Path) -> None:
    write(tmp_path / "more" / "train.jsonl", [{"text": "one"}, {"text": "two"}])
    path = write(tmp_path / "data.csv", rows(40))
    unlabelled = load(path, unlabelled=str(tmp_path / "more"))["unlabelled"]
    assert unlabelled[:] == {"text": ["one", "two"], "row": [1, 2], "source": ["train.jsonl"] * 2}


def test_changed_file_of_the_same_path_and_time_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", rows(40))
    status = path.stat()
    before = load(path)
    write(path, rows(40, 50))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert set(load(path)["train"]["text"]) == {row["text"] for row in rows(40, 50)} - {
        text for name in ("validation", "test") for text in load(path)[name]["text"]
    }
    assert before["train"]["text"][0].startswith("film")


def test_path_may_hold_pattern_characters(tmp_path: Path) -> None:
    assert len(load(write(tmp_path / "[x] *.csv", rows(40)))["train"]) == 32


def test_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    one = dataset_fingerprint(load(write(tmp_path / "one" / "a.csv", rows(40))))
    assert one == dataset_fingerprint(load(write(tmp_path / "two" / "b.jsonl", rows(40))))
    assert one != dataset_fingerprint(load(write(tmp_path / "two" / "b.jsonl", rows(40, 1))))
    assert one != dataset_fingerprint(load(tmp_path / "one" / "a.csv", seed=1))
    assert len(one) == 64


def test_fingerprint_counts_class_names() -> None:
    def of(names: list[str]) -> str:
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        return dataset_fingerprint(
            DatasetDict(train=Dataset.from_dict({"text": ["a"], "label": [0]}, features=features))
        )

    assert of(["a", "b"]) != of(["b", "a"])


def validated(count: int) -> DatasetDict:
    features = Features(
        {
            "text": Value("string"),
            "label": ClassLabel(names=["bad", "good"]),
            "row": Value("int64"),
            "source": Value("string"),
        }
    )
    columns = {
        "text": [f"film {number}" for number in range(count)],
        "label": [int(number % 4 > 0) for number in range(count)],
        "row": list(range(1, count + 1)),
        "source": ["train.csv"] * count,
    }
    return DatasetDict(train=Dataset.from_dict(columns, features=features))


def test_select_rows_draws_each_class_in_order() -> None:
    data = DataSettings(train_rows=40, labelled_rows=20)
    dataset = select_rows(validated(100), data, seed=3)
    assert len(dataset["train"]) == len(dataset["unlabelled"]) == 20
    assert sum(dataset["train"]["label"]) == 15
    assert dataset["train"]["row"][:] == sorted(dataset["train"]["row"][:])
    assert set(dataset["train"]["row"]).isdisjoint(dataset["unlabelled"]["row"])
    assert dataset["unlabelled"].column_names == ["text", "row", "source"]
    assert texts(dataset) == texts(select_rows(validated(100), data, seed=3))
    assert texts(dataset) != texts(select_rows(validated(100), data, seed=4))


def test_select_rows_appends_to_unlabelled_text() -> None:
    dataset = validated(10)
    dataset["unlabelled"] = dataset["train"].select([0]).remove_columns("label")
    selected = select_rows(dataset, DataSettings(labelled_rows=6), seed=0)
    assert len(selected["unlabelled"]) == 5
    assert selected["unlabelled"]["row"][0] == 1


def test_select_rows_keeps_a_rare_class_and_whole_data() -> None:
    assert sorted(set(select_rows(validated(100), DataSettings(train_rows=2), seed=0)["train"]["label"])) == [0, 1]
    same = select_rows(validated(8), DataSettings(train_rows=8, labelled_rows=8), seed=0)
    assert list(same) == ["train"]
    assert len(same["train"]) == 8


@pytest.mark.parametrize("setting", ["train_rows", "labelled_rows"])
def test_select_rows_refuses_more_rows_than_there_are(setting: str) -> None:
    with pytest.raises(DataError, match=rf"data\.{setting} is 9 but there are 8 training rows"):
        select_rows(validated(8), DataSettings.model_validate({setting: 9}), seed=0)


@pytest.mark.parametrize("setting", ["train_rows", "labelled_rows"])
def test_select_rows_refuses_fewer_rows_than_classes(setting: str) -> None:
    data = DataSettings.model_validate({setting: 1})
    with pytest.raises(DataError, match=rf"data\.{setting} is 1 but there are 2 classes, and each needs a row; raise"):
        select_rows(validated(8), data, seed=0)


def test_select_rows_draws_a_single_row_of_numbers() -> None:
    dataset = DatasetDict(train=validated(8)["train"].cast_column("label", Value("float32")))
    assert len(select_rows(dataset, DataSettings(labelled_rows=1), seed=0)["train"]) == 1


def test_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    part = Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features)
    hub = DatasetDict(train=part, validation=part, test=part, extra=part)
    asked: list[object] = []

    def load_from_hub(path: str, name: str | None = None, *, revision: str | None = None) -> DatasetDict:
        asked.append((path, name, revision))
        return hub

    monkeypatch.setattr(datasets, "load_dataset", load_from_hub)
    dataset = load("someone/films", revision="v1", config_name="long", unlabelled="someone/texts")
    assert asked == [("someone/films", "long", "v1"), ("someone/texts", None, None)]
    assert dataset["train"][:] == {"text": ["a", "b"], "label": ["neg", None], "row": [1, 2], "source": ["train"] * 2}
    assert len(dataset["unlabelled"]) == 8
    hub["test"] = part.select([])
    with pytest.raises(DataError, match="test: has columns but no rows"):
        load("someone/films")
    del hub["train"], hub["validation"], hub["test"]
    with pytest.raises(DataError, match="has no split train or validation or test, but extra, which would be left out"):
        load("someone/films")


@pytest.mark.parametrize("names", [("train", "validation_matched", "test"), ("train", "test", "unsupervised")])
def test_hub_splits_of_other_names_are_not_left_out_silently(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    part = Dataset.from_dict({"text": ["a", "b"], "label": ["neg", "pos"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: DatasetDict(dict.fromkeys(names, part)))
    (other,) = set(names) - set(SPLITS)
    with pytest.raises(DataError, match=f"has no split validation, but {other}, .*; say in data.splits which"):
        load("someone/films")


@pytest.fixture
def benchmark_on_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a data set in the form of a benchmark: two validation splits, and a test split without labels."""

    def part(first: int, count: int, *, known: bool = True) -> Dataset:
        features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
        columns = {"text": [f"film {number}" for number in range(first, first + count)]}
        return Dataset.from_dict(
            {**columns, "label": [k % 2 if known else -1 for k in range(count)]}, features=features
        )

    splits = {"train": part(0, 40), "validation_matched": part(100, 8), "validation_mismatched": part(200, 8)}
    hub = DatasetDict(splits | {"test_matched": part(300, 8, known=False)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub)


@pytest.mark.usefixtures("benchmark_on_hub")
def test_hub_splits_are_what_the_settings_say() -> None:
    chosen = load("someone/films", splits={"train": "train", "test": "validation_matched"})
    assert {name: len(split) for name, split in chosen.items()} == {"train": 36, "validation": 4, "test": 8}
    assert chosen["test"][1] == {"text": "film 101", "label": "pos", "row": 2, "source": "validation_matched"}
    assert set(chosen["validation"]["source"]) == {"train"}
    other = {"train": "train", "validation": "validation_matched", "test": "validation_mismatched"}
    assert texts(load("someone/films", splits=other))["test"][0] == "film 200"


@pytest.mark.usefixtures("benchmark_on_hub")
@pytest.mark.parametrize(
    ("name", "hint"),
    [("validation_matchd", "did you mean validation_matched?"), ("dev", "it has train, validation_matched, ")],
)
def test_hub_split_that_is_not_there(name: str, hint: str) -> None:
    with pytest.raises(
        DataError, match=rf"films: data\.splits names '{name}', which is no split of it; {re.escape(hint)}"
    ):
        load("someone/films", splits={"train": "train", "test": name})


@pytest.mark.usefixtures("benchmark_on_hub")
def test_text_without_labels_is_taken_from_all_splits_of_another_hub_data_set() -> None:
    dataset = load("someone/films", splits={"train": "train"}, unlabelled="someone/texts")
    assert len(dataset["unlabelled"]) == 64


def test_a_path_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"^a\.csv: no such file or folder in {re.escape(str(tmp_path))}, where"):
        load("a.csv")
    with pytest.raises(DataError, match=rf"^{re.escape(str(tmp_path / 'a.csv'))}: no such file or folder; give a path"):
        load(tmp_path / "a.csv")


def test_hub_out_of_reach() -> None:
    with pytest.raises(
        DataError, match=r"films: no such path in /.*, and the hub could not be reached \(.*; give a local"
    ):
        load("someone/films")


def test_hub_without_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: str, **_: object) -> DatasetDict:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{path}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", absent)
    with pytest.raises(DataError, match=r"films: no such path in /.*, .* doesn't exist on the Hub\); correct the name"):
        load("someone/films")


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ({"train.csv": rows(40)}, {"revision": "v1"}, r"data\.revision cannot act: .* is a local path"),
        ({"train.csv": rows(40)}, {"config_name": "sst2"}, r"data\.config_name cannot act: .* is a local path; remove"),
        ({"train.csv": rows(40)}, {"splits": {"train": "train"}}, r"data\.splits cannot act: .* is a local path"),
        (
            {"train.csv": rows(40), "test.csv": rows(8)},
            {"test_fraction": 0.2},
            r"data\.test_fraction cannot act: .* has a test split; remove it",
        ),
        (
            {"train.csv": rows(40), "dev.csv": rows(8)},
            {"validation_fraction": 0.2, "test_fraction": 0.2},
            r"data\.validation_fraction cannot act: .* has a validation split; remove it",
        ),
        ({"notes.txt": rows(1)}, {}, "no table files in this folder; allowed: .csv, .json, .jsonl, .parquet"),
        ({"test.csv": rows(40)}, {}, "holds test but no training rows"),
        ({"a.csv": rows(40)}, {"label_column": "text"}, "must differ"),
        (
            {"a.parquet": rows(40)},
            {"label_column": "lable"},
            "no column 'lable' among 'text', 'label'; did you mean 'label'",
        ),
        ({"a.parquet": [{"text": 1, "label": 0}]}, {}, "column 'text' holds int64, not text"),
        ({"a.parquet": [{"text": "a", "label": [0]}]}, {}, "column 'label' holds .*, not a class or a number"),
    ],
)
def test_refusals(tmp_path: Path, files: dict[str, Any], data: dict[str, Any], message: str) -> None:
    for name, table in files.items():
        write(tmp_path / name, table)
    with pytest.raises(DataError, match=message):
        load(tmp_path, **data)


def test_parquet_without_rows(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match="has columns but no rows"):
        load(tmp_path)


def test_csv_of_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n\n")
    with pytest.raises(DataError, match="not read as a table: No columns"):
        load(tmp_path)


def test_json_array_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="not read as a table"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["text,label\na,b,c\n", "text,label\n\x00\n"])
def test_csv_whose_rows_do_not_fit_the_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=r"more fields than the header|too few"):
        load(tmp_path)


def test_a_fraction_acts_on_the_split_that_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(40))
    write(tmp_path / "dev.csv", rows(8, 100))
    assert len(load(tmp_path, test_fraction=0.25, validation_fraction=0.1)["test"]) == 10


def test_packaged_sample() -> None:
    dataset = load(Path(__file__).parents[3] / DataSettings().source)
    assert {name: len(split) for name, split in dataset.items()} == {"train": 7600, "validation": 1235, "test": 1237}
    assert set(dataset["train"]["label"]) == {"negative", "positive"}
