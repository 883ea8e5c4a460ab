"""From a source to splits: files or a hub data set in, a `datasets.DatasetDict` out.

A loaded split has the columns `text`, `text_pair` (pairs only), `label` (not in `unlabelled`), `row` (1-based data row
of its file) and `source` (file name, or split of a hub data set). Class labels are text, as the source spells them, and
several labels or tags of words lists of it; target numbers are float64, or text where the source holds something else
too. :mod:`ted.data.quality` judges all of them.
"""

import difflib
import functools
import glob
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, Json, List, Value, concatenate_datasets
from numpy.typing import NDArray

from ted.config import DataSettings, SplitName, TaskSettings
from ted.data.labels import split_labels, type_name
from ted.data.squad import COLUMNS, read_squad
from ted.errors import DataError
from ted.files import sha256_file
from ted.tasks import Task, get_task

# Suffix of a file and the reader of the datasets library that takes it.
READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLIT_NAMES |= {"dev": "validation", "test": "test"}
SPLIT_FILE = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?![a-z0-9]).*", re.IGNORECASE)
# Also train1, tests, training_data and testdataset: what people call a split too.
SPLIT_LIKE = re.compile(rf"({'|'.join(SPLIT_NAMES)})(s|ing)?(data)?(sets?|split|files?)?(?![^\W\d_]).*", re.IGNORECASE)
SPLIT_WORD = re.compile(rf"(?<![^\W_])({'|'.join(SPLIT_NAMES)})(?![^\W_])", re.IGNORECASE)
HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
BATCH_ROWS = 50_000
BATCH_BYTES = 32 * 2**20


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence the bars of the datasets library, which a log of a run cannot use."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@no_progress_bars()
def load_dataset(data: DataSettings, settings: TaskSettings, seed: int) -> DatasetDict:
    """Return the splits of `data.source`, those that are missing cut from its training rows.

    A cut keeps the share of each class, puts equal texts (see :func:`text_keys`), or questions about one context, into
    one split and depends on the seed and the rows alone. Files are read through Arrow files on disk, so memory does not
    grow with the text; a file in the layout of SQuAD is read as a whole.

    Raises:
        DataError: the source is not there, is no table, lacks a column, is empty or too small to be cut.
    """
    task = get_task(settings)
    columns = {"text": data.text_column}
    if task.has_labels:
        columns["label"] = data.label_column
    if data.text_pair_column is not None:
        columns["text_pair"] = data.text_pair_column
    if len(set(columns.values())) < len(columns):
        raise DataError(f"data.text_column, data.text_pair_column and data.label_column must differ, not {columns}")
    splits = _read_source(data.source, data, columns, task)
    if "train" not in splits:
        raise DataError(f"{data.source}: holds {', '.join(sorted(splits))} but no training rows; name a file train")
    missing = [name for name in ("test", "validation") if name not in splits]
    _require_fractions_act(splits, data)
    splits |= _cut(splits["train"], missing, data, task, seed)
    splits = _one_label_type({name: splits[name] for name in ("train", "validation", "test")})
    if data.unlabelled is not None:
        columns.pop("label", None)
        parts = _read_source(data.unlabelled, data, columns, task)
        splits["unlabelled"] = concatenate_datasets(list(parts.values()))
    return DatasetDict(splits)


def _require_fractions_act(splits: Mapping[str, Dataset], data: DataSettings) -> None:
    """Refuse a share of rows to cut off as a split that the source has."""
    for split in sorted(splits.keys() - {"train"}):
        name = f"{split}_fraction"
        # A step of a pipeline gets every setting of a section, so that only another value than the default is telling.
        if getattr(data, name) != DataSettings.model_fields[name].default:
            raise DataError(f"data.{name} cannot act: {data.source} has a {split} split; remove it")


