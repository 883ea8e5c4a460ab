"""The shipped files are valid, and every mistake in a file is refused before a step starts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from pipelines.configuration import read_configuration
from pipelines.ted_pipeline import ted_pipeline
from ted.config import Settings
from ted.errors import SettingsError

ROOT = Path(__file__).parent.parent
SHIPPED = ("zenml_config.yaml", "examples/movie_sentiment/full.yaml")


@pytest.fixture
def refusal(tmp_path: Path) -> Callable[[str], list[str]]:
    """Returns the lines that a file with the given content is refused with, without the file's name."""

    def read(content: str) -> list[str]:
        path = tmp_path / "config.yaml"
        path.write_text(content)
        with pytest.raises(SettingsError) as caught:
            read_configuration(path, ted_pipeline._step_names)
        return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]

    return read


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield path, model
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, f"{path}{name}.")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_valid_and_repeats_no_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    settings = read_configuration(Path(name), ted_pipeline._step_names)
    given = yaml.safe_load(Path(name).read_text())["parameters"]
    assert {key: settings.model_dump(mode="json")[key] for key in given} != {}
    assert Path(settings.data.source).is_dir()


def test_every_setting_is_described_and_no_description_repeats_its_default() -> None:
    fields = {
        f"{path}{name}": field.description or ""
        for path, model in sections(Settings)
        for name, field in model.model_fields.items()
    }
    assert [name for name, description in fields.items() if not description] == []
    assert [name for name, description in fields.items() if "default" in description.lower()] == []


def test_every_section_is_a_parameter_of_the_pipeline() -> None:
    assert ted_pipeline.required_parameters == list(Settings.model_fields)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("paramaters: {}", "paramaters: unknown key; did you mean parameters?"),
        ("data: {source: x}", "data: unknown key; did you mean parameters.data?"),
        ("zzz: 1", "zzz: unknown key; allowed: build, cache_policy, "),
        ("retry: {max_retry: 1}", "retry.max_retry: unknown key; did you mean retry.max_retries?"),
        ("parameters: {dataa: {}}", "dataa: unknown setting; did you mean data?"),
        ("parameters: {data: {sorce: x}}", "data.sorce: unknown setting; did you mean data.source?"),
        (
            "parameters: {student: {training: {learning_rat: 1}}}",
            "student.training.learning_rat: unknown setting; did you mean student.training.learning_rate?",
        ),
        ("parameters: {data: {train_rows: many}}", "data.train_rows: Input should be a valid integer"),
        ("parameters: {data: {train_rows: 0}}", "data.train_rows: Input should be greater than or equal to 1; got 0"),
        ("parameters: {teacher: null}", "teacher: Input should be a valid dictionary"),
        ("parameters: [1]", "parameters: must hold sections such as data:, not [1]"),
        ("parameters: {distillation: {batch_softmax_kl: true}}", "distillation.batch_softmax_kl cannot act: "),
        ("parameters: {method: kd, filters: {filter_output_dim: 8}}", "filters cannot act: "),
        ("steps: {load_dat: {}}", "steps.load_dat: not a step of this run; did you mean steps.load_data?"),
        (
            "parameters: {evaluation: {control: false}}\nsteps: {finetune_control: {}}",
            "steps.finetune_control: not a step of this run",
        ),
        ("steps: {load_data: {enable_cach: true}}", "steps.load_data.enable_cach: unknown key; did you mean "),
        (
            "steps: {load_data: {enable_cache: perhaps}}",
            "steps.load_data.enable_cache: Input should be a valid boolean",
        ),
        ("steps: {load_data: {parameters: {a: 1}}}", "steps.load_data.parameters: settings enter under parameters: "),
        ("steps: {load_data: 1}", "steps.load_data: Input should be a valid dictionary"),
        ("settings: {dokcer: {}}", "settings.dokcer: unknown key; did you mean settings.docker?"),
        ("settings: {docker: {parent_imag: x}}", "settings.docker.parent_imag: unknown key; did you mean "),
        ("settings: {docker: {skip_build: perhaps}}", "settings.docker.skip_build: Input should be a valid boolean"),
        (
            "settings: {docker: {skip_build: true}}",
            "settings.docker: Value error, Docker settings that specify `skip_build",
        ),
        ("settings: {docker: 1}", "settings.docker: must hold keys, not 1"),
        ("settings: 1", "settings: must hold keys such as docker:, not 1"),
        (
            "settings: {orchestrator.kubernetes: {pod_settings: {resorces: {}}}}",
            "settings.orchestrator.kubernetes.pod_settings.resorces: unknown key; did you mean ",
        ),
        ("settings: {orchestrator.kubernets: {}}", "settings.orchestrator.kubernets: unknown key; did you mean "),
        ("steps: {load_data: {settings: {docker: {usr: x}}}}", "steps.load_data.settings.docker.usr: unknown key; "),
        ("parameters: {}\nparameters: {}", "not YAML: the key 'parameters' stands twice"),
        ("parameters: {data: {source: a, source: b}}", "not YAML: the key 'source' stands twice"),
        ("a: [", "not YAML: "),
        ("# nothing yet", "holds no key; write parameters: {} to run"),
        ("- 1", "must hold keys such as parameters:, not a list"),
    ],
)
def test_a_mistake_is_named_in_a_line(refusal: Callable[[str], list[str]], content: str, line: str) -> None:
    (found,) = {text for text in refusal(content) if text.startswith(line)}
    assert found


