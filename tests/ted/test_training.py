"""The training loop over a toy objective: guards, resumption, checkpoints, what the log holds."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from benchmarks.architectures import ARCHITECTURES
from benchmarks.tiny import LABELS, WORDS, new_config, new_data, new_tokenizer
from ted import checkpoints
from ted.checkpoints import CheckpointStore
from ted.config import DataSettings, DistillationTraining, TaskSettings
from ted.data.preparation import Batch, Collator, collator, tokenize
from ted.errors import ModelError, NonFiniteError
from ted.filters import TaskAwareFilters
from ted.methods import Counts, LayerMSE
from ted.models.student import find_layer_stack
from ted.objectives import DistillationObjective, Losses, Objective, TaskObjective
from ted.tasks import get_task
from ted.training import EpochLengthSampler, ObjectiveTrainer, TrainingRun, train

TASK = get_task(TaskSettings(), LABELS)
NUM_ROWS = 22
UPDATES_PER_EPOCH = 6  # batches of 4, the last of 2


class Toy(Objective):
    """A bag of words with dropout and a further term that is logged; a step may be made to fail."""

    def __init__(self) -> None:
        super().__init__(TASK)
        torch.manual_seed(0)
        self.words = nn.Embedding(len(WORDS), 8)
        self.filters = nn.Linear(8, 2)
        self.seen: list[list[int]] = []
        self.scales: dict[str, float] = {}
        self.spoil_value_at = -1
        self.spoil_gradient_at = -1
        self.spoiled_by = float("nan")

    def parameter_scales(self) -> dict[str, float]:
        return self.scales

    def forward(self, batch: Batch, counts: Counts) -> Losses:
        self.seen.append(batch["index"].tolist())
        states_BD = (self.words(batch["input_ids"]) * batch["attention_mask"][..., None]).mean(1)
        logits_BC = self.filters(functional.dropout(states_BD, 0.3, self.training))
        loss = self.task.task_loss(logits_BC, batch, batch["attention_mask"], num_items=counts.labelled)
        step = len(self.seen)
        if step == self.spoil_value_at:
            loss = loss * self.spoiled_by
        if step == self.spoil_gradient_at:
            spoiled_by = self.spoiled_by
            logits_BC.register_hook(lambda gradient: gradient * spoiled_by)
        return {"loss": loss, "task_loss": loss, "twice": 2 * loss}


class Killed(BaseException):
    """Stands for a process that ends at once."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return new_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerBase) -> Dataset:
    return tokenize(new_data("classification", train=NUM_ROWS)["train"], tokenizer, TASK, DataSettings(max_length=16))


@pytest.fixture(scope="module")
def collate(tokenizer: PreTrainedTokenizerBase) -> Collator:
    return collator(tokenizer, TASK)


def new_run(folder: Path, **changes: Any) -> TrainingRun:
    values = {
        "learning_rate": 0.05,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "checkpoint_steps": 100,
        "weight_decay": 0.1,
    }
    return TrainingRun("toy", DistillationTraining(**(values | changes)), 7, folder / "checkpoints")


def weights(objective: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in objective.state_dict().items()}


def assert_identical(ours: nn.Module, theirs: nn.Module) -> None:
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name


def kill_after(step: int, monkeypatch: pytest.MonkeyPatch, *, complete: bool = True) -> None:
    """Make the process end once the checkpoint of a step is written, or just before it counts."""
    save = ObjectiveTrainer._save_checkpoint

    def save_and_die(self: ObjectiveTrainer, *arguments: Any) -> None:
        save(self, *arguments)
        if self.state.global_step == step:
            if not complete:
                (self.run.checkpoints / f"checkpoint-{step}" / checkpoints.COMPLETE).unlink()
            raise Killed

    monkeypatch.setattr(ObjectiveTrainer, "_save_checkpoint", save_and_die)