def select_rows(dataset: DatasetDict, data: DataSettings, seed: int) -> DatasetDict:
    """Return validated splits with `data.train_rows` training rows, of which `data.labelled_rows` keep their label.

    The rows are drawn with the seed and their order stays; of a classification, each class keeps its share and at least
    one row. Rows that lose their label are appended to the split `unlabelled`.

    Raises:
        DataError: the training split has fewer rows than a setting asks for, or more classes, or the rows that are
            drawn have none of a label or tag.
    """
    splits = dict(dataset)
    train = splits["train"]
    if data.train_rows is not None:
        train = train.select(_drawn(train, data.train_rows, "data.train_rows", (seed, 0)))
    if data.labelled_rows is not None:
        labelled = _drawn(train, data.labelled_rows, "data.labelled_rows", (seed, 1))
        rest = np.setdiff1d(np.arange(len(train)), labelled)
        if len(rest):
            unlabelled = train.select(rest).remove_columns("label")
            before = [splits["unlabelled"]] if "unlabelled" in splits else []
            splits["unlabelled"] = concatenate_datasets([*before, unlabelled])
        train = train.select(labelled)
    return DatasetDict({**splits, "train": train})


def dataset_fingerprint(dataset: DatasetDict) -> str:
    """Return the hexadecimal SHA-256 of the texts and labels of all splits, in order.

    Names and paths of files and row numbers do not count; types, class names, split names and the order of rows do.
    """
    digest = hashlib.sha256()
    for name in sorted(dataset):
        split = dataset[name]
        columns = sorted(set(split.column_names) - {"row", "source"})
        header = [name, len(split), [(column, repr(split.features[column])) for column in columns]]
        digest.update(json.dumps(header).encode())
        for batch in split.select_columns(columns).with_format(None).iter(batch_size=_batch_rows(split)):
            for row in zip(*(batch[column] for column in columns), strict=True):
                digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def batches_of(rows: Dataset) -> Iterator[pd.DataFrame]:
    """Yield all rows in order as data frames of at most 50,000 rows and about 32 MiB."""
    yield from rows.with_format("pandas").iter(batch_size=_batch_rows(rows))


def _batch_rows(rows: Dataset) -> int:
    # The table may hold more rows than the data set selects from it.
    row_bytes = rows.data.nbytes / max(rows.data.num_rows, 1)
    return int(np.clip(BATCH_BYTES / max(row_bytes, 1), 1, BATCH_ROWS))


def text_keys(
    frame: pd.DataFrame, columns: Sequence[str] = ("text", "text_pair"), *, cased: bool = False
) -> NDArray[np.uint64]:
    """Return a 64-bit hash of the normalised texts in those of the columns that are there; equal texts have equal keys.

    Texts are equal when they differ in white space, Unicode compatibility form (NFKC) or, unless `cased`, case only.
    Among a million different texts two share a key with a probability of 3e-8.
    """
    texts = [_normalised(frame[column], cased=cased) for column in columns if column in frame]
    text = functools.reduce(lambda left, right: left + "\x1f" + right, texts)
    return np.asarray(pd.util.hash_array(text.to_numpy(dtype=object), categorize=False), dtype=np.uint64)


def _normalised(text: "pd.Series[str]", *, cased: bool) -> "pd.Series[str]":
    text = text.astype(object).fillna("").astype(str).str.normalize("NFKC")
    return (text if cased else text.str.casefold()).str.split().str.join(" ")


def _read_source(source: str, data: DataSettings, columns: Mapping[str, str], task: Task) -> dict[str, Dataset]:
    """Return the splits of a path or hub id under our column names; without named splits, all rows are `train`."""
    path = Path(source)
    if not path.exists():
        if path.suffix.lower() in READERS or HUB_ID.fullmatch(source) is None:
            here = "" if path.is_absolute() else f" in {Path.cwd()}, where relative paths begin"
            raise DataError(f"{source}: no such file or folder{here}; give a path that exists, or a hub data set id")
        return _read_hub(source, data, columns, task)
    for name in ("revision", "config_name", "splits"):
        if getattr(data, name) is not None and source == data.source:
            raise DataError(f"data.{name} cannot act: {source} is a local path; remove it")
    files = _files_of(path)
    splits: dict[str, list[Dataset]] = {}
    for file, split in files.items():
        splits.setdefault(split, []).append(_read_file(file, data, columns, task))
    return {split: concatenate_datasets(_one_type(parts)) for split, parts in splits.items()}


