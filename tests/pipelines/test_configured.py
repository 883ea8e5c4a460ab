"""How a configured pipeline starts and ends."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from zenml.enums import ExecutionMode, ExecutionStatus, StackComponentType
from zenml.pipelines.pipeline_definition import Pipeline

from pipelines import configured
from pipelines.configured import ConfiguredPipeline
from pipelines.ted_pipeline import ted_pipeline
from ted.config import Settings, parse_settings
from ted.errors import GateError, NonFiniteError


def run_on(monkeypatch: pytest.MonkeyPatch, flavor: str) -> None:
    """Make a stack of a flavor the active one."""
    orchestrator = SimpleNamespace(flavor=flavor, flavor_name=flavor, configuration={})
    client = SimpleNamespace(
        active_stack=SimpleNamespace(orchestrator=orchestrator),
        active_stack_model=SimpleNamespace(labels={}, components={StackComponentType.ORCHESTRATOR: [orchestrator]}),
    )
    monkeypatch.setattr(configured, "Client", lambda: client)


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfiguredPipeline:
    """The pipeline, configured by a file without a setting, on a machine that is not this one."""
    (tmp_path / "zenml_config.yaml").write_text("parameters: {}")
    monkeypatch.chdir(tmp_path)
    run_on(monkeypatch, "kubernetes")
    made = ted_pipeline.with_options()
    assert isinstance(made, ConfiguredPipeline)
    return made


def ended(status: ExecutionStatus, **steps: str) -> SimpleNamespace:
    """A run of a status, with the messages of its failed steps."""
    runs = {
        name: SimpleNamespace(
            status=ExecutionStatus.FAILED,
            exception_info=SimpleNamespace(message=message or None, traceback="Traceback"),
        )
        for name, message in steps.items()
    }
    return SimpleNamespace(name="run-1", status=status, steps=runs)


def end_with(monkeypatch: pytest.MonkeyPatch, run: SimpleNamespace | Exception | None) -> None:
    def call(*_: Any, **__: Any) -> SimpleNamespace | None:
        if isinstance(run, Exception):
            raise run
        return run

    monkeypatch.setattr(Pipeline, "__call__", call)


def test_the_first_failure_ends_a_run() -> None:
    assert ted_pipeline.configuration.execution_mode == ExecutionMode.FAIL_FAST


def test_a_pipeline_that_nobody_configured_reads_the_default_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zenml_config.yaml").write_text("parameters: {sede: 1}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(click.ClickException, match="sede: unknown setting"):
        ted_pipeline()


@pytest.mark.parametrize("error", [GateError("max_size_ratio: too large"), NonFiniteError("max_size_ratio: too large")])
def test_the_message_of_a_step_is_the_message_of_the_command(
    pipeline: ConfiguredPipeline, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    end_with(monkeypatch, error)
    with pytest.raises(click.ClickException, match="max_size_ratio: too large"):
        pipeline()


def test_an_error_of_the_program_keeps_its_traceback(
    pipeline: ConfiguredPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_with(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        pipeline()


def test_a_run_that_failed_elsewhere_fails_the_command(
    pipeline: ConfiguredPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_with(monkeypatch, ended(ExecutionStatus.FAILED, check_gates="too large", load_data=""))
    with pytest.raises(click.ClickException) as caught:
        pipeline()
    assert caught.value.message.splitlines() == [
        "run run-1 ended as failed",
        "check_gates: too large",
        "load_data: Traceback",
    ]


@pytest.mark.parametrize("run", [None, ended(ExecutionStatus.RUNNING)])
def test_a_run_that_goes_on_elsewhere_has_no_results_yet(
    pipeline: ConfiguredPipeline, monkeypatch: pytest.MonkeyPatch, run: SimpleNamespace | None
) -> None:
    end_with(monkeypatch, run)
    found: Any = pipeline()
    assert found is run


def test_a_run_that_ended_well_is_published_and_shown(
    pipeline: ConfiguredPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(ExecutionStatus.COMPLETED)
    shown: list[object] = []
    end_with(monkeypatch, run)
    monkeypatch.setattr(configured, "publish", lambda *arguments: arguments)
    monkeypatch.setattr(configured, "show", shown.append)
    found: Any = pipeline()
    assert found is run
    assert shown == [(run, Path("runs"))]


def test_a_run_whose_results_would_have_no_place_does_not_start(
    pipeline: ConfiguredPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_with(monkeypatch, ZeroDivisionError())
    Path("runs/latest").mkdir(parents=True)
    with pytest.raises(click.ClickException, match="latest is not a link"):
        pipeline()


def test_the_forecast_is_of_what_the_run_acts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Settings] = []

    def make_forecast(settings: Settings) -> SimpleNamespace:
        asked.append(settings)
        return SimpleNamespace(table=lambda: "")

    monkeypatch.setattr("ted.forecast.forecast", make_forecast)
    ConfiguredPipeline._show_forecast(parse_settings({"compatibility": "official"}))
    assert not asked[0].distillation.mask_padding


def test_the_forecast_comes_first_on_this_machine(
    pipeline: ConfiguredPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecasts: list[Settings] = []
    run_on(monkeypatch, "local")
    monkeypatch.setattr(ConfiguredPipeline, "_show_forecast", staticmethod(forecasts.append))
    end_with(monkeypatch, None)
    pipeline()
    assert forecasts == [Settings()]
