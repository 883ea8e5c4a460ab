"""The configurations of the published tasks: every number is the published one, and a run can start from each."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pytest
import sentencepiece
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer
from typer.testing import CliRunner

from pipelines.configuration import read_configuration
from pipelines.ted_pipeline import ted_pipeline
from ted.cli import app
from ted.config import parse_settings
from ted.data.sources import load_dataset
from ted.distillation import Side, new_filters
from ted.matching import layer_pairs
from ted.settings_file import read_parameters

FOLDER = Path(__file__).parents[2] / "examples" / "published"
LARGE, SMALL = 0.01, 0.05
"""Shares of the training rows that are cut off for validation: ours, there are no published ones."""


class Published(NamedTuple):
    """The published values of a task. A step size, batch or warm-up is that of teacher and student."""

    teacher_lr: float
    student_lr: float
    batch: int
    epochs: int
    warmup: tuple[int, int]
    kl_alpha: int
    mse_alpha: int
    validation: float
    max_length: int = 256


PUBLISHED = {
    "mnli": Published(2e-5, 7e-5, 64, 3, (1500, 1500), 5, 7500, LARGE),
    "qqp": Published(2e-5, 6e-5, 64, 8, (5000, 5000), 20, 1000, LARGE),
    "qnli": Published(1e-5, 5e-5, 32, 3, (500, 500), 20, 100, LARGE),
    "sst2": Published(2e-5, 4e-5, 32, 6, (0, 0), 20, 20, LARGE),
    "rte": Published(3e-5, 6e-5, 16, 6, (0, 0), 20, 50, SMALL),
    "cola": Published(2e-5, 6e-5, 32, 6, (100, 0), 0, 10, SMALL),
    "mrpc": Published(3e-5, 7e-5, 32, 6, (0, 0), 20, 100, SMALL),
    "stsb": Published(2e-5, 1e-4, 16, 6, (100, 100), 20, 50, SMALL, max_length=128),
    "squad_v2": Published(3e-5, 5e-5, 8, 3, (0, 0), 10, 5000, LARGE, max_length=384),
}
WITHOUT_DROPOUT = {"cls_dropout": 0, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
# What a task has beside, or instead of, what all of them have.
EXCEPTIONS: dict[str, dict[str, float]] = {
    "rte": {
        **{
            f"{side}.dropout.{name}": value
            for side in ("teacher", "student")
            for name, value in WITHOUT_DROPOUT.items()
        },
        "filters.head_dropout": 0,
        "filters.student_training.per_device_train_batch_size": 32,
    },
    "cola": {"student.dropout.cls_dropout": 0},
    "squad_v2": {
        "data.stride": 128,
        "filters.head_dropout": 0,
        "teacher.training.per_device_train_batch_size": 24,
        "teacher.training.gradient_accumulation_steps": 2,
        "filters.training.per_device_train_batch_size": 48,
    },
}
# The larger a task, the more a checkpoint every hundred updates would cost.
SELDOM_KEPT = ("mnli", "qqp", "qnli", "sst2", "squad_v2")

# Teacher, student fine-tuned, KD, LWD, TED.
FIGURES = {
    ("mnli", "accuracy"): "90.6 88.3 88.5 88.4 88.8",
    ("qqp", "F1"): "89.9 88.9 89.0 89.0 89.5",
    ("qqp", "accuracy"): "92.5 91.7 91.8 91.8 92.2",
    ("qnli", "accuracy"): "94.1 92.6 92.8 92.9 93.1",
    ("sst2", "accuracy"): "96.4 93.6 94.0 94.3 94.4",
    ("rte", "accuracy"): "86.3 83.4 80.1 80.8 83.0",
    ("cola", "Matthews"): "68.4 66.0 64.6 65.8 68.3",
    ("mrpc", "F1"): "93.5 93.0 93.6 93.4 93.9",
    ("mrpc", "accuracy"): "90.9 90.4 91.2 90.9 91.7",
    ("stsb", "Spearman"): "91.5 90.4 90.7 90.6 91.1",
    ("squad_v2", "exact match"): "85.5 81.5 82.8 82.8 83.6",
    ("squad_v2", "F1"): "88.4 84.5 85.7 85.8 86.4",
}
# Weights of the baselines: kl_alpha of KD and of LWD, mse_alpha of LWD.
BASELINES = {
    "MNLI": (5, 5, 100),
    "QQP": (20, 20, 20),
    "QNLI": (20, 20, 10),
    "SST-2": (20, 20, 20),
    "RTE": (20, 20, 20),
    "CoLA": (20, 0, 5),
    "MRPC": (20, 20, 5),
    "STS-B": (20, 20, 5),
    "SQuAD 2.0": (10, 10, 100),
}

# The schema of the data sets on the hub: text columns and classes, in the hub's order.
GLUE: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "sst2": (("sentence",), ("negative", "positive")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "stsb": (("sentence1", "sentence2"), None),
}
# What stands in the configurations of the two models on the hub, beside the sizes.
DEBERTA: dict[str, Any] = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "pooler_dropout": 0,
    "pooler_hidden_act": "gelu",
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "position_buckets": 256,
    "relative_attention": True,
    "share_att_key": True,
    "type_vocab_size": 0,
}
BASE = {"hidden_size": 768, "pooler_hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
XSMALL = {"hidden_size": 384, "pooler_hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536}


def values_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["parameters"]
    return values


def numbers(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """Yield the dotted key and value of every number."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{path}{key}.")
        elif isinstance(value, int | float):
            yield f"{path}{key}", value


