import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.tiny import new_data, new_settings, write_decoder
from ted.config import Settings
from ted.errors import BundleError, ModelError, ParityError
from ted.export import bundle as export_module
from ted.export.bundle import export_bundle, serving_tokenizer
from ted.files import read_json, sha256_file, write_json
from ted.serving.bundle import open_bundle
from ted.serving.generation import Generator, open_predictor
from ted.serving.predictor import Predictor

EXAMPLE = Path(__file__).parents[3] / "examples" / "predict_with_onnxruntime.py"
LABELS = ("negative", "positive")
TEXTS = ["A good film.", "The acting, the plot and the actor: dull.", "unknown words " * 40, ""]

Export = Callable[..., dict[str, Any]]


def with_export(settings: Settings, **values: Any) -> Settings:
    return settings.model_copy(update={"export": settings.export.model_copy(update=values)})


def test_the_bundle_holds_what_serving_and_people_need(exported: Path) -> None:
    names = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    files = {"model.onnx", "model.int8.onnx", "tokenizer.json", "bundle.json", "README.md"}
    assert names == {"ted-student/config.pbtxt", *(f"ted-student/3/{name}" for name in files)}
    manifest = open_bundle(exported).manifest
    assert (manifest["name"], manifest["version"], manifest["format"], manifest["opset"]) == ("ted-student", 3, 1, 20)
    assert manifest["task"] == {"kind": "classification", "labels": ["negative", "positive"]}
    assert (manifest["max_length"], manifest["pair"]) == (40, False)
    assert manifest["inputs"] == ["input_ids", "token_type_ids", "attention_mask"]
    assert manifest["outputs"] == ["logits"]
    assert manifest["metrics"]["metrics"] == {"accuracy": 0.75}
    assert manifest["metrics"]["model"] == "trained student, float32"
    assert manifest["run_record"] == {"commit": "abc"}
    assert manifest["parameters"]["graph"] == manifest["parameters"]["model"]
    assert "# ted-student, version 3" in (exported / "ted-student" / "3" / "README.md").read_text()


def test_every_file_but_the_manifest_has_its_digest_and_size(exported: Path) -> None:
    folder = exported / "ted-student" / "3"
    listed = read_json(folder / "bundle.json")["files"]
    assert listed.keys() == {path.name for path in folder.iterdir()} - {"bundle.json"}
    for name, facts in listed.items():
        assert facts == {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}


def test_parity_stands_in_the_bundle(exported: Path) -> None:
    parity = open_bundle(exported).manifest["parity"]
    assert [(row["batch"], row["length"]) for row in parity["shapes"]] == [
        (b, n) for b in (1, 3, 5) for n in (8, 33, 40)
    ]
    assert parity["max_abs_difference"] == max(row["max_abs_difference"] for row in parity["shapes"]) < parity["atol"]
    assert parity["raw_text"]["texts"] == 16
    assert parity["raw_text"]["max_abs_difference"] < parity["atol"]


def test_an_accepted_int8_model_is_what_serving_loads(exported: Path) -> None:
    bundle = open_bundle(exported)
    assert bundle.manifest["int8"]["accepted"]
    assert bundle.model_path.name == "model.int8.onnx"


@pytest.mark.parametrize("int8", [True, False])
def test_the_served_file_itself_is_measured_on_the_test_split(
    export: Export, settings: Settings, data_folder: Path, tmp_path: Path, int8: bool
) -> None:
    data = load_from_disk(data_folder)
    data["test"] = data["test"].select(range(6))
    data.save_to_disk(tmp_path / "data")
    manifest = export(settings=with_export(settings, int8=int8), data=tmp_path / "data", out=tmp_path)
    served = manifest["served_metrics"]
    answers = Predictor(open_bundle(tmp_path / "ted-student")).predict(list(data["test"]["text"]))
    right = [answer["label"] == LABELS[label] for answer, label in zip(answers, data["test"]["label"], strict=True)]
    assert (served["model"], served["rows"]) == ("model.int8.onnx" if int8 else "model.onnx", 6)
    assert served["primary"] == served["metrics"]["accuracy"] == pytest.approx(np.mean(right))
    assert {"macro_f1", "matthews"} <= served["metrics"].keys()
    card = (tmp_path / "ted-student" / "1" / "README.md").read_text()
    assert f"| accuracy | 0.7500 | {np.mean(right):.4f} |" in card
    assert f"`{served['model']}`, which serving loads" in card


def test_the_self_test_answers_as_stored(exported: Path) -> None:
    bundle = open_bundle(exported)
    stored = bundle.manifest["self_test"]
    answer = Predictor(bundle).predict([stored["text"]])[0]
    assert answer["label"] == stored["answer"]["label"]
    assert answer["probabilities"] == pytest.approx(stored["answer"]["probabilities"], abs=1e-6)


