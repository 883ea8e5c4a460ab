"""Every stage end to end on tiny models: what it writes, what it leaves out, and that equal calls are equal."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import DatasetDict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from benchmarks.tiny import (
    LABELS,
    WORDS,
    distillation_inputs,
    new_config,
    new_data,
    new_settings,
    new_tokenizer,
    spread_weights,
    write_backbone,
    write_model,
)
from ted import stages
from ted.config import DistillationTraining, Settings, StudentSettings
from ted.errors import ModelError, NonFiniteError
from ted.files import read_json, sha256_file
from ted.filters import TaskAwareFilters
from ted.models.loading import LoadedModel, load_trained
from ted.training import TrainingRun

KINDS = ("classification", "regression", "question_answering")


def run_until_student(settings: Settings, folder: Path) -> None:
    stages.finetune_teacher(settings, folder / "data", folder / "teacher")
    stages.prepare_student(settings, folder / "data", folder / "student_start")


def learn(settings: Settings, folder: Path) -> None:
    stages.learn_filters(settings, folder / "data", folder / "teacher", "teacher", folder / "teacher_filters")
    stages.learn_filters(settings, folder / "data", folder / "student_start", "student", folder / "student_filters")


def distill(settings: Settings, folder: Path, name: str = "student") -> dict[str, Any]:
    return stages.distill_student(settings, distillation_inputs(folder), folder / name)


def task(kind: str) -> dict[str, Any]:
    return {"task": {"kind": kind}}


def make(folder: Path, kind: str) -> Path:
    """Write data, backbone, a fine-tuned teacher and a student start."""
    new_data(kind, unlabelled=12).save_to_disk(str(folder / "data"))
    write_backbone(folder / "backbone")
    run_until_student(new_settings(folder, **task(kind)), folder)
    return folder


@pytest.fixture(scope="module")
def classification(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("classification"), "classification")


@pytest.fixture(scope="module")
def multi_label(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("multi_label"), "multi_label")


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("regression"), "regression")


@pytest.fixture(scope="module")
def question_answering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("question_answering"), "question_answering")


def linked(made: Path, folder: Path, *parts: str) -> Path:
    """Return a folder of its own with links to what is already made."""
    for part in parts or ("data", "backbone", "teacher", "student_start"):
        (folder / part).symlink_to(made / part)
    return folder


def keys(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


class TestTeacherAndStart:
    def test_they_are_model_folders_with_a_record(self, classification: Path) -> None:
        for name, layers in (("teacher", 4), ("student_start", 2)):
            folder = classification / name
            loaded = load_trained(folder)
            assert loaded.model.config.num_hidden_layers == layers
            assert loaded.model.config.id2label == dict(enumerate(LABELS))
            metrics, record = read_json(folder / "metrics.json"), read_json(folder / "run_record.json")
            assert metrics["steps"] == 8
            assert metrics["resumed_from"] == 0
            assert {"loss", "task_loss", "learning_rate", "grad_norm"} <= set(metrics["log_history"][0])
            assert Settings.model_validate(record["settings"]).teacher.training.max_steps == 8
            assert record["data_fingerprint"]

    def test_no_checkpoint_and_no_pickle_stays(self, classification: Path) -> None:
        assert not list(classification.glob("runs/checkpoints/*"))
        assert not [path for path in classification.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]

    def test_the_student_starts_from_the_pre_trained_layers(self, classification: Path, tmp_path: Path) -> None:
        training = {"max_steps": 1, "learning_rate": 1e-12}
        settings = new_settings(classification, student={"training": training, "layers": [1, 3]})
        stages.prepare_student(settings, classification / "data", tmp_path / "start")
        ours = load_file(tmp_path / "start" / "model.safetensors")
        theirs = load_file(classification / "backbone" / "model.safetensors")
        name = "encoder.layer.{}.attention.self.query.weight"
        torch.testing.assert_close(ours["bert." + name.format(1)], theirs[name.format(3)])

    def test_a_student_may_be_taken_as_it_is_built(self, classification: Path, tmp_path: Path) -> None:
        student = StudentSettings(finetune=False, layers=(1, 3))
        settings = new_settings(classification).model_copy(update={"student": student})
        metrics = stages.prepare_student(settings, classification / "data", tmp_path / "start")
        assert (metrics["steps"], metrics["log_history"]) == (0, [])
        ours = load_file(tmp_path / "start" / "model.safetensors")
        theirs = load_file(classification / "backbone" / "model.safetensors")
        name = "encoder.layer.{}.attention.self.query.weight"
        assert torch.equal(ours["bert." + name.format(1)], theirs[name.format(3)])

    def test_a_teacher_may_be_taken_as_it_is(self, classification: Path, tmp_path: Path) -> None:
        model = str(classification / "teacher")
        settings = Settings.model_validate({"data": {"max_length": 32}, "teacher": {"model": model, "finetune": False}})
        metrics = stages.finetune_teacher(settings, classification / "data", tmp_path / "teacher")
        assert (metrics["steps"], metrics["log_history"]) == (0, [])
        assert read_json(tmp_path / "teacher" / "metrics.json")["steps"] == 0
        ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "teacher", Path(model)))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

    def test_a_backbone_is_no_teacher_as_it_is(self, classification: Path, tmp_path: Path) -> None:
        settings = Settings.model_validate(
            {"data": {"max_length": 32}, "teacher": {"model": str(classification / "backbone"), "finetune": False}}
        )
        with pytest.raises(ModelError, match="has no weights for classifier"):
            stages.finetune_teacher(settings, classification / "data", tmp_path / "teacher")
        assert not (tmp_path / "teacher").exists()

    def test_a_student_may_be_a_model_of_its_own(self, classification: Path, tmp_path: Path) -> None:
        small = BertForSequenceClassification(new_config(num_hidden_layers=1, hidden_size=16))
        write_model(tmp_path / "small", small, new_tokenizer())
        settings = new_settings(classification, student={"model": str(tmp_path / "small")})
        stages.prepare_student(settings, classification / "data", tmp_path / "start")
        assert load_trained(tmp_path / "start").model.config.hidden_size == 16

    def test_dropout_that_was_asked_for_stays_with_the_models(self, classification: Path, tmp_path: Path) -> None:
        small = BertForSequenceClassification(new_config(num_hidden_layers=1))
        write_model(tmp_path / "small", small, new_tokenizer())
        student = {"model": str(tmp_path / "small"), "dropout": {"classifier_dropout": 0.0}}
        settings = new_settings(classification, student=student, teacher={"dropout": {"hidden_dropout_prob": 0.0}})
        stages.finetune_teacher(settings, classification / "data", tmp_path / "teacher")
        stages.prepare_student(settings, classification / "data", tmp_path / "start")
        big, start = (load_trained(tmp_path / name).model.config for name in ("teacher", "start"))
        assert (big.hidden_dropout_prob, big.classifier_dropout) == (0.0, None)
        assert (start.hidden_dropout_prob, start.classifier_dropout) == (0.1, 0.0)
        made = new_settings(classification, teacher={"dropout": {"hidden_dropout_prob": 0.0}})
        stages.prepare_student(made, classification / "data", tmp_path / "made")
        assert load_trained(tmp_path / "made").model.config.hidden_dropout_prob == 0.0

    def test_a_student_with_another_tokenizer_is_refused(self, classification: Path, tmp_path: Path) -> None:
        small = BertForSequenceClassification(new_config(vocab_size=len(WORDS) + 1))
        write_model(tmp_path / "small", small, new_tokenizer((*WORDS, "zoo")))
        settings = new_settings(classification, student={"model": str(tmp_path / "small")})
        with pytest.raises(ModelError, match="do not share a vocabulary: 1 tokens differ, the first 'zoo'"):
            stages.prepare_student(settings, classification / "data", tmp_path / "start")

    def test_a_run_that_diverges_writes_nothing(self, classification: Path, tmp_path: Path) -> None:
        model = BertForSequenceClassification(new_config())
        spread_weights(model, 0)
        model.bert.embeddings.word_embeddings.weight.data[WORDS.index("film")] = float("inf")
        write_model(tmp_path / "broken", model, new_tokenizer())
        settings = new_settings(classification, teacher={"model": str(tmp_path / "broken")})
        with pytest.raises(NonFiniteError, match=r"^teacher: the loss at step 1 is not finite"):
            stages.finetune_teacher(settings, classification / "data", tmp_path / "teacher")
        assert not (tmp_path / "teacher").exists()


METHODS: dict[str, dict[str, Any]] = {
    "kd": {"method": "kd"},
    "lwd": {"method": "lwd"},
    "random_filter": {"method": "random_filter"},
    "ted": {},
    "stage_one": {"distillation": {"student_filter_init": "stage_one"}},
    "nonlinear": {"filters": {"filter_nonlinear": True}, "distillation": {"student_filter_init": "random"}},
    "narrow": {"filters": {"filter_output_dim": 8, "filter_interval": 2}},
    "official": {"compatibility": "official"},
    "embeddings": {"filters": {"match_embeddings": True}},
    "all_to_one": {"filters": {"layer_map": "all_to_one"}, "teacher": {"dtype": "bfloat16"}},
}
LAYER_LOSSES = {"layer_loss", "layer_loss_0"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_from_filters_to_student(
    name: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made: Path = request.getfixturevalue(kind)
    linked(made, tmp_path)
    settings = new_settings(tmp_path, **METHODS[name], **task(kind))
    learn(settings, tmp_path)
    metrics = distill(settings, tmp_path)
    assert metrics["steps"] == 8
    terms = {"task_loss", "prediction_loss"} | (LAYER_LOSSES if name != "kd" else set())
    for entry in metrics["log_history"]:
        assert terms <= set(entry)
    assert len(metrics["layer_match"]) == {"kd": 0, "narrow": 1, "embeddings": 3}.get(name, 2)
    assert keys(tmp_path / "student") == keys(tmp_path / "student_start")
    config, start = (read_json(tmp_path / part / "config.json") for part in ("student", "student_start"))
    assert config == start
    assert read_json(tmp_path / "student" / "metrics.json") == metrics


OTHER_SHAPE = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40, "num_hidden_layers": 2}


class TestStudentsOfOtherShapes:
    """Width, depth and heads are not the teacher's: filters make the states comparable."""

    def run(self, classification: Path, folder: Path, student: dict[str, Any]) -> Any:  # noqa: ANN401 - any model's
        linked(classification, folder, "data", "backbone", "teacher")
        settings = new_settings(folder, student=student, filters={"match_embeddings": True})
        stages.prepare_student(settings, folder / "data", folder / "student_start")
        learn(settings, folder)
        rows = distill(settings, folder)["layer_match"]
        assert [(row["student_layer"], row["teacher_layer"]) for row in rows] == [(-1, -1), (0, 1), (1, 3)]
        student_filters = TaskAwareFilters.load(folder / "student_filters")
        assert (student_filters.input_dim, student_filters.output_dim) == (24, 32)
        config = load_trained(folder / "student").model.config
        assert {name: getattr(config, name) for name in OTHER_SHAPE} == OTHER_SHAPE
        return load_file(folder / "student_start" / "model.safetensors")

    def test_a_checkpoint(self, classification: Path, tmp_path: Path) -> None:
        small = BertForSequenceClassification(new_config(**OTHER_SHAPE))
        write_model(tmp_path / "small", small, new_tokenizer())
        self.run(classification, tmp_path, {"model": str(tmp_path / "small")})

    def test_a_changed_configuration_whose_weights_hang_on_the_seed(self, classification: Path, tmp_path: Path) -> None:
        starts = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            starts.append(self.run(classification, tmp_path / name, {"config": OTHER_SHAPE}))
        assert all(torch.equal(tensor, starts[1][name]) for name, tensor in starts[0].items())
        settings = new_settings(tmp_path / "first", student={"config": OTHER_SHAPE}, seed="7")
        stages.prepare_student(settings, tmp_path / "first" / "data", tmp_path / "other")
        other = load_file(tmp_path / "other" / "model.safetensors")
        assert not torch.equal(other["classifier.weight"], starts[0]["classifier.weight"])


