"""The `ted` command."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ted import __version__
from ted.errors import DataQualityError, TedError

if TYPE_CHECKING:
    from ted.config import Settings

app = typer.Typer(
    help="Task-aware layer-wise distillation of transformers into verified ONNX students.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[
    Path, typer.Option("--config", "-c", help="YAML file with the settings under `parameters:`.", show_default=True)
]
DEFAULT_CONFIG = Path("zenml_config.yaml")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show version.")] = False,
) -> None:
    """Task-aware layer-wise distillation of transformers into verified ONNX students."""


@app.command()
def forecast(config: Config = DEFAULT_CONFIG) -> None:
    """Print memory, time and disk that a run would take on this machine."""
    from rich.console import Console

    from ted.forecast import forecast as make_forecast

    settings = _read_settings(config)
    Console().print(make_forecast(settings).table())


@app.command("check-data")
def check_data(config: Config = DEFAULT_CONFIG) -> None:
    """Validate the data of a run and print a JSON line per finding."""
    from ted.data.quality import validate
    from ted.data.sources import load_dataset, select_rows

    settings = _read_settings(config)
    dataset = load_dataset(settings.data, settings.task, settings.seed)
    try:
        validation = validate(dataset, settings.data, settings.quality, settings.task)
    except DataQualityError as error:
        _print_lines(error.findings)
        stops = [f"{found['split']}: {found['rule']}" for found in error.findings if found["policy"] == "stop"]
        raise DataQualityError(f"the data are not fit for use ({', '.join(stops)}); the JSON lines say why") from None
    _print_lines(finding.as_dict() for finding in validation.findings)
    used = select_rows(validation.dataset, settings.data, settings.seed)
    rows = ", ".join(f"{name} {len(split):,}" for name, split in used.items())
    typer.echo(f"{len(validation.excluded):,} rows excluded; fit for use: {rows}", err=True)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder: a version, a named bundle, or the folder it lies in.")],
    texts: Annotated[list[str], typer.Argument(help="Texts to answer.", metavar="TEXT...")],
    pair: Annotated[bool, typer.Option(help="Read the texts two by two, as pairs.")] = False,
) -> None:
    """Print the student's answer to each text as a JSON line."""
    from ted.serving.bundle import open_bundle
    from ted.serving.generation import open_predictor

    items: list[Any] = list(texts)
    if pair:
        if len(texts) % 2:
            raise TedError(f"--pair needs an even number of texts, got {len(texts)}; give two per answer")
        items = list(zip(texts[::2], texts[1::2], strict=True))
    for answer in open_predictor(open_bundle(bundle)).predict(items):
        typer.echo(json.dumps(answer, ensure_ascii=False))


def _print_lines(values: Iterable[Mapping[str, Any]]) -> None:
    """Print a JSON line per value."""
    for value in values:
        typer.echo(json.dumps(value, ensure_ascii=False))


def _read_settings(path: Path) -> "Settings":
    from ted.settings_file import read_parameters

    return read_parameters(path).resolved()


def main() -> None:
    """Run the command; an error meant for the user is printed without a traceback, with exit status 2."""
    try:
        app()
    except TedError as error:
        for line in str(error).splitlines():
            typer.echo(f"Error: {line}", err=True)
        sys.exit(2)
