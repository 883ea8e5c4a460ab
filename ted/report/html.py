"""The report of a run: one HTML page that needs no other file, no network and no script."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup
from sklearn.metrics import confusion_matrix

from ted.report import figures, text

Entry = Mapping[str, Any]

LOSS_TERMS = ("task_loss", "prediction_loss", "layer_loss")
CONFUSION_CLASSES = 15
EXAMPLES_PER_LIST = 5
EXAMPLE_CHARACTERS = 280
DRAWN_SLICES = 40


@dataclass(frozen=True)
class ReportInputs:
    """What a run leaves behind, as plain values."""

    settings: Entry
    """`Settings.resolved().model_dump(mode="json")`."""
    split_rows: Mapping[str, int]
    """Rows per split after validation."""
    findings: Sequence[Entry]
    """`Finding.as_dict()` of each broken rule."""
    stages: Mapping[str, Entry]
    """Training metrics (`log_history`, `seconds`, `steps`, `layer_match` and so on) per step name, in order."""
    evaluation: Entry
    """`evaluation.json` with `gates`."""
    predictions: Path
    """`predictions.parquet` of the same evaluation."""
    bundle: Entry | None
    """`bundle.json`; None where the gates stopped the export."""
    environment: Mapping[str, str]
    """Versions, commit, machine: name to value."""
    step_seconds: Mapping[str, float]
    """Wall time per step, in order."""
    cached_steps: Collection[str] = ()
    """Steps whose result was taken from an earlier run; their wall time is that run's."""


@dataclass(frozen=True)
class Figure:
    """A picture with its heading and an explaining line."""

    title: str
    svg: Markup
    note: str = ""


def build_report(inputs: ReportInputs) -> str:
    """Return the report as HTML.

    Parts that a run does not have (layers, control, champion, bundle, findings) are left out of the page.
    """
    evaluation = inputs.evaluation
    frame = pd.read_parquet(inputs.predictions)
    return (
        text.templates()
        .get_template("report.html.jinja")
        .render(
            inputs=inputs,
            settings=inputs.settings,
            evaluation=evaluation,
            models=evaluation["models"],
            gates=evaluation.get("gates", []),
            verdict=_verdict(evaluation.get("gates", [])),
            facts=_facts(inputs),
            comparisons=_comparisons(evaluation),
            stages=[figure for name, metrics in inputs.stages.items() for figure in _curves(name, metrics)],
            layers=_layers(inputs.stages),
            answers=_answers(evaluation, frame),
            labels=_labels(evaluation),
            slices=_slices(evaluation),
            examples=_examples(evaluation, frame),
            steps=_steps(inputs),
        )
    )


def _verdict(gates: Sequence[Entry]) -> dict[str, str]:
    """Return the headline of the page: how it looks and what it says."""
    failed = sum(gate["passed"] is False for gate in gates)
    judged = sum(gate["passed"] is not None for gate in gates)
    if failed:
        return {"kind": "failed", "text": f"{failed} of {text.counted(judged, 'gate')} failed"}
    if judged:
        return {"kind": "passed", "text": f"{text.counted(judged, 'gate')} passed"}
    return {"kind": "open", "text": "no gate judged"}


def _facts(inputs: ReportInputs) -> list[tuple[str, str]]:
    """Return what was run on what, as names and values."""
    settings = inputs.settings
    data, student, training = settings["data"], settings["student"], settings["distillation"]["training"]
    length = f"{training['max_steps']} updates" if training["max_steps"] else f"{training['num_train_epochs']:g} epochs"
    facts = [
        ("Method", settings["method"]),
        ("Task", settings["task"]["kind"]),
        ("Classes", text.listed(inputs.evaluation.get("labels") or [])),
        ("Data", data["source"]),
        ("Further unlabelled text", data["unlabelled"] or ""),
        ("Rows", ", ".join(f"{name} {rows:,}" for name, rows in inputs.split_rows.items())),
        ("Teacher", settings["teacher"]["model"]),
        ("Student", _origin(student)),
        ("Distillation", f"{length}, step size {training['learning_rate']:g}"),
        ("Seed", str(settings["seed"])),
        ("Arithmetic", "of the published code" if settings["compatibility"] == "official" else ""),
    ]
    return [(name, value) for name, value in facts if value]


