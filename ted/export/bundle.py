"""Writing the bundle: everything that serving needs, each file with its digest, and the proof that it is equal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ted.config import Settings
from ted.data.preparation import Batch, collator, forward_batches, tokenize
from ted.errors import ModelError, ParityError
from ted.evaluation import latency_batch_sizes, outputs_of
from ted.export.causal import beginnings, check_causal_parity, check_greedy, export_causal, generation_facts
from ted.export.onnx import Graph, export_onnx, input_names
from ted.export.parity import check_parity, padded_batch, parity_batches, within
from ted.export.quantization import Validation, judge_int8, quantize, refused_int8
from ted.files import atomic_file, atomic_folder, read_json, sha256_file, write_json
from ted.models.frozen import run_model
from ted.models.loading import load_trained
from ted.report.model_card import render
from ted.serving.answers import Text
from ted.serving.bundle import FORMAT, MANIFEST, TOKENIZER, Bundle, open_bundle
from ted.serving.generation import CAUSAL_KIND, PAST, Generator, open_predictor
from ted.serving.predictor import Predictor, ServedModel, logits_of
from ted.tasks import Task, get_task, labels_of
from ted.tasks.base import Outputs

MODEL: Final = "model.onnx"
INT8_MODEL: Final = "model.int8.onnx"
CARD: Final = "README.md"
RUN_RECORD: Final = "run_record.json"
TRITON_CONFIG: Final = "config.pbtxt"
# Of which model the figures of the evaluation are.
TRAINED: Final = "trained student, float32"
EXAMPLE_SHAPE: Final = (3, 8)
TRITON_MAX_BATCH: Final = 64
CACHE_NOTE: Final = """
# The client keeps the cache: past_key_values of a text's beginning have 0 tokens, those of a further run are what the
# run before gave as present. The attention mask covers the tokens of the cache too."""

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """What is exported, the validation split that it is proven on, and the test split."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    validation: Dataset
    test: Dataset

    @property
    def texts(self) -> list[Text]:
        """Texts or pairs of the validation split."""
        return _texts(self.validation)

    @property
    def causal(self) -> bool:
        """Whether the model predicts the next token."""
        return self.task.kind == CAUSAL_KIND

    @property
    def pair(self) -> bool:
        """Whether the task reads two texts."""
        return "text_pair" in self.validation.column_names


def _texts(split: Dataset) -> list[Text]:
    first: list[str] = list(split["text"])
    return list(zip(first, split["text_pair"], strict=True)) if "text_pair" in split.column_names else list(first)


def export_bundle(
    settings: Settings, model: Path, data: Path, evaluation: Mapping[str, Any], version: int, out: Path
) -> Manifest:
    """Write `<name>/<version>` below a folder and return the content of its bundle.json.

    The version appears complete or not at all; other versions of the name stay.

    Args:
        settings: what the run acts on; sections task, data, quality, evaluation and export are used.
        model: folder of the trained student; its run_record.json goes into the bundle.
        data: folder of the validated data.
        evaluation: content of evaluation.json; the figures of the trained float32 student go into the bundle as
            `metrics`, beside those of the file that serving loads, which are measured here, as `served_metrics`.
        version: number of the version, from 1.
        out: folder that will hold the name folder.

    Raises:
        ModelError: the model cannot be exported, or its classes are not those of the data.
        ParityError: the exported model, or its answers to raw text, differ from the trained one.
    """
    assert version >= 1
    trained = _load(settings, model, data)
    name_folder = out / settings.export.name
    with atomic_folder(name_folder / str(version)) as folder:
        manifest = _prove(settings, trained, folder, version)
        manifest["metrics"] = _metrics(evaluation)
        record = model / RUN_RECORD
        manifest["run_record"] = read_json(record) if record.is_file() else {}
        _finish(folder, manifest)
        with atomic_file(name_folder / TRITON_CONFIG) as config:
            config.write_text(triton_config(manifest), encoding="utf-8")
    return manifest


def triton_config(manifest: Mapping[str, Any]) -> str:
    """Return the config.pbtxt with which Triton's onnxruntime backend serves every version of the name.

    Args:
        manifest: content of a bundle.json.
    """
    inputs = ",\n".join(
        _triton_tensor(name, "TYPE_FP32" if name.startswith(PAST) else "TYPE_INT64", dims)
        for name, dims in manifest["input_dims"].items()
    )
    outputs = ",\n".join(_triton_tensor(name, "TYPE_FP32", dims) for name, dims in manifest["output_dims"].items())
    note = CACHE_NOTE if any(name.startswith(PAST) for name in manifest["inputs"]) else ""
    return f"""\
