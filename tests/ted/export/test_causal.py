import copy
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

from ted.config import ExportSettings
from ted.errors import ModelError, ParityError
from ted.export import causal
from ted.export.bundle import serving_tokenizer
from ted.export.causal import (
    beginnings,
    check_causal_parity,
    check_greedy,
    export_causal,
    generation_facts,
    logits_alone,
)
from ted.export.onnx import Graph
from ted.export.parity import parity_batches
from ted.export.quantization import latency_ratios, quantize
from ted.serving.bundle import Bundle
from ted.serving.generation import Generator, log_probabilities, open_predictor

MAX_LENGTH = 40
NEW_TOKENS = 12
SETTINGS = ExportSettings()
TEXTS = [
    "The film is a joy, and the plot of it (naïve, dull) is not.",
    "A dull plot 🎉 and a good film: the actor is 漢字.",
    "joy",
    "Not a film, not a plot, and the dull actor of the good film is naïve and 🎉 and dull and good and not dull.",
]
COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
GROUPED = {**COMMON, "num_key_value_heads": 2, "intermediate_size": 48}
CONFIGS = {
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "llama": (LlamaConfig, {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {**GROUPED, "head_dim": 8}),
    "opt": (OPTConfig, {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gemma2": (Gemma2Config, {**GROUPED, "head_dim": 8, "sliding_window": 8}),
}
from_config: Any = AutoModelForCausalLM.from_config


class Case(NamedTuple):
    """A model, what was exported from it, and what serves the file."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    graph: Graph
    generator: Generator


def new_tokenizer() -> PreTrainedTokenizerBase:
    """Return a byte-level tokenizer with a few merges, so that most characters take several tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet)
    backend.train_from_iterator(TEXTS, trainer)
    options: dict[str, Any] = {"tokenizer_object": backend, "eos_token": "<end>", "pad_token": "<end>"}
    options["model_input_names"] = ["input_ids", "attention_mask"]
    made: PreTrainedTokenizerBase = PreTrainedTokenizerFast(**options)  # type: ignore[no-untyped-call]
    return made


def new_model(kind: str, vocabulary: int) -> PreTrainedModel:
    """Return a model with random weights so wide that continuations vary."""
    config_class, options = CONFIGS[kind]
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model: PreTrainedModel = from_config(config_class(vocab_size=vocabulary, **special, **options))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def write_manifest(case_folder: Path, graph: Graph, facts: dict[str, Any]) -> Bundle:
    manifest = {
        "name": "tiny",
        "task": {"kind": "causal_lm", "labels": None, "max_new_tokens": NEW_TOKENS, **facts},
        "max_length": MAX_LENGTH,
        "max_characters": 400,
        "pair": False,
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "model": "model.onnx",
    }
    return Bundle(case_folder, manifest)


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = new_tokenizer()
    model = new_model(request.param, len(tokenizer))
    graph = export_causal(model, SETTINGS.opset, folder / "model.onnx")
    serving_tokenizer(tokenizer, MAX_LENGTH, {}).save(str(folder / "tokenizer.json"))
    bundle = write_manifest(folder, graph, generation_facts(model, tokenizer))
    predictor = open_predictor(bundle)
    assert isinstance(predictor, Generator)
    return Case(model, tokenizer, graph, predictor)


def test_one_file_holds_each_weight_once_and_takes_a_cache_of_any_length(case: Case) -> None:
    path = case.generator.bundle.model_path
    assert [file.name for file in path.parent.glob("*.onnx*")] == ["model.onnx"]
    assert case.graph.opset == SETTINGS.opset
    assert case.graph.graph_parameters == case.graph.model_parameters
    weights = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) > 1]
    assert sum(len(case.tokenizer) in tensor.dims for tensor in weights) == (
        1 if case.model.config.tie_word_embeddings else 2
    )
    names = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    heads = 4 if case.model.config.model_type in {"gpt2", "opt"} else 2
    cache_dims = (heads, -1, 8)
    assert case.graph.input_dims == {
        "input_ids": (-1,),
        "attention_mask": (-1,),
        **{f"past_key_values.{name}": cache_dims for name in names},
    }
    assert case.graph.output_dims == {
        "logits": (-1, len(case.tokenizer)),
        **{f"present.{name}": cache_dims for name in names},
    }


def test_runs_without_and_with_a_cache_give_the_trained_logits(case: Case) -> None:
    batches = parity_batches(case.tokenizer, TEXTS, MAX_LENGTH)
    rows = check_causal_parity(case.model, case.generator.bundle.model_path, batches, SETTINGS)
    shapes = [(row["batch"], row["length"], row["past"]) for row in rows]
    assert {(b, n, 0) for b in (1, 3, 5) for n in (8, 33, 40)} <= set(shapes)
    steps = [(6, 0), (1, 6), (1, 7), (23, 8), (1, 31), (1, 32), (5, 33), (1, 38), (1, 39)]
    assert [shape[1:] for shape in shapes if shape[0] == 3][2:] == [(40, 0), *steps]
    assert all(row["passed"] for row in rows)
    assert max(row["max_abs_difference"] for row in rows) < 1e-5


