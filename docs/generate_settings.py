"""Write `docs/reference/settings.md` from `ted/config.py`: `python -m docs.generate_settings [--check]`."""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ted.config import OFFICIAL_VALUES, Settings, TrainingSettings

Model = TypeVar("Model", bound=BaseModel)

PAGE = Path(__file__).parent / "reference" / "settings.md"
INTRODUCTION = """\
# Settings

<!-- Written by `python -m docs.generate_settings` from `ted/config.py`. Edit that file, then run the command. -->

Settings stand under `parameters:` of `zenml_config.yaml`, or of the file that `-c` names: one block per section below,
and the scalars of the first table at the top. What a file does not give has the value in the column *without it*;
`null` stands for no value, and the meaning says what that does.

An unknown key, a value out of bounds, or a setting that cannot act on the run (such as `distillation.temperature` on a
regression task) ends the command before any step starts, with the dotted key and what is allowed.
"""
TRAINING = """\
## training

The fields of `teacher.training`, `student.training`, `filters.training` and `distillation.training`. The four middle
columns are their values without the field. `filters.student_training` has the fields and the values of
`filters.training`.

"""
OFFICIAL = """\
## compatibility: official

The values that `compatibility: official` sets. Giving another value for one of them beside it is an error.
[Compatibility](../how-to/compatibility.md) says what each of them changes.

| setting | value |
|---|---|
"""
# Keyword of JSON schema -> how a bound is written.
BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "{} or more",
    "minLength": "not empty",
    "minProperties": "{} or more",
    "pattern": "like `{}`",
}
TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "`null`",
    "object": "block of values",
}


def page() -> str:
    """Return the page of all settings as Markdown."""
    sections, trainings = _walk()
    parts = [INTRODUCTION, *(_section(name, model) for name, model in sections.items())]
    return "\n".join([*parts, TRAINING + _training_table(trainings), OFFICIAL + _official_rows()])


def _walk() -> tuple[dict[str, type[BaseModel]], dict[str, type[TrainingSettings]]]:
    """Return the sections by name, the top level first, and the training blocks by dotted path."""
    sections: dict[str, type[BaseModel]] = {"": Settings}
    trainings: dict[str, type[TrainingSettings]] = {}
    for name, model in _blocks(Settings, BaseModel):
        sections[name] = model
        trainings |= {f"{name}.{inner}": training for inner, training in _blocks(model, TrainingSettings)}
    return sections, trainings


def _blocks(model: type[BaseModel], kind: type[Model]) -> Iterator[tuple[str, type[Model]]]:
    """Yield name and model of the fields that are blocks of a kind themselves."""
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, kind):
            yield name, annotation


def _section(name: str, model: type[BaseModel]) -> str:
    about = f"{_line(model.__doc__)}\n\n" if name else ""
    table = "| setting | type | without it | meaning |\n|---|---|---|---|\n"
    return f"## {name or 'top level'}\n\n{about}{table}{''.join(_rows(name, model))}"


def _rows(section: str, model: type[BaseModel]) -> Iterator[str]:
    schema, blocks = _schema(model), dict(_blocks(model, BaseModel))
    for name, field in model.model_fields.items():
        key = f"{section}.{name}" if section else name
        if name not in blocks:
            yield f"| `{key}` | {_type(schema[name])} | {_value(schema[name])} | {_line(field.description)} |\n"
        elif section:
            yield f"| `{key}` | a block | see [training](#training) | {_line(field.description)} |\n"


def _training_table(trainings: Mapping[str, type[TrainingSettings]]) -> str:
    names = [path.partition(".")[0] for path in trainings]
    table = f"| field | type | {' | '.join(names)} | meaning |\n|---|---|{'---|' * len(names)}---|\n"
    schemas = [_schema(model) for model in trainings.values()]
    for name, field in TrainingSettings.model_fields.items():
        values = " | ".join(_value(schema[name]) for schema in schemas)
        table += f"| `{name}` | {_type(schemas[0][name])} | {values} | {_line(field.description)} |\n"
    return table


def _official_rows() -> str:
    return "".join(f"| `{key}` | `{_literal(value)}` |\n" for key, value in OFFICIAL_VALUES.items())


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    properties: dict[str, Any] = model.model_json_schema()["properties"]
    return properties


def _type(schema: Mapping[str, Any]) -> str:
    """Return a field's type and bounds in words."""
    if "anyOf" in schema:
        return ", or ".join(_type(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return "a block as in [training](#training)"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    bounds = [text.format(_literal(schema[key])) for key, text in BOUNDS.items() if key in schema]
    if "prefixItems" in schema:
        return f"pair of ({_type(schema['prefixItems'][0])})"
    kind = f"list of ({_type(schema['items'])})" if schema["type"] == "array" else TYPES[schema["type"]]
    return ", ".join([kind, *bounds])


def _value(schema: Mapping[str, Any]) -> str:
    if "default" not in schema:
        return "must be given"
    # A bar would end the cell of the table, also inside of code.
    return f"`{_literal(schema['default'])}`".replace("|", r"\|")


def _literal(value: object) -> str:
    """Return a value as YAML takes it, numbers without an exponent."""
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0").rstrip(".")
    return value if isinstance(value, str) else json.dumps(value)


def _line(text: str | None) -> str:
    """Return a description as one line of a table, in the words of YAML."""
    return re.sub(r"\bNone\b", "`null`", " ".join((text or "").split())).replace("|", r"\|")


def main() -> int:
    """Write the page, or with `--check` say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    sys.stderr.write(f"{PAGE} is out of date; run python -m docs.generate_settings\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
