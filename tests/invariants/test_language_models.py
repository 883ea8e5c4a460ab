"""Language models from data to evaluation, and what must not change their losses: padding and how an update is cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from torch import nn

from benchmarks.tiny import (
    distillation_inputs,
    new_data,
    new_decoder_tokenizer,
    new_settings,
    new_tokenizer,
    write_backbone,
    write_decoder,
)
from ted import stages
from ted.config import DataSettings, DistillationTraining, FilterSettings, Settings, TaskKind, TaskSettings
from ted.data.preparation import Batch, collator, training_features
from ted.evaluation import evaluate_models
from ted.export.bundle import export_bundle
from ted.files import read_json
from ted.filters import TaskAwareFilters
from ted.forecast import forecast
from ted.gates import check
from ted.methods import LayerMSE, PredictionKL
from ted.models.frozen import FrozenModel
from ted.models.loading import find_model, load_pretrained
from ted.models.student import build_student
from ted.objectives import DistillationObjective, FilteredTeacher, FilterObjective
from ted.serving.bundle import open_bundle
from ted.serving.predictor import Predictor
from ted.tasks import Task, get_task
from ted.training import TrainingRun, train

KINDS: tuple[TaskKind, ...] = ("causal_lm", "masked_lm")
TASKS: dict[str, Task] = {kind: get_task(TaskSettings(kind=kind)) for kind in KINDS}
TOKENIZERS = {"causal_lm": new_decoder_tokenizer(), "masked_lm": new_tokenizer()}
MODELS = ("teacher", "student_start", "control", "student")


def write_teacher(kind: str, folder: Path) -> Path:
    return write_decoder(folder) if kind == "causal_lm" else write_backbone(folder)


def rows_of(kind: str) -> Dataset:
    data = new_data(kind, train=24)
    return training_features(data, TOKENIZERS[kind], TASKS[kind], DataSettings(max_length=13))[0]


def new_objective(kind: str, folder: Path) -> DistillationObjective:
    torch.manual_seed(0)
    teacher = load_pretrained(find_model(str(folder)), TASKS[kind]).model
    student = build_student(teacher, [0, 2])
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    source = FilteredTeacher(FrozenModel(teacher, [1, 3]), TaskAwareFilters([1, 3], 32, 16, "linear"))
    terms = (PredictionKL(5.0, 2.0), LayerMSE(10.0, "mean"))
    filters = TaskAwareFilters([0, 1], 32, 16, "linear")
    return DistillationObjective(student, filters, source, terms, TASKS[kind])


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Write a teacher of a kind."""
    folder = tmp_path_factory.mktemp(request.param)
    write_teacher(request.param, folder / "backbone")
    return request.param, folder


def gradients(objective: DistillationObjective, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    objective.zero_grad()
    counts = objective.count(batches)
    loss = torch.stack([objective(batch, counts)["loss"] for batch in batches]).sum()
    torch.autograd.backward(loss)
    found = {name: value.grad.clone() for name, value in objective.named_parameters() if value.grad is not None}
    return loss.item(), found


def test_features_alone_add_up_to_their_padded_batch(made: tuple[str, Path]) -> None:
    kind, folder = made
    objective = new_objective(kind, folder / "backbone").eval()
    collate, rows = collator(TOKENIZERS[kind], TASKS[kind]), rows_of(kind)
    batch = [*rows.select(range(3)), rows[len(rows) - 1]]
    assert len({row["length"] for row in batch}) > 1
    loss, expected = gradients(objective, [collate([row]) for row in batch])
    padded_loss, padded = gradients(objective, [collate(batch)])
    assert padded_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(padded[name], gradient, rtol=1e-4, atol=1e-5)


def test_an_update_ends_alike_however_it_is_cut(made: tuple[str, Path], tmp_path: Path) -> None:
    kind, folder = made
    ends = []
    for size, accumulation in ((8, 1), (2, 4)):
        objective = new_objective(kind, folder / "backbone")
        settings = DistillationTraining(
            learning_rate=1e-3,
            max_steps=4,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            adam_epsilon=1e-3,
        )
        run = TrainingRun("cut", settings, 3, tmp_path / str(size))
        train(run, objective, rows_of(kind), collator(TOKENIZERS[kind], TASKS[kind]))
        ends.append({name: tensor.clone() for name, tensor in objective.state_dict().items()})
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=0, atol=1e-6)