def _read_hub(source: str, data: DataSettings, columns: Mapping[str, str], task: Task) -> dict[str, Dataset]:
    own = source == data.source
    options = {"name": data.config_name, "revision": data.revision} if own else {}
    try:
        loaded = datasets.load_dataset(source, **options)
    except ConnectionError as error:
        raise DataError(
            f"{source}: no such path in {Path.cwd()}, and the hub could not be reached ({error}); give a local file or "
            "folder of Parquet, CSV or JSONL files, or connect to a network and unset HF_HUB_OFFLINE"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{source}: no such path in {Path.cwd()}, and not loaded as a hub data set either ({error}); correct the "
            "name (of a data set of several configurations, also data.config_name), or download the data set and give "
            "its folder of Parquet, CSV or JSONL files"
        ) from error
    named = {name: SPLIT_NAMES.get(name.lower()) for name in loaded}
    if own and data.splits is not None:
        named = _chosen_splits(source, data.splits, list(loaded))
    elif "label" not in columns:
        named = dict.fromkeys(loaded, "train")
    else:
        _require_known_splits(source, named)
    splits: dict[str, list[Dataset]] = {}
    for name, split in named.items():
        if split is not None:
            splits.setdefault(split, []).append(_tidy(loaded[name], data, columns, task, name))
    return {split: concatenate_datasets(_one_type(parts)) for split, parts in splits.items()}


def _chosen_splits(source: str, chosen: Mapping[SplitName, str], present: list[str]) -> dict[str, str | None]:
    """Return what each of a hub data set's splits is used as, as `data.splits` says."""
    for name in chosen.values():
        if name not in present:
            near = difflib.get_close_matches(name, present, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(present)}"
            raise DataError(f"{source}: data.splits names {name!r}, which is no split of it; {hint}")
    return {name: split for split, name in chosen.items()}


def _require_known_splits(source: str, named: Mapping[str, str | None]) -> None:
    """Refuse splits of another name, unless they stand beside all three; then they are extra rows, and left out."""
    others = [name for name, split in named.items() if split is None]
    missing = [split for split in ("train", "validation", "test") if split not in named.values()]
    if others and missing:
        raise DataError(
            f"{source}: has no split {' or '.join(missing)}, but {', '.join(others)}, which would be left out; "
            "say in data.splits which split is which; one that is not named there is left out, or cut from train"
        )


def _files_of(path: Path) -> dict[Path, str]:
    """Return the table files at a path and the split of each."""
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise DataError(f"{path}: unknown kind of file {path.suffix!r}; allowed: {', '.join(READERS)}")
        return {path: "train"}
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.suffix.lower() in READERS]
    if not files:
        raise DataError(f"{path}: no table files in this folder; allowed: {', '.join(READERS)}")
    _require_no_other_split(path, entries, files)
    matches = {file: SPLIT_FILE.fullmatch(file.name) for file in files}
    if not any(matches.values()):
        _require_no_split_word(path, files)
        return dict.fromkeys(files, "train")
    unnamed = [file.name for file, match in matches.items() if match is None]
    if unnamed:
        raise DataError(
            f"{path}: some files name a split but {', '.join(unnamed)} do not; let every name start with train, "
            "validation or test, or none"
        )
    return {file: SPLIT_NAMES[match[1].lower()] for file, match in matches.items() if match is not None}


def _require_no_other_split(path: Path, entries: list[Path], files: list[Path]) -> None:
    """Refuse what is named like a split and would not be read as one: another split would be cut in its place."""
    named = [entry for entry in entries if SPLIT_LIKE.fullmatch(entry.name)]
    like = [entry.name for entry in named if entry in files and not SPLIT_FILE.fullmatch(entry.name)]
    if like:
        raise DataError(
            f"{path}: {', '.join(like)} would not be read as a split; end the word train, validation or test with a "
            "character that is no letter or digit, as in train-1.csv, or begin the name with another word"
        )
    # What has the whole name of a table and more, such as train.csv.dvc, says something about it.
    read = tuple(file.name for file in files)
    unread = [entry.name for entry in named if not entry.name.startswith(read)]
    if unread:
        raise DataError(
            f"{path}: {', '.join(unread)} would not be read; a split is a file of the kind {', '.join(READERS)} in the "
            "folder itself: convert it, or move it elsewhere"
        )


def _require_no_split_word(path: Path, files: list[Path]) -> None:
    """Refuse names such as `reviews_test.csv`, whose rows would be taken for training rows."""
    found = {file.name: SPLIT_WORD.search(file.stem) for file in files}
    renamed = [f"{name} (as {match[0]}_{name})" for name, match in found.items() if match is not None]
    if renamed:
        raise DataError(
            f"{path}: a file of a split has a name that starts with train, validation or test; rename "
            f"{', '.join(renamed)}, or where all rows are training rows, take the word out of the name"
        )


