"""Reading a label column of any source: class names, numbers, tags of words; and a text column of words."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Json, LargeList, List
from numpy.typing import NDArray

from ted.errors import DataError

NUMBER = re.compile(r"-?\d+(\.\d+)?")
NEGATIVE = re.compile(r"-\d+(\.0)?")


def read_classes(table: Dataset, place: str) -> pa.ChunkedArray:
    """Return the column `label` as class names; a number stands for itself.

    Raises:
        DataError: it holds neither names nor whole numbers; the message begins with `place`.
    """
    feature, column = table.features["label"], table.data.column("label")
    if isinstance(feature, ClassLabel):
        known = pc.if_else(pc.greater_equal(column, 0), column, pa.scalar(None, column.type))
        return pc.take(pa.chunked_array([pa.array(feature.names)]), known)
    if isinstance(feature, Json) or _is_text(column.type):
        names = _as_text(table)
        return pc.if_else(pc.equal(pc.utf8_trim_whitespace(names), ""), pa.scalar(None, names.type), names)
    _require_numbers(feature, column, place)
    return _whole_numbers(column, place).cast(pa.string())


def read_class_lists(table: Dataset, place: str) -> pa.ChunkedArray:
    """Return the column `label` as lists of class names; a number stands for itself.

    Raises:
        DataError: it holds no lists of names or whole numbers, or vectors of 0 and 1; the message begins with `place`.
    """
    feature, column = table.features["label"], table.data.column("label").combine_chunks()
    if isinstance(feature, Json):
        rows = enumerate(table["label"], start=1)
        row, value = next((row, value) for row, value in rows if not isinstance(value, list | None))
        raise DataError(f"{place} mixes types: row {row} holds {value!r}; give a list of labels in every row")
    if pa.types.is_null(column.type):
        return pa.chunked_array([column.cast(pa.list_(pa.string()))])
    if not isinstance(feature, List | LargeList):
        raise DataError(f"{place} holds {type_name(feature)}, not lists of labels or text; give another column")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    _require_no_vectors(column, lengths, place)
    info = DatasetInfo(features=Features({"label": feature.feature}))
    names = read_classes(Dataset(pa.table({"label": column.flatten()}), info, fingerprint="labels"), place)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(ends), names.combine_chunks(), mask=pc.is_null(column))
    return pa.chunked_array([lists])


def split_labels(table: Dataset, separator: str) -> Dataset:
    """Return a table whose column `label`, where it holds text, holds lists of names instead.

    A text that is empty or missing is a row without labels: CSV has no other way to write one.
    """
    column = table.data.column("label")
    if isinstance(table.features["label"], Json) or not _is_text(column.type) or pa.types.is_null(column.type):
        return table
    lists = [[name.strip() for name in text.split(separator)] if text else [] for text in column.to_pylist()]
    return table.remove_columns("label").add_column("label", pa.array(lists, pa.list_(pa.string())))


def class_numbers(names: Sequence[str], *, declared: bool) -> dict[str, int]:
    """Return the index of each name; a whole number stands for the declared class of that index, if none is called so.

    Args:
        names: of the classes.
        declared: whether the settings name them.
    """
    numbers = {name: index for index, name in enumerate(names)}
    if declared and not any(name.isdecimal() for name in names):
        numbers |= {str(index): index for index in range(len(names))}
    return numbers


def found_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the labels that a source has, in order.

    Raises:
        DataError: all of them are numbers, of which nobody could tell what an answer means.
    """
    found = sorted(names)
    if len(found) > 1 and all(NUMBER.fullmatch(name) for name in found):
        found.sort(key=float)
        remedy = f"write task.labels: [{', '.join(f'{name!r}' for name in found)}] if they are called so"
        if found == [str(index) for index in range(len(found))]:
            remedy = f"give the names that they stand for under task.labels, beginning with that of 0, or {remedy}"
        raise DataError(f"the labels are numbers: {', '.join(found)}; {remedy}")
    return tuple(found)


def hash_numbers(texts: Iterable[str | None]) -> NDArray[np.float64]:
    """Return a number for each text, by which labels of several parts are compared; NaN for None."""
    column = np.array(list(texts), dtype=object)
    # A float64 holds whole numbers of 53 bits exactly.
    numbers = pd.util.hash_array(column, categorize=False) >> np.uint64(11)
    return np.where(pd.isna(column), np.nan, numbers.astype(np.float64))


def read_numbers(table: Dataset, place: str) -> pa.ChunkedArray:
    """Return the column `label` as float64, or as text where it holds other things too.

    Raises:
        DataError: it holds neither; the message begins with `place`.
    """
    feature, column = table.features["label"], table.data.column("label")
    if isinstance(feature, Json) or _is_text(column.type):
        return _as_text(table)
    _require_numbers(feature, column, place)
    return column.cast(pa.float64())


