"""A student made of chosen layers of a teacher, for any model with one repeated stack of layers."""

import copy
import re
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ted.errors import ModelError
from ted.models.facts import SHARED_LAYERS


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
        ModelError: a layer does not exist, the model has no single stack, or a layer cannot stand where it would.
    """
    count = teacher.config.num_hidden_layers
    if max(layers) >= count:
        raise ModelError(f"student.layers holds {max(layers)}, but the teacher has layers 0 to {count - 1}")
    student = type(teacher)(_student_config(teacher, layers))
    try:
        student.load_state_dict(_student_weights(teacher, layers))
    except RuntimeError as error:
        raise ModelError(
            f"the layers of {type(teacher).__name__} are not made alike, so {list(layers)} cannot stand at "
            f"{list(range(len(layers)))}: {_reason(error)}; choose student.layers that begin with 0"
        ) from error
    return student


def _student_config(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedConfig:
    """Return the teacher's configuration with fewer layers; what it lists by layer is chosen along."""
    config = copy.deepcopy(teacher.config)
    count = teacher.config.num_hidden_layers
    config.num_hidden_layers = len(layers)
    for name, value in vars(teacher.config).items():
        # Other lists may be as long by chance, such as the two kinds of attention of a DeBERTa of two layers.
        if "layer" in name and isinstance(value, list) and len(value) == count:
            setattr(config, name, [value[layer] for layer in layers])
    return config


def _student_weights(teacher: PreTrainedModel, layers: Sequence[int]) -> dict[str, Tensor]:
    if _shares_layers(teacher):
        return dict(teacher.state_dict())
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


def _shares_layers(teacher: PreTrainedModel) -> bool:
    setting = SHARED_LAYERS.get(teacher.config.model_type)
    if setting is None:
        return False
    if (groups := getattr(teacher.config, setting)) != 1:
        raise ModelError(
            f"{type(teacher).__name__} has {groups} sets of shared layers ({setting}), and layers can be chosen where "
            "there is one; name a ready student in student.model"
        )
    return True


def _reason(error: Exception) -> str:
    """Return what `load_state_dict` says on the line after its heading."""
    return str(error).splitlines()[-1].strip()