def _read_file(path: Path, data: DataSettings, columns: Mapping[str, str], task: Task) -> Dataset:
    if path.is_dir():
        raise DataError(f"{path}: is a folder with the name of a table; give the folder itself, or move it elsewhere")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; give a table with a header and rows")
    reader = READERS[path.suffix.lower()]
    if reader != "parquet":
        _require_utf8(path)
    if reader == "json" and (questions := read_squad(path)) is not None:
        return _tidy(questions, data, columns, task, path.name)
    options = OPTIONS[reader](path, columns)
    # The reader knows a file by its path and time stamp; a cache named by the content cannot serve old rows.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "ted" / sha256_file(path)
    files = glob.escape(str(path))
    try:
        table = datasets.load_dataset(reader, data_files=files, split="train", cache_dir=str(cache), **options)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{path}: not read as a table: {_why_unreadable(path, reader, error)}") from error
    return _tidy(table, data, columns, task, path.name)


def _csv_options(path: Path, columns: Mapping[str, str]) -> dict[str, object]:
    """Read every field as text, only an empty one as missing: a class may be called "NA", and 007 is not 7."""
    try:
        head = pd.read_csv(path, nrows=1, dtype=str)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not read as a table: {str(error).strip()}") from error
    _require_columns(list(head.columns), columns, str(path))
    if head.empty:
        raise DataError(f"{path}: has a header but no rows; give a table with rows")
    if not isinstance(head.index, pd.RangeIndex):
        raise DataError(f"{path}: row 1 has more fields than the header; quote texts that hold a comma")
    features = Features({str(name): Value("string") for name in head.columns})
    return {"features": features, "keep_default_na": False, "na_values": [""]}


def _parquet_options(path: Path, columns: Mapping[str, str]) -> dict[str, object]:
    try:
        metadata = pq.read_metadata(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not read as a table: {error}") from error
    _require_columns(metadata.schema.to_arrow_schema().names, columns, str(path))
    if metadata.num_rows == 0:
        raise DataError(f"{path}: has columns but no rows; give a table with rows")
    return {"columns": list(columns.values())}


def _json_options(path: Path, columns: Mapping[str, str]) -> dict[str, object]:  # noqa: ARG001 - one signature for all
    return {}


OPTIONS = {"csv": _csv_options, "json": _json_options, "parquet": _parquet_options}


def _require_utf8(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number} is not UTF-8 (byte 0x{line[error.start]:02x}); if this is a table in "
                    "another encoding, convert it, for example with iconv -f latin1 -t utf-8"
                ) from error


def _why_unreadable(path: Path, reader: str, error: Exception) -> str:
    """Return what is wrong with a file, with the first line at fault where JSON tells."""
    if reader == "json":
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    is_object = not line.strip() or isinstance(json.loads(line), dict)
                except ValueError:
                    is_object = False
                if not is_object:
                    return f"line {number} is not a JSON object: {line.strip()[:80]!r}; give one object per line"
    return str(error.__cause__ or error).strip()


def _require_columns(present: list[str], columns: Mapping[str, str], source: str) -> None:
    for name, column in columns.items():
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1)
            advice = f"{f'did you mean {near[0]!r}? ' if near else ''}set data.{name}_column"
            if set(COLUMNS.values()) <= set(present):
                lines = [f"data.{ours}_column: {theirs}" for ours, theirs in COLUMNS.items()]
                advice = f"for task.kind: question_answering, set {', '.join(lines)}"
            raise DataError(f"{source}: no column {column!r} among {', '.join(map(repr, present))}; {advice}")


def _tidy(table: Dataset, data: DataSettings, columns: Mapping[str, str], task: Task, source: str) -> Dataset:
    """Return the wanted columns under our names, with row numbers.

    Only the label column, and text that the task joins from words, is copied to memory.
    """
    _require_columns(table.column_names, columns, source)
    if len(table) == 0:
        raise DataError(f"{source}: has columns but no rows; give a table with rows")
    renamed = {theirs: ours for ours, theirs in columns.items()}
    table = table.select_columns(list(renamed)).rename_columns(renamed)
    for name in ("text", "text_pair"):
        if name in columns:
            table = _as_text(task.read_text(table, name), name, f"{source}: column {columns[name]!r}")
    if "label" in columns:
        table = split_labels(table, data.label_separator) if task.several_labels else table
        label = task.read_labels(table, f"{source}: column {columns['label']!r}")
        table = table.remove_columns("label").add_column("label", label)
    table = table.add_column("row", pa.array(np.arange(1, len(table) + 1)))
    return table.add_column("source", pa.repeat(pa.scalar(source), len(table)))


