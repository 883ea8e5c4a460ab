"""A student made from a teacher: of chosen layers of its one repeated stack, or new with a changed configuration."""

import copy
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ted.errors import ModelError
from ted.models.facts import SHARED_LAYERS
from ted.models.layers import choose

IDENTITY: Final = frozenset(f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep", "mask")) | {
    "vocab_size",
    "model_type",
    "architectures",
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
    "dtype",
}
"""Values of a configuration that teacher and student have in common, or that loading and training set."""


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
    student = type(teacher)(chosen_config(teacher.config, layers))
    try:
        student.load_state_dict(_student_weights(teacher, layers))
    except RuntimeError as error:
        raise ModelError(
            f"the layers of {type(teacher).__name__} are not made alike, so {list(layers)} cannot stand at "
            f"{list(range(len(layers)))}: {_reason(error)}; choose student.layers that begin with 0"
        ) from error
    return student


def new_student(teacher: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model of the teacher's class with random weights.

    Raises:
        ModelError: the class cannot be built from the configuration, or cannot read a text then.
    """
    try:
        student = type(teacher)(config)
        # Values that do not fit together often show where they first meet.
        with torch.no_grad():
            student.train(False)(input_ids=torch.zeros(1, 2, dtype=torch.long))
    except (ValueError, TypeError, RuntimeError, IndexError, KeyError, StrictDataclassError) as error:
        raise ModelError(
            f"student.config gives values that {type(teacher).__name__} cannot be built from: {_reason(error)}"
        ) from error
    return student


def chosen_config(config: PreTrainedConfig, layers: Sequence[int]) -> PreTrainedConfig:
    """Return a configuration with fewer layers; what it lists by layer is chosen along.

    Raises:
        ModelError: a layer does not exist.
    """
    count = config.num_hidden_layers
    if max(layers) >= count:
        raise ModelError(f"student.layers holds {max(layers)}, but the teacher has layers 0 to {count - 1}")
    chosen = copy.deepcopy(config)
    chosen.num_hidden_layers = len(layers)
    for name, value in vars(config).items():
        # Other lists may be as long by chance, such as the two kinds of attention of a DeBERTa of two layers.
        if "layer" in name and isinstance(value, list) and len(value) == count:
            setattr(chosen, name, [value[layer] for layer in layers])
    return chosen


def changed_config(config: PreTrainedConfig, changes: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a configuration with values changed; what it lists by layer follows the number of layers.

    Args:
        config: of the teacher.
        changes: values by name.

    Raises:
        ModelError: a value has no such name, cannot be changed or taken, or there are more layers than are listed.
    """
    for name in changes:
        if name in IDENTITY:
            raise ModelError(f"student.config.{name} cannot be changed: student and teacher share it; remove it")
        if name not in config.to_dict() and name not in config.attribute_map:
            near = difflib.get_close_matches(name, config.to_dict(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ModelError(f"student.config.{name} is no value of the teacher's {type(config).__name__}{hint}")
    count = {config.attribute_map.get(name, name): value for name, value in changes.items()}.get("num_hidden_layers")
    changed = copy.deepcopy(config)
    if count is not None and count < config.num_hidden_layers:
        changed = chosen_config(config, choose(config.num_hidden_layers, count, "evenly"))
    for name, value in changes.items():
        try:
            setattr(changed, name, value)
        except (ValueError, TypeError, StrictDataclassError) as error:
            raise ModelError(f"student.config.{name} cannot be {value!r}: {_reason(error)}") from error
    return changed


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
    """Return the last line of a message, which is where libraries say what is wrong."""
    return str(error).splitlines()[-1].strip()
