"""How names and numbers are written in the report and the model card, and the templates that they fill."""

from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def words(name: str) -> str:
    """Return a name of the code as words: `student_start` is `student start`."""
    return name.replace("_", " ")


def listed(values: Iterable[Any]) -> str:
    """Return values joined by commas."""
    return ", ".join(map(str, values))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 gate`, `2 gates`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def number(value: float | None) -> str:
    """Return a measured value with four decimals; very small ones as a power of ten, absent ones as a dash."""
    if value is None:
        return "\N{EN DASH}"
    if value and abs(value) < 1e-3:  # noqa: PLR2004 - four decimals would show little of it
        return f"{value:.2e}"
    return f"{value:.4f}"


def layer(index: int) -> str:
    """Return the name of a layer; the embedding stands before layer 0."""
    return "embedding" if index < 0 else str(index)


def change(value: float) -> str:
    """Return a difference with its sign."""
    return f"{value:+.4f}"


def share(value: float) -> str:
    """Return a ratio in per cent."""
    return f"{value:.1%}"


def percent(value: float) -> str:
    """Return a chosen share, such as a confidence, with no more digits than it was given."""
    return f"{100 * value:.10g}%"


def millions(value: int) -> str:
    """Return a count of parameters."""
    return f"{value / 1e6:.2f} M"


def binary_size(value: int) -> str:
    """Return a number of bytes in MiB, small ones in KiB."""
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"


def milliseconds(value: float) -> str:
    """Return a time that is given in milliseconds, to three digits."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"  # noqa: PLR2004 - three digits


def duration(seconds: float) -> str:
    """Return a time as seconds, minutes or hours."""
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def plain(value: Any) -> str:  # noqa: ANN401 - whatever JSON holds
    """Return a value of a JSON document for a table cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return listed(map(plain, value)) or "none"
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def scalars(document: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the scalars and lists of scalars of a nested document as (dotted name, value)."""
    found: list[tuple[str, str]] = []
    for name, value in document.items():
        if isinstance(value, dict):
            found += scalars(value, f"{prefix}{name}.")
        elif not _is_table(value):
            found.append((f"{prefix}{name}", plain(value)))
    return found


def tables(document: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the lists of records of a document, with their names."""
    return [(name, value) for name, value in document.items() if _is_table(value)]


def cell(value: object) -> str:
    """Return a value for a cell of a Markdown table, where bars and line breaks would end it."""
    return " ".join(str(value).split()).replace("|", "\\|")


def templates() -> Environment:
    """Return the templates of the package: texts are escaped, and a name that is not given is an error."""
    environment = Environment(
        loader=PackageLoader("ted.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    return environment


def _is_table(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, dict) for row in value)


_WRITERS: tuple[Callable[..., Any], ...] = (
    cell, change, counted, duration, layer, listed, binary_size, milliseconds, millions, number, percent, plain,
    scalars, share, tables, words,
)  # fmt: skip
FILTERS = {writer.__name__: writer for writer in _WRITERS}
