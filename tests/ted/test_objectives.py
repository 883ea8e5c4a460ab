"""What each objective computes from a batch, what it trains and what it leaves alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.tiny import LABELS, new_data, new_tokenizer, write_backbone
from ted.config import DataSettings, FilterSettings, TaskSettings
from ted.data.preparation import Batch, collator, training_features
from ted.filters import TaskAwareFilters
from ted.methods import Counts, LayerMSE, PredictionKL, Term
from ted.models.frozen import FrozenModel
from ted.models.loading import LoadedModel, find_model, load_pretrained
from ted.models.student import build_student
from ted.objectives import DistillationObjective, FilteredTeacher, FilterObjective, TaskObjective
from ted.tasks import get_task

TASK = get_task(TaskSettings(), LABELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("objectives") / "backbone")


@pytest.fixture
def teacher(folder: Path) -> LoadedModel:
    torch.manual_seed(0)
    loaded = load_pretrained(find_model(str(folder)), TASK)
    loaded.model.train(mode=False)
    return loaded


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Labelled and unlabelled rows of uneven length."""
    tokenizer = new_tokenizer()
    data = new_data("classification", unlabelled=4, train=6)
    rows, _ = training_features(data, tokenizer, TASK, DataSettings(max_length=16))
    return collator(tokenizer, TASK)([rows[row] for row in (0, 6, 3, 9, 5)])


LABELLED = [0, 2, 4]


def logits_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    logits: torch.Tensor = model(**inputs).logits
    return logits


def test_counts_are_of_all_batches_together(teacher: LoadedModel, batch: Batch) -> None:
    counts = TaskObjective(teacher.model, TASK).count([batch, batch])
    assert counts.rows.item() == 10
    assert counts.labelled.item() == 6
    assert counts.positions.item() == 2 * batch["attention_mask"].sum().item()


def test_padding_counts_where_it_is_not_masked(teacher: LoadedModel, batch: Batch) -> None:
    objective = TaskObjective(teacher.model, TASK)
    objective.mask_padding = False
    assert objective.count([batch]).positions.item() == batch["input_ids"].numel()


def test_the_task_objective_is_the_loss_on_labelled_rows(teacher: LoadedModel, batch: Batch) -> None:
    objective = TaskObjective(teacher.model, TASK)
    values = objective(batch, objective.count([batch]))
    expected = functional.cross_entropy(logits_of(teacher.model, batch)[LABELLED], batch["labels"][LABELLED])
    torch.testing.assert_close(values["loss"], expected)
    assert torch.equal(values["task_loss"], values["loss"])


class TestFilterObjective:
    @pytest.fixture
    def objective(self, teacher: LoadedModel) -> FilterObjective:
        filters = TaskAwareFilters([1, 3], 32, 16, "linear")
        plain = FilterSettings(head_dropout=0.0)
        heads = nn.ModuleList(TASK.filter_head(16, plain, teacher.model) for _ in filters.layers)
        return FilterObjective(filters, heads, FrozenModel(teacher.model, filters.layers), TASK)

    def test_it_is_the_mean_over_filters_of_the_loss_of_their_own_heads(
        self, objective: FilterObjective, batch: Batch, teacher: LoadedModel
    ) -> None:
        values = objective(batch, objective.count([batch]))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            hidden = teacher.model(**inputs, output_hidden_states=True).hidden_states
        own = []
        for place, layer in enumerate([1, 3]):
            filtered = objective.filters.filters[place](hidden[layer + 1])
            logits = objective.heads[place](filtered, batch["attention_mask"])
            own.append(functional.cross_entropy(logits[LABELLED], batch["labels"][LABELLED]))
            torch.testing.assert_close(values[f"task_loss_{layer}"], own[-1])
        torch.testing.assert_close(values["loss"], torch.stack(own).mean())

    def test_filters_and_heads_learn_and_the_backbone_does_not(
        self, objective: FilterObjective, batch: Batch, teacher: LoadedModel
    ) -> None:
        objective(batch, objective.count([batch]))["loss"].backward()
        assert all(parameter.grad is not None for parameter in objective.parameters())
        assert all(parameter.grad is None for parameter in teacher.model.parameters())
        assert not any("backbone" in name for name in objective.state_dict())