def test_the_predictor_answers_as_the_trained_model(
    export: Export,
    settings: Settings,
    model: BertForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    manifest = export(settings=with_export(settings, int8=False), out=tmp_path)
    assert manifest["int8"]["reasons"] == ["export.int8 is false"]
    inputs = tokenizer(TEXTS, truncation=True, max_length=40, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = torch.softmax(model(**inputs).logits, -1).numpy()
    answers = Predictor(open_bundle(tmp_path)).predict(TEXTS)
    np.testing.assert_allclose([list(answer["probabilities"].values()) for answer in answers], expected, atol=1e-5)


def test_a_refused_int8_model_leaves_no_file(export: Export, settings: Settings, tmp_path: Path) -> None:
    manifest = export(settings=with_export(settings, int8_max_size_ratio=0.001), out=tmp_path)
    assert not manifest["int8"]["accepted"]
    assert re.match(r"size_ratio .* is above export\.int8_max_size_ratio", manifest["int8"]["reasons"][0])
    assert open_bundle(tmp_path).model_path.name == "model.onnx"
    assert not list(tmp_path.rglob("*int8*"))


def test_a_regression_on_pairs(
    export: Export,
    settings: Settings,
    pair_folders: tuple[Path, Path],
    tokenizer: PreTrainedTokenizerFast,
    evaluation: dict[str, Any],
    tmp_path: Path,
) -> None:
    task = settings.task.model_copy(update={"kind": "regression"})
    changed = with_export(settings.model_copy(update={"task": task}), int8=False)
    model, data = pair_folders
    measured = {**evaluation, "task": "regression", "primary_metric": "pearson"}
    manifest = export(settings=changed, model=model, data=data, evaluation=measured, out=tmp_path)
    assert manifest["task"] == {"kind": "regression", "labels": None}
    assert manifest["pair"]
    assert manifest["run_record"] == {}
    assert manifest == read_json(tmp_path / "ted-student" / "1" / "bundle.json")
    (answer,) = Predictor(open_bundle(tmp_path)).predict([("A good film.", "dull")])
    inputs = tokenizer("A good film.", "dull", return_tensors="pt")
    with torch.inference_mode():
        expected = BertForSequenceClassification.from_pretrained(model)(**inputs).logits.item()
    assert answer["value"] == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory, evaluation: dict[str, Any]) -> Path:
    """Return a folder with the model and the bundle of a causal language model."""
    folder = tmp_path_factory.mktemp("causal")
    write_decoder(folder / "backbone")
    new_data("causal_lm").save_to_disk(str(folder / "data"))
    bounds = {"int8_max_metric_drop": 100.0, "int8_max_latency_ratio": 1e6, "int8_max_size_ratio": 10.0}
    task = {"kind": "causal_lm", "max_new_tokens": 5}
    latency = {"latency_batch_sizes": [1, 2], "latency_repeats": 3}
    settings = new_settings(folder, task=task, export=bounds, evaluation=latency)
    measured = {**evaluation, "task": "causal_lm", "primary_metric": "perplexity", "higher_is_better": False}
    export_bundle(settings, folder / "backbone", folder / "data", measured, 1, folder)
    return folder


def test_a_causal_language_model_is_proved_with_its_cache(causal: Path) -> None:
    manifest = open_bundle(causal / "ted-student").manifest
    special = {"start_token": 3, "end_tokens": [3]}
    assert manifest["task"] == {"kind": "causal_lm", "labels": None, "max_new_tokens": 5, **special}
    shapes = [(row["batch"], row["length"], row["past"]) for row in manifest["parity"]["shapes"]]
    assert {(5, 16, 0), (1, 1, 7), (3, 1, 15)} <= set(shapes)
    assert manifest["parity"]["greedy"]["prompts"] == 8
    assert manifest["parity"]["greedy"]["equal"] == manifest["parity"]["greedy"]["tokens"] > 0
    assert manifest["parity"]["raw_text"]["texts"] == 4
    assert manifest["int8"]["accepted"]
    assert list(manifest["int8"]["latency_ratios"]) == ["1", "1 next token", "2"]
    assert manifest["parameters"]["graph"] == manifest["parameters"]["model"]


def test_a_causal_language_model_is_served_as_it_was_measured(causal: Path) -> None:
    bundle = open_bundle(causal / "ted-student")
    predictor = open_predictor(bundle)
    stored = bundle.manifest["self_test"]
    (answer,) = predictor.predict([stored["text"]])
    assert answer["continuation"] == stored["answer"]["continuation"]
    assert answer["log_probability"] == pytest.approx(stored["answer"]["log_probability"])
    assert len(answer["tokens"]) == min(8, len(stored["text"].split()))
    texts = load_from_disk(causal / "data")["test"]["text"][:]
    short = [text for text in texts if len(text.split()) <= 14]
    answers = predictor.predict(short)
    losses = -sum(answer["log_probability"] for answer in answers)
    tokens = sum(len(answer["tokens"]) for answer in answers)
    assert len(short) == len(texts)
    assert bundle.manifest["served_metrics"]["primary"] == pytest.approx(np.exp(losses / tokens), rel=1e-4)


def test_the_card_of_a_causal_language_model_says_how_to_use_it(causal: Path) -> None:
    folder = causal / "ted-student" / "1"
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert snippet is not None
    done = subprocess.run([sys.executable, "-c", snippet[1]], check=True, capture_output=True, text=True, cwd=folder)
    generator = open_predictor(open_bundle(folder))
    assert isinstance(generator, Generator)
    token, _ = next(generator.steps(generator.prompt("A first text.")[0]))
    assert done.stdout == f"{generator.tokenizer.decode([token])}\n"


def test_the_triton_config_names_the_cache(causal: Path) -> None:
    config = (causal / "ted-student" / "config.pbtxt").read_text()
    assert "# The client keeps the cache" in config
    found = re.findall(r'name: "([\w.]+)" data_type: (\w+) dims: \[ (.+) \]', config)
    assert found[:4] == [
        ("input_ids", "TYPE_INT64", "-1"),
        ("attention_mask", "TYPE_INT64", "-1"),
        ("past_key_values.0.key", "TYPE_FP32", "2, -1, 16"),
        ("past_key_values.0.value", "TYPE_FP32", "2, -1, 16"),
    ]
    assert found[10:12] == [("logits", "TYPE_FP32", "-1, 29"), ("present.0.key", "TYPE_FP32", "2, -1, 16")]


def test_a_flipped_byte_is_detected_when_the_bundle_is_opened(exported: Path, tmp_path: Path) -> None:
    folder = exported / "ted-student" / "3"
    copy = tmp_path / "1"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / "model.onnx").read_bytes())
    content[-1] ^= 0xFF
    (copy / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx has sha256"):
        open_bundle(copy)


def run_example(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, EXAMPLE, *arguments], check=False, capture_output=True, text=True)