def test_all_mistakes_are_named_at_once(refusal: Callable[[str], list[str]]) -> None:
    lines = refusal("parameters: {data: {sorce: x, train_rows: 0}}\nsteps: {load_dat: {}}\nretri: {}")
    assert [line.partition(":")[0] for line in lines] == ["retri", "data.train_rows", "data.sorce", "steps.load_dat"]


@pytest.mark.parametrize(
    "content",
    [
        "parameters:",
        "parameters: {}",
        "enable_cache: false\nsteps: {distill_student: {enable_cache: true}}",
        "settings: {docker: {skip_build: true, parent_image: a}, resources: {cpu_count: 2}, orchestrator: {a: 1}}",
        "settings: {orchestrator.kubernetes: {max_parallelism: 1, pod_settings: {resources: {limits: {memory: 1Gi}}}}}",
        "steps: {distill_student: {settings: {orchestrator.kubernetes: {synchronous: true}}}}",
        "schedule: {cron_expression: '0 3 * * *'}",
    ],
)
def test_what_zenml_knows_is_accepted(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert read_configuration(tmp_path / "config.yaml", ted_pipeline._step_names) == Settings()


def test_a_number_that_yaml_takes_for_text_is_read_as_a_number(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("parameters: {teacher: {training: {learning_rate: 3e-5}}}")
    settings = read_configuration(tmp_path / "config.yaml", ted_pipeline._step_names)
    assert settings.teacher.training.learning_rate == 3e-5


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file; run from the repository root"):
        read_configuration(tmp_path / "nothing.yaml", ted_pipeline._step_names)


def test_the_pipeline_reads_the_shipped_file_by_itself_and_another_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zenml_config.yaml").write_text("parameters: {seed: 5, data: {train_rows: 10}}")
    (tmp_path / "other.yaml").write_text("parameters: {gates: {min_teacher_share: null}}")
    monkeypatch.chdir(tmp_path)

    def parameters(**options: Any) -> dict[str, Any]:
        return dict(ted_pipeline.with_options(**options).configuration.parameters or {})

    assert (parameters()["seed"], parameters()["data"]["train_rows"]) == (5, 10)
    other = parameters(config_path="other.yaml")
    assert (other["seed"], other["data"]["train_rows"], other["gates"]["min_teacher_share"]) == (42, None, None)


def test_the_command_line_gets_the_lines_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("parameters: {sede: 5}")
    with pytest.raises(click.ClickException, match="sede: unknown setting; did you mean seed"):
        ted_pipeline.with_options(config_path=str(tmp_path / "bad.yaml"))
