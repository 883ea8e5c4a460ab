import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ted.config import parse_settings
from ted.report.html import ReportInputs, build_report

VOID = {"meta", "br"}


class Outline(HTMLParser):
    """Checks that elements are closed in order, and keeps identifiers, links and the words of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.identifiers: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        self.identifiers += [value for name, value in values.items() if name == "id" and value]
        self.links += [value for name, value in values.items() if name == "href" and value]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data.strip())
        self.words = f"{self.words} {data.strip()}"


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def inputs_of(request: pytest.FixtureRequest) -> ReportInputs:
    inputs = request.getfixturevalue(request.param)
    assert isinstance(inputs, ReportInputs)
    return inputs


@pytest.fixture(params=["full", "bare"])
def page(request: pytest.FixtureRequest) -> str:
    return build_report(inputs_of(request))


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert "<script" not in page
    assert "<link" not in page
    assert "<img" not in page
    assert not re.search(r"""(src|href|url|@import)\s*[=(]?\s*["']?\s*(https?:)?//""", page)
    # Namespaces of SVG are names, not addresses that a browser fetches.
    assert set(re.findall(r"https?://[^\s\"'<)]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_the_page_is_well_formed_and_its_links_lead_somewhere(page: str) -> None:
    found = outline(page)
    assert len(found.identifiers) == len(set(found.identifiers))
    assert {link.removeprefix("#") for link in found.links} <= set(found.identifiers)
    assert page.lstrip().startswith("<!doctype html>")
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_figures_have_headings_and_tables_have_column_headings(page: str) -> None:
    assert page.count("<figure>") == page.count("<figcaption><b>") == page.count("<svg")
    assert page.count("<table") == page.count("<thead>")
    assert page.count('class="scroll" tabindex="0" role="region" aria-label=') == page.count("<table")


def test_a_full_run_has_every_part(full: ReportInputs) -> None:
    found = outline(build_report(full))
    assert found.headings == [
        "What was run",
        "Results on the test split",
        "Gates",
        "Training",
        "Match of the layers",
        "Answers",
        "Slices",
        "Examples",
        "Export",
        "Time and cost per step",
        "Validation of the data",
        "Settings and environment",
    ]
    for expected in (
        "version 3",
        "1 of 7 gates failed",
        "max_size_ratio",
        "Distill student: layer loss",
        "One line per matched layer.",
        "Finetune teacher: loss",
        "3 to 9 characters",
        "Lost against the student start",
        "Won against the teacher",
        "metric_drop 0.25 is above 0.01",
        "2.5e-07",
        "ab" * 32,
        "from an earlier run",
        "1.0000",
        "7, 9",
        "2.13.0",
    ):
        assert expected in found.words


def test_verdicts_are_words_and_not_only_colours(full: ReportInputs) -> None:
    verdicts: list[dict[str, Any]] = [
        {"rule": f"rule_{passed}", "value": None, "bound": 1.0, "passed": passed, "message": "why"}
        for passed in (True, False, None)
    ]
    page = build_report(replace(full, evaluation={**full.evaluation, "gates": verdicts}))
    for word in ("&#10003; passed", "&#10007; failed", "not judged", "1 of 2 gates failed"):
        assert word in page


@pytest.mark.parametrize(
    ("passed", "headline"),
    [([True, True], "2 gates passed"), ([True, None], "1 gate passed"), ([None], "no gate judged")],
)
def test_headline(full: ReportInputs, passed: list[bool | None], headline: str) -> None:
    verdicts = [{"rule": "rule", "value": 1.0, "bound": 1.0, "passed": value, "message": ""} for value in passed]
    assert headline in build_report(replace(full, evaluation={**full.evaluation, "gates": verdicts}))


def test_parts_that_a_run_lacks_are_left_out(bare: ReportInputs) -> None:
    found = outline(build_report(bare))
    assert found.headings == [
        "What was run",
        "Results on the test split",
        "Gates",
        "Answers",
        "Slices",
        "Examples",
        "Validation of the data",
        "Settings and environment",
    ]
    assert "Every rule is switched off." in found.words
    assert "No rule was broken." in found.words
    assert "Predictions against targets" in found.words


def test_texts_are_escaped(full: ReportInputs) -> None:
    page = build_report(full)
    assert "text &lt;b&gt;" in page
    assert "&amp; more" in page
    assert "&lt;i&gt;2&lt;/i&gt;" in page
    assert "<i>2</i>" not in page


def test_examples_are_the_rows_where_exactly_one_model_is_right(full: ReportInputs) -> None:
    frame = pd.read_parquet(full.predictions)
    theirs, ours = (frame[f"{name}_prediction"] == frame["label"] for name in ("teacher", "student"))
    words = outline(build_report(full)).words
    assert f"Lost against the teacher: {(theirs & ~ours).sum()} rows" in words
    assert f"Won against the teacher: {(~theirs & ours).sum()} rows" in words


def test_examples_of_a_regression_are_the_largest_changes_of_the_error(bare: ReportInputs) -> None:
    frame = pd.read_parquet(bare.predictions)
    theirs, ours = ((frame[f"{name}_prediction"] - frame["label"]).abs() for name in ("teacher", "student"))
    change = (ours - theirs).to_numpy()
    lost, won = re.findall(r"<h3>(?:Lost|Won) against.*?<td class=\"n\">(\d+)</td>", build_report(bare), re.DOTALL)
    assert int(lost) == frame["row"].to_numpy()[change.argmax()]
    assert int(won) == frame["row"].to_numpy()[change.argmin()]


def test_long_texts_are_cut_and_pairs_are_shown(full: ReportInputs) -> None:
    frame = pd.read_parquet(full.predictions)
    frame["text"], frame["text_pair"] = "x" * 1000, "the second text"
    frame.to_parquet(full.predictions)
    page = build_report(full)
    assert "x" * 280 + " [...]" in page
    assert "x" * 281 not in page
    assert "the second text" in page


def test_many_classes_give_a_list_of_confusions_and_a_drawing_of_the_largest_slices(full: ReportInputs) -> None:
    labels = [f"class {number}" for number in range(50)]
    frame = pd.read_parquet(full.predictions)
    generator = np.random.default_rng(0)
    for column in ("label", *(f"{name}_prediction" for name in full.evaluation["models"])):
        frame[column] = generator.choice(labels, len(frame))
    frame.to_parquet(full.predictions)
    models = {
        name: {**model, "slices": {f"label={label}": {"rows": 5, "primary": 0.5} for label in labels}}
        for name, model in full.evaluation["models"].items()
    }
    words = outline(
        build_report(replace(full, evaluation={**full.evaluation, "labels": labels, "models": models}))
    ).words
    assert "Commonest confusions of the student" in words
    assert "The 40 largest slices; the table has all." in words
    assert "Confusion matrix" not in words


def test_a_student_without_errors_among_many_classes_is_said_to_have_none(full: ReportInputs) -> None:
    frame = pd.read_parquet(full.predictions)
    frame["student_prediction"] = frame["label"]
    frame.to_parquet(full.predictions)
    labels = [f"class {number}" for number in range(50)]
    words = outline(build_report(replace(full, evaluation={**full.evaluation, "labels": labels}))).words
    assert "The student answers every row with its label." in words


def test_the_time_of_the_largest_batch_is_shown_whatever_the_order(full: ReportInputs) -> None:
    models = {
        name: {**model, "latency_ms": {"100": 240.0, "9": 2.5}, "latency_ratio": {"100": 0.6, "9": 0.5}}
        for name, model in full.evaluation["models"].items()
    }
    words = outline(build_report(replace(full, evaluation={**full.evaluation, "models": models}))).words
    assert "Time per batch of 100" in words
    assert "Time per batch of 9" not in words


def test_costs_need_a_price(full: ReportInputs) -> None:
    settings = {**full.settings, "report": {"price_per_hour": None}}
    words = outline(build_report(replace(full, settings=settings))).words
    assert "Time per step" in words
    assert "cost" not in words.split("Time per step")[1].split("Validation of the data")[0]


def test_the_published_arithmetic_is_named(full: ReportInputs) -> None:
    assert "of the published code" not in outline(build_report(full)).words
    settings = {**full.settings, "compatibility": "official"}
    assert "of the published code" in outline(build_report(replace(full, settings=settings))).words


@pytest.mark.parametrize(
    ("student", "origin"),
    [
        ({}, "every second layer of the teacher"),
        ({"layers": [0, 3]}, "layers 0, 3 of the teacher"),
        ({"num_layers": 2}, "2 layers of the teacher, spread evenly"),
        ({"num_layers": 2, "layer_choice": "first"}, "first 2 layers of the teacher"),
        ({"num_layers": 1, "layer_choice": "last"}, "last 1 layer of the teacher"),
        (
            {"config": {"num_hidden_layers": 4, "hidden_act": "relu"}},
            "new weights, shape changed: num_hidden_layers 4, hidden_act relu",
        ),
        ({"model": "models/small"}, "models/small"),
    ],
)
def test_the_page_says_what_the_student_was_made_of(full: ReportInputs, student: dict[str, Any], origin: str) -> None:
    settings = parse_settings({"student": student}).model_dump(mode="json")
    page = build_report(replace(full, settings=settings | {"report": full.settings["report"]}))
    assert f"<dt>Student</dt><dd>{origin}</dd>" in page


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_a_metric_where_less_is_better_is_said_to_be_one(full: ReportInputs, higher_is_better: bool) -> None:
    evaluation = {**full.evaluation, "primary_metric": "perplexity", "higher_is_better": higher_is_better}
    for model in evaluation["models"].values():
        model["metrics"]["perplexity"] = model["primary"]
    words = outline(build_report(replace(full, evaluation=evaluation))).words
    assert words.count("Less perplexity is better") == (0 if higher_is_better else 1)
    assert "+0.0100" in words


@pytest.mark.parametrize(
    ("task", "label", "right", "wrong"),
    [
        ("classification", "positive", ("positive", 1.0), ("negative", 0.0)),
        ("multi_label", "food, water", ("food, water", 1.0), ("food", 0.5)),
        ("question_answering", "Mary Shelley | Shelley", ("mary shelley.", 1.0), ("by Mary Shelley", 0.8)),
        ("token_classification", "B-PER O", ("I-PER O", 1.0), ("O O", 0.0)),
    ],
)
def test_an_answer_is_right_where_its_quality_is_1(
    full: ReportInputs, task: str, label: str, right: tuple[str, float], wrong: tuple[str, float]
) -> None:
    frame = pd.read_parquet(full.predictions).head(1)
    frame["label"] = label
    for name in full.evaluation["models"]:
        frame[f"{name}_prediction"], frame[f"{name}_quality"] = right if name == "student" else wrong
    frame.to_parquet(full.predictions)
    page = build_report(replace(full, evaluation={**full.evaluation, "task": task, "labels": [label, wrong[0]]}))
    assert f'<span class="right">{right[0]} &#10003;</span>' in page
    assert f'<span class="wrong">{wrong[0]} &#10007;</span>' in page


def test_layers_keep_their_order(full: ReportInputs) -> None:
    history = [{"step": step, "task_loss": 0.1, "task_loss_10": 0.1, "task_loss_2": 0.2} for step in (1, 2)]
    page = build_report(replace(full, stages={"learn_teacher_filters": {"log_history": history}}))
    assert page.index(">task loss 2<") < page.index(">task loss 10<")


def test_equal_input_gives_an_equal_page(full: ReportInputs) -> None:
    assert build_report(full) == build_report(full)


def test_examples_without_answers_say_what_their_figures_are(full: ReportInputs) -> None:
    assert "more is better" not in outline(build_report(full)).words
    evaluation = {
        **full.evaluation,
        "task": "causal_lm",
        "labels": [],
        "quality_name": "mean log-likelihood of a token",
    }
    frame = pd.read_parquet(full.predictions).drop(columns=["label"])
    answers = [str(column) for column in frame if str(column).endswith(("_prediction", "_probability"))]
    frame.drop(columns=answers).to_parquet(full.predictions)
    words = outline(build_report(replace(full, evaluation=evaluation))).words
    assert "The figures are the mean log-likelihood of a token; more is better." in words
    assert "Lost against the teacher" in words