def _origin(student: Entry) -> str:
    """Return what the student was made of."""
    if student["model"] is not None:
        return str(student["model"])
    if student["config"] is not None:
        changes = text.listed(f"{name} {text.plain(value)}" for name, value in student["config"].items())
        return f"new weights, shape changed: {changes}"
    if student["num_layers"] is not None:
        count, choice = text.counted(student["num_layers"], "layer"), student["layer_choice"]
        return f"{count} of the teacher, spread evenly" if choice == "evenly" else f"{choice} {count} of the teacher"
    layers = "every second layer" if student["layers"] is None else f"layers {text.listed(student['layers'])}"
    return f"{layers} of the teacher"


def _comparisons(evaluation: Entry) -> dict[str, Any]:
    prefix = "student_vs_"
    found = {name.removeprefix(prefix): value for name, value in evaluation.get("comparisons", {}).items()}
    svg = figures.comparisons(found, evaluation["primary_metric"]) if found else None
    return {"rows": found, "figure": svg and Figure("Student minus each other model", svg, "Line: bootstrap interval.")}


def _curves(stage: str, metrics: Entry) -> list[Figure]:
    """Return a figure per loss term of a training stage; a stage without terms of its own shows its loss."""
    history = metrics.get("log_history", [])
    logged = sorted({key for entry in history for key in entry})
    terms = [term for term in LOSS_TERMS if term in logged] or [term for term in ("loss",) if term in logged]
    return [_curve(stage, history, term, _effort(metrics)) for term in terms]


def _curve(stage: str, history: Sequence[Entry], term: str, effort: str) -> Figure:
    numbers = {key.removeprefix(f"{term}_") for entry in history for key in entry}
    layers = [f"{term}_{number}" for number in sorted(int(number) for number in numbers if number.isdigit())]
    apart = 1 < len(layers) <= len(figures.SERIES)
    title = f"{text.words(stage).capitalize()}: {text.words(term)}"
    svg = figures.loss_curves(f"{stage}-{term}", history, layers if apart else [term], title)
    return Figure(title, svg, "One line per matched layer." if apart else effort)


def _effort(metrics: Entry) -> str:
    if "steps" not in metrics or "seconds" not in metrics:
        return ""
    return f"{text.counted(metrics['steps'], 'update')} in {text.duration(metrics['seconds'])}."


def _layers(stages: Mapping[str, Entry]) -> dict[str, Any] | None:
    matches: Sequence[Entry] = next((found["layer_match"] for found in stages.values() if found.get("layer_match")), ())
    if not matches:
        return None
    note = "0 is a perfect match; 1 is no better than the mean of the teacher's states."
    return {"rows": matches, "figure": Figure("Error per matched layer", figures.layer_match(matches), note)}


def _answers(evaluation: Entry, frame: pd.DataFrame) -> dict[str, Any]:
    """Return a confusion matrix per model for a few classes, the commonest confusions for many, or a scatter plot."""
    shown = [name for name in ("student", "teacher") if name in evaluation["models"]]
    labels: list[str] = evaluation.get("labels") or []
    if evaluation["task"] not in {"classification", "regression"}:
        return {"figures": [], "confusions": []}
    if evaluation["task"] == "regression":
        values = {name: frame[f"{name}_prediction"].to_numpy(float) for name in reversed(shown)}
        svg = figures.scatter(frame["label"].to_numpy(float), values)
        note = (
            f"At most {figures.SCATTER_POINTS:,} rows are drawn; on the dashed line, prediction and target are equal."
        )
        return {"figures": [Figure("Predictions against targets", svg, note)], "confusions": []}
    if len(labels) > CONFUSION_CLASSES:
        return {"figures": [], "confusions": _commonest_confusions(frame)}
    drawn = []
    for name in shown:
        counts_KK = confusion_matrix(frame["label"], frame[f"{name}_prediction"], labels=labels)
        svg = figures.confusion(f"confusion-{name}", counts_KK, labels, name)
        drawn.append(Figure(f"Confusion matrix: {text.words(name)}", svg, "Rows of the test split; shade by row."))
    return {"figures": drawn, "confusions": []}


def _labels(evaluation: Entry) -> list[dict[str, Any]]:
    """Return the figures of each label for student and teacher."""
    shown = [name for name in ("student", "teacher") if name in evaluation["models"]]
    tables = {name: evaluation["models"][name].get("label_rows", []) for name in shown}
    return [{"title": f"{text.words(name)}, by label", "rows": rows} for name, rows in tables.items() if rows]


