"""The pipeline through the real command, on a tiny model, in a copy of the project whose code the tests edit."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from benchmarks.tiny import LABELS, new_data, write_backbone
from ted.files import read_json

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TRAINING = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
STEPS = {
    *("load_data", "validate_data", "finetune_teacher", "prepare_student", "learn_teacher_filters"),
    *("learn_student_filters", "finetune_control", "distill_student", "evaluate_models", "check_gates", "export_onnx"),
    *("promote_model", "build_report"),
}
GATES: dict[str, float | None] = dict.fromkeys(
    ["min_teacher_share", "min_gain_over_start", "min_gain_over_control", "max_slice_drop", "max_latency_ratio"]
)
PARAMETERS: dict[str, Any] = {
    "task": {"labels": list(LABELS)},
    "data": {"source": "source", "max_length": 16, "labelled_rows": 40},
    "quality": {"max_excluded_fraction": 0.5},
    "teacher": {"model": "backbone", "training": TRAINING},
    "student": {"training": TRAINING},
    "filters": {"training": TRAINING},
    "distillation": {"training": TRAINING},
    "evaluation": {"latency_repeats": 3, "bootstrap_samples": 100},
    "gates": GATES,
}
TOO_LARGE = {**GATES, "max_size_ratio": 0.1}


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and which steps it ran and took from the cache."""

    code: int
    text: str

    @property
    def ran(self) -> set[str]:
        return set(re.findall(r"Step (\w+) has started", self.text))

    @property
    def cached(self) -> set[str]:
        return set(re.findall(r"Using cached version of step (\w+)", self.text))


