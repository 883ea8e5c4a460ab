import pytest
from jinja2 import UndefinedError

from ted.report import text


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "\N{EN DASH}"), (0.0, "0.0000"), (0.87654, "0.8765"), (-2.5, "-2.5000"), (2.5e-7, "2.50e-07")],
)
def test_number(value: float | None, written: str) -> None:
    assert text.number(value) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.25, "0.2 s"), (59.9, "59.9 s"), (61, "1 min 01 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_duration(seconds: float, written: str) -> None:
    assert text.duration(seconds) == written


@pytest.mark.parametrize(("size", "written"), [(1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB")])
def test_binary_size(size: int, written: str) -> None:
    assert text.binary_size(size) == written


@pytest.mark.parametrize(("time", "written"), [(0.01234, "0.0123 ms"), (12.34, "12.3 ms"), (123.4, "123 ms")])
def test_milliseconds(time: float, written: str) -> None:
    assert text.milliseconds(time) == written


@pytest.mark.parametrize(("count", "written"), [(1, "1 gate"), (0, "0 gates"), (2000, "2,000 gates")])
def test_counted(count: int, written: str) -> None:
    assert text.counted(count, "gate") == written


@pytest.mark.parametrize(
    ("value", "written"),
    [(True, "yes"), (None, "none"), ([], "none"), ([1, "a"], "1, a"), (1 / 3, "0.333333"), ("x", "x")],
)
def test_plain(value: object, written: str) -> None:
    assert text.plain(value) == written


def test_shares_and_changes() -> None:
    assert text.share(0.4567) == "45.7%"
    assert text.percent(0.95) == "95%"
    assert text.percent(0.999) == "99.9%"
    assert text.change(0.5) == "+0.5000"
    assert text.millions(22_713_216) == "22.71 M"
    assert text.words("student_start") == "student start"


def test_a_document_is_split_into_scalars_and_tables() -> None:
    document = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "rows": [{"x": 1}, {"x": 2}]}
    assert text.scalars(document) == [("a", "1"), ("b.c", "1, 2"), ("b.d.e", "none")]
    assert text.tables(document) == [("rows", [{"x": 1}, {"x": 2}])]


def test_a_cell_keeps_a_markdown_table_whole() -> None:
    assert text.cell("a|b\nc") == r"a\|b c"


def test_templates_escape_and_refuse_unknown_names() -> None:
    template = text.templates().from_string("{{ name }}")
    assert template.render(name="<b>") == "&lt;b&gt;"
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        template.render()


def test_layer() -> None:
    assert [text.layer(index) for index in (-1, 0, 11)] == ["embedding", "0", "11"]
