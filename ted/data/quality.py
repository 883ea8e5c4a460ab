"""The expectations that a task has of its data, and what happens to rows that break them.

Rules about one row are Great Expectations that read a split batch by batch; rules that compare rows work on 64-bit
hashes of the texts (:func:`ted.data.sources.text_keys`), so memory does not grow with the text. A row counts under the
first rule that it breaks, in the order of `RULES`.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from numpy.typing import NDArray

from ted.config import DataSettings, Policy, QualitySettings, TaskSettings
from ted.data.expectations import Engine, row_expectations, table_expectations
from ted.data.sources import batches_of, no_progress_bars, text_keys
from ted.errors import DataQualityError

# Rules about rows in their order, each with what it says after a number of rows.
RULES = {
    "types": "with something other than text",
    "missing": "without text or label",
    "empty_text": "with white space only",
    "broken_text": "with U+FFFD or control characters",
    "text_length": "with fewer than {least} or more than {most} characters",
    "unknown_label": "with a label other than {expected}",
    "conflicting_labels": "with a text that stands in the split with another label too",
    "duplicates": "with text and label of an earlier row",
    "leakage": "with a text that also stands in {later}",
}
CODES = {rule: code for code, rule in enumerate(RULES, start=1)}
# The splits that a text of the named split must not stand in.
LATER_SPLITS = {"validation": ("test",), "train": ("validation", "test"), "unlabelled": ("validation", "test")}
UNLABELLED = "unlabelled"
FIRST_ROWS = 10
EXCERPT = 60


@dataclass(frozen=True)
class Finding:
    """A rule that rows of a split break: how many, and the row numbers of the first ones in their source."""

    rule: str
    policy: Policy
    split: str
    count: int
    rows: tuple[int, ...]
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON would hold it."""
        return {**asdict(self), "rows": list(self.rows)}


@dataclass(frozen=True)
class Validation:
    """Clean splits with final labels, the findings, and the rows that were excluded.

    `excluded` has the columns of a loaded split (label as text), `split` and `rule`.
    """

    dataset: DatasetDict
    findings: tuple[Finding, ...]
    excluded: Dataset


@dataclass
class _Split:
    """A split under judgement, one entry per row; a label is the number of a class, or the target."""

    name: str
    rows: Dataset
    codes: NDArray[np.int8]
    keys: NDArray[np.uint64]
    labels: NDArray[np.float64]

    @property
    def kept(self) -> NDArray[np.bool_]:
        return np.equal(self.codes, 0)


@no_progress_bars()
def validate(dataset: DatasetDict, data: DataSettings, quality: QualitySettings, task: TaskSettings) -> Validation:
    """Return the rows that meet the task's expectations, and what became of the others.

    Labels become `ClassLabel` in the order of `task.labels` (or the sorted labels of the training split), or float32.
    A whole number stands for the class of that index where `task.labels` is given and names no number itself; elsewhere
    it is a name. The split `unlabelled` meets the rules about its text only, and must not hold texts of validation or
    test.

    Raises:
        DataQualityError: a rule with policy `stop` is broken, a split lacks rows of a class, or more rows than
            `quality.max_excluded_fraction` would be excluded; one line per finding, with the first rows.
    """
    texts = ["text"] if data.text_pair_column is None else ["text", "text_pair"]
    engine = Engine()
    _check_columns(engine, dataset, texts)
    classes = _classes(dataset["train"], task)
    numbers = _numbers_of_labels(classes, task)
    splits = {}
    for name, rows in dataset.items():
        splits[name] = _judge_rows(engine, name, rows.select_columns(_wanted(name, texts)), quality, numbers)
        splits[name].rows = rows
    _judge_between_rows(splits)
    phrases = {
        "least": quality.min_characters,
        "most": quality.max_characters,
        "expected": "a finite number" if numbers is None else _listed(classes),
    }
    findings = [finding for split in splits.values() for finding in _row_findings(split, quality, phrases)]
    stops = [finding for finding in findings if finding.policy == "stop"]
    broken = {finding.split for finding in stops}
    for name, split in splits.items():
        if name not in broken:
            stops += [*_share_findings(split, quality, findings), *_class_findings(split, quality, classes)]
    if stops:
        raise DataQualityError("\n".join(finding.message for finding in stops))
    clean = {name: _clean(split, classes) for name, split in splits.items()}
    return Validation(DatasetDict(clean), tuple(findings), _excluded(splits))


