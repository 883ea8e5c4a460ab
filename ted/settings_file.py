"""Reading a configuration file: the settings stand under `parameters:`, beside the other keys of ZenML's file.

A key that stands twice or that nothing would read is refused. What is inside ZenML's own keys, ZenML alone can judge.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ted.config import Settings, parse_settings
from ted.errors import SettingsError

# The keys that ZenML reads at the top level of the file.
TOP_LEVEL_KEYS = (
    "build",
    "cache_policy",
    "cleanup_hook_source",
    "enable_artifact_metadata",
    "enable_artifact_visualization",
    "enable_cache",
    "enable_heartbeat",
    "enable_pipeline_logs",
    "enable_step_logs",
    "end_hook_source",
    "environment",
    "execution_mode",
    "extra",
    "failure_hook_source",
    "init_hook_kwargs",
    "init_hook_source",
    "model",
    "parameters",
    "pause_hook_source",
    "resume_hook_source",
    "retry",
    "run_name",
    "schedule",
    "secrets",
    "settings",
    "start_hook_source",
    "steps",
    "substitutions",
    "success_hook_source",
    "tags",
)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a mapping that gives a key twice, where YAML would keep the last value only."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_parameters(path: Path) -> Settings:
    """Return the settings under `parameters:` of a file whose other top-level keys are ZenML's.

    Raises:
        SettingsError: a line per problem, each with the dotted key and what is allowed there.
    """
    values = load_values(path)
    unknown = [key for key in values if key not in TOP_LEVEL_KEYS]
    unknown_lines = [f"{key}: unknown key; {hint(str(key), TOP_LEVEL_KEYS, '')}" for key in unknown]
    settings, problems = parse_parameters(values)
    refuse(path, [*unknown_lines, *problems])
    return settings


def load_values(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file.

    Raises:
        SettingsError: there is no such file, or it is not a YAML mapping in which every key stands once.
    """
    if not path.is_file():
        raise SettingsError(f"{path}: no such file; run from the repository root, or name a file with -c")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is a wrong encoding, or a date that does not exist
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        raise SettingsError(f"{path}: holds no key; write parameters: {{}} to run with every setting as it is")
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must hold keys such as parameters:, not a {type(values).__name__}")
    return values


def parse_parameters(values: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Return the settings under the key `parameters`, or those of an empty file and a line per problem."""
    sections = values.get("parameters") or {}
    if not isinstance(sections, dict):
        return Settings(), [f"parameters: must hold sections such as data:, not {sections!r}"]
    try:
        return parse_settings(sections), []
    except SettingsError as error:
        return Settings(), str(error).splitlines()


def hint(key: str, allowed: Collection[str], prefix: str) -> str:
    """Return what to write instead of an unknown key, or which keys are allowed beside it, under a dotted prefix."""
    if not prefix and key in Settings.model_fields:
        return f"did you mean parameters.{key}?"
    near = difflib.get_close_matches(key, allowed, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"allowed: {', '.join(sorted(allowed))}"


def refuse(path: Path, problems: Iterable[str]) -> None:
    """Raise a SettingsError of a line per different problem of a file, if there is any."""
    lines = [f"{path}: {problem}" for problem in dict.fromkeys(problems)]
    if lines:
        raise SettingsError("\n".join(lines))
