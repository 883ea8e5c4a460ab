"""The command answers a mistake with a line and status 2, never with a traceback."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ted import __version__
from ted.cli import app, main
from ted.errors import DataQualityError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[str]], str]:
    """Returns what the command writes to stderr when it ends with status 2."""

    def run(arguments: Sequence[str]) -> str:
        monkeypatch.setattr(sys, "argv", ["ted", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        assert (caught.value.code, output.out) == (2, "")
        return output.err

    return run


def test_help_lists_the_commands() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert [name for name in ("forecast", "check-data", "predict") if name not in result.output] == []


@pytest.mark.parametrize(("command", "word"), [("forecast", "memory"), ("check-data", "JSON"), ("predict", "--pair")])
def test_each_command_explains_itself(command: str, word: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], color=False, env={"NO_COLOR": "1", "TERM": "dumb"})
    assert result.exit_code == 0
    assert word in result.output


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{__version__}\n")


@pytest.mark.parametrize("command", ["check-data", "forecast"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"parametrs: {}", "parametrs: unknown key; did you mean parameters?"),
        (b"parameters: {sede: 5}", "sede: unknown setting; did you mean seed?"),
        (b"parameters: {}\nparameters: {}", "not YAML: the key 'parameters' stands twice"),
        (b"parameters: [1]", "parameters: must hold sections such as data:, not [1]"),
        (b"# caf\xe9", "not YAML: 'utf-8' codec can't decode byte 0xe9"),
        (b"a: [", "not YAML: "),
        (b"", "holds no key; write parameters: {} to run"),
        (b"- 1", "must hold keys such as parameters:, not a list"),
        (b"parameters: {data: {source: nowhere.csv}}", None),
        (None, "no such file; run from the repository root, or name a file with -c"),
    ],
)
def test_a_bad_file_is_answered_in_a_line(
    refusal: Callable[[Sequence[str]], str], tmp_path: Path, command: str, content: bytes | None, message: str | None
) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    (line,) = refusal([command, "-c", str(path)]).splitlines()
    absent = f"nowhere.csv: no such file or folder in {Path.cwd()}, where relative paths begin; give"
    assert line.startswith(f"Error: {path}: {message}" if message else f"Error: {absent}")


def test_each_problem_of_a_file_has_its_line(refusal: Callable[[Sequence[str]], str], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("retri: {}\nparameters: {sede: 5}")
    lines = refusal(["check-data", "-c", str(path)]).splitlines()
    assert [line.partition(f"Error: {path}: ")[2].partition(":")[0] for line in lines] == ["retri", "sede"]


def test_an_odd_number_of_texts_makes_no_pairs(refusal: Callable[[Sequence[str]], str], tmp_path: Path) -> None:
    line = "Error: --pair needs an even number of texts, got 3; give two per answer\n"
    assert refusal(["predict", "--pair", str(tmp_path), "a", "b", "c"]) == line


def test_a_folder_without_a_bundle_is_refused(refusal: Callable[[Sequence[str]], str], tmp_path: Path) -> None:
    assert refusal(["predict", str(tmp_path), "a"]).startswith(f"Error: {tmp_path}")


def test_findings_are_printed_once_where_a_rule_stops_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "config.yaml"
    data = "{source: tests/bad_inputs/unknown_label}, task: {labels: [negative, positive]}"
    path.write_text(f"parameters: {{data: {data}}}")
    result = CliRunner().invoke(app, ["check-data", "-c", str(path)])
    assert isinstance(result.exception, DataQualityError)
    assert str(result.exception) == "the data are not fit for use (train: unknown_label); the JSON lines say why"
    (finding,) = map(json.loads, result.stdout.splitlines())
    assert (finding["rule"], finding["policy"], finding["rows"]) == ("unknown_label", "stop", [5, 9])


def test_findings_are_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "config.yaml"
    path.write_text("parameters: {data: {source: tests/bad_inputs/empty_text}}")
    result = CliRunner().invoke(app, ["check-data", "-c", str(path)])
    assert result.exit_code == 0
    (finding,) = map(json.loads, result.stdout.splitlines())
    assert (finding["rule"], finding["rows"]) == ("empty_text", [15])
    assert result.stderr.startswith("1 rows excluded; fit for use: train ")
