"""Random models of a few thousand weights, their tokenizer and a small data set: every stage runs in a second on them.

For drills and tests, where what counts is that two ways of doing a thing agree, not how well a model does.
"""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ted import stages
from ted.config import LANGUAGE_MODELS, Settings, parse_settings
from ted.stages import DistillationInputs

GOOD = ("good", "great", "fine", "superb", "lovely")
BAD = ("bad", "awful", "poor", "dull", "dreadful")
FILLING = ("the", "film", "a", "movie", "plot", "is", "was", "with", "and", "of", "actor", "scene", "very", "it")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, *GOOD, *BAD, *FILLING)
LABELS = ("negative", "positive")
NO_ANSWERS: dict[str, list[Any]] = {"text": [], "answer_start": []}
TOPICS = ("acting", "praise")
TAGS = ("B-BAD", "B-GOOD", "I-BAD", "I-GOOD", "O")
LABEL_TYPES = {
    "classification": ClassLabel(names=list(LABELS)),
    "multi_label": List(ClassLabel(names=list(TOPICS))),
    "regression": Value("float32"),
    "token_classification": List(ClassLabel(names=list(TAGS))),
}


def new_tokenizer(words: tuple[str, ...] = WORDS) -> PreTrainedTokenizerBase:
    """Return a word-level tokenizer in the manner of BERT; the first five words are its special tokens."""
    backend = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token=words[1]))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{words[2]} $A {words[3]}",
        pair=f"{words[2]} $A {words[3]} $B:1 {words[3]}:1",
        special_tokens=[(words[2], 2), (words[3], 3)],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    options: dict[str, Any] = dict(zip(names, words[:5], strict=True))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=inputs, **options
    )  # type: ignore[no-untyped-call]
    return made


def new_config(**changes: Any) -> BertConfig:
    """Return the configuration of a BERT of four layers, 32 wide."""
    options: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    return BertConfig(**(options | changes))


