"""What the documents say is held against the code: links, commands, settings, names, configurations."""

import ast
import functools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import typer.main
import yaml

import ted
from ted.config import Settings, parse_settings

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")],
    key=lambda path: path.as_posix(),
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SETTING = re.compile(rf"({'|'.join(Settings.model_fields)})((?:\.[a-z_0-9]+)+)")
# Folders outside any clone of the repository.
MACHINE_PATHS = tuple(f"/{name}" for name in ("work/", "tmp/w", "root/"))


class Block(NamedTuple):
    """A fenced block of a document: `words` are what stands behind its fence."""

    document: Path
    words: tuple[str, ...]
    code: str


def blocks(language: str) -> list[Block]:
    found = []
    for document in DOCUMENTS:
        for match in FENCE.finditer(document.read_text(encoding="utf-8")):
            words = tuple(match["info"].split())
            if words[:1] == (language,):
                code = re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
                found.append(Block(document, words[1:], code))
    return found


def commands() -> Iterator[str]:
    """Yield the lines of all bash blocks; those of a synopsis are not complete commands."""
    for block in blocks("bash"):
        for line in block.code.splitlines():
            if "DIR" not in line and "BUNDLE" not in line and "[" not in line:
                yield line


def prose(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def inline_codes() -> list[tuple[str, str]]:
    return [(path.relative_to(ROOT).as_posix(), code) for path in DOCUMENTS for code in INLINE.findall(prose(path))]


def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(prose(document)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(path), target


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target).resolve() for target in LINK.findall(index.read_text(encoding="utf-8"))}
    assert set((ROOT / "docs").rglob("*.md")) - {index} == linked


@functools.cache
def zenml_command() -> Any:  # noqa: ANN401 - see parse_click
    import zenml.cli
    from zenml.cli.cli import cli

    assert zenml.cli
    return cli


def parse_click(command: Any, arguments: Sequence[str]) -> None:  # noqa: ANN401 - click's own, or typer's copy of it
    """Parse arguments without calling the command they name.

    Raises:
        UsageError: there is no such option, or an argument is missing.
    """
    names = []
    while hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"no command {name}"
        command = command.commands[name]
        names.append(name)
    command.make_context(" ".join(names), list(arguments))


def parse_module(arguments: Sequence[str]) -> None:
    """Check that a module of the repository can be run and spells out every option that is given."""
    assert arguments[0] == "-m", arguments
    file = ROOT / arguments[1].replace(".", "/")
    code = (file / "__main__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8")
    assert '__name__ == "__main__"' in code
    for option in arguments[2:]:
        assert not option.startswith("--") or f'"{option}"' in code, f"no option {option}"


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def check_command(line: str) -> None:
    program, *arguments = shlex.split(line)
    if program == "make":
        targets = [argument for argument in arguments if "=" not in argument]
        assert set(targets) <= make_targets(), f"no target {targets}"
    elif program == "ted":
        from ted.cli import app

        parse_click(typer.main.get_command(app), arguments)
    elif program == "zenml":
        parse_click(zenml_command(), arguments)
    elif program == "python":
        parse_module(arguments)
    elif program == "pytest":
        paths = [argument for argument in arguments if argument.startswith("tests/")]
        assert all((ROOT / path).exists() for path in paths)
    elif program in {"kubectl", "docker"}:
        paths = [argument for argument in arguments if argument.startswith("k8s/")]
        assert all((ROOT / path).exists() for path in paths)
    elif program == "pip":
        assert set(re.findall(r"\[(\w+)\]", line)) <= extras()
    elif program == "export":
        assert all("=" in argument for argument in arguments)
    else:
        assert line in {"source .venv/bin/activate", "pre-commit install"}, f"no known program {program}"


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_exist(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\S+\.yaml", line):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    check_command(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ted foresee", "no command foresee"),
        ("ted predict --speed BUNDLE text", "No such option: --speed"),
        ("ted predict BUNDLE", "Missing parameter"),
        ("zenml pipeline walk ted_pipeline", "no command walk"),
        ("make coffee", "no target"),
        ("python -m benchmarks.oracle --fast", "no option --fast"),
        ("python -m benchmarks.guess", "No such file"),
        ("rm README.md", "no known program rm"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        check_command(line)


def test_commands_in_running_text_exist() -> None:
    for _, code in inline_codes():
        if re.fullmatch(r"(make [a-z-]+|python -m [a-z_.]+)( DIR| --[a-z-]+)?", code):
            check_command(code.removesuffix(" DIR"))


def test_the_reference_names_every_command() -> None:
    from ted.cli import app

    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    group: Any = typer.main.get_command(app)
    assert {f"ted {name}" for name in group.commands} == set(re.findall(r"^### (ted [a-z-]+)$", text, re.MULTILINE))
    assert make_targets() == set(re.findall(r"`make ([a-z-]+)`", text))
    modules = [path for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    named = set(re.findall(r"`python -m benchmarks\.([a-z_]+)", text))
    assert {path.stem for path in modules} - {"__main__"} == named


def test_the_reference_of_settings_is_up_to_date() -> None:
    command = [sys.executable, "-m", "docs.generate_settings", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.document.name)
def test_configurations_are_valid(block: Block) -> None:
    values: dict[str, Any] = yaml.safe_load(block.code)
    assert set(values) == {"parameters"}
    parse_settings(values["parameters"])


def test_the_tutorial_changes_what_it_says_and_nothing_else() -> None:
    shipped = yaml.safe_load((ROOT / "zenml_config.yaml").read_text(encoding="utf-8"))["parameters"]
    strict, kd = (
        yaml.safe_load(block.code)["parameters"] for block in blocks("yaml") if "tutorial" in block.document.stem
    )
    assert {**strict, "gates": None} == {**shipped, "gates": None}
    assert kd == {**shipped, "method": "kd"}


def test_settings_in_running_text_exist() -> None:
    for document, code in inline_codes():
        match = SETTING.fullmatch(code.partition(":")[0])
        if match is None or match[2] in {".json", ".html"}:
            continue
        section: Any = Settings
        for name in code.partition(":")[0].split("."):
            assert name in section.model_fields, f"{document}: {code}"
            annotation = section.model_fields[name].annotation
            section = next((kind for kind in get_args(annotation) if hasattr(kind, "model_fields")), annotation)


def test_cited_names_exist() -> None:
    cited = [(document, code.split("::")) for document, code in inline_codes() if "::" in code]
    assert cited
    for document, (file, name) in cited:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in set(_top_names(tree)), f"{document}: {file}::{name}"


def _top_names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_cited_files_exist() -> None:
    rooms = "ted|steps|pipelines|benchmarks|tests|docs|examples"
    for document, code in inline_codes():
        if re.fullmatch(rf"({rooms})/[\w/.-]+", code):
            assert (ROOT / code).exists(), f"{document}: {code}"


def test_the_tutorial_names_every_step_in_order() -> None:
    source = (ROOT / "pipelines" / "ted_pipeline.py").read_text(encoding="utf-8")
    steps = set(re.findall(r"^from steps\.([a-z]\w+) import", source, re.MULTILINE))
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == steps


def test_hooks_run_from_the_environment() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    for repository in hooks["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert hook["language"] == "system"
            assert hook["entry"].startswith(".venv/bin/")


def test_the_changelog_names_the_version() -> None:
    assert ted.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a clone: git lists no files")
    for name in done.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" not in content:
            found = [place for place in MACHINE_PATHS if place.encode() in content]
            assert not found, f"{name} holds {found}"
