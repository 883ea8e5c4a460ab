"""Figures of the report as inline SVG that takes its colours and its font from the page.

Matplotlib draws in marker colours; each is replaced by a custom property of the page's style sheet, so that one drawing
serves the light and the dark scheme. Drawings are deterministic: equal input gives equal text.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ted.report.text import layer

INK, MUTED, LINE = "#0a0a01", "#0a0a02", "#0a0a03"
SERIES = ("#0a0a11", "#0a0a12", "#0a0a13", "#0a0a14", "#0a0a15", "#0a0a16")
PROPERTIES = {INK: "--ink", MUTED: "--muted", LINE: "--line"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, start=1)
}
# A model keeps its colour in every figure.
MODEL_COLOURS = dict(zip(("teacher", "student_start", "control", "student", "champion"), SERIES, strict=False))

STYLE: dict[Any, Any] = {
    "font.family": ["sans-serif"],
    "font.size": 8.5,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
WIDTH_INCHES = 3.9
SMOOTHED_FROM_POINTS = 25
SCATTER_POINTS = 1500
LABEL_CHARACTERS = 26

Entry = Mapping[str, Any]


def loss_curves(name: str, history: Sequence[Entry], terms: Sequence[str], label: str) -> Markup:
    """Return the course of loss terms over the optimiser updates of one stage.

    Args:
        name: identifier of the figure, unique on the page.
        history: log entries with `step` and, where they were logged, the terms.
        terms: keys of the entries that share the axes; up to six are told apart.
        label: text that stands for the picture.
    """
    with _drawing(name, label, height=2.2) as drawing:
        axes = drawing.axes
        for term, colour in zip(terms, _cycle(len(terms)), strict=True):
            points = [(entry["step"], entry[term]) for entry in history if term in entry]
            _curve(axes, np.asarray(points, dtype=float), colour, _words(term))
        axes.set(xlabel="optimiser update", ylabel="loss")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(terms) > 1:
            axes.legend(ncols=2)
    return drawing.markup


def layer_match(matches: Sequence[Entry]) -> Markup:
    """Return the relative error of each matched layer before and after distillation.

    Args:
        matches: `student_layer`, `teacher_layer`, `before` and `after` (squared error over variance of the target).
    """
    positions = np.arange(len(matches))
    before, after = (np.asarray([match[key] for match in matches]) for key in ("before", "after"))
    label = "Relative error per matched layer before and after distillation"
    with _drawing("layer-match", label, _rows(matches)) as drawing:
        axes = drawing.axes
        axes.hlines(positions, np.minimum(before, after), np.maximum(before, after), color=LINE, linewidth=3, zorder=1)
        axes.plot(before, positions, "o", color=MUTED, markerfacecolor="none", label="before")
        axes.plot(after, positions, "o", color=SERIES[3], label="after")
        pairs = [(layer(match["student_layer"]), layer(match["teacher_layer"])) for match in matches]
        names = [f"student {student} to teacher {teacher}" for student, teacher in pairs]
        axes.set_yticks(positions, names)
        axes.set(xlabel="squared error / variance", ylim=(len(matches) - 0.5, -0.5))
        axes.set_xlim(left=0)
        _legend_above(axes)
    return drawing.markup


def confusion(name: str, counts_KK: npt.NDArray[np.integer], labels: Sequence[str], model: str) -> Markup:
    """Return a confusion matrix; shade is the share of the true class.

    Args:
        name: identifier of the figure, unique on the page.
        counts_KK: rows by true class (first axis) and predicted class.
        labels: class names in the order of both axes.
        model: name of the model, for its colour.
    """
    shares_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    size = max(2.4, min(4.4, 0.45 * len(labels) + 1.2))
    with _drawing(name, f"Confusion matrix of {_words(model)}", size) as drawing:
        axes = drawing.axes
        for (true, predicted), share in np.ndenumerate(shares_KK):
            colour = MODEL_COLOURS[model]
            cell = Rectangle((predicted - 0.5, true - 0.5), 1, 1, facecolor=colour, alpha=0.85 * share, linewidth=0)
            axes.add_patch(cell)
            axes.text(predicted, true, f"{counts_KK[true, predicted]:,}", ha="center", va="center")
        ticks, labels = np.arange(len(labels)), [_short(label) for label in labels]
        slanted = sum(map(len, labels)) > 40  # noqa: PLR2004 - characters that fit side by side under the axes
        axes.set_xticks(ticks, labels, rotation=45 if slanted else 0, ha="right" if slanted else "center")
        axes.set_yticks(ticks, labels)
        axes.set(xlabel="predicted", ylabel="true", xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5))
        axes.grid(visible=False)
        axes.tick_params(length=0)
    return drawing.markup


def scatter(targets_N: npt.NDArray[np.floating], predictions: Mapping[str, npt.NDArray[np.floating]]) -> Markup:
    """Return predictions against targets, with the line of exact answers; at most 1,500 rows, evenly picked.

    Args:
        targets_N: true numbers.
        predictions: array [N] per model.
    """
    picked = np.unique(np.linspace(0, len(targets_N) - 1, SCATTER_POINTS).astype(int))
    with _drawing("scatter", "Predictions against targets", height=3.4) as drawing:
        axes = drawing.axes
        for model, values_N in predictions.items():
            axes.plot(
                targets_N[picked],
                values_N[picked],
                "o",
                color=MODEL_COLOURS[model],
                label=_words(model),
                markersize=3,
                markeredgewidth=0,
                alpha=0.5,
            )
        ends = [float(targets_N.min()), float(targets_N.max())]
        axes.plot(ends, ends, "--", color=MUTED, linewidth=1, label="exact")
        axes.set(xlabel="target", ylabel="prediction")
        _legend_above(axes)
    return drawing.markup


def slices(names: Sequence[str], values: Mapping[str, Sequence[float | None]], metric: str) -> Markup:
    """Return the primary metric of each model on each slice as a dot plot.

    Args:
        names: titles of the slices.
        values: per model one value per slice, None where the slice was not measured.
        metric: name of the metric.
    """
    positions = np.arange(len(names))
    with _drawing("slices", f"{_words(metric)} of each model on each slice", _rows(names)) as drawing:
        axes = drawing.axes
        for model, shades in values.items():
            points = [np.nan if value is None else value for value in shades]
            colour = MODEL_COLOURS[model]
            face = colour if model == "student" else "none"
            axes.plot(points, positions, "o", color=colour, markerfacecolor=face, label=_words(model))
        axes.set_yticks(positions, [_short(name) for name in names])
        axes.set(xlabel=_words(metric), ylim=(len(names) - 0.5, -0.5))
        _legend_above(axes)
    return drawing.markup


def comparisons(differences: Mapping[str, Entry], metric: str) -> Markup:
    """Return the student's difference to each other model with its bootstrap interval.

    Args:
        differences: `difference`, `low` and `high` per other model.
        metric: name of the metric that differs.
    """
    positions = np.arange(len(differences))
    middle, low, high = (np.asarray([d[key] for d in differences.values()]) for key in ("difference", "low", "high"))
    label = f"Difference in {_words(metric)} between the student and each other model"
    with _drawing("comparisons", label, _rows(differences)) as drawing:
        axes = drawing.axes
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.hlines(positions, low, high, color=SERIES[3], linewidth=2)
        axes.plot(middle, positions, "o", color=SERIES[3])
        axes.set_yticks(positions, [f"against {_words(name)}" for name in differences])
        axes.set(xlabel=f"{_words(metric)}, student minus other", ylim=(len(differences) - 0.5, -0.5))
    return drawing.markup


def durations(seconds: Mapping[str, float]) -> Markup:
    """Return the wall time of each step as bars, in seconds or minutes."""
    unit, scale = ("minutes", 60) if max(seconds.values()) > 180 else ("seconds", 1)  # noqa: PLR2004 - readable axis
    positions = np.arange(len(seconds))
    with _drawing("durations", "Wall time of each step", _rows(seconds)) as drawing:
        axes = drawing.axes
        axes.barh(positions, [value / scale for value in seconds.values()], color=SERIES[0], height=0.6)
        axes.set_yticks(positions, [_words(name) for name in seconds])
        axes.set(xlabel=f"wall time, {unit}", ylim=(len(seconds) - 0.5, -0.5))
        axes.grid(visible=False, axis="y")
    return drawing.markup


@dataclass
class _Drawing:
    axes: Axes
    markup: Markup


@contextmanager
def _drawing(name: str, label: str, height: float) -> Iterator[_Drawing]:
    """Yield axes to draw on; when the block ends, `markup` holds the picture."""
    with rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        drawing = _Drawing(figure.add_subplot(), Markup())
        yield drawing
        drawing.markup = _inline(figure, name, label)


def _inline(figure: Figure, name: str, label: str) -> Markup:
    """Return a drawing as an SVG element that may stand in a page beside others."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    # The declaration and the style element are for a file of its own; inside a page they would act on all of it.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text[text.index("<svg") :], count=1, flags=re.DOTALL)
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{escape(label)}"', text, count=1)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, custom_property in PROPERTIES.items():
        text = text.replace(colour, f"var({custom_property})")
    return Markup(text)  # noqa: S704 - matplotlib escapes the texts it writes, and the label is escaped above