def _wanted(name: str, texts: list[str]) -> list[str]:
    return texts if name == UNLABELLED else [*texts, "label"]


def _check_columns(engine: Engine, dataset: DatasetDict, texts: list[str]) -> None:
    for name, rows in dataset.items():
        wanted = [*_wanted(name, texts), "row", "source"]
        if list(engine.broken(rows.select(range(1)).to_pandas(), table_expectations(wanted))):
            raise DataQualityError(
                f"{name}: columns: expected {', '.join(wanted)} but the split has {', '.join(rows.column_names)}; "
                "load it with ted.data.sources.load_dataset"
            )


def _classes(train: Dataset, task: TaskSettings) -> tuple[str, ...]:
    """Return the names of the classes: as declared, or the labels of the training split in order; numbers by value."""
    if task.kind == "regression":
        return ()
    if task.labels is not None:
        return task.labels
    found: set[str] = set()
    for batch in batches_of(train.select_columns(["label"])):
        found.update(batch["label"].dropna().unique())
    return tuple(sorted(found, key=lambda label: (int(label) if label.isdecimal() else -1, label)))


def _numbers_of_labels(classes: tuple[str, ...], task: TaskSettings) -> dict[str, int] | None:
    """Return the class index of every label that is accepted; None for a task of numbers."""
    if task.kind == "regression":
        return None
    numbers = {name: index for index, name in enumerate(classes)}
    if task.labels is not None and not any(name.isdecimal() for name in classes):
        numbers |= {str(index): index for index in range(len(classes))}
    return numbers


def _judge_rows(
    engine: Engine, name: str, rows: Dataset, quality: QualitySettings, numbers: dict[str, int] | None
) -> _Split:
    """Apply the rules about single rows."""
    expectations = row_expectations(rows.column_names, quality, numbers)
    codes, keys, labels = [], [], []
    for batch in batches_of(rows):
        frame = batch.astype(object)
        frame["number"] = _label_numbers(frame["label"], numbers) if "label" in frame else np.nan
        code = np.zeros(len(frame), dtype=np.int8)
        for rule, positions in engine.broken(frame, expectations):
            first = positions[(code[positions] == 0) | (code[positions] > CODES[rule])]
            code[first] = CODES[rule]
        codes.append(code)
        keys.append(text_keys(frame))
        labels.append(frame["number"].to_numpy(dtype=np.float64))
    return _Split(name, rows, np.concatenate(codes), np.concatenate(keys), np.concatenate(labels))


def _label_numbers(labels: "pd.Series[Any]", numbers: dict[str, int] | None) -> "pd.Series[float]":
    """Return class indices or targets; NaN for a label that is neither."""
    if numbers is not None:
        return labels.map(numbers).astype(np.float64)
    return pd.to_numeric(labels, errors="coerce").astype(np.float64).replace([np.inf, -np.inf], np.nan)


def _judge_between_rows(splits: dict[str, _Split]) -> None:
    """Apply the rules that compare rows to the rows that are left: within each split, then from the last one back."""
    for name, split in splits.items():
        if name == UNLABELLED:
            continue
        left = np.flatnonzero(split.kept)
        frame = pd.DataFrame({"key": split.keys[left], "label": split.labels[left]})
        repeated = frame.duplicated()
        labels_of_key = frame[~repeated]["key"]
        conflicting = frame["key"].isin(labels_of_key[labels_of_key.duplicated()])
        split.codes[left[repeated]] = CODES["duplicates"]
        split.codes[left[conflicting]] = CODES["conflicting_labels"]
    for name, later in LATER_SPLITS.items():
        if name in splits:
            split = splits[name]
            keys = np.concatenate([splits[other].keys[splits[other].kept] for other in later])
            split.codes[split.kept & np.isin(split.keys, keys)] = CODES["leakage"]


def _row_findings(split: _Split, quality: QualitySettings, phrases: dict[str, Any]) -> list[Finding]:
    """Return a finding per rule that rows of the split break."""
    findings = []
    later = " or ".join(LATER_SPLITS.get(split.name, ()))
    for rule, code in CODES.items():
        positions = np.flatnonzero(split.codes == code)
        if not len(positions):
            continue
        policy: Policy = "stop" if rule == "types" else getattr(quality, rule)
        first = split.rows.select(positions[:FIRST_ROWS])[:]
        what = RULES[rule].format(**phrases, later=later)
        message = f"{split.name}: {rule}: {_count(len(positions))} {what}: {_places(first)}; {_example(first, rule)}"
        findings.append(Finding(rule, policy, split.name, len(positions), tuple(first["row"]), message))
    return findings


