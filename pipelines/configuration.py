"""Strict reading of a configuration file: a key that nothing would read ends the run before it starts.

ZenML itself ignores unknown keys, and reads settings of another stack's components only when that stack is active.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from zenml.config.base_settings import BaseSettings
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
from zenml.config.step_configurations import StepConfigurationUpdate
from zenml.enums import StackComponentType
from zenml.integrations.registry import integration_registry
from zenml.stack.flavor import Flavor
from zenml.stack.flavor_registry import FlavorRegistry
from zenml.stack.stack_component import StackComponentConfig
from zenml.utils.settings_utils import get_general_settings

from ted.config import Settings
from ted.settings_file import hint, load_values, parse_parameters, refuse


def read_configuration(path: Path, step_names: Callable[[Settings], Collection[str]]) -> Settings:
    """Return the settings under `parameters:` of a file whose other keys have all been checked too.

    Args:
        path: A YAML file with the keys of ZenML's run configuration.
        step_names: Returns the names of a run's steps.

    Raises:
        SettingsError: a line per problem, each with the dotted key and what is allowed there.
    """
    values = load_values(path)
    problems = [*_unknown_keys(PipelineRunConfiguration, values)]
    problems += _settings_problems(values.get("settings"), "settings")
    problems += _type_problems(PipelineRunConfiguration, {**values, "parameters": None, "settings": None}, "")
    settings, wrong_parameters = parse_parameters(values)
    problems += wrong_parameters
    names = step_names(settings)
    problems += _step_problems(values.get("steps"), names)
    unknown = [name for name in settings.run.gpu_steps or () if name not in names]
    problems += [f"run.gpu_steps: {name!r} is not a step of this run; {hint(name, names, '')}" for name in unknown]
    refuse(path, problems)
    return settings


def _unknown_keys(model: type[BaseModel], values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a line per key, at any depth, that a pydantic model has no field for."""
    allowed = {field.alias or name: name for name, field in model.model_fields.items()}
    for key, value in values.items():
        if key not in allowed:
            yield f"{prefix}{key}: unknown key; {hint(str(key), allowed, prefix)}"
            continue
        for inner, is_mapping in _inner_models(model.model_fields[allowed[key]].annotation):
            members = value if is_mapping and isinstance(value, dict) else {None: value}
            for name, member in members.items():
                path = f"{prefix}{key}." if name is None else f"{prefix}{key}.{name}."
                if isinstance(member, dict):
                    yield from _unknown_keys(inner, member, path)


def _inner_models(annotation: Any, inside_mapping: bool = False) -> Iterator[tuple[type[BaseModel], bool]]:  # noqa: ANN401
    """Yield the models in an annotation, and whether each is the value type of a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not BaseSettings:
        yield annotation, inside_mapping
    inside_mapping = inside_mapping or getattr(annotation, "__origin__", None) is dict
    for argument in get_args(annotation):
        yield from _inner_models(argument, inside_mapping)


def _step_problems(steps: object, step_names: Collection[str]) -> Iterator[str]:
    if not isinstance(steps, dict):
        return
    for name, step in steps.items():
        if name not in step_names:
            yield f"steps.{name}: not a step of this run; {hint(str(name), step_names, 'steps.')}"
        if not isinstance(step, dict):
            continue
        yield from _settings_problems(step.get("settings"), f"steps.{name}.settings")
        yield from _type_problems(StepConfigurationUpdate, {**step, "settings": None}, f"steps.{name}.")
        if step.get("parameters"):
            yield f"steps.{name}.parameters: settings enter under parameters: at the top level only; move them there"


def _settings_problems(blocks: object, prefix: str) -> Iterator[str]:
    """Yield the problems of settings for images, resources and stack components."""
    if blocks is None:
        return
    if not isinstance(blocks, dict):
        yield f"{prefix}: must hold keys such as docker:, not {blocks!r}"
        return
    for key, values in blocks.items():
        model = _settings_model(str(key))
        if model is None:
            known = [*get_general_settings(), *StackComponentType.values(), "orchestrator.kubernetes"]
            yield f"{prefix}.{key}: unknown key; {hint(str(key), known, f'{prefix}.')}"
        elif model is not BaseSettings and isinstance(values, dict):
            yield from _unknown_keys(model, values, f"{prefix}.{key}.")
            yield from _type_problems(model, values, f"{prefix}.{key}.")
        elif not isinstance(values, dict):
            yield f"{prefix}.{key}: must hold keys, not {values!r}"


def _settings_model(key: str) -> type[BaseSettings] | None:
    """Return the model of a block under `settings:`; BaseSettings where only the active stack could tell it."""
    general: dict[str, type[BaseSettings]] = dict(get_general_settings())
    if key in general:
        return general[key]
    component, dot, flavor_name = key.partition(".")
    if component.partition(":")[0] not in StackComponentType.values():
        return None
    if not dot:
        return BaseSettings
    integration = integration_registry.integrations.get(flavor_name)
    flavors = integration.flavors() if integration else FlavorRegistry().builtin_flavors
    for flavor in flavors:
        if (flavor().type, flavor().name) == (component, flavor_name):
            return _component_settings(flavor())
    return None


def _component_settings(flavor: Flavor) -> type[BaseSettings] | None:
    """Return the part of a component's configuration that a run may change."""
    for parent in flavor.config_class.__mro__:
        if issubclass(parent, BaseSettings) and not issubclass(parent, StackComponentConfig):
            return parent
    return None


def _type_problems(model: type[BaseModel], values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    try:
        model.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors():
            key = ".".join([*prefix.split(".")[:-1], *(str(part) for part in problem["loc"])])
            yield f"{key}: {problem['msg']}; got {problem['input']!r}"