def _commonest_confusions(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    wrong = frame[frame["label"] != frame["student_prediction"]]
    pairs = wrong.groupby(["label", "student_prediction"], observed=True).size().reset_index(name="rows")
    return pairs.sort_values("rows", ascending=False, kind="stable").head(CONFUSION_CLASSES).to_dict("records")


def _slices(evaluation: Entry) -> dict[str, Any] | None:
    models = evaluation["models"]
    names = list(models["student"]["slices"])
    if not names:
        return None
    titles = evaluation.get("slice_titles", {})
    rows = [
        {
            "title": titles.get(name, name),
            "rows": models["student"]["slices"][name]["rows"],
            "values": [model["slices"][name]["primary"] for model in models.values()],
        }
        for name in names
    ]
    drawn = sorted(rows, key=lambda row: row["rows"], reverse=True)[:DRAWN_SLICES] if len(rows) > DRAWN_SLICES else rows
    values = {model: [row["values"][column] for row in drawn] for column, model in enumerate(models)}
    svg = figures.slices([row["title"] for row in drawn], values, evaluation["primary_metric"])
    note = "" if drawn is rows else f"The {DRAWN_SLICES} largest slices; the table has all."
    title = f"{text.words(evaluation['primary_metric']).capitalize()} per slice"
    return {"rows": rows, "figure": Figure(title, svg, note)}


def _examples(evaluation: Entry, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows that the student lost and won against its start and against its teacher."""
    others = [name for name in ("student_start", "teacher") if name in evaluation["models"]]
    return [
        {
            "title": f"{word} against the {text.words(other)}",
            "other": other,
            "count": len(rows),
            "labelled": "label" in frame,
            "rows": _shown(rows, other),
        }
        for other in others
        for word, rows in zip(("Lost", "Won"), _picked(frame, other), strict=True)
    ]


def _picked(frame: pd.DataFrame, other: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return rows that the student answers worse than the other model, and better: the largest change, then the surest.

    How sure a model is counts for the one that is wrong.
    """
    change = frame["student_quality"] - frame[f"{other}_quality"]
    ordered = frame.assign(change=change)
    parts = []
    for wrong, rows in (("student", ordered[change < 0]), (other, ordered[change > 0])):
        sure = rows.get(f"{wrong}_probability", pd.Series(0.0, index=rows.index))
        ranked = rows.assign(size=rows["change"].abs(), sure=sure)
        parts.append(ranked.sort_values(["size", "sure"], ascending=False, kind="stable"))
    return parts[0], parts[1]


def _shown(rows: pd.DataFrame, other: str) -> list[dict[str, Any]]:
    shown = []
    for row in rows.head(EXAMPLES_PER_LIST).to_dict("records"):
        texts = [str(row[column]) for column in ("text", "text_pair") if row.get(column) is not None]
        cut = [part if len(part) <= EXAMPLE_CHARACTERS else part[:EXAMPLE_CHARACTERS] + " [...]" for part in texts]
        answers = {name: _answer(row, name) for name in (other, "student")}
        shown.append({"row": row["row"], "texts": cut, "label": row.get("label"), "answers": answers})
    return shown


def _answer(row: Mapping[Any, Any], name: str) -> tuple[Any, Any, bool]:
    """Return a model's answer, or where a task has none its quality, how sure it was, and whether it is right.

    A quality of 1 is a right answer wherever answers are texts; numbers are shown without a verdict.
    """
    quality = row[f"{name}_quality"]
    return row.get(f"{name}_prediction", quality), row.get(f"{name}_probability"), quality == 1


def _steps(inputs: ReportInputs) -> dict[str, Any] | None:
    """Return time and, where the settings give a price, cost per step."""
    if not inputs.step_seconds:
        return None
    price = inputs.settings["report"]["price_per_hour"]
    rows = [
        {
            "name": name,
            "seconds": seconds,
            "cached": name in inputs.cached_steps,
            "updates": inputs.stages.get(name, {}).get("steps"),
            "cost": None if price is None else price * seconds / 3600,
        }
        for name, seconds in inputs.step_seconds.items()
    ]
    svg = figures.durations(inputs.step_seconds)
    return {
        "rows": rows,
        "total": sum(inputs.step_seconds.values()),
        "price": price,
        "figure": Figure("Time per step", svg),
    }
