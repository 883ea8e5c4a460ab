"""A student built from layers of a teacher, for each architecture that a stack of layers can be found in."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from benchmarks.tiny import new_config, spread_weights
from ted.errors import ModelError
from ted.models.student import build_student, find_layer_stack

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 40,
    "dim": 32,
    "n_layers": 4,
    "n_heads": 2,
    "hidden_dim": 48,
    "max_position_embeddings": 64,
    "num_labels": 3,
}
RELATIVE: dict[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_buckets": 8,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "conv_kernel_size": 3,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": new_config(num_labels=3),
    "roberta": RobertaConfig(**SHAPE),
    "distilbert": DistilBertConfig(**DISTILBERT),
    "electra": ElectraConfig(**SHAPE, embedding_size=16),
    "mpnet": MPNetConfig(**SHAPE),
    "deberta-v2": DebertaV2Config(**SHAPE, **RELATIVE),
}


@pytest.fixture(params=CONFIGS)
def teacher(request: pytest.FixtureRequest) -> PreTrainedModel:
    config = CONFIGS[request.param]
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    spread_weights(model, 1)
    model.train(mode=False)
    return model


BATCH = {
    "input_ids": torch.tensor([[2, 7, 8, 9, 3], [2, 10, 3, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}


def stack_of(model: PreTrainedModel) -> nn.ModuleList:
    stack = model.get_submodule(find_layer_stack(model))
    assert isinstance(stack, nn.ModuleList)
    return stack


def test_student_layer_k_is_teacher_layer_layers_k(teacher: PreTrainedModel) -> None:
    student = build_student(teacher, [1, 3])
    assert student.config.num_hidden_layers == 2
    assert len(stack_of(student)) == 2
    for place, layer in enumerate([1, 3]):
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
    """What the student says after its last layer is what the teacher says there."""
    student = build_student(teacher, [0, 1])
    student.train(mode=False)
    ours = student(**BATCH, output_hidden_states=True).hidden_states
    theirs = teacher(**BATCH, output_hidden_states=True).hidden_states
    assert len(ours) == 3
    torch.testing.assert_close(ours[2], theirs[2])


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


def test_kinds_of_layers_are_chosen_along() -> None:
    model = BertForSequenceClassification(new_config(layer_types=["full_attention", "sliding_attention"] * 2))
    assert build_student(model, [1, 2]).config.layer_types == ["sliding_attention", "full_attention"]


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
