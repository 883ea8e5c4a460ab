"""The documented command takes a model back to an earlier version."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "how-to" / "roll-back.md"
PROMOTE_TWICE = """
from steps._registry import promote
from zenml.client import Client

client = Client()
client.create_model("ted-student")
for number in (1, 2):
    client.create_model_version("ted-student")
    promote("ted-student", number, "production", ())
"""
STAGES = """
from zenml.client import Client

print(*sorted(f"{version.number}:{version.stage}" for version in Client().list_model_versions(model="ted-student")))
"""


@pytest.mark.slow
def test_an_earlier_version_is_put_back_into_production(tmp_path: Path) -> None:
    root = PAGE.parent.parent.parent
    environment = os.environ | {"ZENML_CONFIG_PATH": str(tmp_path / "zenml"), "PYTHONPATH": str(root), "COLUMNS": "200"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    lines = re.findall(r"^zenml model version .+$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    listing, rolling_back, archiving = (shlex.split(line) for line in lines)

    def run(*command: str) -> str:
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-c", PROMOTE_TWICE)
    assert run(sys.executable, "-c", STAGES).split() == ["1:archived", "2:production"]
    run(*rolling_back)
    assert run(sys.executable, "-c", STAGES).split() == ["1:production", "2:archived"]
    table = run(*listing)
    assert re.search(r"1 +production", table)
    assert re.search(r"2 +archived", table)
    run(*archiving)
    assert run(sys.executable, "-c", STAGES).split() == ["1:archived", "2:archived"]
