"""A pipeline that reads its configuration strictly, tells what it will take, and ends with its results."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from zenml.client import Client
from zenml.enums import ExecutionMode
from zenml.models import PipelineRunResponse
from zenml.pipelines.pipeline_definition import Pipeline

from pipelines.configuration import read_configuration
from pipelines.machines import options_for
from pipelines.results import check_place, publish, show
from ted.config import Settings
from ted.errors import NonFiniteError, SettingsError, TedError
from ted.settings_file import load_values

DEFAULT_CONFIGURATION = Path("zenml_config.yaml")


class ConfiguredPipeline(Pipeline):
    """A pipeline whose parameters are the sections of :class:`ted.config.Settings`, all of them from one file."""

    settings: Settings | None = None

    def with_options(self, *args: Any, **options: Any) -> Pipeline:
        """Return a copy configured by the file `config_path`, or by `zenml_config.yaml` where none is named.

        Raises:
            click.ClickException: the file holds something that nothing would read; one line per problem.
        """
        path = Path(options.pop("config_path", None) or DEFAULT_CONFIGURATION)
        try:
            settings = read_configuration(path, self._step_names)
        except SettingsError as error:
            raise click.ClickException(str(error)) from None
        options |= {"config_path": str(path), "parameters": settings.model_dump(mode="json")}
        options |= options_for(Client().active_stack_model, settings, load_values(path), self._step_names(settings))
        configured = super().with_options(*args, **options)
        assert isinstance(configured, ConfiguredPipeline)
        configured.settings = settings
        return configured

    def __call__(self, *args: Any, **kwargs: Any) -> PipelineRunResponse | None:
        """Run, and return the finished run; None where it was only scheduled.

        A pipeline that nobody has configured reads `zenml_config.yaml` first.

        Raises:
            click.ClickException: the results have no place, a step refused its input, training diverged, or the run
                failed elsewhere.
        """
        if self.settings is None:
            return self.with_options()(*args, **kwargs)
        try:
            check_place(Path(self.settings.run.output_dir))
            if Client().active_stack.orchestrator.flavor == "local":
                self._show_forecast(self.settings)
            run = super().__call__(*args, **kwargs)
        except (TedError, NonFiniteError) as error:
            raise click.ClickException(str(error)) from None
        if run is None or not run.status.is_finished:
            return run
        if not run.status.is_successful:
            raise click.ClickException(_failure(run))
        show(publish(run, Path(self.settings.run.output_dir)))
        return run

    @staticmethod
    def _show_forecast(settings: Settings) -> None:
        from ted.forecast import forecast

        Console().print(forecast(settings.resolved()).table())

    def _step_names(self, settings: Settings) -> Collection[str]:
        pipeline = self.copy()
        pipeline.prepare(**settings.model_dump(mode="json"))
        return pipeline.invocations


def configured_pipeline(function: Callable[..., None]) -> ConfiguredPipeline:
    """Decorator that makes a pipeline of a function; the first step that fails ends its run."""
    return ConfiguredPipeline(name=function.__name__, entrypoint=function, execution_mode=ExecutionMode.FAIL_FAST)


def _failure(run: PipelineRunResponse) -> str:
    """Return why a run failed that an orchestrator elsewhere carried out: there the command itself sees no error."""
    lines = [f"run {run.name} ended as {run.status.value}"]
    for name, step_run in run.steps.items():
        if step_run.status.is_failed and step_run.exception_info is not None:
            lines.append(f"{name}: {step_run.exception_info.message or step_run.exception_info.traceback}")
    return "\n".join(lines)
