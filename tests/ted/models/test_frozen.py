"""A frozen model live and kept on disk: the same outputs, computed once, under a key of all they depend on."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.tiny import LABELS, WORDS, new_data, new_tokenizer, write_backbone
from ted.config import DataSettings, TaskSettings
from ted.data.preparation import Batch, Collator, collator, forward_batches, tokenize
from ted.models import frozen
from ted.models.frozen import FrozenModel, OutputStore, keep_outputs, model_inputs, run_model, store_bytes, store_key
from ted.models.loading import LoadedModel, find_model, load_pretrained
from ted.tasks import get_task

TASK = get_task(TaskSettings(), LABELS)
LAYERS = (1, 3)
FLOAT32 = "torch.float32 sdpa"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("frozen") / "backbone")


@pytest.fixture
def loaded(folder: Path) -> LoadedModel:
    torch.manual_seed(0)
    return load_pretrained(find_model(str(folder)), TASK)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return new_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerBase) -> Dataset:
    return tokenize(new_data("classification", train=70)["train"], tokenizer, TASK, DataSettings(max_length=16))


@pytest.fixture(scope="module")
def collate(tokenizer: PreTrainedTokenizerBase) -> Collator:
    return collator(tokenizer, TASK)


@pytest.fixture
def batch(rows: Dataset, collate: Collator) -> Batch:
    """Rows of uneven length, neither in order nor in the batches of a pass."""
    return collate([rows[row] for row in (69, 3, 0, 41)])


class Counting(FrozenModel):
    calls = 0

    def __call__(self, batch: Batch) -> frozen.ModelOutputs:
        self.calls += 1
        return super().__call__(batch)


def kept(loaded: LoadedModel, rows: Dataset, collate: Collator, folder: Path) -> OutputStore:
    return keep_outputs(FrozenModel(loaded.model, LAYERS), rows, forward_batches(rows, collate), folder)


def test_states_are_those_after_the_asked_layers(loaded: LoadedModel, batch: Batch) -> None:
    source = FrozenModel(loaded.model, LAYERS)
    outputs = source(batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        expected = loaded.model(**inputs, output_hidden_states=True)
    assert torch.equal(outputs.logits, expected.logits)
    for state, layer in zip(outputs.states, LAYERS, strict=True):
        assert torch.equal(state, expected.hidden_states[layer + 1])


def test_without_layers_there_are_no_states(loaded: LoadedModel, batch: Batch) -> None:
    assert run_model(loaded.model, batch, ()).states == []


def test_a_frozen_model_gets_no_gradient_but_what_reads_it_does(loaded: LoadedModel, batch: Batch) -> None:
    outputs = FrozenModel(loaded.model, LAYERS)(batch)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    weight = torch.ones(32, requires_grad=True)
    (gradient,) = torch.autograd.grad((outputs.states[0] * weight).sum(), weight)
    assert gradient.abs().sum() > 0


def test_outputs_of_lower_precision_come_as_float32(loaded: LoadedModel, batch: Batch) -> None:
    exact = FrozenModel(loaded.model, LAYERS)
    expected, arithmetic = exact(batch), exact.arithmetic
    rounded = FrozenModel(loaded.model.bfloat16(), LAYERS)
    outputs = rounded(batch)
    assert (arithmetic, rounded.arithmetic) == (FLOAT32, "torch.bfloat16 sdpa")
    for ours, theirs in zip((outputs.logits, *outputs.states), (expected.logits, *expected.states), strict=True):
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.1)


def test_flash_attention_is_given_half_precision(
    loaded: LoadedModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernels are not there without a GPU; what reaches them is."""
    seen = set()

    def kernel(module: nn.Module, query: torch.Tensor, *states: torch.Tensor, **options: Any) -> tuple[Any, Any]:
        seen.add(query.dtype)
        options["dropout"] = 0.0
        return sdpa_attention_forward(module, query, states[0], states[1], None, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", kernel)
    loaded.model.config._attn_implementation = "flash_attention_2"
    outputs = FrozenModel(loaded.model, LAYERS)(batch)
    assert seen == {torch.bfloat16}
    assert outputs.logits.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_training_in_lower_precision_leaves_its_teacher_as_it_is(loaded: LoadedModel, batch: Batch) -> None:
    """Kept outputs are computed outside of autocast: those of a live teacher must be the same."""
    teacher = FrozenModel(loaded.model, LAYERS)
    expected = teacher(batch)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = teacher(batch)
    for ours, theirs in zip((outputs.logits, *outputs.states), (expected.logits, *expected.states), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_reads_what_its_class_takes(loaded: LoadedModel, batch: Batch) -> None:
    config = DistilBertConfig(vocab_size=len(WORDS), dim=32, hidden_dim=32, n_layers=2, n_heads=2)
    model = DistilBertModel(config)
    assert model_inputs(model) == {"input_ids", "attention_mask"}
    assert model_inputs(loaded.model) == {"input_ids", "attention_mask", "token_type_ids"} <= batch.keys()


def test_dropout_is_off_unless_asked_for(loaded: LoadedModel, batch: Batch) -> None:
    still = FrozenModel(loaded.model, LAYERS)
    assert torch.equal(still(batch).states[1], still(batch).states[1])
    noisy = FrozenModel(loaded.model, LAYERS, dropout=True)
    assert not torch.equal(noisy(batch).states[1], noisy(batch).states[1])


def test_kept_outputs_are_the_live_ones(
    loaded: LoadedModel, rows: Dataset, collate: Collator, batch: Batch, tmp_path: Path
) -> None:
    store, live = kept(loaded, rows, collate, tmp_path / "key"), FrozenModel(loaded.model, LAYERS)(batch)
    read = store(batch)
    torch.testing.assert_close(read.logits, live.logits, rtol=0, atol=1e-6)
    real = batch["attention_mask"].bool()
    assert not real.all()
    for ours, theirs in zip(read.states, live.states, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=1e-6)
        assert ours[~real].abs().sum() == 0


def test_logits_are_kept_without_any_layer(
    loaded: LoadedModel, rows: Dataset, collate: Collator, batch: Batch, tmp_path: Path
) -> None:
    source = FrozenModel(loaded.model, ())
    store = keep_outputs(source, rows, forward_batches(rows, collate), tmp_path / "key")
    read = store(batch)
    assert read.states == []
    torch.testing.assert_close(read.logits, source(batch).logits, rtol=0, atol=1e-6)


def test_kept_outputs_are_not_computed_again(
    loaded: LoadedModel, rows: Dataset, collate: Collator, batch: Batch, tmp_path: Path
) -> None:
    source = Counting(loaded.model, LAYERS)
    first = keep_outputs(source, rows, forward_batches(rows, collate), tmp_path / "key")
    calls = source.calls
    assert calls == 2
    second = keep_outputs(source, rows, forward_batches(rows, collate), tmp_path / "key")
    assert source.calls == calls
    assert torch.equal(first(batch).states[0], second(batch).states[0])


def test_what_a_reader_gets_is_its_own(
    loaded: LoadedModel, rows: Dataset, collate: Collator, batch: Batch, tmp_path: Path
) -> None:
    store = kept(loaded, rows, collate, tmp_path / "key")
    before = store(batch).logits.clone()
    store(batch).logits.zero_()
    assert torch.equal(store(batch).logits, before)


def test_nothing_is_pickled(loaded: LoadedModel, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
    kept(loaded, rows, collate, tmp_path / "key")
    assert {path.suffix for path in (tmp_path / "key").iterdir()} <= {".npy", ".json", ".safetensors"}


def test_an_error_leaves_no_half_written_store(
    loaded: LoadedModel, rows: Dataset, collate: Collator, tmp_path: Path
) -> None:
    class Failing(Counting):
        def __call__(self, batch: Batch) -> frozen.ModelOutputs:
            if self.calls == 1:
                raise RuntimeError("out of memory")
            return super().__call__(batch)

    batches = forward_batches(rows, collate)
    with pytest.raises(RuntimeError, match="out of memory"):
        keep_outputs(Failing(loaded.model, LAYERS), rows, batches, tmp_path / "key")
    assert list(tmp_path.iterdir()) == []
    source = Counting(loaded.model, LAYERS)
    keep_outputs(source, rows, batches, tmp_path / "key")
    assert source.calls == 2


def test_older_stores_make_room(loaded: LoadedModel, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for age, name in enumerate(["newest", "older", "oldest"]):
        kept(loaded, rows, collate, tmp_path / name)
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    kept(loaded, rows, collate, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "newest", "notes"}


def test_a_store_that_is_read_again_counts_as_new(
    loaded: LoadedModel, rows: Dataset, collate: Collator, tmp_path: Path
) -> None:
    for age, name in enumerate(["other", "used"]):
        kept(loaded, rows, collate, tmp_path / name)
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    kept(loaded, rows, collate, tmp_path / "used")
    kept(loaded, rows, collate, tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "used"}


def test_bytes_are_those_on_disk(loaded: LoadedModel, rows: Dataset, collate: Collator, tmp_path: Path) -> None:
    kept(loaded, rows, collate, tmp_path / "key")
    size = sum((tmp_path / "key" / name).stat().st_size for name in ("logits.npy", "states.npy"))
    expected = store_bytes(2 * len(rows), sum(rows["length"][:]), len(LAYERS), 32)
    assert expected == 4 * (70 * 2 + sum(rows["length"][:]) * 2 * 32)
    assert 0 <= size - expected <= 2 * 256  # the headers


class TestKey:
    @pytest.fixture
    def model(self, folder: Path, tmp_path: Path) -> Path:
        for name in ("model.safetensors", "config.json"):
            (tmp_path / name).write_bytes((folder / name).read_bytes())
        return tmp_path

    @pytest.fixture
    def key(self, rows: Dataset, model: Path) -> str:
        return store_key(rows, model, LAYERS, FLOAT32)

    def test_it_is_the_same_for_the_same_outputs(
        self, key: str, rows: Dataset, model: Path, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        assert store_key(rows, model, list(LAYERS), FLOAT32) == key
        again = tokenize(new_data("classification", train=70)["train"], tokenizer, TASK, DataSettings(max_length=16))
        assert store_key(again, model, LAYERS, FLOAT32) == key
        (model / "notes.txt").touch()
        assert store_key(rows, model, LAYERS, FLOAT32) == key

    def test_it_changes_with_the_weights(self, key: str, rows: Dataset, model: Path) -> None:
        weights = bytearray((model / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (model / "model.safetensors").write_bytes(weights)
        assert store_key(rows, model, LAYERS, FLOAT32) != key

    def test_it_changes_with_the_configuration(self, key: str, rows: Dataset, model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
        assert store_key(rows, model, LAYERS, FLOAT32) != key

    @pytest.mark.parametrize("layers", [(), (1,), (3, 1), (13,)])
    def test_it_changes_with_the_layers(self, layers: tuple[int, ...], key: str, rows: Dataset, model: Path) -> None:
        assert store_key(rows, model, layers, FLOAT32) != key

    def test_it_changes_with_the_rows(
        self, key: str, rows: Dataset, model: Path, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        data = new_data("classification", train=70)["train"]
        others = [
            rows.select(range(69)),
            rows.select([1, 0, *range(2, 70)]),
            tokenize(data, tokenizer, TASK, DataSettings(max_length=8)),
            rows.map(lambda row: {"token_type_ids": [1] * row["length"]}, keep_in_memory=True),
        ]
        keys = {store_key(other, model, LAYERS, FLOAT32) for other in others}
        assert len(keys | {key}) == 5

    def test_rows_are_told_apart_from_their_concatenation(self, model: Path) -> None:
        cuts = [[[2, 7], [8, 3]], [[2], [7, 8, 3]], [[2, 7, 8, 3]]]
        keys = {store_key(Dataset.from_dict({"input_ids": cut}), model, LAYERS, FLOAT32) for cut in cuts}
        assert len(keys) == 3

    def test_it_does_not_hang_on_labels(self, key: str, rows: Dataset, model: Path) -> None:
        assert store_key(rows.remove_columns("labels"), model, LAYERS, FLOAT32) == key

    def test_it_changes_with_the_arithmetic(self, key: str, rows: Dataset, model: Path) -> None:
        others = ("torch.bfloat16 sdpa", "torch.float32 eager")
        assert len({key, *(store_key(rows, model, LAYERS, other) for other in others)}) == 3
