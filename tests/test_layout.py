"""Rules of the house that no other tool checks."""

import ast
import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from zenml.steps import BaseStep

ROOT = Path(__file__).parent.parent
STEP_FILES = sorted(path for path in (ROOT / "steps").glob("*.py") if not path.name.startswith("_"))
MODULES = sorted(
    path.relative_to(ROOT)
    for room in ("ted", "steps", "pipelines")
    for path in (ROOT / room).rglob("*.py")
    if path.name != "__init__.py"
)
MOST_STEP_LINES = 30
MOST_FILE_LINES = 500
# One file declares every setting, and nothing else.
LONGER = {Path("ted/config.py")}


def step_of(path: Path) -> BaseStep:
    module = __import__(f"steps.{path.stem}", fromlist=[path.stem])
    step = getattr(module, path.stem)
    assert isinstance(step, BaseStep)
    return step


def loaded_by(code: str, *, folder: Path) -> set[str]:
    """Return the names of the modules that a fresh interpreter has loaded after running a script."""
    script = folder / "script.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}\nprint(*sys.modules)")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=folder)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_ted_loads_nothing(tmp_path: Path) -> None:
    loaded = loaded_by("import ted", folder=tmp_path)
    assert loaded.isdisjoint({"torch", "transformers", "numpy", "pydantic", "zenml", "ted.config"})


def test_serving_loads_neither_torch_nor_transformers(tmp_path: Path) -> None:
    loaded = loaded_by("import ted.serving.bundle, ted.serving.generation", folder=tmp_path)
    assert loaded.isdisjoint({"torch", "transformers", "datasets", "zenml"})


def test_the_pipeline_is_imported_without_a_store_and_without_the_libraries_of_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.setenv("ZENML_CONFIG_PATH", str(store))
    loaded = loaded_by("import pipelines.ted_pipeline", folder=tmp_path)
    assert loaded.isdisjoint({"torch", "transformers", "datasets", "sklearn", "pandas"})
    assert not list(store.rglob("*.db"))


@pytest.mark.parametrize("path", STEP_FILES, ids=lambda path: path.stem)
def test_a_step_has_its_file_a_cache_policy_and_no_defaults(path: Path) -> None:
    step = step_of(path)
    assert step.name == path.stem
    policy = step.configuration.cache_policy
    assert step.configuration.enable_cache is False or (policy is not None and policy.cache_func is not None)
    defaults = [
        item.name for item in inspect.signature(step.entrypoint).parameters.values() if item.default is not item.empty
    ]
    assert defaults == []


@pytest.mark.parametrize("path", STEP_FILES, ids=lambda path: path.stem)
def test_a_step_is_short_and_names_its_artifacts(path: Path) -> None:
    step = step_of(path)
    (function,) = (node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) == path.stem)
    assert isinstance(function, ast.FunctionDef)
    body = function.body[1:] if ast.get_docstring(function) else function.body
    assert body[-1].end_lineno is not None
    assert body[-1].end_lineno - body[0].lineno < MOST_STEP_LINES
    outputs = step.entrypoint_definition.outputs
    assert outputs
    assert all(output.artifact_config is not None and output.artifact_config.name for output in outputs.values())


def test_every_step_is_in_the_pipeline() -> None:
    text = (ROOT / "pipelines/ted_pipeline.py").read_text()
    assert [path.stem for path in STEP_FILES if f"import {path.stem}\n" not in text] == []


def test_every_package_is_installed() -> None:
    found = {
        path.parent.relative_to(ROOT)
        for room in ("ted", "k8s", "steps", "pipelines")
        for path in (ROOT / room).rglob("__init__.py")
    }
    names = {".".join(path.parts) for path in found} - {"pipelines._alias"}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(settings["tool"]["setuptools"]["packages"]) == names | {"ted_pipeline"}


def test_continuous_integration_makes_exactly_the_tests() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "exec make test"


def test_the_lock_names_no_machine_and_no_index() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if "/" in line or "@" in line] == []
    assert {"torch==2.13.0", "zenml==0.98.0", "pydantic==2.12.5"} <= set(lines)


def test_there_is_one_training_loop() -> None:
    texts = {path.as_posix(): (ROOT / path).read_text() for path in MODULES}
    assert [name for name, text in texts.items() if "(Trainer)" in text] == ["ted/training.py"]
    # A forecast times a few steps of a model that is thrown away.
    assert [name for name, text in texts.items() if "optimizer.step(" in text] == ["ted/forecast.py"]


@pytest.mark.parametrize("path", sorted({*MODULES} - LONGER), ids=str)
def test_a_module_is_not_too_long(path: Path) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= MOST_FILE_LINES
