"""A student made of chosen layers of a teacher, for any model with one repeated stack of layers."""

import copy
import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ted.errors import ModelError


def find_layer_stack(model: PreTrainedModel) -> str:
    """Return the dotted name of the module list that holds the model's layers.

    Raises:
        ModelError: there is none, or more than one, with as many entries as the configuration has layers.
    """
    count = model.config.num_hidden_layers
    stacks = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(stacks) != 1:
        raise ModelError(
            f"{type(model).__name__} has {len(stacks)} stacks of {count} layers ({', '.join(stacks) or 'none'}), "
            "one is needed to choose layers from; name a ready student in student.model"
        )
    return str(stacks[0])


def build_student(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Return a model of the teacher's class that holds copies of the chosen layers and of everything outside the stack.

    Args:
        teacher: a model with one stack of layers.
        layers: 0-based teacher layers, rising; student layer k is a copy of teacher layer `layers[k]`.

    Raises:
        ModelError: a layer does not exist, or the model has no single stack.
    """
    count = teacher.config.num_hidden_layers
    if max(layers) >= count:
        raise ModelError(f"student.layers holds {max(layers)}, but the teacher has layers 0 to {count - 1}")
    student = type(teacher)(_student_config(teacher, layers))
    student.load_state_dict(_student_weights(teacher, layers))
    return student


def _student_config(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedConfig:
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = [teacher.config.layer_types[layer] for layer in layers]
    return config


def _student_weights(teacher: PreTrainedModel, layers: Sequence[int]) -> dict[str, object]:
    stack = re.compile(rf"^{re.escape(find_layer_stack(teacher))}\.(\d+)\.")
    place = {str(layer): position for position, layer in enumerate(layers)}
    weights = {}
    for name, tensor in teacher.state_dict().items():
        match = stack.match(name)
        if match is None:
            weights[name] = tensor
        elif match[1] in place:
            start, end = match.span(1)
            weights[f"{name[:start]}{place[match[1]]}{name[end:]}"] = tensor
    return weights
