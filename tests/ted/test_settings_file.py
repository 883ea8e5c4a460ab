from pathlib import Path

import pytest

from ted.config import Settings
from ted.errors import SettingsError
from ted.settings_file import read_parameters


def test_the_settings_stand_beside_keys_of_zenml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("enable_cache: false\nsteps: {load_data: {enable_cache: true}}\nparameters: {seed: 5}")
    assert read_parameters(path) == Settings(seed=5)
    path.write_text("parameters:")
    assert read_parameters(path) == Settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"parametrs: {seed: 5}", "parametrs: unknown key; did you mean parameters?"),
        (b"seed: 5", "seed: unknown key; did you mean parameters.seed?"),
        (b"zzz: 5", "zzz: unknown key; allowed: build, cache_policy, "),
        (b"1: 5", "1: unknown key; allowed: build, cache_policy, "),
        (b"parameters: {sede: 5}", "sede: unknown setting; did you mean seed?"),
        (b"parameters: [1]", "parameters: must hold sections such as data:, not [1]"),
        (b"parameters: {seed: 5, seed: 6}", "not YAML: the key 'seed' stands twice"),
        (b"parameters: {}\nparameters: {}", "not YAML: the key 'parameters' stands twice"),
        (b"parameters: {data: {text_column: caf\xe9}}", "not YAML: 'utf-8' codec can't decode byte 0xe9"),
        (b"parameters: {run: {output_dir: 2024-13-45}}", "not YAML: month must be in 1..12"),
        (b"a: [", "not YAML: while parsing"),
        (b"", "holds no key; write parameters: {} to run"),
        (b"- 1", "must hold keys such as parameters:, not a list"),
    ],
)
def test_a_bad_file_is_refused_by_its_name_and_the_mistake(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_parameters(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("retri: {}\nparameters: {sede: 5, data: {sorce: x}}")
    with pytest.raises(SettingsError, match=r"retri.*\n.*\n") as caught:
        read_parameters(path)
    keys = [line.removeprefix(f"{path}: ").partition(":")[0] for line in str(caught.value).splitlines()]
    assert sorted(keys) == ["data.sorce", "retri", "sede"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nothing\.yaml: no such file; run from the repository root"):
        read_parameters(tmp_path / "nothing.yaml")