def _as_text(table: Dataset, name: str, place: str) -> Dataset:
    feature = table.features[name]
    if isinstance(feature, Json):
        values = enumerate(table[name], start=1)
        row, value = next((row, value) for row, value in values if not isinstance(value, str | None))
        raise DataError(f"{place} mixes types: row {row} holds {value!r}; give text in every row")
    type_ = feature.pa_type if isinstance(feature, Value) else None
    if type_ is None or not (pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_null(type_)):
        raise DataError(f"{place} holds {type_name(feature)}, not text; give another column or store it as text")
    return table if pa.types.is_string(type_) else table.cast_column(name, Value("string"))


def _one_type(parts: list[Dataset]) -> list[Dataset]:
    """Return data sets that can be joined: targets are text where any of them holds text."""
    types = {repr(part.features["label"]) for part in parts if "label" in part.column_names}
    return [part.cast_column("label", Value("string")) for part in parts] if len(types) > 1 else parts


def _one_label_type(splits: dict[str, Dataset]) -> dict[str, Dataset]:
    return dict(zip(splits, _one_type(list(splits.values())), strict=True))


def _cut(rows: Dataset, missing: list[str], data: DataSettings, task: Task, seed: int) -> dict[str, Dataset]:
    """Return the split `train` without the `missing` splits, and those."""
    if not missing:
        return {}
    _, first, text_of_row = np.unique(
        np.concatenate([text_keys(batch, task.kept_together, cased=task.cased) for batch in batches_of(rows)]),
        return_index=True,
        return_inverse=True,
    )
    strata = task.strata(rows.data.column("label") if task.has_labels else rows.data.column("text"))[first]
    generator = np.random.default_rng(seed)
    left = np.arange(len(first))
    splits: dict[str, Dataset] = {}
    for name in missing:
        fraction = data.test_fraction if name == "test" else data.validation_fraction
        count = round(fraction * len(first))
        if not 0 < count < len(left):
            raise DataError(
                f"{data.source}: {len(first)} different texts are too few to cut off a {name} split of "
                f"{fraction:.0%}; give more rows, set data.{name}_fraction or add a {name} file"
            )
        chosen = left[_draw(strata[left], count, generator)]
        left = np.setdiff1d(left, chosen)
        splits[name] = rows.select(np.flatnonzero(np.isin(text_of_row, chosen)))
    return {**splits, "train": rows.select(np.flatnonzero(np.isin(text_of_row, left)))}


def _drawn(train: Dataset, count: int, setting: str, seed: tuple[int, int]) -> NDArray[np.int64]:
    if count > len(train):
        raise DataError(f"{setting} is {count} but there are {len(train)} training rows; lower or remove it")
    label = train.features.get("label")
    strata = np.zeros(len(train))
    if isinstance(label, ClassLabel):
        strata = np.asarray(train.with_format("numpy")["label"][:])
        if count < label.num_classes:
            raise DataError(
                f"{setting} is {count} but there are {label.num_classes} classes, and each needs a row; raise or "
                "remove it"
            )
    drawn = _draw(strata, count, np.random.default_rng(seed))
    if isinstance(label, List) and isinstance(label.feature, ClassLabel):
        names, before, after = label.feature.names, _values(train), _values(train.select(drawn))
        if lost := [names[value] for value in sorted(before - after)]:
            raise DataError(f"{setting} is {count}, and no row that is drawn has {', '.join(lost)}; raise or remove it")
    return drawn


def _values(rows: Dataset) -> set[int]:
    """Return the labels that the lists of some rows hold."""
    lists = rows.select_columns(["label"]).with_format("arrow")[:]["label"]
    return set(pc.unique(lists.combine_chunks().flatten()).to_pylist()) - {None}


def _draw(strata: NDArray[np.generic], count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return `count` rising positions: of each stratum its share to within one, and at least one if they go round."""
    order = pd.Series(generator.permutation(len(strata)))
    groups = order.groupby(strata)
    share = (groups.rank() - 1) / groups.transform("size")
    return np.sort(np.lexsort((order, share))[:count])