class TestDistillationObjective:
    TERMS: Sequence[Term] = (PredictionKL(3.0, 2.0), LayerMSE(7.0, "mean"))

    @pytest.fixture
    def objective(self, teacher: LoadedModel) -> DistillationObjective:
        student = build_student(teacher.model, [0, 2])
        student.train(mode=False)
        source = FilteredTeacher(FrozenModel(teacher.model, [1, 3]), TaskAwareFilters([1, 3], 32, 16, "linear"))
        return DistillationObjective(student, TaskAwareFilters([0, 1], 32, 16, "linear"), source, self.TERMS, TASK)

    def test_the_loss_is_the_weighted_sum(self, objective: DistillationObjective, batch: Batch) -> None:
        values = objective(batch, objective.count([batch]))
        expected = values["task_loss"] + 3 * values["prediction_loss"] + 7 * values["layer_loss"]
        torch.testing.assert_close(values["loss"], expected)
        mean = (values["layer_loss_0"] + values["layer_loss_1"]) / 2
        torch.testing.assert_close(values["layer_loss"], mean)

    def test_unlabelled_rows_act_on_all_but_the_task_loss(self, objective: DistillationObjective, batch: Batch) -> None:
        """Another text in an unlabelled row changes predictions and layers, not the loss on labels."""
        other = {name: tensor.clone() for name, tensor in batch.items()}
        other["input_ids"][1, 1] = 5 if batch["input_ids"][1, 1] != 5 else 6
        values, changed = (objective(rows, objective.count([rows])) for rows in (batch, other))
        assert torch.equal(values["task_loss"], changed["task_loss"])
        assert not torch.equal(values["prediction_loss"], changed["prediction_loss"])
        assert not torch.equal(values["layer_loss"], changed["layer_loss"])

    def test_task_loss_is_that_of_the_labelled_rows_alone(self, objective: DistillationObjective, batch: Batch) -> None:
        values = objective(batch, objective.count([batch]))
        logits = logits_of(objective.student, batch)
        expected = functional.cross_entropy(logits[LABELLED], batch["labels"][LABELLED])
        torch.testing.assert_close(values["task_loss"], expected)

    def test_student_and_its_filters_learn_and_the_teacher_does_not(
        self, objective: DistillationObjective, batch: Batch, teacher: LoadedModel
    ) -> None:
        objective(batch, objective.count([batch]))["loss"].backward()
        assert all(parameter.grad is not None for parameter in objective.parameters())
        assert objective.teacher is not None
        assert objective.teacher.filters is not None
        frozen = [*teacher.model.parameters(), *objective.teacher.filters.parameters()]
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
        assert {name.split(".")[0] for name in objective.state_dict()} == {"student", "filters"}

    def test_the_teacher_stays_still_while_the_student_trains(
        self, objective: DistillationObjective, batch: Batch, teacher: LoadedModel
    ) -> None:
        objective.train()
        assert not teacher.model.training
        first, second = (objective.match(batch)[0] for _ in range(2))
        assert torch.equal(first.teacher_logits, second.teacher_logits)
        assert not torch.equal(first.student_logits, second.student_logits)

    def test_more_padding_changes_nothing(self, objective: DistillationObjective, batch: Batch) -> None:
        longer = {
            name: functional.pad(tensor, (0, 6)) if tensor.dim() == 2 else tensor for name, tensor in batch.items()
        }
        values, padded = (objective(rows, objective.count([rows])) for rows in (batch, longer))
        for name, value in values.items():
            torch.testing.assert_close(padded[name], value, rtol=1e-5, atol=1e-6)

    def test_unmasked_padding_enters_the_layer_loss(self, objective: DistillationObjective, batch: Batch) -> None:
        masked = objective(batch, objective.count([batch]))
        objective.mask_padding = False
        unmasked = objective(batch, objective.count([batch]))
        matched, _ = objective.match(batch)
        pairs = zip(matched.student_states, matched.teacher_states, strict=True)
        expected = torch.stack([functional.mse_loss(ours, theirs) for ours, theirs in pairs]).mean()
        torch.testing.assert_close(unmasked["layer_loss"], expected)
        assert not torch.equal(masked["layer_loss"], unmasked["layer_loss"])
        assert torch.equal(masked["prediction_loss"], unmasked["prediction_loss"])

    def test_the_step_size_of_filters_is_scaled(self, objective: DistillationObjective) -> None:
        objective.filter_scale = 4.0
        scales = objective.parameter_scales()
        scaled = {name for name, _ in objective.named_parameters() if any(name.startswith(prefix) for prefix in scales)}
        assert scaled == {
            f"filters.{name}" for name, _ in TaskAwareFilters([0, 1], 32, 16, "linear").named_parameters()
        }
        assert scales == {"filters.": 4.0}

    def test_without_a_teacher_it_is_fine_tuning(self, teacher: LoadedModel, batch: Batch) -> None:
        student = build_student(teacher.model, [0])
        student.train(mode=False)
        objective = DistillationObjective(student, None, None, (), TASK)
        plain = TaskObjective(student, TASK)
        counts: Counts = objective.count([batch])
        assert torch.equal(objective(batch, counts)["loss"], plain(batch, counts)["loss"])


def test_a_teacher_without_filters_gives_raw_states(teacher: LoadedModel, batch: Batch) -> None:
    source = FrozenModel(teacher.model, [1])
    assert torch.equal(FilteredTeacher(source, None)(batch).states[0], source(batch).states[0])
