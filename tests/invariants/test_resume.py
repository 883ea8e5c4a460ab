"""A stage that is killed with SIGKILL and run again ends with the very bits of one that was left alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.resume_drill import KILL_AFTER, STAGES, STEPS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_stage_survives_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.resume_drill", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["stage"] for row in rows] == list(STAGES)
    for row in rows:
        assert row["resumed"] == row["uninterrupted"]
        assert KILL_AFTER <= row["resumed_from"] < STEPS
    assert len({row["resumed"] for row in rows}) == len(STAGES)