@pytest.mark.parametrize("folder", ["ted-student", "ted-student/3"])
def test_the_short_script_opens_the_bundle(exported: Path, folder: str) -> None:
    answers = [json.loads(line) for line in run_example(exported / folder, *TEXTS[:2]).stdout.splitlines()]
    assert [answer["text"] for answer in answers] == TEXTS[:2]
    served = Predictor(open_bundle(exported / folder)).predict(TEXTS[:2])
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in served]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"task": {"kind": "multi_label"}}, "multi_label of texts"),
        ({"pair": True}, "classification of pairs of texts"),
    ],
)
def test_the_short_script_says_what_it_does_not_answer(
    exported: Path, tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    manifest = read_json(exported / "ted-student" / "3" / "bundle.json")
    write_json(tmp_path / "bundle.json", {**manifest, **changes})
    done = run_example(tmp_path, "a text")
    message = f"error: {tmp_path} is for {what}, not for a classification of single texts; use ted predict\n"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(message)


def test_the_triton_config_names_every_input_and_output(exported: Path) -> None:
    config = (exported / "ted-student" / "config.pbtxt").read_text()
    assert 'name: "ted-student"' in config
    assert 'backend: "onnxruntime"' in config
    assert "cache" not in config
    assert re.findall(r'name: "(\w+)" data_type: TYPE_INT64 dims: \[ -1 \]', config) == [
        "input_ids",
        "token_type_ids",
        "attention_mask",
    ]
    assert re.findall(r'name: "(\w+)" data_type: TYPE_FP32 dims: \[ 2 \]', config) == ["logits"]


def test_classes_in_another_order_than_the_data_are_refused(export: Export, model_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in model_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = read_json(other / "config.json")
    config["id2label"] = {"0": "positive", "1": "negative"}
    config["label2id"] = {"positive": 0, "negative": 1}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match=r"answers \['positive', 'negative'\], the data has \['negative', 'positive'\]"
    ):
        export(model=other, out=tmp_path / "out")


def test_a_tokenizer_file_that_reads_otherwise_leaves_no_bundle(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shorter(tokenizer: PreTrainedTokenizerFast, max_length: int, truncation: dict[str, Any]) -> Tokenizer:
        served = serving_tokenizer(tokenizer, max_length, truncation)
        served.add_tokens(["film"])
        served.add_special_tokens(["good"])
        served.post_processor = None
        return served

    monkeypatch.setattr(export_module, "serving_tokenizer", shorter)
    with pytest.raises(ParityError, match=r"answers to 16 validation texts differ .* the tokenizer file"):
        export(out=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_tokenizer_without_a_file_is_refused() -> None:
    tokenizer: Any = object()
    with pytest.raises(ModelError, match=r"object cannot be written as tokenizer\.json"):
        serving_tokenizer(tokenizer, 8, {})
