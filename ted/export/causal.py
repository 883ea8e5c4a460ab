"""A causal language model as one graph that reads a text and goes on from its cache, and the proof that it does.

Positions count the real tokens of the attention mask, inside the graph: rows may be padded on either side.

Dimensions: B rows, L tokens of a run, T tokens up to the end of a run, P tokens in the cache, V vocabulary.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ted.config import ExportSettings
from ted.errors import ModelError, ParityError
from ted.export.onnx import Graph, Positional, check_exportable, write_graph
from ted.export.parity import Row, refuse_differences, within
from ted.serving.answers import Logits, Text
from ted.serving.generation import PAST, Generator, empty_cache
from ted.serving.predictor import create_session
from ted.tasks.language_modeling import start_token

# Sizes of the example; 0 and 1 would be taken for constants.
EXAMPLE_BATCH: Final = 2
EXAMPLE_LENGTH: Final = 3
EXAMPLE_PAST: Final = 4
# What a layer may keep. One with a window is run as a full one: the attention mask in the graph has the window.
KEY_VALUE_LAYERS: Final = frozenset({"DynamicLayer", "DynamicSlidingWindowLayer"})
# Tokens after which runs of one token are compared, until the longest text.
STEPS_AFTER: Final = (8, 33, 96)
SINGLE_STEPS: Final = 2
STEP_BATCHES: Final = (1, 3)
PROMPTS: Final = 8
PROMPT_TOKENS: Final = 16


Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


class _Cached(Positional):
    """A causal language model with its cache as plain inputs and outputs."""

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        fields = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        inputs = ["input_ids", "attention_mask", *(f"{PAST}.{field}" for field in fields)]
        super().__init__(model, inputs, ["logits", *(f"present.{field}" for field in fields)])
        self.parameters_of_forward = inspect.signature(model.forward).parameters

    def axes(self, name: str) -> dict[int, str]:
        """Return the axes of an input whose length varies, by place."""
        if name.startswith(PAST):
            return {0: "batch_size", 2: "past_length"}
        return {0: "batch_size", 1: "total_length" if name == "attention_mask" else "sequence_length"}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (B, L, V), then keys and values of all T tokens by layer."""
        ids_BL, mask_BT, *past = inputs
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        options: dict[str, Any] = {cache_name(self.model): cache, "use_cache": True}
        if "position_ids" in self.parameters_of_forward:
            options["position_ids"] = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BL.shape[1] :]
        logits = self.model(input_ids=ids_BL, attention_mask=mask_BT, **options).logits
        return logits, *_contents(cache)


def cache_name(model: PreTrainedModel) -> str:
    """Return the name under which a model takes its cache; transformers 5.24 renamed it.

    Raises:
        ModelError: it takes none.
    """
    for name in ("cache", "past_key_values"):
        if name in inspect.signature(model.forward).parameters:
            return name
    raise ModelError(f"{type(model).__name__} takes no cache of keys and values; choose another student architecture")