@dataclass(frozen=True)
class Project:
    """A copy of the project with a store of its own."""

    folder: Path

    def zenml(self, *arguments: str) -> Outcome:
        environment = os.environ | {
            "COLUMNS": "100",
            "ZENML_CONFIG_PATH": str(self.folder / "store"),
            "ZENML_LOGGING_VERBOSITY": "INFO",
        }
        for name in ("PYTHONPATH", "ZENML_REPOSITORY_PATH"):
            environment.pop(name, None)
        command = [str(Path(sys.executable).with_name("zenml")), *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return Outcome(done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))

    def run(self, **parameters: object) -> Outcome:
        """Run with sections of the configuration changed, by a file of its own."""
        changed = {"parameters": PARAMETERS | parameters}
        (self.folder / "changed.yaml").write_text(yaml.safe_dump(changed))
        return self.zenml("pipeline", "run", "ted_pipeline", "-c", "changed.yaml")

    def edit(self, name: str) -> None:
        with (self.folder / name).open("a") as file:
            file.write("\n# edited\n")

    def versions(self) -> list[tuple[int, str]]:
        """Return number and stage of every version of the model, from the store's database, which is quicker to ask."""
        (database,) = (self.folder / "store").rglob("zenml.db")
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute("SELECT number, stage FROM model_version ORDER BY number").fetchall()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    for room in ("ted", "steps", "pipelines"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    write_backbone(folder / "backbone")
    (folder / "source").mkdir()
    for name, split in new_data("classification", train=80).items():
        frame = pd.DataFrame({"text": split["text"], "label": [LABELS[label] for label in split["label"]]})
        frame.drop_duplicates("text").to_parquet(folder / "source" / f"{name}.parquet", index=False)
    (folder / "zenml_config.yaml").write_text(yaml.safe_dump({"parameters": PARAMETERS}))
    return Project(folder)


@pytest.fixture(scope="module")
def first(project: Project) -> Outcome:
    """A first run, by the bare name and without naming a file."""
    return project.zenml("pipeline", "run", "ted_pipeline")


def test_the_bare_name_runs_every_step_and_leaves_its_results(project: Project, first: Outcome) -> None:
    assert first.code == 0, first.text
    assert first.ran == STEPS
    latest = project.folder / "runs" / "latest"
    assert latest.is_symlink()
    evaluation = read_json(latest / "evaluation.json")
    assert list(evaluation["models"]) == ["teacher", "student_start", "control", "student"]
    assert all("primary" in model for model in evaluation["models"].values())
    assert [gate["rule"] for gate in evaluation["gates"]] == ["champion_tolerance", "max_size_ratio"]
    assert "<html" in (latest / "report.html").read_text()
    assert (latest / "bundle/ted-student/1/model.onnx").is_file()
    assert project.versions() == [(1, "staging")]


def test_a_run_tells_first_what_it_will_take_and_last_what_it_found(first: Outcome) -> None:
    forecast, table, where = (
        first.text.find(text) for text in ("Forecast on", "student start", "runs/latest/report.html")
    )
    assert -1 < forecast < first.text.find("Step load_data has started") < table < where


@pytest.mark.usefixtures("first")
def test_an_unchanged_run_is_cached_and_brings_deleted_results_back(project: Project) -> None:
    shutil.rmtree(project.folder / "runs")
    again = project.run()
    assert (again.code, again.cached, again.ran) == (0, STEPS, set()), again.text
    assert (project.folder / "runs/latest/bundle/ted-student/1/bundle.json").is_file()
    assert (project.folder / "runs/latest/report.html").is_file()
    assert len(project.versions()) == 1


@pytest.mark.usefixtures("first")
def test_a_failed_gate_fails_the_run_with_rule_value_and_bound(project: Project) -> None:
    latest = (project.folder / "runs/latest").readlink()
    failed = project.run(gates=TOO_LARGE)
    assert failed.code == 1
    assert failed.ran == {"check_gates"}
    assert re.search(r"^Error: .*\nmax_size_ratio: .*%.* the bound is 10.00%", failed.text, re.MULTILINE)
    (report,) = set(re.findall(r"^report  (runs/refused/\S+/report.html)$", failed.text, re.MULTILINE))
    assert "1 of 1 gate failed" in (project.folder / report).read_text()
    assert read_json((project.folder / report).with_name("evaluation.json"))["gates"][-1]["passed"] is False
    assert (project.folder / "runs/latest").readlink() == latest
    assert project.versions() == [(1, "staging")]


@pytest.mark.usefixtures("first")
def test_a_run_whose_report_fails_promotes_nothing(project: Project) -> None:
    template = project.folder / "ted/report/templates/report.html.jinja"
    before = template.read_text()
    template.write_text(before + "{{ unknown }}")
    failed = project.run(promotion={"model_stage": "production"})
    template.write_text(before)
    assert failed.code == 1
    assert "'unknown' is undefined" in failed.text
    assert "build_report" in failed.ran
    assert "promote_model" not in failed.ran | failed.cached
    assert project.versions() == [(1, "staging")]


@pytest.mark.usefixtures("first")
def test_a_mistake_in_the_file_ends_the_command_before_a_run_exists(project: Project) -> None:
    refused = project.run(data={"sorce": "x"}, quality={"min_characters": 0})
    assert refused.code == 1
    assert "Traceback" not in refused.text
    assert "Initiating a new run" not in refused.text
    assert "changed.yaml: data.sorce: unknown setting; did you mean data.source?" in refused.text
    assert "changed.yaml: quality.min_characters: " in refused.text


@pytest.mark.usefixtures("first")
def test_an_edit_runs_again_what_depends_on_it_and_nothing_else(project: Project) -> None:
    project.edit("ted/report/figures.py")
    assert project.run().ran == {"build_report"}
    project.edit("ted/filters.py")
    edited = project.run()
    assert edited.cached == {"load_data", "validate_data"}, edited.text
    assert edited.ran == STEPS - edited.cached
    assert len(project.versions()) == 1, "equal weights, exported alike, are the same version"


@pytest.mark.usefixtures("first")
def test_changed_data_is_read_again(project: Project) -> None:
    file = project.folder / "source/train.parquet"
    before = file.read_bytes()
    pd.read_parquet(file).iloc[:-1].to_parquet(file, index=False)
    changed = project.run(gates=TOO_LARGE)
    file.write_bytes(before)
    assert {"load_data", "validate_data", "finetune_teacher"} <= changed.ran


@pytest.mark.usefixtures("first")
def test_a_version_in_production_is_the_champion_of_later_runs(project: Project) -> None:
    production = {"promotion": {"model_stage": "production"}}
    assert project.run(**production).ran == {"promote_model", "build_report"}
    assert project.versions() == [(1, "production")]
    compared = project.run(**production)
    assert compared.ran == {"evaluate_models", "check_gates", "export_onnx", "promote_model", "build_report"}
    assert "champion" in read_json(project.folder / "runs/latest/evaluation.json")["models"]
    assert project.versions() == [(1, "production")]
    assert project.run(**production).cached == STEPS
