"""A student built from layers of a teacher of each architecture, or new with a changed configuration."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedModel,
)

from benchmarks.architectures import ARCHITECTURES
from benchmarks.tiny import new_config, spread_weights
from ted.errors import ModelError
from ted.models.facts import SHARED_LAYERS
from ted.models.student import build_student, changed_config, find_layer_stack, new_student


def new_teacher(name: str, **changes: Any) -> PreTrainedModel:
    """Return a random model of an architecture for three classes."""
    case = ARCHITECTURES[name]
    config = case.new_config(case.new_tokenizer(), num_labels=3, **changes)
    config.pad_token_id = 1
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    spread_weights(model, 1)
    model.train(mode=False)
    return model


# All but the kinds whose layers share their weights.
@pytest.fixture(params=[name for name in ARCHITECTURES if name not in SHARED_LAYERS])
def teacher(request: pytest.FixtureRequest) -> PreTrainedModel:
    return new_teacher(request.param)


BATCH = {
    "input_ids": torch.tensor([[2, 7, 8, 9, 3], [2, 10, 3, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


def stack_of(model: PreTrainedModel) -> nn.ModuleList:
    stack = model.get_submodule(find_layer_stack(model))
    assert isinstance(stack, nn.ModuleList)
    return stack


def test_student_layer_k_is_teacher_layer_layers_k(teacher: PreTrainedModel) -> None:
    student = build_student(teacher, [0, 3])
    assert student.config.num_hidden_layers == 2
    assert len(stack_of(student)) == 2
    for place, layer in enumerate([0, 3]):
        theirs = stack_of(teacher)[layer].state_dict()
        for name, tensor in stack_of(student)[place].state_dict().items():
            assert torch.equal(tensor, theirs[name]), name


def test_everything_outside_the_stack_is_the_teachers(teacher: PreTrainedModel) -> None:
    student, stack = build_student(teacher, [0]), find_layer_stack(teacher)
    outside = {name: tensor for name, tensor in teacher.state_dict().items() if not name.startswith(f"{stack}.")}
    ours = {name: tensor for name, tensor in student.state_dict().items() if not name.startswith(f"{stack}.")}
    assert ours.keys() == outside.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, outside[name]), name


@torch.no_grad()
def test_a_student_of_all_layers_is_the_teacher(teacher: PreTrainedModel) -> None:
    student = build_student(teacher, range(4))
    student.train(mode=False)
    assert torch.equal(student(**BATCH).logits, teacher(**BATCH).logits)


@torch.no_grad()
def test_a_student_of_the_first_layers_has_the_teachers_states(teacher: PreTrainedModel) -> None:
    """What goes into its last layer is what goes into that layer of the teacher."""
    student = build_student(teacher, [0, 1, 2])
    student.train(mode=False)
    ours = student(**BATCH, output_hidden_states=True).hidden_states
    theirs = teacher(**BATCH, output_hidden_states=True).hidden_states
    assert (len(ours), len(theirs)) == (4, 5)
    for place in range(3):
        torch.testing.assert_close(ours[place], theirs[place])


def test_the_student_shares_no_memory_with_the_teacher(teacher: PreTrainedModel) -> None:
    student = build_student(teacher, [0, 2])
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    spread_weights(student, 2)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert teacher.config.num_hidden_layers == 4


def test_a_student_comes_back_from_its_folder(teacher: PreTrainedModel, tmp_path: object) -> None:
    student = build_student(teacher, [0, 2])
    student.save_pretrained(str(tmp_path))
    loaded = AutoModelForSequenceClassification.from_pretrained(str(tmp_path))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, student.state_dict()[name]), name


def test_labels_travel_with_the_student() -> None:
    config = new_config(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    student = build_student(BertForSequenceClassification(config), [0])
    assert student.config.id2label == {0: "no", 1: "yes"}


def test_what_is_listed_by_layer_is_chosen_along() -> None:
    model = BertForSequenceClassification(new_config(layer_types=["full_attention", "sliding_attention"] * 2))
    assert build_student(model, [1, 2]).config.layer_types == ["sliding_attention", "full_attention"]
    assert new_teacher("gemma3").config.layer_types[1:3] == ["full_attention"] * 2
    assert build_student(new_teacher("gemma3"), [1, 2]).config.layer_types == ["full_attention"] * 2


def test_a_list_that_is_as_long_by_chance_stays() -> None:
    teacher = new_teacher("deberta-v3", num_hidden_layers=2)
    assert build_student(teacher, [1]).config.pos_att_type == ["p2c", "c2p"]


def test_a_layer_that_cannot_stand_elsewhere_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"not made alike, so \[1, 3\] cannot stand at \[0, 1\]: .*; choose student\.lay"
    ):
        build_student(new_teacher("modernbert"), [1, 3])


@torch.no_grad()
def test_a_student_of_shared_layers_runs_them_fewer_times() -> None:
    teacher = new_teacher("albert")
    student = build_student(teacher, [1, 3])
    student.train(mode=False)
    assert student.num_parameters() == teacher.num_parameters()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, teacher.state_dict()[name]), name
    ours, theirs = (model(**BATCH, output_hidden_states=True).hidden_states for model in (student, teacher))
    assert len(ours) == 3
    torch.testing.assert_close(ours[2], theirs[2])


def test_several_sets_of_shared_layers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"has 2 sets of shared layers \(num_hidden_groups\).*name a ready student"):
        build_student(new_teacher("albert", num_hidden_groups=2), [0, 2])


def test_a_shared_position_bias_is_kept() -> None:
    teacher = new_teacher("mpnet")
    name = "mpnet.encoder.relative_attention_bias.weight"
    assert torch.equal(build_student(teacher, [0, 2]).get_parameter(name), teacher.get_parameter(name))


@pytest.mark.parametrize(("name", "auto_class"), [("bert", AutoModelForMaskedLM), ("gpt2", AutoModelForCausalLM)])
def test_tied_embeddings_stay_tied(name: str, auto_class: Any) -> None:  # noqa: ANN401 - has no class of its own
    case = ARCHITECTURES[name]
    teacher = auto_class.from_config(case.new_config(case.new_tokenizer()))
    student = build_student(teacher, [0, 2])
    weight = student.get_input_embeddings().get_parameter("weight")
    assert student.get_output_embeddings().weight is weight  # type: ignore[no-untyped-call]
    assert torch.equal(weight, teacher.get_input_embeddings().weight)


class TestChangedConfig:
    def test_values_are_changed_by_either_name(self) -> None:
        config = new_teacher("distilbert").config
        assert (
            changed_config(config, {"n_layers": 2, "dim": 16}).to_dict().items() >= {"n_layers": 2, "dim": 16}.items()
        )
        assert changed_config(config, {"num_hidden_layers": 2}).num_hidden_layers == 2
        assert (config.num_hidden_layers, config.hidden_size) == (4, 32)

    def test_lists_by_layer_follow_the_number_of_layers(self) -> None:
        config = new_teacher("gemma3").config
        assert changed_config(config, {"num_hidden_layers": 2}).layer_types == ["sliding_attention", "full_attention"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"hiden_size": 16},
                r"student\.config\.hiden_size is no value of the teacher's BertConfig; did you mean hidden_s",
            ),
            (
                {"vocab_size": 9},
                r"student\.config\.vocab_size cannot be changed: student and teacher share it; remove it",
            ),
            ({"hidden_size": "wide"}, r"student\.config\.hidden_size cannot be 'wide': "),
        ],
    )
    def test_a_wrong_change_is_named(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ModelError, match=message):
            changed_config(new_config(), changes)

    def test_a_new_student_is_of_the_teachers_class(self) -> None:
        teacher = new_teacher("bert")
        changes = {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 1}
        student = new_student(teacher, changed_config(teacher.config, changes))
        assert type(student) is type(teacher)
        assert student(**BATCH, output_hidden_states=True).hidden_states[1].shape == (2, 5, 24)

    def test_values_that_do_not_fit_together_are_named(self) -> None:
        teacher = new_teacher("bert")
        with pytest.raises(ModelError, match=r"student\.config gives values that .* cannot be built from: .*32.*5"):
            new_student(teacher, changed_config(teacher.config, {"num_attention_heads": 5}))

    def test_more_layers_than_are_listed_are_refused(self) -> None:
        teacher = new_teacher("modernbert")
        with pytest.raises(ModelError, match=r"student\.config gives values that ModernBert.* cannot be built from"):
            new_student(teacher, changed_config(teacher.config, {"num_hidden_layers": 6}))

    def test_values_that_first_meet_while_a_text_is_read_are_refused(self) -> None:
        teacher = new_teacher("deberta-v3", pooler_hidden_size=32)
        with pytest.raises(ModelError, match=r"student\.config gives values that DebertaV2.* cannot be built from"):
            new_student(teacher, changed_config(teacher.config, {"hidden_size": 24, "num_attention_heads": 2}))


def test_a_layer_beyond_the_stack_is_refused() -> None:
    with pytest.raises(ModelError, match=r"student\.layers holds 4, but the teacher has layers 0 to 3"):
        build_student(BertForSequenceClassification(new_config()), [0, 4])


def test_a_model_without_one_stack_is_refused() -> None:
    model = BertForSequenceClassification(new_config())
    model.extra = nn.ModuleList(nn.Linear(1, 1) for _ in range(4))
    with pytest.raises(ModelError, match=r"has 2 stacks of 4 layers \(bert\.encoder\.layer, extra\), one is needed"):
        find_layer_stack(model)
    model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match=r"has 0 stacks of 7 layers \(none\), one is needed .* student\.model"):
        find_layer_stack(model)