def test_the_frozen_teacher_and_the_student_compute_as_they_are_told(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = {}

    def watch(folder: Path, **options: Any) -> LoadedModel:
        model = load_trained(folder, **options)
        loaded[folder.name] = (model.model.dtype, model.model.config._attn_implementation)
        return model

    monkeypatch.setattr(stages, "load_trained", watch)
    teacher = {"dtype": "bfloat16", "attn_implementation": "sdpa"}
    settings = new_settings(learned, teacher=teacher, student={"attn_implementation": "eager"})
    metrics = stages.distill_student(settings, distillation_inputs(learned), tmp_path / "s")
    assert loaded == {"teacher": (torch.bfloat16, "sdpa"), "student_start": (torch.float32, "eager")}
    assert load_trained(tmp_path / "s").model.dtype == torch.float32
    exact = stages.distill_student(new_settings(learned), distillation_inputs(learned), tmp_path / "t")
    assert metrics["log_history"][0]["layer_loss"] != exact["log_history"][0]["layer_loss"]


def test_each_side_learns_its_filters_as_it_was_told(classification: Path, tmp_path: Path) -> None:
    linked(classification, tmp_path)
    both = {"training": {"max_steps": 2}, "student_training": {"max_steps": 3}}
    learn(new_settings(tmp_path, filters=both, distillation={"student_filter_init": "stage_one"}), tmp_path)
    steps = [read_json(tmp_path / f"{side}_filters" / "metrics.json")["steps"] for side in ("teacher", "student")]
    assert steps == [2, 3]


def test_a_student_without_a_teacher_is_the_start_trained_on(classification: Path, tmp_path: Path) -> None:
    linked(classification, tmp_path)
    settings = new_settings(tmp_path, method="finetune")
    learn(settings, tmp_path)
    metrics = distill(settings, tmp_path)
    assert "prediction_loss" not in metrics["log_history"][0]
    assert metrics["layer_match"] == []
    assert not (tmp_path / "runs" / "teacher_outputs").exists()


@pytest.fixture(scope="module")
def learned(classification: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold filters of both sides beside the models."""
    folder = linked(classification, tmp_path_factory.mktemp("learned"))
    learn(new_settings(folder, distillation={"student_filter_init": "stage_one"}), folder)
    return folder


class TestFilters:
    def test_stage_one_says_how_well_each_layer_tells_the_task(self, learned: Path) -> None:
        for side, layers in (("teacher", ["1", "3"]), ("student", ["0", "1"])):
            metrics = read_json(learned / f"{side}_filters" / "metrics.json")
            assert list(metrics["probes"]) == layers
            assert all(0 <= value <= 1 for value in metrics["probes"].values())
            assert {"task_loss", f"task_loss_{layers[0]}"} <= set(metrics["log_history"][0])

    def test_filters_move_and_heads_are_left_behind(self, learned: Path) -> None:
        filters = TaskAwareFilters.load(learned / "teacher_filters")
        start = TaskAwareFilters([1, 3], 32, 32, "linear").initialise(0.02, torch.Generator().manual_seed(42))
        assert set(load_file(learned / "teacher_filters" / "filters.safetensors")) == set(filters.state_dict())
        assert not torch.equal(filters.state_dict()["filters.0.weight"], start.state_dict()["filters.0.weight"])

    def test_student_filters_that_are_aligned_later_are_not_learned(self, learned: Path, tmp_path: Path) -> None:
        settings = new_settings(learned)
        metrics = stages.learn_filters(settings, learned / "data", learned / "student_start", "student", tmp_path / "f")
        assert (metrics["steps"], metrics["probes"]) == (0, {})
        assert TaskAwareFilters.load(tmp_path / "f").layers == (0, 1)

    def test_a_method_without_layers_writes_a_record_only(self, learned: Path, tmp_path: Path) -> None:
        settings = new_settings(learned, method="kd")
        stages.learn_filters(settings, learned / "data", learned / "teacher", "teacher", tmp_path / "f")
        assert {path.name for path in (tmp_path / "f").iterdir()} == {"metrics.json", "run_record.json"}

    def test_both_stages_share_the_kept_teacher_outputs(self, learned: Path, tmp_path: Path) -> None:
        settings = new_settings(learned, run={"output_dir": str(tmp_path / "runs")})
        stages.learn_filters(settings, learned / "data", learned / "teacher", "teacher", tmp_path / "f")
        (store,) = (tmp_path / "runs" / "teacher_outputs").iterdir()
        written = (store / "states.npy").stat().st_mtime_ns
        stages.distill_student(settings, distillation_inputs(learned), tmp_path / "student")
        assert [store] == list((tmp_path / "runs" / "teacher_outputs").iterdir())
        assert (store / "states.npy").stat().st_mtime_ns == written

    def test_layers_come_closer(self, learned: Path, tmp_path: Path) -> None:
        training = {"max_steps": 60, "checkpoint_steps": 100}
        options = {"training": training | {"learning_rate": 3e-3}, "student_filter_init": "stage_one"}
        settings = new_settings(learned, distillation=options)
        metrics = stages.distill_student(settings, distillation_inputs(learned), tmp_path / "student")
        for row in metrics["layer_match"]:
            assert row["after"] < row["before"]


class TestEqualCalls:
    """The same call twice gives the same bytes, with and without what the first left behind."""

    def test_each_stage_is_deterministic(self, classification: Path, tmp_path: Path) -> None:
        digests = []
        for attempt in ("first", "second"):
            folder = tmp_path / attempt
            folder.mkdir()
            linked(classification, folder, "data", "backbone")
            settings = new_settings(folder, distillation={"student_filter_init": "stage_one"})
            run_until_student(settings, folder)
            learn(settings, folder)
            distill(settings, folder)
            stages.train_control(settings, folder / "data", folder / "student_start", folder / "control")
            files = sorted(path for path in folder.glob("*/*.safetensors") if path.parent.name != "backbone")
            digests.append({path.relative_to(folder): sha256_file(path) for path in files})
        assert len(digests[0]) == 6
        assert digests[0] == digests[1]

    def test_kept_outputs_change_nothing_but_the_last_digits(self, learned: Path, tmp_path: Path) -> None:
        weights = []
        for cache in ("on", "off"):
            settings = new_settings(learned, distillation={"teacher_cache": cache})
            stages.distill_student(settings, distillation_inputs(learned), tmp_path / cache)
            weights.append(load_file(tmp_path / cache / "model.safetensors"))
        for name, tensor in weights[0].items():
            torch.testing.assert_close(tensor, weights[1][name], rtol=0, atol=2e-5)


def test_the_control_trains_as_long_as_distillation_on_labels_alone(learned: Path, tmp_path: Path) -> None:
    training = {"max_steps": None, "num_train_epochs": 2, "per_device_train_batch_size": 16}
    settings = new_settings(learned, distillation={"training": training})
    metrics = stages.train_control(settings, learned / "data", learned / "student_start", tmp_path / "c")
    # 48 labelled and 12 unlabelled rows make 4 batches of 16 per pass.
    assert metrics["steps"] == 8
    student = stages.distill_student(settings, distillation_inputs(learned), tmp_path / "s")
    assert student["steps"] == metrics["steps"]
    assert keys(tmp_path / "c") == keys(tmp_path / "s")


class TestCheckpointsBelongToTheirInputs:
    """A run whose inputs have changed must not go on from a checkpoint of the old ones."""

    @pytest.fixture
    def folder(self, learned: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(learned, tmp_path / "copy"))

    def checkpoints(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: dict[str, Any]) -> str:
        """Return the name of the folder that distillation would keep its checkpoints in."""
        names = []

        def stop(run: TrainingRun, *_: object) -> None:
            names.append(run.checkpoints.name)
            raise InterruptedError

        monkeypatch.setattr(stages, "train", stop)
        with pytest.raises(InterruptedError):
            distill(new_settings(folder, **changes), folder)
        return names[0]

    @pytest.mark.parametrize("part", ["teacher", "teacher_filters", "student_start", "student_filters"])
    def test_other_weights_have_other_checkpoints(
        self, part: str, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self.checkpoints(folder, monkeypatch)
        assert self.checkpoints(folder, monkeypatch) == before
        (path,) = (folder / part).glob("*.safetensors")
        weights = load_file(path)
        weights[next(iter(weights))] += 1
        save_file(weights, path, {"format": "pt"})
        assert self.checkpoints(folder, monkeypatch) != before

    def test_other_data_or_settings_have_other_checkpoints(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        names = {
            self.checkpoints(folder, monkeypatch),
            self.checkpoints(folder, monkeypatch, distillation={"kl_alpha": 2.0}),
            self.checkpoints(folder, monkeypatch, data={"max_length": 12}),
        }
        shutil.rmtree(folder / "data")
        new_data("classification", unlabelled=11).save_to_disk(str(folder / "data"))
        names.add(self.checkpoints(folder, monkeypatch))
        assert len(names) == 4

    def test_the_place_of_a_run_does_not_matter(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        elsewhere = {"output_dir": str(folder / "elsewhere")}
        assert self.checkpoints(folder, monkeypatch) == self.checkpoints(folder, monkeypatch, run=elsewhere)


@pytest.mark.parametrize("kind", [*KINDS, "multi_label"])
def test_batches_without_any_label_still_teach(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    made: Path = request.getfixturevalue(kind)
    data = DatasetDict.load_from_disk(str(made / "data"))
    data["train"] = data["train"].select(range(2))
    data.save_to_disk(str(tmp_path / "data"))
    linked(made, tmp_path, "teacher", "student_start", "backbone")
    training = {"per_device_train_batch_size": 2}
    settings = new_settings(tmp_path, method="kd", distillation={"training": training}, **task(kind))
    learn(settings, tmp_path)
    history = distill(settings, tmp_path)["log_history"]
    assert all(entry["prediction_loss"] > 0 and entry["grad_norm"] > 0 for entry in history)
    without = [entry["task_loss"] == 0 for entry in history]
    assert any(without)
    assert not all(without)


def test_steps_are_those_of_the_loop() -> None:
    for rows, batch, accumulation, epochs, expected in [
        (60, 16, 1, 2.0, 8),
        (60, 16, 2, 2.0, 4),
        (61, 4, 4, 1.5, 6),
        (3, 16, 1, 1.0, 1),
    ]:
        training = DistillationTraining(
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=epochs
        )
        assert stages.num_steps(training, rows) == expected
    assert stages.num_steps(DistillationTraining(max_steps=7), 1000) == 7
