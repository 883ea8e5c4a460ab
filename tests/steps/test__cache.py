"""What a cached result depends on."""

import sys
from pathlib import Path

import pytest

from steps import _cache


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a step, the library it reaches, and a module that it does not reach."""
    files = {
        "lib/__init__.py": "",
        "lib/used.py": "import numpy\nfrom lib import deep\n",
        "lib/deep.py": "VALUE = 1\n",
        "lib/other.py": "import lib.used\n",
        "lib/templates/page.txt": "page",
        "adapters/__init__.py": "",
        "adapters/step.py": "def run():\n    from lib import used\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_cache, "PACKAGES", ("adapters", "lib"))
    return tmp_path


def digest() -> str:
    for function in (_cache._import_graph, _cache._state):
        function.cache_clear()
    return _cache.code_digest("adapters.step")


@pytest.fixture(autouse=True)
def forget_modules() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in {"adapters", "lib"}]:
        del sys.modules[name]


@pytest.mark.usefixtures("project")
def test_nothing_changed_gives_the_same_digest() -> None:
    assert digest() == digest()


@pytest.mark.parametrize("name", ["adapters/step.py", "lib/used.py", "lib/deep.py", "lib/templates/page.txt"])
def test_an_edit_of_anything_that_is_reached_changes_the_digest(project: Path, name: str) -> None:
    before = digest()
    with (project / name).open("a") as file:
        file.write("# edited\n")
    assert digest() != before


def test_an_edit_of_what_is_not_reached_changes_nothing(project: Path) -> None:
    before = digest()
    (project / "lib/other.py").write_text("VALUE = 2\n")
    assert digest() == before


@pytest.mark.usefixtures("project")
def test_the_version_of_a_library_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest()
    monkeypatch.setattr(_cache, "version", lambda _: "0.0")
    assert digest() != before


@pytest.mark.usefixtures("project")
def test_a_module_is_not_imported_to_be_digested() -> None:
    digest()
    assert "lib.used" not in sys.modules