def spread_weights(model: nn.Module, seed: int) -> None:
    """Draw every weight anew, so wide that layers differ and no two of them are equal."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)


def write_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write a model and its tokenizer into a folder and return it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_backbone(folder: Path) -> Path:
    """Write a BERT without a head for any task."""
    model = BertModel(new_config())
    spread_weights(model, 0)
    return write_model(folder, model, new_tokenizer())


def new_decoder_tokenizer() -> PreTrainedTokenizerBase:
    """Return the tokenizer of a decoder: the same words, [SEP] as the end of a text, and no token added to a text."""
    tokenizer = new_tokenizer()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call] # by transformers
        tokenizer_object=_without_template(tokenizer.backend_tokenizer),
        model_input_names=["input_ids", "attention_mask"],
        pad_token=WORDS[0],
        unk_token=WORDS[1],
        eos_token=WORDS[3],
    )


def _without_template(backend: Tokenizer) -> Tokenizer:
    backend.post_processor = processors.Sequence([])
    return backend


def write_decoder(folder: Path) -> Path:
    """Write a GPT-2 of four layers, 32 wide, with its head for the next token."""
    tokenizer = new_decoder_tokenizer()
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    config = GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=4, n_head=2, n_positions=64, **ends)
    model = GPT2LMHeadModel(config)
    spread_weights(model, 0)
    return write_model(folder, model, tokenizer)


def new_data(kind: str, *, unlabelled: int = 0, train: int = 48, pair: bool = False) -> DatasetDict:
    """Return validated rows of uneven length: train, validation and test, and unlabelled ones if asked for.

    Rows of pairs have the words that decide in the second text.
    """
    draw = random.Random(0)  # noqa: S311 - rows of a drill
    splits = {
        "train": _split(kind, "train", train, draw),
        "validation": _split(kind, "validation", 16, draw),
        "test": _split(kind, "test", 16, draw),
    }
    if unlabelled:
        splits["unlabelled"] = _split(kind, "unlabelled", unlabelled, draw).remove_columns("label")
    return DatasetDict({name: _as_pairs(rows) for name, rows in splits.items()} if pair else splits)


def _as_pairs(rows: Dataset) -> Dataset:
    """Return rows whose text is the second one of a pair."""
    firsts = [" ".join(FILLING[place % 7 : place % 7 + 1 + place % 3]) for place in range(len(rows))]
    return rows.rename_column("text", "text_pair").add_column("text", firsts)


def _split(kind: str, name: str, count: int, draw: random.Random) -> Dataset:
    if kind == "question_answering":
        return _questions(name, count, draw)
    if kind in LANGUAGE_MODELS:
        return _split("regression", name, count, draw).remove_columns("label")
    texts: list[str] = []
    labels: list[Any] = []
    for row in range(count):
        good = row % 2
        words = draw.choices(FILLING, k=draw.randint(1, 12)) + draw.choices(GOOD if good else BAD, k=2)
        draw.shuffle(words)
        texts.append(" ".join(words))
        labels.append(_label(kind, good, words, draw))
    features = {"text": Value("string"), "label": LABEL_TYPES[kind], "row": Value("int64"), "source": Value("string")}
    columns = {"text": texts, "label": labels, "row": list(range(1, count + 1)), "source": [name] * count}
    return Dataset.from_dict(columns, features=Features(features))


def _questions(name: str, count: int, draw: random.Random) -> Dataset:
    """Return questions for the good or the bad word of a context of up to two windows; every sixth has no answer."""
    columns: dict[str, list[Any]] = {"text": [], "text_pair": [], "label": []}
    for row in range(count):
        wanted, other = (GOOD, BAD) if row % 2 else (BAD, GOOD)
        answer = draw.choice(wanted) if row % 6 else None
        words = [*draw.choices(FILLING, k=draw.randint(4, 14)), draw.choice(other), *([answer] if answer else [])]
        draw.shuffle(words)
        place = len(" ".join([*words[: words.index(answer)], ""])) if answer else None
        columns["text"].append(f"{draw.choice(FILLING)} {wanted[0]}")
        columns["text_pair"].append(" ".join(words))
        columns["label"].append({"text": [answer] * 2, "answer_start": [place] * 2} if answer else NO_ANSWERS)
    label = {"text": List(Value("string")), "answer_start": List(Value("int64"))}
    features = {"text": Value("string"), "text_pair": Value("string"), "label": label}
    features |= {"row": Value("int64"), "source": Value("string")}
    places = {"row": list(range(1, count + 1)), "source": [name] * count}
    return Dataset.from_dict(columns | places, features=Features(features))


def _label(kind: str, good: int, words: list[str], draw: random.Random) -> Any:  # noqa: ANN401 - depends on the kind
    if kind == "multi_label":
        return [topic for topic, found in enumerate(("actor" in words, bool(good))) if found]
    if kind == "token_classification":
        return [TAGS.index(tag) for tag in _tags(words)]
    return good if kind == "classification" else good + draw.random()


def _tags(words: list[str]) -> list[str]:
    """Return tags that mark neighbouring good or bad words as one entity."""
    kinds = ["GOOD" if word in GOOD else "BAD" if word in BAD else "" for word in words]
    pairs = zip(["", *kinds], kinds, strict=False)
    return [f"{'I' if kind == before else 'B'}-{kind}" if kind else "O" for before, kind in pairs]


def new_settings(folder: Path, **changes: dict[str, Any] | str) -> Settings:
    """Return settings of a short run whose teacher is the backbone in `folder`, with values of sections changed.

    Args:
        folder: holds `backbone`; checkpoints and kept outputs go to `runs` in it.
        changes: sections of values, or a value where there is no section.
    """
    training = {"max_steps": 8, "per_device_train_batch_size": 8, "checkpoint_steps": 4, "learning_rate": 1e-3}
    values: dict[str, Any] = {
        "data": {"max_length": 16},
        "teacher": {"model": str(folder / "backbone"), "training": training},
        "student": {"training": training},
        "distillation": {"training": training},
        "run": {"output_dir": str(folder / "runs")},
    }
    if changes.get("method", "ted") == "ted":
        values["filters"] = {"training": training}
    task = changes.get("task", {})
    if isinstance(task, dict) and task.get("kind") == "question_answering":
        values["data"] |= {"text_pair_column": "text_pair", "stride": 4}
    for section, change in changes.items():
        values[section] = values.get(section, {}) | change if isinstance(change, dict) else change
    return parse_settings(values).resolved()


def distillation_inputs(folder: Path) -> DistillationInputs:
    """Return the folders that a run of all stages before stage II leaves in `folder`."""
    names = ("data", "teacher", "teacher_filters", "student_start", "student_filters")
    return DistillationInputs(*(folder / name for name in names))


def run_stages(settings: Settings, folder: Path) -> dict[str, Any]:
    """Take the data in a folder to teacher, student start, filters and student in it; return stage II's metrics."""
    inputs = distillation_inputs(folder)
    stages.finetune_teacher(settings, inputs.data, inputs.teacher)
    stages.prepare_student(settings, inputs.data, inputs.student)
    stages.learn_filters(settings, inputs.data, inputs.teacher, "teacher", inputs.teacher_filters)
    stages.learn_filters(settings, inputs.data, inputs.student, "student", inputs.student_filters)
    return stages.distill_student(settings, inputs, folder / "student")