def export_causal(model: PreTrainedModel, opset: int, path: Path) -> Graph:
    """Write a causal language model as one ONNX file that serves whole texts and single further tokens.

    Inputs are `input_ids` (B, L), `attention_mask` (B, P + L) and, per layer, `past_key_values.{layer}.key` and
    `.value` (B, heads, P, size), where P is 0 for a text's beginning. Outputs are `logits` (B, L, V) and, per layer,
    `present.{layer}.key` and `.value` (B, heads, P + L, size), the next run's past.

    Args:
        model: a float32 transformers model with a head for its vocabulary; put into evaluation mode.
        opset: ONNX operator set; the file is refused if it comes out with another.
        path: file to write.

    Raises:
        ModelError: a layer keeps something else than keys and values, or as :func:`ted.export.onnx.export_onnx`.
    """
    check_exportable(model)
    model.train(mode=False)
    ids_BL = torch.ones(EXAMPLE_BATCH, EXAMPLE_LENGTH, dtype=torch.long)
    past = _example_past(model, ids_BL)
    mask_BT = torch.ones(EXAMPLE_BATCH, EXAMPLE_PAST + EXAMPLE_LENGTH, dtype=torch.long)
    return write_graph(_Cached(model, len(past) // 2), (ids_BL, mask_BT, *past), opset, path)


def _example_past(model: PreTrainedModel, ids_BL: Tensor) -> list[Tensor]:
    """Return keys and values of every layer for so many earlier tokens."""
    planned = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    if odd := sorted(planned - KEY_VALUE_LAYERS):
        raise ModelError(
            f"{type(model).__name__} keeps {', '.join(odd)} between tokens, not only keys and values;"
            " choose another student architecture"
        )
    cache = DynamicCache()
    with torch.inference_mode():
        model(input_ids=ids_BL, use_cache=True, **{cache_name(model): cache})
    shapes = [tensor.shape for tensor in _contents(cache)]
    return [torch.zeros(batch, heads, EXAMPLE_PAST, size) for batch, heads, _, size in shapes]


def _contents(cache: DynamicCache) -> list[Tensor]:
    layers: list[Any] = cache.layers
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def check_causal_parity(
    model: PreTrainedModel, path: Path, batches: Sequence[Mapping[str, Tensor]], settings: ExportSettings
) -> list[Row]:
    """Compare the trained model with its exported file, without and with a cache.

    Every batch is read in one run. Batches of `STEP_BATCHES` rows and full length are also read piece by piece, padded
    on the left, each run going on from the cache of the one before; some pieces are single tokens. What is compared
    with are the logits that the trained model gives for each row alone, without padding and without a cache.

    Args:
        model: the trained model; put into evaluation mode.
        path: the exported file.
        batches: `input_ids` and `attention_mask`, each (B, L), as :func:`ted.export.parity.parity_batches` makes them.
        settings: gives the tolerances.

    Returns:
        A row per run: `batch`, `length`, `past`, `max_abs_difference`, `passed`.

    Raises:
        ParityError: logits differ beyond the tolerances; every failing shape stands in the message.
    """
    model.train(mode=False)
    session = create_session(str(path), torch.get_num_threads())
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    rows = []
    for batch in batches:
        ids_BT, mask_BT = batch["input_ids"].numpy(), batch["attention_mask"].numpy().astype(bool)
        expected = [logits_alone(model, ids_T[mask_T]) for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)]
        size, length = ids_BT.shape
        rows += _compare_runs(session, (ids_BT, mask_BT), [0, length], expected, settings)
        if length == longest and size in STEP_BATCHES:
            rows += _compare_runs(session, _left_padded(ids_BT, mask_BT), _bounds(length), expected, settings)
    refuse_differences(rows, settings)
    return rows


def check_greedy(
    model: PreTrainedModel, generator: Generator, texts: Sequence[str], settings: ExportSettings
) -> dict[str, int]:
    """Compare the continuations that a bundle serves with those of the trained model, token by token.

    Args:
        model: the trained model.
        generator: serves the exported file.
        texts: beginnings to continue.
        settings: gives the tolerances.

    Returns:
        `prompts`, `tokens` of the trained model, and `equal`, how many of these come before the first difference.

    Raises:
        ParityError: a token differs that no difference within the tolerances explains.
    """
    total = equal = 0
    for text in texts:
        ids, _ = generator.prompt(text)
        expected = _continue(model, generator, ids)
        served = [token for token, _ in generator.steps(ids)]
        differ = (place for place, (ours, theirs) in enumerate(zip(served, expected, strict=False)) if ours != theirs)
        same = next(differ, min(len(served), len(expected)))
        if served != expected:
            logits_V = logits_alone(model, [*ids, *expected[:same]])[-1]
            _refuse_other_token(logits_V, expected[same:], served[same:], settings)
        total, equal = total + len(expected), equal + same
    return {"prompts": len(texts), "tokens": total, "equal": equal}


def beginnings(generator: Generator, texts: Sequence[Text]) -> list[str]:
    """Return the first few tokens of the first few texts, as texts."""
    singles = [text for text in texts[:PROMPTS] if isinstance(text, str)]
    count = min(PROMPT_TOKENS, generator.max_length // 2)
    offsets = [encoding.offsets[:count] for encoding in generator.tokenizer.encode_batch(singles)]
    ends = [max((end for _, end in spans), default=0) for spans in offsets]
    return [text[:end] for text, end in zip(singles, ends, strict=True) if end]


def generation_facts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return which token is put before a text, and which ones end it, as in training.

    The model's own generation settings may name further end tokens.
    """
    own = model.generation_config.eos_token_id if model.generation_config else None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return {"start_token": start_token(tokenizer), "end_tokens": sorted(ends)}


@torch.inference_mode()
def logits_alone(model: PreTrainedModel, ids_T: Sequence[int] | Ids) -> Logits:
    """Return the trained model's logits (T, V) of one row, without padding and without a cache."""
    logits: Tensor = model(input_ids=torch.tensor([list(ids_T)]), use_cache=False).logits
    return logits[0].numpy()


def _compare_runs(
    session: onnxruntime.InferenceSession,
    padded: tuple[Ids, Mask],
    bounds: Sequence[int],
    expected: Sequence[Logits],
    settings: ExportSettings,
) -> list[Row]:
    """Read a batch in runs between the bounds and compare the logits of real tokens with those of each row alone."""
    ids_BT, mask_BT = padded
    cache: dict[str, NDArray[np.floating]] = {**empty_cache(session, len(ids_BT))}
    rows: list[Row] = []
    for start, end in pairwise(bounds):
        row: Row = {"batch": len(ids_BT), "length": end - start, "past": start, "max_abs_difference": math.inf}
        feeds = {"input_ids": ids_BT[:, start:end], "attention_mask": mask_BT[:, :end].astype(np.int64), **cache}
        try:
            logits_BLV, *present = session.run(None, feeds)
        except (Fail, InvalidArgument, RuntimeException) as error:
            return [*rows, {**row, "passed": False, "problem": " ".join(str(error).split())}]
        cache = dict(zip(cache, present, strict=True))
        counts = zip(mask_BT[:, :start].sum(1), mask_BT[:, :end].sum(1), strict=True)
        wanted = np.concatenate([logits_TV[slice(*part)] for logits_TV, part in zip(expected, counts, strict=True)])
        actual = logits_BLV[mask_BT[:, start:end]]
        row["max_abs_difference"] = float(np.abs(actual - wanted).max(initial=0.0))
        row["passed"] = within(actual, wanted, settings)
        rows.append(row)
    return rows


def _left_padded(ids_BT: Ids, mask_BT: Mask) -> tuple[Ids, Mask]:
    """Return a batch whose padding stands on the right with its padding on the left."""
    padding = (~mask_BT).sum(1)
    ids, masks = ([np.roll(row, by) for row, by in zip(rows, padding, strict=True)] for rows in (ids_BT, mask_BT))
    return np.stack(ids), np.stack(masks)


def _bounds(length: int) -> list[int]:
    """Return where runs begin and end: some single tokens, and all that lies between them."""
    stops = [*(stop for stop in STEPS_AFTER if stop < length), length]
    return sorted({0, *(stop - back for stop in stops for back in range(SINGLE_STEPS + 1))})


def _continue(model: PreTrainedModel, generator: Generator, ids: Sequence[int]) -> list[int]:
    """Return the tokens with which the trained model continues a text greedily."""
    options = {"max_new_tokens": generator.room(ids), "eos_token_id": sorted(generator.end_tokens), "pad_token_id": 0}
    config: Any = GenerationConfig(do_sample=False, **options)  # type: ignore[no-untyped-call]
    prompt_BT = torch.tensor([list(ids)])
    generate: Any = model.generate
    with _generation_config(model, config):
        output_BT = generate(prompt_BT, attention_mask=torch.ones_like(prompt_BT), generation_config=config)
    tokens: list[int] = output_BT[0, len(ids) :].tolist()
    return tokens


@contextmanager
def _generation_config(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Give a model other generation settings for a while: its own fill gaps, and may hold penalties."""
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


def _refuse_other_token(
    logits_V: Logits, expected: Sequence[int], served: Sequence[int], settings: ExportSettings
) -> None:
    """Refuse a first differing token unless both are as probable, within the tolerances.

    Raises:
        ParityError: they are not, or one of the continuations is shorter.
    """
    if expected and served:
        tolerance = settings.atol + settings.rtol * np.abs(logits_V).max()
        if logits_V[expected[0]] - logits_V[served[0]] <= 2 * tolerance:
            return
    raise ParityError(
        f"the served continuation of a text goes on with the tokens {list(served[:3])}, the trained model's with"
        f" {list(expected[:3])}, although the graphs are equal: cache or end tokens of serving are not the model's"
    )