class TestResuming:
    """A run that is killed and started again ends with the very bits of a run that was left alone."""

    @pytest.fixture
    def whole(self, rows: Dataset, collate: Collator, tmp_path: Path) -> Toy:
        objective = Toy()
        train(new_run(tmp_path / "whole"), objective, rows, collate)
        return objective

    @pytest.mark.parametrize("step", [2, UPDATES_PER_EPOCH, 8, 2 * UPDATES_PER_EPOCH, 3 * UPDATES_PER_EPOCH])
    def test_weights_are_identical(
        self, step: int, whole: Toy, rows: Dataset, collate: Collator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = new_run(tmp_path, checkpoint_steps=2)
        with monkeypatch.context() as patch:
            kill_after(step, patch)
            with pytest.raises(Killed):
                train(run, Toy(), rows, collate)
        resumed = Toy()
        metrics = train(run, resumed, rows, collate)
        assert metrics["resumed_from"] == step
        assert metrics["steps"] == 3 * UPDATES_PER_EPOCH
        assert resumed.seen == whole.seen[step:]
        assert_identical(resumed, whole)

    def test_another_machine_goes_on_from_the_store(
        self, whole: Toy, rows: Dataset, collate: Collator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = CheckpointStore(LocalFileSystem(auto_mkdir=True), str(tmp_path / "store"))
        first, second = (
            replace(new_run(tmp_path / machine, checkpoint_steps=2), store=store) for machine in ("first", "second")
        )
        with monkeypatch.context() as patch:
            kill_after(6, patch)
            with pytest.raises(Killed):
                train(first, Toy(), rows, collate)
        resumed = Toy()
        assert train(second, resumed, rows, collate)["resumed_from"] == 6
        assert_identical(resumed, whole)

    def test_a_run_cut_by_steps_makes_no_step_too_many(
        self, rows: Dataset, collate: Collator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed after the last update, in the middle of a pass, before its model was written."""
        steps = UPDATES_PER_EPOCH + 2
        whole, resumed = Toy(), Toy()
        train(new_run(tmp_path / "whole", max_steps=steps), whole, rows, collate)
        run = new_run(tmp_path, checkpoint_steps=2, max_steps=steps)
        with monkeypatch.context() as patch:
            kill_after(steps, patch)
            with pytest.raises(Killed):
                train(run, Toy(), rows, collate)
        assert train(run, resumed, rows, collate)["steps"] == steps
        assert_identical(resumed, whole)

    def test_accumulated_updates_go_on_too(
        self, rows: Dataset, collate: Collator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        changes = {"checkpoint_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        whole, resumed, run = Toy(), Toy(), new_run(tmp_path, **changes)
        train(new_run(tmp_path / "whole", **changes), whole, rows, collate)
        with monkeypatch.context() as patch:
            kill_after(8, patch)
            with pytest.raises(Killed):
                train(run, Toy(), rows, collate)
        train(run, resumed, rows, collate)
        assert_identical(resumed, whole)

    def test_an_incomplete_checkpoint_is_removed_and_not_used(
        self, whole: Toy, rows: Dataset, collate: Collator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = new_run(tmp_path, checkpoint_steps=2)
        with monkeypatch.context() as patch:
            kill_after(8, patch, complete=False)
            with pytest.raises(Killed):
                train(run, Toy(), rows, collate)
        (run.checkpoints / "checkpoint-8" / "model.safetensors").write_bytes(b"half")
        resumed = Toy()
        assert train(run, resumed, rows, collate)["resumed_from"] == 6
        assert_identical(resumed, whole)

    def test_with_incomplete_checkpoints_only_a_run_begins_anew(
        self, whole: Toy, rows: Dataset, collate: Collator, tmp_path: Path
    ) -> None:
        run, objective = new_run(tmp_path, checkpoint_steps=2), Toy()
        (run.checkpoints / "checkpoint-100").mkdir(parents=True)
        assert train(run, objective, rows, collate)["resumed_from"] == 0
        assert not (run.checkpoints / "checkpoint-100").exists()
        assert_identical(objective, whole)

    def test_the_log_goes_on_as_if_nothing_had_happened(
        self, rows: Dataset, collate: Collator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = train(new_run(tmp_path / "whole"), Toy(), rows, collate)["log_history"]
        run = new_run(tmp_path, checkpoint_steps=2)
        with monkeypatch.context() as patch:
            kill_after(8, patch)
            with pytest.raises(Killed):
                train(run, Toy(), rows, collate)
        assert train(run, Toy(), rows, collate)["log_history"] == whole


class TestGuards:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_loss_that_is_not_finite_stops_before_the_update(
        self, value: float, rows: Dataset, collate: Collator, tmp_path: Path
    ) -> None:
        objective = Toy()
        objective.spoil_value_at, objective.spoiled_by = 4, value
        with pytest.raises(NonFiniteError, match=r"^toy: the loss at step 4 is not finite; the parameters are as they"):
            train(new_run(tmp_path), objective, rows, collate)
        self.assert_at_step(3, objective, tmp_path, rows, collate)

    @pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e36])
    def test_a_gradient_that_is_not_finite_stops_before_the_update(
        self, value: float, max_grad_norm: float, rows: Dataset, collate: Collator, tmp_path: Path
    ) -> None:
        """The largest value leaves finite entries whose norm is not: clipping would make zeros of them in silence."""
        objective = Toy()
        objective.spoil_gradient_at, objective.spoiled_by = 4, value
        with pytest.raises(
            NonFiniteError, match=r"^toy: the gradient at step 4 is not finite; .* Lower the learning ra"
        ):
            train(new_run(tmp_path, max_grad_norm=max_grad_norm), objective, rows, collate)
        self.assert_at_step(3, objective, tmp_path, rows, collate, max_grad_norm=max_grad_norm)

    def test_a_micro_batch_that_is_not_finite_stops_the_whole_update(
        self, rows: Dataset, collate: Collator, tmp_path: Path
    ) -> None:
        changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        objective = Toy()
        objective.spoil_gradient_at = 3
        with pytest.raises(NonFiniteError, match="gradient at step 2 is not finite"):
            train(new_run(tmp_path, **changes), objective, rows, collate)
        self.assert_at_step(1, objective, tmp_path, rows, collate, **changes)

    def assert_at_step(
        self, step: int, objective: Toy, folder: Path, rows: Dataset, collate: Collator, **changes: Any
    ) -> None:
        """Compare with the weights that a sound run has after a step."""
        sound = Toy()
        at_step: dict[str, Tensor] = {}

        class Watching(ObjectiveTrainer):
            def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
                if self.state.global_step == step and not at_step:
                    at_step.update(weights(sound))
                super().log(logs, start_time)

        run = new_run(folder / "sound", **changes)
        Watching(run, sound, rows, collate).train()
        for name, tensor in objective.state_dict().items():
            assert torch.equal(tensor, at_step[name]), name


class TestCheckpoints:
    def test_they_hold_what_changes_and_nothing_pickled_of_ours(
        self, rows: Dataset, collate: Collator, tmp_path: Path
    ) -> None:
        run = new_run(tmp_path, checkpoint_steps=2)
        train(run, Toy(), rows, collate)
        assert {path.name for path in run.checkpoints.iterdir()} == {"checkpoint-16", "checkpoint-18"}
        names = {path.name for path in (run.checkpoints / "checkpoint-18").iterdir()}
        assert names == {
            "model.safetensors",
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
            "trainer_state.json",
            "complete.json",
        }
        assert json.loads((run.checkpoints / "checkpoint-18" / "complete.json").read_text()) == {"step": 18}

    def test_the_state_of_optimiser_and_random_numbers_needs_no_code_to_be_read(
        self, rows: Dataset, collate: Collator, tmp_path: Path
    ) -> None:
        run = new_run(tmp_path, checkpoint_steps=2, max_steps=2)
        train(run, Toy(), rows, collate)
        for name in ("optimizer.pt", "scheduler.pt"):
            torch.load(run.checkpoints / "checkpoint-2" / name, weights_only=True)


class TestLog:
    def test_every_term_is_a_mean_over_updates(self, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
        metrics = train(new_run(tmp_path, num_train_epochs=20), Toy(), rows, collate)
        history = metrics["log_history"]
        assert metrics["steps"] == 120
        assert [entry["step"] for entry in history] == list(range(3, 121, 3))
        for entry in history:
            assert {"step", "epoch", "loss", "task_loss", "twice", "learning_rate", "grad_norm"} <= set(entry)
            assert entry["task_loss"] == pytest.approx(entry["loss"], rel=1e-4)
            assert entry["twice"] == pytest.approx(2 * entry["loss"], rel=1e-4)
        assert metrics["seconds"] > 0

    def test_it_can_be_written_as_json(self, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
        metrics = train(new_run(tmp_path, max_grad_norm=0.0, max_steps=3), Toy(), rows, collate)
        assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics

    def test_accumulated_parts_of_an_update_add_up(self, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
        changes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3}
        for entry in train(new_run(tmp_path, **changes), Toy(), rows, collate)["log_history"]:
            assert entry["task_loss"] == pytest.approx(entry["loss"], rel=1e-4)


class TestOptimiser:
    def groups(self, objective: Toy, rows: Dataset, collate: Collator, folder: Path) -> list[dict[str, Any]]:
        trainer = ObjectiveTrainer(new_run(folder), objective, rows, collate)
        groups: list[dict[str, Any]] = trainer.create_optimizer().param_groups
        return groups

    def test_prefixes_scale_the_step_size_and_biases_do_not_decay(
        self, rows: Dataset, collate: Collator, tmp_path: Path
    ) -> None:
        objective = Toy()
        objective.scales = {"filters.": 10.0}
        names = {id(parameter): name for name, parameter in objective.named_parameters()}
        found = {
            names[id(parameter)]: (group["lr"], group["weight_decay"])
            for group in self.groups(objective, rows, collate, tmp_path)
            for parameter in group["params"]
        }
        assert found == {
            "words.weight": (0.05, 0.1),
            "filters.weight": (0.5, 0.1),
            "filters.bias": (0.5, 0.0),
        }

    def test_frozen_parameters_are_left_out(self, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
        objective = Toy()
        objective.words.requires_grad_(False)
        groups = self.groups(objective, rows, collate, tmp_path)
        assert sum(len(group["params"]) for group in groups) == 2

    def test_settings_reach_adamw(self, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
        run = new_run(tmp_path, adam_beta1=0.8, adam_beta2=0.98, adam_epsilon=1e-6)
        optimizer = ObjectiveTrainer(run, Toy(), rows, collate).create_optimizer()
        assert isinstance(optimizer, torch.optim.AdamW)
        assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.8, 0.98), 1e-6)

    def test_a_scaled_run_moves_its_filters_further(self, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
        moved = []
        for scale in (1.0, 10.0):
            objective = Toy()
            objective.scales, before = {"filters.": scale}, weights(objective)
            run = new_run(tmp_path / str(scale), max_steps=2, weight_decay=0.0, warmup_steps=0.0)
            train(run, objective, rows, collate)
            moved.append((objective.filters.bias - before["filters.bias"]).abs().max().item())
        assert moved[1] > 5 * moved[0]


class TestOrder:
    LENGTHS = tuple(3 + (7 * row) % 11 for row in range(40))

    def epochs(self, sampler: EpochLengthSampler) -> Iterator[list[int]]:
        for epoch in range(3):
            sampler.set_epoch(epoch)
            yield list(sampler)

    def test_every_epoch_sees_every_row_once_in_an_order_of_its_own(self) -> None:
        orders = list(self.epochs(EpochLengthSampler(4, list(self.LENGTHS), 1)))
        assert all(sorted(order) == list(range(40)) for order in orders)
        assert len({tuple(order) for order in orders}) == 3

    def test_the_order_hangs_on_seed_and_epoch_alone(self) -> None:
        first, second = EpochLengthSampler(4, list(self.LENGTHS), 1), EpochLengthSampler(4, list(self.LENGTHS), 1)
        first.set_epoch(2)
        list(first)
        torch.rand(5)
        second.set_epoch(2)
        assert list(first) == list(second)
        other = EpochLengthSampler(4, list(self.LENGTHS), 2)
        other.set_epoch(2)
        assert list(other) != list(first)

    def test_rows_of_a_batch_have_similar_lengths(self) -> None:
        lengths = list(range(400))
        order = list(EpochLengthSampler(4, lengths, 1))
        spans = [max(order[start : start + 4]) - min(order[start : start + 4]) for start in range(4, 400, 4)]
        assert sorted(spans)[len(spans) // 2] < 30

    def test_grouping_is_a_setting(self, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
        settings = DistillationTraining(num_train_epochs=1, per_device_train_batch_size=2)
        lengths, spread = rows["length"][:], {}
        for grouped in (True, False):
            objective = Toy()
            train(TrainingRun("toy", settings, 1, tmp_path / str(grouped), grouped), objective, rows, collate)
            assert sorted(row for batch in objective.seen for row in batch) == list(range(NUM_ROWS))
            spread[grouped] = sum(abs(lengths[first] - lengths[second]) for first, second in objective.seen)
        assert spread[True] < 0.7 * spread[False]


def test_equal_runs_are_equal_and_other_seeds_are_not(rows: Dataset, collate: Collator, tmp_path: Path) -> None:
    first, second, third = Toy(), Toy(), Toy()
    run = new_run(tmp_path)
    for objective in (first, second):
        train(run, objective, rows, collate)
        shutil.rmtree(run.checkpoints)
    train(TrainingRun(run.name, run.settings, 8, run.checkpoints), third, rows, collate)
    assert_identical(first, second)
    assert not torch.equal(first.words.weight, third.words.weight)


def test_a_run_learns(rows: Dataset, collate: Collator, tmp_path: Path) -> None:
    history = train(new_run(tmp_path, num_train_epochs=20), Toy(), rows, collate)["log_history"]
    assert history[-1]["loss"] < history[0]["loss"] / 3


class TestActivationCheckpoints:
    """Layers are computed again for the gradient, with the same result."""

    def trained(
        self, name: str, folder: Path, rows: Dataset, collate: Collator, **changes: Any
    ) -> tuple[nn.Module, int]:
        """Return the objective and how often its first layer was computed in a training of two updates."""
        torch.manual_seed(0)
        case = ARCHITECTURES[name]
        config = case.new_config(case.new_tokenizer(), vocab_size=len(WORDS))
        config.pad_token_id = 0
        model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        model.config.use_cache = False
        layer = model.get_submodule(find_layer_stack(model))[0]
        calls: list[int] = []
        inner = next(module for module in layer.modules() if isinstance(module, nn.Linear | Conv1D))
        inner.register_forward_pre_hook(lambda *_: calls.append(1))
        filters = TaskAwareFilters([0, 3], 32, 32, "linear").initialise(0.1, torch.Generator().manual_seed(0))
        task = get_task(TaskSettings(), LABELS)
        objective = DistillationObjective(model, filters, None, [LayerMSE(1.0, "mean")], task)
        run = new_run(folder, max_steps=2, learning_rate=1e-3, **changes)
        train(run, objective, rows, collate)
        return objective, len(calls)

    @pytest.mark.parametrize("name", ["bert", "deberta-v3", "gemma3", "gpt2", "modernbert"])
    def test_weights_are_the_same_and_layers_run_twice(
        self, name: str, rows: Dataset, collate: Collator, tmp_path: Path
    ) -> None:
        kept = rows if name in {"bert", "deberta-v3"} else rows.remove_columns("token_type_ids")
        plain, calls = self.trained(name, tmp_path / "a", kept, collate)
        saving, more = self.trained(name, tmp_path / "b", kept, collate, gradient_checkpointing=True)
        assert more == 2 * calls
        assert_identical(saving, plain)

    def test_a_model_that_cannot_is_named(self, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
        class Stubborn(BertForSequenceClassification):  # type: ignore[no-untyped-call]
            supports_gradient_checkpointing = False

        objective = TaskObjective(Stubborn(new_config(num_labels=2)), get_task(TaskSettings(), LABELS))
        with pytest.raises(ModelError, match=r"Stubborn does not support .*\. Set gradient_checkpointing to false"):
            train(new_run(tmp_path, gradient_checkpointing=True), objective, rows, collate)
