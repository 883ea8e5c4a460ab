"""What a run says of itself."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from steps import _run

START = datetime(2026, 1, 1, tzinfo=UTC)


def step(seconds: float | None, original: str | None = None) -> SimpleNamespace:
    end = None if seconds is None else START + timedelta(seconds=seconds)
    return SimpleNamespace(start_time=START, end_time=end, original_step_run_id=original)


def test_a_cached_step_has_the_time_of_the_run_that_did_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(
        id=1, steps={"load_data": step(0, original="first"), "finetune_teacher": step(60), "build_report": step(None)}
    )
    client = SimpleNamespace(get_pipeline_run=lambda _: run, get_run_step={"first": step(5)}.__getitem__)
    monkeypatch.setattr(_run, "Client", lambda: client)
    monkeypatch.setattr(_run, "get_step_context", lambda: SimpleNamespace(pipeline_run=run))
    assert _run.step_times() == ({"load_data": 5.0, "finetune_teacher": 60.0}, ["load_data"])


def test_the_environment_names_commit_machine_and_versions() -> None:
    environment = _run.environment()
    assert {"commit", "machine", "python", "torch", "zenml"} <= environment.keys()
    assert all(environment.values())