# Tokens in, raw outputs out; the batch axis comes before the dims. Set default_model_filename to "{INT8_MODEL}"
# only if every version that is served has that file.{note}
name: "{manifest["name"]}"
backend: "onnxruntime"
default_model_filename: "{MODEL}"
max_batch_size: {TRITON_MAX_BATCH}
input [
{inputs}
]
output [
{outputs}
]
dynamic_batching {{ }}
"""


def _triton_tensor(name: str, data_type: str, dims: Sequence[int]) -> str:
    return f'  {{ name: "{name}" data_type: {data_type} dims: [ {", ".join(map(str, dims))} ] }}'


def _load(settings: Settings, model: Path, data: Path) -> Trained:
    dataset = load_from_disk(data)
    assert isinstance(dataset, DatasetDict)
    task = get_task(settings.task, labels_of(dataset))
    loaded = load_trained(model)
    config: Any = loaded.model.config
    names = tuple(config.id2label[index] for index in sorted(config.id2label or {}))
    if task.label_names and names != task.label_names:
        raise ModelError(
            f"{model} answers {list(names)}, the data has {list(task.label_names)}; export the model of this run"
        )
    return Trained(loaded.model, loaded.tokenizer, task, dataset["validation"], dataset["test"])


def _prove(settings: Settings, trained: Trained, folder: Path, version: int) -> Manifest:
    """Write models and tokenizer, hold them against the trained model, and return the manifest as far as it goes."""
    graph = _export(settings, trained, folder / MODEL)
    batches = parity_batches(trained.tokenizer, trained.texts, settings.data.max_length)
    check = check_causal_parity if trained.causal else check_parity
    shapes = check(trained.model, folder / MODEL, batches, settings.export)
    cut = trained.task.truncation(settings.data)
    serving_tokenizer(trained.tokenizer, settings.data.max_length, cut).save(str(folder / TOKENIZER))
    manifest = _describe(settings, trained, graph, version)
    predictor = open_predictor(Bundle(folder, manifest))
    manifest["parity"] = {
        "atol": settings.export.atol,
        "rtol": settings.export.rtol,
        "max_abs_difference": max(row["max_abs_difference"] for row in shapes),
        "shapes": shapes,
        "raw_text": _check_served(trained, predictor, settings),
    }
    if isinstance(predictor, Generator):
        prompts = beginnings(predictor, trained.texts)
        manifest["parity"]["greedy"] = check_greedy(trained.model, predictor, prompts, settings.export)
    manifest["int8"] = _try_int8(settings, trained, Bundle(folder, manifest))
    manifest["model"] = INT8_MODEL if manifest["int8"]["accepted"] else MODEL
    predictor = open_predictor(Bundle(folder, manifest))
    manifest["self_test"] = _self_test(trained.texts, predictor)
    manifest["served_metrics"] = _measure_served(trained, predictor, settings)
    return manifest


def _export(settings: Settings, trained: Trained, path: Path) -> Graph:
    if trained.causal:
        return export_causal(trained.model, settings.export.opset, path)
    example = padded_batch(trained.tokenizer, trained.texts, *EXAMPLE_SHAPE)
    example = {name: example[name] for name in input_names(trained.tokenizer)}
    return export_onnx(trained.model, example, trained.task.output_names, settings.export.opset, path)


def serving_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int, truncation: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer as its file in a bundle holds it: cutting to `max_length` and padding on the right.

    Args:
        tokenizer: of the trained model.
        max_length: tokens of a text or window.
        truncation: stride and strategy of windows, if the task has any.

    Raises:
        ModelError: it is not made of one tokenizer.json.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ModelError(
            f"{type(tokenizer).__name__} cannot be written as {TOKENIZER}; use a model with a fast tokenizer"
        )
    served = Tokenizer.from_str(backend.to_str())
    served.enable_truncation(max_length, direction=tokenizer.truncation_side, **truncation)
    served.enable_padding(
        direction="right",
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    return served


def _describe(settings: Settings, trained: Trained, graph: Graph, version: int) -> Manifest:
    task = trained.task
    facts = task.serving() | {name: getattr(trained.tokenizer, name) for name in task.special_tokens}
    if trained.causal:
        facts |= generation_facts(trained.model, trained.tokenizer)
    return {
        "format": FORMAT,
        "name": settings.export.name,
        "version": version,
        "task": {"kind": task.kind, "labels": list(task.label_names) or None, **facts},
        "pipeline_tag": task.pipeline_tag,
        "max_length": settings.data.max_length,
        "max_characters": settings.quality.max_characters,
        "pair": trained.pair,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "input_dims": {name: list(dims) for name, dims in graph.input_dims.items()},
        "output_dims": {name: list(dims) for name, dims in graph.output_dims.items()},
        "opset": graph.opset,
        "parameters": {"model": graph.model_parameters, "graph": graph.graph_parameters},
        "model": MODEL,
    }


def _check_served(trained: Trained, predictor: ServedModel, settings: Settings) -> dict[str, Any]:
    """Compare answers to raw text, through the stored tokenizer, with the trained model behind its own tokenizer."""
    # The logits of so many fit into memory.
    texts = trained.texts[: trained.task.forward_rows]
    rows = trained.validation.select(range(len(texts)))
    served = [logits for windows in predictor.logits(predictor.encode(texts)) for logits in windows]
    encode = trained.task.encode_served
    features = tokenize(rows, trained.tokenizer, trained.task, settings.data, encode=encode)
    expected = _model_logits(trained, features)
    lengths = ([len(logits) for logits in served], [len(logits) for logits in expected])
    problem, difference = f"{lengths[0]} tokens instead of {lengths[1]}", math.inf
    if lengths[0] == lengths[1]:
        pairs = list(zip(served, expected, strict=True))
        difference = max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs)
        problem = f"differences of up to {difference:.3g}"
        if all(within(ours, theirs, settings.export) for ours, theirs in pairs):
            return {"texts": len(texts), "max_abs_difference": difference}
    raise ParityError(
        f"answers to {len(texts)} validation texts differ from the trained model's ({problem}), although the graphs "
        "are equal: the tokenizer file does not do what the model's tokenizer does"
    )


@torch.inference_mode()
def _model_logits(trained: Trained, features: Dataset) -> list[NDArray[np.floating]]:
    """Return the trained model's logits of each feature: (C), or (L, C) of its real tokens."""
    found: dict[int, NDArray[np.floating]] = {}
    for batch in forward_batches(features, collator(trained.tokenizer, trained.task), trained.task.forward_rows):
        logits = run_model(trained.model, batch, ()).logits.numpy()
        lengths = batch["attention_mask"].sum(1).tolist()
        for place, length, row in zip(batch["index"].tolist(), lengths, logits, strict=True):
            found[place] = row[:length] if row.ndim > 1 else row
    return [found[place] for place in range(len(features))]