def read_tags(table: Dataset, place: str, names: Mapping[str, str]) -> pa.ChunkedArray:
    """Return the column `label` as lists of names; a text is split at white space.

    Args:
        table: of the source.
        place: begins a message.
        names: what a number stands for in a column that does not know it; others stand for themselves.

    Raises:
        DataError: it holds neither lists nor text.
    """
    feature = table.features["label"]
    inner = feature.feature if isinstance(feature, List | LargeList) else feature
    if inner is feature and not isinstance(feature, Json) and not _is_text(table.data.column("label").type):
        raise DataError(f"{place} holds {type_name(feature)}, not lists of tags; give another column")
    if isinstance(inner, ClassLabel):
        names = {str(number): name for number, name in enumerate(inner.names)}
    rows = [_tags(value, names) for value in table["label"]]
    return pa.chunked_array([pa.array(rows, pa.list_(pa.string()))])


def _tags(value: Any, names: Mapping[str, str]) -> list[str | None] | None:  # noqa: ANN401 - JSON may hold anything
    if value is None:
        return None
    tags = value if isinstance(value, list) else str(value).split()
    # A list with a gap may have come as fractions.
    tags = [int(tag) if isinstance(tag, float) and tag.is_integer() else tag for tag in tags]
    return [None if tag is None or _is_negative(tag) else names.get(str(tag), str(tag)) for tag in tags]


def _is_negative(tag: object) -> bool:
    """Return whether a tag is a number below 0, by which some sources say that a word has none."""
    return NEGATIVE.fullmatch(str(tag)) is not None


def read_words(table: Dataset, name: str) -> Dataset:
    """Return the table with a column of word lists, or of text, as text of words with single spaces between them.

    A column of something else stays as it is.
    """
    words = table.data.column(name)
    if pa.types.is_list(words.type) and _is_text(words.type.value_type):
        words = pc.binary_join(words.cast(pa.list_(pa.string())), " ")
    elif not _is_text(words.type):
        return table
    text = pc.binary_join(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(words.cast(pa.string()))), " ")
    joined = f"{name}_joined"
    return table.add_column(joined, text).remove_columns(name).rename_column(joined, name)


def type_name(feature: object) -> str:
    """Return what a column holds, for messages."""
    return str(getattr(feature, "dtype", None) or feature)


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_null(type_))


def _as_text(table: Dataset) -> pa.ChunkedArray:
    if not isinstance(table.features["label"], Json):
        return table.data.column("label").cast(pa.string())
    values = [value if isinstance(value, str | None) else json.dumps(value) for value in table["label"]]
    return pa.chunked_array([pa.array(values, pa.string())])


def _require_no_vectors(column: pa.Array, lengths: NDArray[np.integer], place: str) -> None:
    """Refuse vectors of 0 and 1, which would be read as the labels 0 and 1.

    They are of another type than numbers of labels are, repeat a number in a row, or, of two labels, hold both in each.
    """
    rows, values = np.repeat(np.arange(len(lengths)), lengths), column.flatten()
    if not len(rows):
        return
    if _is_text(values.type) and set(values.unique().to_pylist()) <= {"0", "1", None}:
        values = values.cast(pa.int64())
    first, what = 0, ""
    if pa.types.is_floating(values.type) or pa.types.is_boolean(values.type):
        what = f"holds lists of {values.type} (row {{row}}: {{value}})"
    elif pa.types.is_integer(values.type):
        frame = pd.DataFrame({"row": rows, "value": values.to_pandas()})
        repeated = frame.duplicated()
        first = int(repeated.argmax())
        if repeated.any():
            what = "repeats a number in row {row}: {value}"
        elif set(lengths[pc.is_valid(column)]) == {2} and set(frame["value"]) == {0, 1}:
            what = "holds both 0 and 1 in every row, as in row {row}: {value}"
    if what:
        row = int(rows[first])
        found = what.format(row=row + 1, value=column[row].as_py())
        raise DataError(
            f"{place} {found}; give the numbers or names of the labels that a row has, not a 0 or 1 for each label"
        )


def _require_numbers(feature: object, column: pa.ChunkedArray, place: str) -> None:
    type_ = column.type
    if not (pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_boolean(type_)):
        raise DataError(f"{place} holds {type_name(feature)}, not a class or a number; give another column")


def _whole_numbers(column: pa.ChunkedArray, place: str) -> pa.ChunkedArray:
    """Return whole numbers: a table that holds a missing label often stores 0 and 1 as 0.0 and 1.0."""
    if not pa.types.is_floating(column.type):
        return column
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    fractions = pc.index(pc.equal(pc.floor(column), column), pa.scalar(False)).as_py()
    if fractions >= 0:
        raise DataError(
            f"{place} holds numbers with a fraction (row {fractions + 1}: {column[fractions].as_py()}), not classes; "
            "set task.kind to regression or give another column"
        )
    return column.cast(pa.int64())
