"""The part of a run's settings that a step gets, so that its cached result outlives changes to the rest."""

from collections.abc import Callable
from typing import Any

from pydantic import model_serializer

from ted.config import Settings


class StepSettings(Settings):
    """Settings of which only the given sections can be read, and only these are recorded."""

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - as of any attribute
        """Return an attribute; a section that the step was not given is a mistake of the pipeline."""
        if name in Settings.model_fields:
            assert name in self.model_fields_set, f"the step reads {name}, but the pipeline does not give it"
        return super().__getattribute__(name)

    @model_serializer(mode="wrap")
    def _only_given(self, dump: Callable[["StepSettings"], dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}


def part(settings: Settings, *names: str) -> StepSettings:
    """Return the named sections, and the seed."""
    return StepSettings.model_validate({name: getattr(settings, name) for name in ("seed", *names)})