def _measured(trained: Trained, split: Dataset, predictor: ServedModel, settings: Settings) -> Outputs:
    """Return what a served model says of each row of a split, in ONNX Runtime."""
    features = tokenize(split, trained.tokenizer, trained.task, settings.data)

    def run(batch: Batch) -> Tensor:
        feeds = {name: batch[name].numpy() for name in predictor.bundle.manifest["inputs"] if name in batch}
        return torch.from_numpy(logits_of(predictor.run(feeds)))

    rows_per_run = min(predictor.rows_per_run, trained.task.forward_rows)
    batches = forward_batches(features, collator(trained.tokenizer, trained.task), rows_per_run)
    return outputs_of(run, trained.task, split, features, batches)[0]


def _try_int8(settings: Settings, trained: Trained, bundle: Bundle) -> dict[str, Any]:
    """Return the verdict on an 8-bit copy; its file stays only if it is accepted."""
    if not settings.export.int8:
        return refused_int8("export.int8 is false")
    candidate = Bundle(bundle.folder, {**bundle.manifest, "model": INT8_MODEL})
    quantize(bundle.model_path, candidate.model_path)
    task = trained.task
    references_N = task.references(trained.validation)

    def score(predictor: ServedModel) -> float:
        outputs = _measured(trained, trained.validation, predictor, settings)
        return task.primary(task.scores(outputs, references_N))

    validation = Validation(trained.texts, score, task.higher_is_better)
    models = (open_predictor(bundle), open_predictor(candidate))
    sizes, repeats = latency_batch_sizes(settings.evaluation, task), settings.evaluation.latency_repeats
    verdict = judge_int8(*models, validation, settings.export, batch_sizes=sizes, repeats=repeats)
    if not verdict["accepted"]:
        candidate.model_path.unlink()
    return verdict


def _measure_served(trained: Trained, predictor: ServedModel, settings: Settings) -> dict[str, Any]:
    """Return the metrics of the file that serving loads on the test split, in ONNX Runtime."""
    outputs = _measured(trained, trained.test, predictor, settings)
    metrics = trained.task.metrics(outputs, trained.task.references(trained.test))
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return {
        "model": predictor.bundle.model_path.name,
        "rows": len(trained.test),
        "primary": finite[trained.task.primary_metric],
        "metrics": finite,
    }


def _metrics(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": TRAINED,
        "primary_metric": evaluation["primary_metric"],
        "higher_is_better": evaluation["higher_is_better"],
        "rows": evaluation["rows"],
        **evaluation["models"]["student"],
    }


def _finish(folder: Path, manifest: Manifest) -> None:
    """Add the model card and the digests, write the manifest and read the bundle as serving does."""
    manifest["files"] = _digests(folder)
    (folder / CARD).write_text(render(manifest), encoding="utf-8")
    manifest["files"] = _digests(folder)
    write_json(folder / MANIFEST, manifest)
    open_bundle(folder)


def _self_test(texts: Sequence[Text], predictor: Predictor | Generator) -> dict[str, Any]:
    """Return a text with the answer that serving must give to it alone."""
    text: Any = beginnings(predictor, texts)[0] if isinstance(predictor, Generator) else texts[0]
    answer = predictor.predict([text])[0]
    stored = text if isinstance(text, str) else list(text)
    return {"text": stored, "answer": {name: value for name, value in answer.items() if name != "text"}}


def _digests(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())}
