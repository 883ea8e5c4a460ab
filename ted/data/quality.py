"""The expectations that a task has of its data, and what happens to rows that break them.

Rules about one row are Great Expectations that read a split batch by batch; rules that compare rows work on 64-bit
hashes of the texts (:func:`ted.data.sources.text_keys`), so memory does not grow with the text. A row counts under the
first rule that it breaks, in the order of `RULES`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, Value
from numpy.typing import NDArray

from ted.config import DataSettings, Policy, QualitySettings, TaskSettings
from ted.data.expectations import Engine, row_expectations, table_expectations
from ted.data.sources import batches_of, no_progress_bars, text_keys
from ted.errors import DataQualityError
from ted.tasks import Task, get_task

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
MEASURED = ("validation", "test")
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
def validate(dataset: DatasetDict, data: DataSettings, quality: QualitySettings, settings: TaskSettings) -> Validation:
    """Return the rows that meet the task's expectations, and what became of the others.

    Labels become `ClassLabel` in the order of `task.labels` (or the sorted labels of the training split), lists of it
    where words have tags, or float32.
    A whole number stands for the class of that index where `task.labels` is given and names no number itself; elsewhere
    it is a name. The split `unlabelled` meets the rules about its text only, and must not hold texts of validation or
    test.

    Raises:
        DataQualityError: a rule with policy `stop` is broken, a split lacks rows of a class, or more rows than
            `quality.max_excluded_fraction` would be excluded; one line per finding, with the first rows.
    """
    task = get_task(settings)
    columns = ["text"] if data.text_pair_column is None else ["text", "text_pair"]
    columns += ["label"] if task.has_labels else []
    engine = Engine()
    _check_columns(engine, dataset, columns)
    names = task.find_labels(dataset["train"])
    splits = {}
    for name, rows in dataset.items():
        judge = _Judge(engine, quality, task, names)
        splits[name] = judge.rows(name, rows.select_columns(_wanted(name, columns)))
        splits[name].rows = rows
    _judge_between_rows(splits)
    phrases = {
        "least": quality.min_characters,
        "most": quality.max_characters,
        "expected": task.right_label(names),
    }
    show = partial(_example, task=task, names=names)
    findings = [finding for split in splits.values() for finding in _row_findings(split, quality, phrases, show)]
    stops = [finding for finding in findings if finding.policy == "stop"]
    broken = {finding.split for finding in stops}
    for name, split in splits.items():
        if name not in broken:
            stops += [*_share_findings(split, quality, findings), *_class_findings(split, quality, task, names)]
    if stops:
        found = [*findings, *(finding for finding in stops if finding not in findings)]
        message = "\n".join(finding.message for finding in stops)
        raise DataQualityError(message, [finding.as_dict() for finding in found])
    clean = {name: _clean(split, task, names) for name, split in splits.items()}
    return Validation(DatasetDict(clean), tuple(findings), _excluded(splits))


def _wanted(name: str, columns: list[str]) -> list[str]:
    return [column for column in columns if column != "label" or name != UNLABELLED]


def _check_columns(engine: Engine, dataset: DatasetDict, columns: list[str]) -> None:
    for name, rows in dataset.items():
        wanted = [*_wanted(name, columns), "row", "source"]
        if list(engine.broken(rows.select(range(1)).to_pandas(), table_expectations(wanted))):
            raise DataQualityError(
                f"{name}: columns: expected {', '.join(wanted)} but the split has {', '.join(rows.column_names)}; "
                "load it with ted.data.sources.load_dataset"
            )


@dataclass(frozen=True)
class _Judge:
    """Applies the rules about single rows."""

    engine: Engine
    quality: QualitySettings
    task: Task
    names: tuple[str, ...]

    def rows(self, name: str, rows: Dataset) -> _Split:
        """Return a split with the first rule that each row breaks."""
        expectations = row_expectations(rows.column_names, self.quality)
        codes, keys, labels = [], [], []
        for batch in batches_of(rows):
            frame = batch.astype(object)
            frame["number"] = self._numbers(frame)
            if "label" in frame:
                # A label of several parts is judged by its number; its rule about null needs a plain value.
                frame["label"] = frame["label"].map(lambda label: label if np.isscalar(label) or label is None else "")
            code = np.zeros(len(frame), dtype=np.int8)
            for rule, positions in self.engine.broken(frame, expectations):
                first = positions[(code[positions] == 0) | (code[positions] > CODES[rule])]
                code[first] = CODES[rule]
            codes.append(code)
            keys.append(text_keys(frame, cased=self.task.cased))
            labels.append(frame["number"].to_numpy(dtype=np.float64))
        return _Split(name, rows, np.concatenate(codes), np.concatenate(keys), np.concatenate(labels))

    def _numbers(self, frame: pd.DataFrame) -> "pd.Series[float]":
        if "label" not in frame:
            return pd.Series(0.0, index=frame.index)
        return self.task.label_numbers(frame, self.names)


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


def _row_findings(
    split: _Split, quality: QualitySettings, phrases: dict[str, Any], show: Callable[[dict[str, list[Any]], str], str]
) -> list[Finding]:
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
        message = f"{split.name}: {rule}: {_count(len(positions))} {what}: {_places(first)}; {show(first, rule)}"
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


def _class_findings(split: _Split, quality: QualitySettings, task: Task, names: tuple[str, ...]) -> list[Finding]:
    """Return a finding if the split has too few rows to be learnt from or measured on."""
    left = split.labels[split.kept]
    count, problem = int(split.kept.sum()), ""
    if count == 0:
        problem = "no row is left"
    elif split.name != UNLABELLED and task.has_labels:
        kept = _label_column(split.rows).take(pa.array(np.flatnonzero(split.kept)))
        least = quality.min_rows_per_class if split.name == "train" or task.every_split_has_all else 0
        problem = task.too_few(left, kept, names, least)
    if not problem and split.name in MEASURED and count == 1:
        problem = "one row is left; a metric and its interval need two"
    if not problem:
        return []
    return [
        Finding("min_rows_per_class", "stop", split.name, len(left), (), f"{split.name}: min_rows_per_class: {problem}")
    ]


def _clean(split: _Split, task: Task, names: tuple[str, ...]) -> Dataset:
    """Return the kept rows with final labels."""
    rows = split.rows
    if split.name != UNLABELLED and task.has_labels:
        labels, feature = task.clean_labels(split.labels, _label_column(rows), names)
        rows = rows.remove_columns("label").add_column("label", labels, feature=feature)
    return rows if split.kept.all() else rows.select(np.flatnonzero(split.kept))


def _label_column(rows: Dataset) -> pa.ChunkedArray:
    return rows.select_columns(["label"]).with_format("arrow")[:]["label"]


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


def _places(rows: dict[str, list[Any]]) -> str:
    """Return "rows 3, 7 of a.csv, row 2 of b.csv"."""
    by_source: dict[str, list[str]] = {}
    for row, source in zip(rows["row"], rows["source"], strict=True):
        by_source.setdefault(source, []).append(str(row))
    return ", ".join(
        f"{'row' if len(numbers) == 1 else 'rows'} {', '.join(numbers)} of {source}"
        for source, numbers in by_source.items()
    )


def _example(rows: dict[str, list[Any]], rule: str, task: Task, names: tuple[str, ...]) -> str:
    column = "label" if rule == "unknown_label" else "text"
    value = rows[column][0]
    if isinstance(value, str) and len(value) > EXCERPT:
        value = f"{value[:EXCERPT]}..."
    if column == "label":
        return f"the first has {task.wrong_label(value, rows['text'][0], names)}"
    return f"the first has text {value!r}"
