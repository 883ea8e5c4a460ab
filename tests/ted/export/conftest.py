"""A tiny BERT with random weights, a tokenizer made in memory, and bundles exported from them once per session."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from ted.config import Settings, parse_settings
from ted.files import write_json

MAX_LENGTH = 40
WORDS = ["good", "bad", "film", "plot", "and", "a", "the", "dull", "act", "##ing", "##or", "joy", "##ful", ",", "."]
TEXTS = [
    "A good film.",
    "The acting, the plot and the actor: dull.",
    "Joyful",
    "bad bad film, bad acting and a dull plot with a dull actor",
]


def new_model(num_labels: int) -> BertForSequenceClassification:
    """Return a BERT of which no two weights are equal."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_labels": num_labels}
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        **options,
    )
    if num_labels == 2:
        config.id2label = {0: "negative", 1: "positive"}
        config.label2id = {"negative": 0, "positive": 1}
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.train(mode=False)
    return model


def new_data(label: ClassLabel | Value, labels: list[Any], pair: bool) -> DatasetDict:
    columns: dict[str, Any] = {"text": TEXTS * 4, "label": labels * 4, "row": list(range(1, 17)), "source": ["x"] * 16}
    features = {"text": Value("string"), "label": label, "row": Value("int64"), "source": Value("string")}
    if pair:
        columns["text_pair"] = TEXTS[::-1] * 4
        features["text_pair"] = Value("string")
    dataset = Dataset.from_dict(columns, features=Features(features))
    return DatasetDict(dict.fromkeys(("train", "validation", "test"), dataset))


@pytest.fixture
def model() -> BertForSequenceClassification:
    return new_model(2)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of the vocabulary
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    options: dict[str, Any] = {"tokenizer_object": backend, "model_input_names": inputs, **special}
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(**options)  # type: ignore[no-untyped-call]
    return made


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Bounds that an 8-bit copy of a tiny model passes on any machine."""
    bounds = {"int8_max_metric_drop": 1.0, "int8_max_latency_ratio": 1e6, "int8_max_size_ratio": 10.0}
    evaluation = {"latency_batch_sizes": [1, 4], "latency_repeats": 3}
    return parse_settings({"data": {"max_length": MAX_LENGTH}, "export": bounds, "evaluation": evaluation})


@pytest.fixture(scope="session")
def evaluation() -> dict[str, Any]:
    student = {
        "primary": 0.75,
        "metrics": {"accuracy": 0.75},
        "slices": {},
        "agreement": 0.5,
        "parameters": 20_000,
        "size_bytes": 80_000,
        "latency_ms": {"1": 1.0},
        "latency_ratio": {"1": 0.5},
    }
    return {
        "task": "classification",
        "primary_metric": "accuracy",
        "higher_is_better": True,
        "rows": 16,
        "models": {"student": student},
        "gates": [],
    }


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path_factory.mktemp("student")
    new_model(2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "run_record.json", {"commit": "abc"})
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    new_data(ClassLabel(names=["negative", "positive"]), [1, 0, 1, 0], pair=False).save_to_disk(folder)
    return folder


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> tuple[Path, Path]:
    """Return model and data of a regression on pairs."""
    model, data = tmp_path_factory.mktemp("pair-student"), tmp_path_factory.mktemp("pair-data")
    new_model(1).save_pretrained(model)
    tokenizer.save_pretrained(model)
    new_data(Value("float32"), [0.5, 2.0, 1.5, 4.0], pair=True).save_to_disk(data)
    return model, data


@pytest.fixture
def export(settings: Settings, model_folder: Path, data_folder: Path, evaluation: dict[str, Any]) -> Callable[..., Any]:
    """Return a function that exports the tiny student, with any argument replaced."""
    from ted.export.bundle import export_bundle

    arguments: dict[str, Any] = {
        "settings": settings,
        "model": model_folder,
        "data": data_folder,
        "evaluation": evaluation,
        "version": 1,
    }
    return lambda **changes: export_bundle(**(arguments | changes))


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    settings: Settings,
    model_folder: Path,
    data_folder: Path,
    evaluation: dict[str, Any],
) -> Path:
    """Return a folder with a bundle whose 8-bit model was accepted; not to be changed."""
    from ted.export.bundle import export_bundle

    out = tmp_path_factory.mktemp("exported")
    export_bundle(settings, model_folder, data_folder, evaluation, 3, out)
    return out