def expected(name: str) -> dict[str, float]:
    """Return every number that the configuration of a task should hold."""
    task = PUBLISHED[name]
    wanted: dict[str, float] = {
        "seed": 42,
        "data.max_length": task.max_length,
        "data.validation_fraction": task.validation,
        "filters.filter_output_dim": 768,
        "distillation.kl_alpha": task.kl_alpha,
        "distillation.mse_alpha": task.mse_alpha,
    }
    for block in ("teacher.training", "filters.training"):
        wanted |= {f"{block}.learning_rate": task.teacher_lr, f"{block}.warmup_steps": task.warmup[0]}
    for block in ("student.training", "filters.student_training", "distillation.training"):
        wanted |= {f"{block}.learning_rate": task.student_lr, f"{block}.warmup_steps": task.warmup[1]}
    for key in [key for key in wanted if key.endswith("learning_rate")]:
        block = key.removesuffix("learning_rate")
        wanted |= {f"{block}num_train_epochs": task.epochs, f"{block}per_device_train_batch_size": task.batch}
        if name in SELDOM_KEPT:
            wanted[f"{block}checkpoint_steps"] = 1000
    return wanted | EXCEPTIONS.get(name, {})


def test_there_is_a_configuration_for_each_task() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_number_is_the_published_one(name: str) -> None:
    assert dict(numbers(values_of(name))) == expected(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_rest_is_what_the_published_code_does(name: str) -> None:
    settings = read_parameters(FOLDER / f"{name}.yaml").resolved()
    assert (settings.compatibility, settings.method) == ("official", "ted")
    assert (settings.teacher.model, settings.student.model) == (
        "microsoft/deberta-v3-base",
        "microsoft/deberta-v3-xsmall",
    )
    stage_one = [settings.filters.training_of(side) for side in ("teacher", "student")]
    for training in (settings.teacher.training, settings.student.training, *stage_one, settings.distillation.training):
        assert (training.max_grad_norm, training.weight_decay, training.lr_scheduler_type) == (0.0, 0.0, "linear")
        assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_pipeline_hands_on_what_each_side_of_stage_one_is_trained_with(name: str) -> None:
    settings = read_configuration(FOLDER / f"{name}.yaml", lambda _: ())
    pipeline = ted_pipeline.copy()
    pipeline.prepare(**settings.model_dump(mode="json"))
    sides: dict[Side, str] = {"teacher": "filters.training", "student": "filters.student_training"}
    for side, block in sides.items():
        step = pipeline.invocations[f"learn_{side}_filters"]
        training = step.parameters["settings"].filters.training_of(side)
        wanted = {
            key.removeprefix(f"{block}."): value for key, value in expected(name).items() if key.startswith(block)
        }
        assert wanted
        assert {key: getattr(training, key) for key in wanted} == wanted
        assert training.max_grad_norm == 0.0


def test_each_task_has_a_name_of_its_own() -> None:
    assert len({values_of(name)["export"]["name"] for name in PUBLISHED}) == len(PUBLISHED)


def readme_rows() -> list[list[str]]:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_readme_gives_the_published_figures() -> None:
    found, name = {}, ""
    for command, *cells in readme_rows():
        match = re.fullmatch(r"`-c examples/published/(\w+)\.yaml`", command)
        name = match[1] if match else name
        if name and (match or not command) and len(cells) == 6:
            found[name, cells[0]] = " ".join(cells[1:])
    assert found == FIGURES


def test_the_readme_gives_the_weights_of_the_baselines() -> None:
    heading, *rows = [row for row in readme_rows() if len(row) == len(BASELINES) + 1 and "---" not in row]
    columns = zip(heading[1:], *(map(int, row[1:]) for row in rows), strict=True)
    assert {task: tuple(values) for task, *values in columns} == BASELINES


def hub_rows(name: str, count: int, *, known: bool, first: int) -> Dataset:
    """Return rows in the schema of a configuration of GLUE on the hub; without labels, they are -1."""
    columns, classes = GLUE[name]
    table: dict[str, list[Any]] = {
        column: [f"the film {number} is good {column} {number * 7}" for number in range(first, first + count)]
        for column in columns
    }
    label = Value("float32") if classes is None else ClassLabel(names=list(classes))
    table["label"] = [number % (len(classes or ()) or 5) if known else -1 for number in range(count)]
    table["idx"] = list(range(count))
    features = {**dict.fromkeys(columns, Value("string")), "label": label, "idx": Value("int32")}
    return Dataset.from_dict(table, features=Features(features))


def hub_squad(count: int, first: int) -> Dataset:
    """Return rows in the schema of SQuAD 2.0 on the hub; every second question has no answer."""
    places = range(first, first + count)
    answers: list[dict[str, list[Any]]] = [
        {"text": ["good"], "answer_start": [12]} if n % 2 else {"text": [], "answer_start": []} for n in places
    ]
    table = {
        "id": [str(number) for number in places],
        "title": ["film"] * count,
        "context": [f"the film is good {number}" for number in places],
        "question": [f"is the film {number} good" for number in places],
        "answers": answers,
    }
    feature = {"text": datasets.List(Value("string")), "answer_start": datasets.List(Value("int32"))}
    strings = dict.fromkeys(("id", "title", "context", "question"), Value("string"))
    return Dataset.from_dict(table, features=Features({**strings, "answers": feature}))


def from_hub(path: str, name: str | None = None, *, revision: str | None = None) -> DatasetDict:
    """Return what `datasets.load_dataset` would, of another size."""
    assert revision is None
    if path == "rajpurkar/squad_v2":
        assert name is None
        return DatasetDict(train=hub_squad(2000, 0), validation=hub_squad(40, 5000))
    assert path == "nyu-mll/glue"
    assert name is not None
    suffixes = ("_matched", "_mismatched") if name == "mnli" else ("",)
    splits = {"train": hub_rows(name, 2000, known=True, first=0)}
    for place, suffix in enumerate(suffixes, start=1):
        splits[f"validation{suffix}"] = hub_rows(name, 40, known=True, first=5000 * place)
        splits[f"test{suffix}"] = hub_rows(name, 40, known=False, first=15_000 * place)
    return DatasetDict(splits)


def write_model(folder: Path, sizes: Mapping[str, int]) -> None:
    """Write what a folder of the hub holds beside the weights, with a vocabulary of its own."""
    folder.mkdir(parents=True)
    names = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}
    special: dict[str, Any] = {f"{name}_piece": piece for name, piece in names.items()}
    special |= {f"{name}_id": place for place, name in enumerate(names)}
    texts = ["the film is good", "is the film good", "premise hypothesis sentence question", "0 1 2 3 4 5 6 7 8 9"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "spm"),
        vocab_size=50,
        hard_vocab_limit=False,
        minloglevel=2,
        **special,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    (folder / "config.json").write_text(json.dumps({**DEBERTA, "vocab_size": 128_100, **sizes}))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Serve the data sets, and give a working directory in which the ids of the models are folders."""
    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    monkeypatch.chdir(tmp_path)
    widths = dict.fromkeys(("hidden_size", "pooler_hidden_size", "intermediate_size"), 8)
    small = {**widths, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 100}
    for name in ("base", "xsmall"):
        write_model(tmp_path / "microsoft" / f"deberta-v3-{name}", small)
    return tmp_path


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_run_can_be_forecast(name: str) -> None:
    result = CliRunner().invoke(app, ["forecast", "-c", str(FOLDER / f"{name}.yaml")], catch_exceptions=False)
    output = " ".join(result.output.split())
    task = PUBLISHED[name]
    rows = 2000 - round(2000 * task.validation)
    updates = task.epochs * -(-rows // task.batch)
    assert result.exit_code == 0
    assert f"{rows:,} labelled and 0 unlabelled rows" in output
    assert re.search(rf"distill_student\W+{updates:,} ", output)
    assert "teacher outputs are computed again for each batch" in output


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", PUBLISHED)
def test_data_in_the_schema_of_the_hub_are_fit(name: str) -> None:
    result = CliRunner().invoke(app, ["check-data", "-c", str(FOLDER / f"{name}.yaml")], catch_exceptions=False)
    validation = round(2000 * PUBLISHED[name].validation)
    assert result.exit_code == 0
    fit = f"train {2000 - validation:,}, validation {validation}, test 40"
    assert result.stderr == f"0 rows excluded; fit for use: {fit}\n"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", GLUE)
def test_classes_and_columns_are_those_of_the_hub(name: str) -> None:
    settings = parse_settings(values_of(name))
    assert settings.task.labels == GLUE[name][1]
    dev = "validation_matched" if name == "mnli" else "validation"
    test = load_dataset(settings.data, settings.task, settings.seed)["test"]
    theirs = from_hub("nyu-mll/glue", name)[dev]
    for ours, column in zip(("text", "text_pair"), GLUE[name][0], strict=False):
        assert test[ours][:] == theirs[column][:]
    feature = theirs.features["label"]
    numbers_ = theirs["label"][:]
    assert test["label"][:] == (feature.int2str(numbers_) if isinstance(feature, ClassLabel) else numbers_)


def test_models_of_the_published_size_match_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sizes in (("base", BASE), ("xsmall", XSMALL)):
        write_model(tmp_path / "microsoft" / f"deberta-v3-{name}", sizes)
    monkeypatch.chdir(tmp_path)
    for name in PUBLISHED:
        settings = parse_settings(values_of(name)).resolved()
        assert layer_pairs(settings) == tuple((layer, layer) for layer in range(12))
    counts = []
    for side, sizes in (("teacher", BASE), ("student", XSMALL)):
        filters = new_filters(settings, sizes["hidden_size"], side)  # type: ignore[arg-type]
        assert filters is not None
        counts.append(sum(parameter.numel() for parameter in filters.parameters()))
    assert counts == [7_087_104, 3_548_160]


def test_a_tokenizer_in_the_form_of_the_hub_is_read(tmp_path: Path) -> None:
    write_model(tmp_path / "model", BASE)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer("the film", "is good")["input_ids"]
    assert tokenizer.decode(ids) == "[CLS] the film[SEP] is good[SEP]"
    assert tokenizer.pad_token_id == 0