def test_a_checkpoint_of_stage_one_holds_no_embedding(made: tuple[str, Path], tmp_path: Path) -> None:
    kind, folder = made
    model = load_pretrained(find_model(str(folder / "backbone")), TASKS[kind]).model
    filters = TaskAwareFilters([1, 3], 32, 32, "linear").initialise(0.02, torch.Generator().manual_seed(0))
    heads = TASKS[kind].filter_heads(2, 32, FilterSettings(), model)
    embedding = model.get_input_embeddings().get_parameter("weight").clone()
    objective = FilterObjective(filters, heads, FrozenModel(model, [1, 3]), TASKS[kind])
    settings = DistillationTraining(max_steps=2, checkpoint_steps=2)
    train(
        TrainingRun("filters", settings, 0, tmp_path), objective, rows_of(kind), collator(TOKENIZERS[kind], TASKS[kind])
    )
    with safe_open(tmp_path / "checkpoint-2" / "model.safetensors", framework="pt") as file:
        names = {name for name in file.keys() if not name.startswith("filters.")}  # noqa: SIM118 - not a mapping
    assert names == {f"heads.{head}.norm.{part}" for head in (0, 1) for part in ("weight", "bias")}
    assert torch.equal(model.get_input_embeddings().get_parameter("weight"), embedding)


@pytest.fixture(scope="module")
def finished(made: tuple[str, Path]) -> tuple[str, Path, Settings, dict[str, Any]]:
    """Run every stage and the evaluation."""
    kind, folder = made
    # Layers of random models would take all of the little training there is.
    long = {"training": {"max_steps": 40, "per_device_train_batch_size": 8, "learning_rate": 5e-3}}
    distillation = {"mse_alpha": 1e-4, **long}
    settings = new_settings(
        folder,
        task={"kind": kind},
        teacher={"model": str(folder / "backbone"), **long},
        distillation=distillation,
        export={"int8": False},
    )
    data = folder / "data"
    new_data(kind).save_to_disk(str(data))
    stages.finetune_teacher(settings, data, folder / "teacher")
    stages.prepare_student(settings, data, folder / "student_start")
    stages.learn_filters(settings, data, folder / "teacher", "teacher", folder / "teacher_filters")
    stages.learn_filters(settings, data, folder / "student_start", "student", folder / "student_filters")
    stages.distill_student(settings, distillation_inputs(folder), folder / "student")
    stages.train_control(settings, data, folder / "student_start", folder / "control")
    models = {name: folder / name for name in MODELS}
    return kind, folder, settings, evaluate_models(settings, data, models, folder / "evaluation")


def test_every_stage_runs_and_the_student_learns(finished: tuple[str, Path, Settings, dict[str, Any]]) -> None:
    kind, folder, settings, evaluation = finished
    header = (evaluation["task"], evaluation["primary_metric"], evaluation["higher_is_better"])
    assert header == (kind, "perplexity", False)
    history = read_json(folder / "student" / "metrics.json")["log_history"]
    assert history[-1]["prediction_loss"] < history[0]["prediction_loss"] * 2 / 3
    measured = evaluation["models"]
    assert all(measured[name]["agreement"] is None for name in MODELS)
    gain = next(verdict for verdict in check(evaluation, settings.gates) if verdict.rule == "min_gain_over_start")
    assert gain.value == pytest.approx(measured["student_start"]["primary"] - measured["student"]["primary"])


def test_probes_of_stage_one_are_perplexities(finished: tuple[str, Path, Settings, dict[str, Any]]) -> None:
    _, folder, _, _ = finished
    probes = read_json(folder / "teacher_filters" / "metrics.json")["probes"]
    assert set(probes) == {"1", "3"}
    assert all(1 < value < 1000 for value in probes.values())


def test_a_forecast_knows_the_blocks(made: tuple[str, Path], tmp_path: Path) -> None:
    kind, folder = made
    new_data(kind)["train"].to_json(tmp_path / "rows.jsonl")
    settings = new_settings(folder, task={"kind": kind}, data={"source": str(tmp_path / "rows.jsonl")})
    found = forecast(settings.model_copy(update={"run": settings.run.model_copy(update={"output_dir": str(tmp_path)})}))
    assert found.tokens_per_row <= 16
    assert found.keeps_teacher_outputs
    assert (found.tokens_per_row > 15) == (kind == "causal_lm")


def test_a_served_masked_model_fills_masks(
    finished: tuple[str, Path, Settings, dict[str, Any]], tmp_path: Path
) -> None:
    kind, folder, settings, evaluation = finished
    if kind == "causal_lm":
        pytest.skip("answers with text")
    manifest = export_bundle(settings, folder / "student", folder / "data", evaluation, 1, tmp_path)
    assert manifest["served_metrics"]["primary"] == pytest.approx(evaluation["models"]["student"]["primary"], rel=1e-4)
    predictor = Predictor(open_bundle(tmp_path))
    plain, masked = predictor.predict(["the film", "the [MASK] is [MASK]"])
    assert plain["tokens"] == []
    assert [set(item) for item in masked["tokens"]] == [{"token", "probability"}] * 2
    (logits,) = predictor.logits(predictor.encode(["the [MASK] is [MASK]"]))[0]
    expected = torch.from_numpy(logits)[2].softmax(-1)
    assert masked["tokens"][0]["token"] == predictor.tokenizer.id_to_token(int(expected.argmax()))
    assert masked["tokens"][0]["probability"] == pytest.approx(expected.max().item(), rel=1e-5)