def _share_findings(split: _Split, quality: QualitySettings, findings: list[Finding]) -> list[Finding]:
    """Return a finding if too much of the split is excluded; its message repeats what was found."""
    count = int((~split.kept).sum())
    if count <= quality.max_excluded_fraction * len(split.codes):
        return []
    reasons = [finding for finding in findings if finding.split == split.name]
    share, most = f"{count / len(split.codes):.1%}", f"{quality.max_excluded_fraction:.1%}"
    message = (
        f"{split.name}: max_excluded_fraction: {count} of {_count(len(split.codes))} ({share}) would be excluded, more "
        f"than {most}; mend the source or raise quality.max_excluded_fraction:"
    )
    lines = [message, *(f"  {finding.message}" for finding in reasons)]
    rows = reasons[0].rows
    return [Finding("max_excluded_fraction", "stop", split.name, count, rows, "\n".join(lines))]


def _class_findings(split: _Split, quality: QualitySettings, classes: tuple[str, ...]) -> list[Finding]:
    """Return a finding if the split has fewer than two classes or too few rows of one, or none at all."""
    left = split.labels[split.kept]
    if split.name == UNLABELLED or not classes:
        problem = "" if split.kept.any() else "no row is left"
    elif len(classes) == 1:
        problem = f"the only class is {classes[0]!r}; a classification needs two"
    else:
        counts = np.bincount(left.astype(np.int64), minlength=len(classes))
        least = quality.min_rows_per_class
        few = [f"{name!r} {count}" for name, count in zip(classes, counts, strict=True) if count < least]
        problem = f"too few rows of {', '.join(few)}; quality.min_rows_per_class is {least}" if few else ""
    if not problem:
        return []
    return [
        Finding("min_rows_per_class", "stop", split.name, len(left), (), f"{split.name}: min_rows_per_class: {problem}")
    ]


def _clean(split: _Split, classes: tuple[str, ...]) -> Dataset:
    """Return the kept rows with final labels."""
    rows = split.rows
    if split.name != UNLABELLED:
        type_, feature = (pa.int64(), ClassLabel(names=list(classes))) if classes else (pa.float32(), Value("float32"))
        labels = pa.array(split.labels, mask=np.isnan(split.labels)).cast(type_)
        rows = rows.remove_columns("label").add_column("label", labels, feature=feature)
    return rows if split.kept.all() else rows.select(np.flatnonzero(split.kept))


def _excluded(splits: dict[str, _Split]) -> Dataset:
    """Return the rows that break a rule, with the split and the rule."""
    names = ["text", "text_pair", "label", "source", "split", "rule"]
    if "text_pair" not in splits["train"].rows.column_names:
        names.remove("text_pair")
    features = Features({**{name: Value("string") for name in names}, "row": Value("int64")})
    columns: dict[str, list[Any]] = {name: [] for name in features}
    rule_of_code = {code: rule for rule, code in CODES.items()}
    for name, split in splits.items():
        positions = np.flatnonzero(~split.kept)
        part = split.rows.select(positions)[:]
        part |= {
            "split": [name] * len(positions),
            "rule": [rule_of_code[code] for code in split.codes[positions].tolist()],
        }
        part["label"] = [None if label is None else str(label) for label in part.get("label", [None] * len(positions))]
        for column in columns:
            columns[column] += part[column]
    return Dataset.from_dict(columns, features=features)


def _count(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows:,} rows"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))


def _places(rows: dict[str, list[Any]]) -> str:
    """Return "rows 3, 7 of a.csv, row 2 of b.csv"."""
    by_source: dict[str, list[str]] = {}
    for row, source in zip(rows["row"], rows["source"], strict=True):
        by_source.setdefault(source, []).append(str(row))
    return ", ".join(
        f"{'row' if len(numbers) == 1 else 'rows'} {', '.join(numbers)} of {source}"
        for source, numbers in by_source.items()
    )


def _example(rows: dict[str, list[Any]], rule: str) -> str:
    column = "label" if rule == "unknown_label" else "text"
    value = rows[column][0]
    cut = isinstance(value, str) and len(value) > EXCERPT
    return f"the first has {column} {value[:EXCERPT] + '...'!r}" if cut else f"the first has {column} {value!r}"
