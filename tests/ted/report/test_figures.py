import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from markupsafe import Markup

from ted.report import figures

MATCH = [{"student_layer": layer, "teacher_layer": 2 * layer + 1, "before": 0.5, "after": 0.2} for layer in range(3)]
INTERVAL = {"difference": 0.1, "low": 0.05, "high": 0.15}
HISTORY = [{"step": step, "task_loss": 1 / step, "layer_loss": 2 / step} for step in range(1, 60)]
NUMBERS = np.linspace(-1, 1, 3000)

DRAWINGS: dict[str, Callable[[], Markup]] = {
    "loss_curves": lambda: figures.loss_curves("loss", HISTORY, ["task_loss", "layer_loss"], "loss & <terms>"),
    "layer_match": lambda: figures.layer_match(MATCH),
    "confusion": lambda: figures.confusion("confusion", np.array([[5, 1], [0, 0]]), ["<no>", "yes & $x_$"], "student"),
    "scatter": lambda: figures.scatter(NUMBERS, {"teacher": NUMBERS, "student": -NUMBERS}),
    "slices": lambda: figures.slices(["short", "x" * 80], {"teacher": [0.5, None], "student": [0.4, 0.6]}, "accuracy"),
    "comparisons": lambda: figures.comparisons({"teacher": INTERVAL, "control": INTERVAL}, "macro_f1"),
    "durations": lambda: figures.durations({"load_data": 1.0, "distill_student": 12.0}),
}


def texts(svg: str) -> set[str]:
    return {"".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}  # noqa: S314 - our own


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_a_figure_is_well_formed_and_can_stand_in_a_page(draw: Callable[[], Markup]) -> None:
    svg = draw()
    root = ET.fromstring(svg)  # noqa: S314 - our own drawing
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]
    assert "width" not in root.attrib
    assert "<style" not in svg
    assert "#0a0a" not in svg
    assert "<image" not in svg
    identifiers = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_equal_input_gives_an_equal_drawing(draw: Callable[[], Markup]) -> None:
    assert draw() == draw()


def test_figures_of_a_page_share_no_identifier() -> None:
    drawn = [figures.loss_curves(name, HISTORY, ["task_loss"], name) for name in ("first", "second")]
    found = [
        {element.attrib["id"] for element in ET.fromstring(svg).iter() if "id" in element.attrib}  # noqa: S314 - our own
        for svg in drawn
    ]
    assert not found[0] & found[1]
    assert "url(#first-" in drawn[0]


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("loss_curves", {"optimiser update", "loss", "task loss", "layer loss"}),
        ("layer_match", {"squared error / variance", "student 0 to teacher 1", "before", "after"}),
        ("confusion", {"predicted", "true", "<no>", "yes & $x_$", "5", "1"}),
        ("scatter", {"target", "prediction", "teacher", "student", "exact"}),
        ("slices", {"accuracy", "short", "x" * 23 + "...", "teacher", "student"}),
        ("comparisons", {"macro f1, student minus other", "against teacher", "against control"}),
        ("durations", {"wall time, seconds", "load data", "distill student"}),
    ],
)
def test_axes_and_series_are_named(name: str, axes: set[str]) -> None:
    assert axes <= texts(DRAWINGS[name]())


def test_the_pair_of_embeddings_is_named() -> None:
    pair = {"student_layer": -1, "teacher_layer": -1, "before": 0.5, "after": 0.2}
    assert "student embedding to teacher embedding" in texts(figures.layer_match([pair, *MATCH]))


def test_long_runs_are_shown_in_minutes() -> None:
    assert "wall time, minutes" in texts(figures.durations({"distill_student": 600.0}))


def test_colours_come_from_the_page() -> None:
    svg = figures.comparisons({"teacher": INTERVAL}, "accuracy")
    assert {"var(--series-4)", "var(--muted)", "var(--line)"} <= {part.rstrip(';"') for part in svg.split()}


def test_a_short_history_is_drawn_point_by_point() -> None:
    few: list[dict[str, Any]] = HISTORY[:5]
    assert figures.loss_curves("few", few, ["task_loss"], "few").count("<use") > figures.loss_curves(
        "many", HISTORY, ["task_loss"], "many"
    ).count("<use") - len(few)