def _curve(axes: Axes, points_N2: npt.NDArray[np.floating], colour: str, label: str) -> None:
    steps_N, values_N = points_N2[:, 0], points_N2[:, 1]
    if len(steps_N) < SMOOTHED_FROM_POINTS:
        axes.plot(steps_N, values_N, "o-", color=colour, markersize=3, label=label)
        return
    axes.plot(steps_N, values_N, color=colour, alpha=0.3, linewidth=0.8)
    window = max(3, len(steps_N) // 12)
    smooth_N = np.convolve(np.pad(values_N, window // 2, mode="edge"), np.full(window, 1 / window), mode="valid")
    axes.plot(steps_N, smooth_N[: len(steps_N)], color=colour, label=label)


def _cycle(number: int) -> list[str]:
    return [SERIES[index % len(SERIES)] for index in range(number)]


def _rows(items: Sequence[Any] | Mapping[str, Any]) -> float:
    """Return the height in inches of a figure with one line per item."""
    return 0.95 + 0.24 * len(items)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _short(name: str) -> str:
    return name if len(name) <= LABEL_CHARACTERS else f"{name[: LABEL_CHARACTERS - 3]}..."


def _legend_above(axes: Axes) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(loc="outside upper left", ncols=3, columnspacing=1.2, handletextpad=0.3, borderaxespad=0.2)
