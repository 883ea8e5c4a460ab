"""How stage II is wired: filters of each method, kept outputs, aligned starts, and the match of layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertForSequenceClassification, PreTrainedModel

from benchmarks.tiny import LABELS, new_config, new_data, new_settings, new_tokenizer, write_backbone
from ted.config import DataSettings, TaskSettings
from ted.data.preparation import Batch, collator, forward_batches, tokenize
from ted.distillation import Sides, layer_errors, layer_match, new_filters, teacher_outputs
from ted.errors import ModelError
from ted.filters import TaskAwareFilters
from ted.methods import Counts, LayerMSE
from ted.models.frozen import FrozenModel, OutputStore
from ted.models.loading import find_model, load_pretrained
from ted.models.student import build_student
from ted.objectives import DistillationObjective
from ted.tasks import get_task

TASK = get_task(TaskSettings(), LABELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distillation")
    write_backbone(folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return tokenize(new_data("classification")["train"], new_tokenizer(), TASK, DataSettings(max_length=16))


@pytest.fixture(scope="module")
def batches(rows: Dataset) -> list[Batch]:
    return list(forward_batches(rows, collator(new_tokenizer(), TASK)))


@pytest.fixture
def teacher(folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    return load_pretrained(find_model(str(folder / "backbone")), TASK).model


class TestNewFilters:
    def test_methods_without_layers_have_none(self, folder: Path) -> None:
        for method in ("finetune", "kd"):
            assert new_filters(new_settings(folder, method=method), 32, "teacher") is None

    def test_each_side_reads_its_own_layers(self, folder: Path) -> None:
        settings = new_settings(folder, filters={"filter_output_dim": 16})
        teacher, student = new_filters(settings, 32, "teacher"), new_filters(settings, 24, "student")
        assert teacher is not None
        assert student is not None
        assert (teacher.layers, teacher.input_dim, teacher.output_dim, teacher.kind) == ((1, 3), 32, 16, "linear")
        assert (student.layers, student.input_dim, student.output_dim, student.kind) == ((0, 1), 24, 16, "linear")

    def test_without_a_width_it_is_the_teachers(self, folder: Path) -> None:
        student = new_filters(new_settings(folder), 24, "student")
        assert student is not None
        assert student.output_dim == 32

    def test_lwd_takes_the_teachers_states_as_they_are(self, folder: Path) -> None:
        settings = new_settings(folder, method="lwd")
        kinds = [filters.kind for side in ("teacher", "student") if (filters := new_filters(settings, 32, side))]
        assert kinds == ["identity", "linear"]

    def test_nonlinear_filters_are_a_setting(self, folder: Path) -> None:
        options: dict[str, Any] = {"filter_nonlinear": True}
        settings = new_settings(folder, filters=options, distillation={"student_filter_init": "stage_one"})
        filters = new_filters(settings, 32, "teacher")
        assert filters is not None
        assert filters.kind == "nonlinear"

    def test_the_seed_decides_and_the_sides_differ(self, folder: Path) -> None:
        settings = new_settings(folder, method="random_filter")
        made = [new_filters(settings, 32, side) for side in ("teacher", "teacher", "student")]
        weights = [filters.state_dict()["filters.0.weight"] for filters in made if filters is not None]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert weights[0].std().item() == pytest.approx(0.02, rel=0.2)


class TestTeacherOutputs:
    def source(
        self, folder: Path, teacher: PreTrainedModel, rows: Dataset, batches: list[Batch], out: Path, **options: Any
    ) -> object:
        settings = new_settings(folder, distillation=options, run={"output_dir": str(out)})
        return teacher_outputs(settings, TASK, folder / "backbone", FrozenModel(teacher, (1, 3)), rows, batches)

    @pytest.mark.parametrize("options", [{}, {"teacher_cache": "on"}])
    def test_they_are_kept_where_they_fit(
        self, options: dict[str, Any], folder: Path, teacher: PreTrainedModel, rows: Dataset, batches: list[Batch],
        tmp_path: Path,
    ) -> None:  # fmt: skip
        assert isinstance(self.source(folder, teacher, rows, batches, tmp_path, **options), OutputStore)
        assert len(list((tmp_path / "teacher_outputs").iterdir())) == 1

    @pytest.mark.parametrize("options", [{"teacher_cache": "off"}, {"mask_padding": False}])
    def test_they_are_computed_where_the_settings_say_so(
        self, options: dict[str, Any], folder: Path, teacher: PreTrainedModel, rows: Dataset, batches: list[Batch],
        tmp_path: Path,
    ) -> None:  # fmt: skip
        assert isinstance(self.source(folder, teacher, rows, batches, tmp_path, **options), FrozenModel)
        assert list(tmp_path.iterdir()) == []

    def test_they_are_computed_where_they_would_not_fit(
        self, folder: Path, teacher: PreTrainedModel, rows: Dataset, batches: list[Batch], tmp_path: Path
    ) -> None:
        many = Dataset.from_dict({"length": [16] * 300})  # 300 x 16 tokens x 2 layers x 32 x 4 bytes: more than 1 MiB
        settings = new_settings(folder, distillation={"teacher_cache_mib": 1}, run={"output_dir": str(tmp_path)})
        frozen = FrozenModel(teacher, (1, 3))
        assert teacher_outputs(settings, TASK, folder / "backbone", frozen, many, batches) is frozen
        assert isinstance(self.source(folder, teacher, rows, batches, tmp_path, teacher_cache_mib=1), OutputStore)


class TestSides:
    @pytest.fixture
    def student(self, teacher: PreTrainedModel) -> PreTrainedModel:
        return build_student(teacher, [0, 2])

    def folders(self, tmp_path: Path, student_layers: list[int], width: int) -> tuple[Path, Path]:
        torch.manual_seed(1)
        TaskAwareFilters([1, 3], 32, 16, "linear").save(tmp_path / "teacher")
        TaskAwareFilters(student_layers, 32, width, "linear").save(tmp_path / "student")
        return tmp_path / "teacher", tmp_path / "student"

    def test_methods_without_layers_read_no_filters(self, folder: Path, student: PreTrainedModel) -> None:
        sides = Sides.load(new_settings(folder, method="kd"), student, folder / "no", folder / "no")
        assert (sides.teacher_filters, sides.student_filters, sides.teacher_layers) == (None, None, ())

    @pytest.mark.parametrize(("layers", "width", "message"), [([0], 16, "1 of width 16"), ([0, 1], 8, "2 of width 8")])
    def test_filters_that_do_not_match_are_refused(
        self, layers: list[int], width: int, message: str, folder: Path, student: PreTrainedModel, tmp_path: Path
    ) -> None:
        folders = self.folders(tmp_path, layers, width)
        with pytest.raises(ModelError, match=f"the teacher has 2 filters of width 16, the student {message}; learn bo"):
            Sides.load(new_settings(folder), student, *folders)

    @pytest.fixture
    def sides(self, folder: Path, student: PreTrainedModel, tmp_path: Path) -> Sides:
        return Sides.load(new_settings(folder), student, *self.folders(tmp_path, [0, 1], 16))

    def test_aligned_filters_match_better_than_any_other_start(
        self, sides: Sides, folder: Path, teacher: PreTrainedModel, batches: list[Batch]
    ) -> None:
        errors = {}
        for start in ("stage_one", "random", "ridge"):
            settings = new_settings(folder, distillation={"student_filter_init": start})
            source = FrozenModel(teacher, sides.teacher_layers)
            errors[start] = layer_errors(sides.objective(settings, TASK, source, batches), batches)
        for place in range(2):
            assert errors["ridge"][place] < min(errors["stage_one"][place], errors["random"][place])
            assert errors["ridge"][place] < 1.0

    @torch.no_grad()
    def test_aligned_filters_do_not_blow_up_the_noise_of_a_student_whose_states_hardly_vary(
        self, sides: Sides, folder: Path, teacher: PreTrainedModel, batches: list[Batch]
    ) -> None:
        for name, weight in sides.student.named_parameters():
            if name.endswith(("word_embeddings.weight", "position_embeddings.weight")):
                weight.mul_(0.01)
            elif name.endswith("token_type_embeddings.weight"):
                weight.fill_(1.0)
        objective = sides.objective(new_settings(folder), TASK, FrozenModel(teacher, sides.teacher_layers), batches)
        (term,) = (term for term in objective.terms if isinstance(term, LayerMSE))
        objective.train()
        for batch in batches:
            positions = batch["attention_mask"].sum()
            matched, _ = objective.match(batch)
            assert term.per_pair(matched, Counts(positions, positions, positions, positions)).max() < 1.5

    def test_stage_one_filters_stay_as_they_are(
        self, sides: Sides, folder: Path, teacher: PreTrainedModel, batches: list[Batch]
    ) -> None:
        assert sides.student_filters is not None
        before = sides.student_filters.state_dict()["filters.0.weight"].clone()
        settings = new_settings(folder, distillation={"student_filter_init": "stage_one"})
        sides.objective(settings, TASK, FrozenModel(teacher, sides.teacher_layers), batches)
        assert torch.equal(sides.student_filters.state_dict()["filters.0.weight"], before)

    def test_variances_of_targets_are_those_of_the_real_tokens(
        self, sides: Sides, folder: Path, teacher: PreTrainedModel, batches: list[Batch]
    ) -> None:
        source = FrozenModel(teacher, sides.teacher_layers)
        objective = sides.objective(new_settings(folder), TASK, source, batches)
        (term,) = (term for term in objective.terms if term.name == "layer_loss")
        assert sides.teacher_filters is not None
        for place in range(2):
            targets = [
                sides.teacher_filters.filter_states(source(batch).states)[place][batch["attention_mask"].bool()]
                for batch in batches
            ]
            expected = torch.cat(targets).double().numpy().var(0).mean()
            np.testing.assert_allclose(term.variances[place].item(), expected, rtol=1e-5)  # type: ignore[attr-defined]

    def test_a_target_that_hardly_varies_is_remarked(
        self, folder: Path, batches: list[Batch], caplog: pytest.LogCaptureFixture
    ) -> None:
        teacher = BertForSequenceClassification(new_config())
        filters = [TaskAwareFilters(layers, 32, 32, "linear") for layers in ([1, 3], [0, 1])]
        sides, source = Sides(build_student(teacher, [0, 2]), *filters), FrozenModel(teacher, (1, 3))
        raw = new_settings(folder, distillation={"layer_loss_units": "raw"})
        sides.objective(new_settings(folder), TASK, source, batches)
        last = teacher.get_submodule("bert.encoder.layer.3.output.LayerNorm")
        last.load_state_dict({"weight": torch.full((32,), 1e-3), "bias": torch.ones(32)})
        sides.objective(raw, TASK, source, batches)
        assert caplog.messages == []
        sides.objective(new_settings(folder), TASK, source, batches)
        (message,) = caplog.messages
        assert message.startswith("The filtered states of teacher layers [3] (-1: embeddings) are nearly the same for")
        assert "distillation.layer_loss_units: raw" in message

    def test_settings_reach_the_objective(
        self, sides: Sides, folder: Path, teacher: PreTrainedModel, batches: list[Batch]
    ) -> None:
        options = {"mask_padding": False, "filter_learning_rate_multiplier": 3.0}
        settings = new_settings(folder, distillation=options)
        objective = sides.objective(settings, TASK, FrozenModel(teacher, sides.teacher_layers), batches)
        assert not objective.mask_padding
        assert objective.parameter_scales() == {"filters.": 3.0}


class TestMatch:
    def test_a_copy_of_the_teacher_matches_it_wholly(
        self, folder: Path, teacher: PreTrainedModel, batches: list[Batch]
    ) -> None:
        filters = TaskAwareFilters([1, 3], 32, 32, "identity")
        sides = Sides(build_student(teacher, range(4)), filters, TaskAwareFilters([1, 3], 32, 32, "identity"))
        settings = new_settings(folder, distillation={"student_filter_init": "stage_one"})
        objective = sides.objective(settings, TASK, FrozenModel(teacher, (1, 3)), batches)
        assert layer_errors(objective, batches) == pytest.approx([0.0, 0.0], abs=1e-10)

    def test_a_student_that_says_the_mean_has_an_error_of_one(
        self, folder: Path, teacher: PreTrainedModel, batches: list[Batch]
    ) -> None:
        """Errors are relative to the variance of the target."""
        source = FrozenModel(teacher, (3,))
        real = torch.cat([source(batch).states[0][batch["attention_mask"].bool()] for batch in batches])
        constant = TaskAwareFilters([1], 32, 32, "linear")
        constant.filters[0].load_state_dict({"weight": torch.zeros(32, 32), "bias": real.mean(0)})
        sides = Sides(build_student(teacher, [0, 2]), TaskAwareFilters([3], 32, 32, "identity"), constant)
        settings = new_settings(folder, distillation={"student_filter_init": "stage_one"})
        (error,) = layer_errors(sides.objective(settings, TASK, source, batches), batches)
        # Mean of squares over tokens and features by the mean variance of features.
        assert error == pytest.approx(1.0, rel=1e-4)

    def test_without_filters_nothing_is_run(self, teacher: PreTrainedModel) -> None:
        objective = DistillationObjective(teacher, None, None, (), TASK)
        assert layer_errors(objective, iter(())) == []

    def test_rows_name_both_layers(self, teacher: PreTrainedModel) -> None:
        sides = Sides(teacher, TaskAwareFilters([1, 3], 4, 4, "identity"), TaskAwareFilters([0, 1], 4, 4, "identity"))
        assert layer_match(sides, [0.5, 0.6], [0.1, 0.2]) == [
            {"student_layer": 0, "teacher_layer": 1, "before": 0.5, "after": 0.1},
            {"student_layer": 1, "teacher_layer": 3, "before": 0.6, "after": 0.2},
        ]
        assert layer_match(Sides(teacher, None, None), [], []) == []