def test_every_served_token_is_the_one_that_transformers_generates(case: Case) -> None:
    prompts = beginnings(case.generator, TEXTS)
    assert all(text.startswith(prompt) for text, prompt in zip(TEXTS, prompts, strict=True))
    assert check_greedy(case.model, case.generator, prompts, SETTINGS) == {
        "prompts": 4,
        "tokens": 4 * NEW_TOKENS,
        "equal": 4 * NEW_TOKENS,
    }


def test_the_log_probability_of_a_text_is_the_trained_models(case: Case) -> None:
    text = TEXTS[1]
    (answer,) = case.generator.predict([text])
    ids = [case.tokenizer.eos_token_id, *case.tokenizer(text, add_special_tokens=False)["input_ids"]]
    logits_TV = torch.from_numpy(logits_alone(case.model, ids))
    expected = torch.log_softmax(logits_TV[:-1], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    scores = [token["log_probability"] for token in answer["tokens"]]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert answer["log_probability"] == pytest.approx(sum(scores)) == pytest.approx(expected.sum().item(), abs=1e-3)
    assert answer["text"] == text
    assert answer["continuation"] == "".join(case.generator.stream(text))


def test_a_cache_that_is_not_used_is_detected(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "present.0.key"
    monkeypatch.setattr(Generator, "_cache", lambda self, outputs: dict.fromkeys(self._past, -9 * outputs[broken]))
    with pytest.raises(ParityError, match="cache or end tokens of serving are not the model's"):
        check_greedy(case.model, case.generator, TEXTS, SETTINGS)


def test_an_8_bit_copy_is_timed_on_whole_texts_and_on_a_token_more(case: Case, tmp_path: Path) -> None:
    bundle = case.generator.bundle
    quantize(bundle.model_path, tmp_path / "model.onnx")
    (tmp_path / "tokenizer.json").write_bytes(bundle.tokenizer_path.read_bytes())
    candidate = Generator(Bundle(tmp_path, bundle.manifest))
    ratios = latency_ratios(case.generator, candidate, TEXTS, (1, 3), 3)
    assert list(ratios) == ["1", "1 next token", "3"]
    assert all(ratio > 0 for ratio in ratios.values())
    ids, _ = candidate.prompt(TEXTS[0])
    logits = [next(generator.steps(ids))[1] for generator in (case.generator, candidate)]
    difference = np.abs(log_probabilities(logits[0], ids) - log_probabilities(logits[1], ids)).max()
    assert 0 < difference < 1


def test_other_weights_than_the_trained_ones_are_refused_at_every_shape(case: Case) -> None:
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    batches = parity_batches(case.tokenizer, TEXTS, MAX_LENGTH)
    with pytest.raises(ParityError, match=re.escape("at 27 of 27 shapes")) as error:
        check_causal_parity(model, case.generator.bundle.model_path, batches, SETTINGS)
    assert re.search(r"3 x 1 after 39: \d", str(error.value))


def test_a_model_that_keeps_more_than_keys_and_values_is_refused(tmp_path: Path) -> None:
    model = from_config(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2))
    with pytest.raises(ModelError, match="MambaForCausalLM keeps LinearAttentionLayer between tokens"):
        export_causal(model, SETTINGS.opset, tmp_path / "model.onnx")


def test_a_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    model = BertForSequenceClassification(BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
    with pytest.raises(ModelError, match="takes no cache of keys and values"):
        export_causal(model, SETTINGS.opset, tmp_path / "model.onnx")


def test_end_tokens_are_those_of_tokenizer_and_model() -> None:
    model, tokenizer = new_model("llama", 300), new_tokenizer()
    assert generation_facts(model, tokenizer) == {"start_token": 0, "end_tokens": [0]}
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [7, 3]
    assert generation_facts(model, tokenizer) == {"start_token": 0, "end_tokens": [0, 3, 7]}


def test_a_penalty_among_the_models_own_generation_settings_does_not_count(case: Case) -> None:
    own = case.model.generation_config
    assert own is not None
    own.repetition_penalty = 5.0
    try:
        counts = check_greedy(case.model, case.generator, TEXTS[:1], SETTINGS)
    finally:
        own.repetition_penalty = None
    assert counts["equal"] == counts["tokens"]
    assert case.model.generation_config is own


@pytest.mark.parametrize(("served", "allowed"), [([5, 1], True), ([6, 1], False), ([], False)])
def test_only_a_token_that_is_as_probable_may_differ(served: list[int], allowed: bool) -> None:
    logits_V = np.zeros(8, np.float32)
    logits_V[[4, 5, 6]] = [2.0, 1.999, 1.9]
    if allowed:
        causal._refuse_other_token(logits_V, [4, 1], served, SETTINGS)
        return
    with pytest.raises(ParityError, match=re.escape(f"the tokens {served}, the trained model's with [4, 1]")):
        causal._refuse_other_token(logits_V, [4, 1], served, SETTINGS)
