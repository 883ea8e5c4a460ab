import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional
from transformers import (
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from benchmarks.architectures import ARCHITECTURES
from benchmarks.tiny import FILLING, WORDS, new_config, new_data, new_decoder_tokenizer, new_tokenizer
from ted.config import DataSettings, FilterSettings, TaskSettings
from ted.data.collecting import Collector
from ted.data.preparation import Batch, collator, forward_batches, tokenize
from ted.errors import ModelError
from ted.heads import OutputEmbedding, VocabularyHead
from ted.tasks import Task
from ted.tasks.language_modeling import NO_LABEL, CausalLM, MaskedLM, start_token

CAUSAL = CausalLM(TaskSettings(kind="causal_lm", max_new_tokens=9))
MASKED = MaskedLM(TaskSettings(kind="masked_lm"))
EIGHT = DataSettings(max_length=8)
TEXTS = ["the film", "a plot " * 9 + "was good", "it", "movie and actor " * 6 + "of scene"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return new_decoder_tokenizer()


@pytest.fixture(scope="module")
def decoder() -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=64)
    model: PreTrainedModel = GPT2LMHeadModel(config).train(mode=False)
    return model


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def predicted(columns: dict[str, list[Any]], place: int) -> list[int]:
    """Return the tokens of a feature that count."""
    ids: list[int] = columns["input_ids"][place]
    return ids[len(ids) - columns["labels"][place] :]


def outputs_of(model: PreTrainedModel, task: Task, rows: Dataset, data: DataSettings, size: int) -> dict[str, Any]:
    tokenizer = new_decoder_tokenizer() if task is CAUSAL else new_tokenizer()
    features = tokenize(rows, tokenizer, task, data)
    collector = Collector(task, features, rows)
    with torch.no_grad():
        for batch in forward_batches(features, collator(tokenizer, task), size):
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            collector.add(model(**inputs).logits, batch)
    return collector.outputs()


class TestPacking:
    @pytest.mark.parametrize("length", [8, 9, 64, 512])
    def test_every_token_is_predicted_once_and_none_is_lost(
        self, length: int, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        columns = CAUSAL.encode_training({"text": TEXTS}, tokenizer, DataSettings(max_length=length))
        end = tokenizer.eos_token_id
        stream = [end]
        for text in TEXTS:
            stream += [*ids_of(tokenizer, text), end]
        places = range(len(columns["input_ids"]))
        assert columns["input_ids"][0][0] == end
        assert [token for place in places for token in predicted(columns, place)] == stream[1:]
        assert all(len(block) == length for block in columns["input_ids"][:-1])
        assert 1 < len(columns["input_ids"][-1]) <= length
        assert all(labels == len(ids) - 1 for labels, ids in zip(columns["labels"], columns["input_ids"], strict=True))

    def test_neighbouring_blocks_share_one_token(self, tokenizer: PreTrainedTokenizerBase) -> None:
        blocks = CAUSAL.encode_training({"text": TEXTS}, tokenizer, EIGHT)["input_ids"]
        assert len(blocks) > 4
        assert [block[0] for block in blocks[1:]] == [block[-1] for block in blocks[:-1]]

    def test_a_block_belongs_to_the_row_of_its_first_token(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = CAUSAL.encode_training({"text": TEXTS}, tokenizer, EIGHT)["example"]
        assert rows[0] == 0
        assert rows[-1] == 3
        assert rows == sorted(rows)

    def test_a_stream_that_ends_with_a_block_leaves_no_empty_one(self, tokenizer: PreTrainedTokenizerBase) -> None:
        text = " ".join(["film"] * 13)
        blocks = CAUSAL.encode_training({"text": [text]}, tokenizer, EIGHT)["input_ids"]
        assert [len(block) for block in blocks] == [8, 8]

    def test_a_start_token_that_the_tokenizer_makes_stands_before_each_text(self) -> None:
        tokenizer = ARCHITECTURES["llama"].new_tokenizer()
        texts = ["the film", "a plot"]
        first, second = tokenizer(texts)["input_ids"]
        assert first[0] == tokenizer.bos_token_id != tokenizer.eos_token_id
        data, end = DataSettings(max_length=64), tokenizer.eos_token_id
        assert CAUSAL.encode_training({"text": texts}, tokenizer, data)["input_ids"] == [[*first, end, *second, end]]
        assert CAUSAL.encode({"text": texts}, tokenizer, data)["input_ids"] == [first, second]
        assert start_token(tokenizer) == tokenizer.bos_token_id
        other = ARCHITECTURES["gpt2"].new_tokenizer()
        assert start_token(other) == other.eos_token_id

    def test_a_tokenizer_needs_an_end_token(self) -> None:
        for encode in (CAUSAL.encode, CAUSAL.encode_training):
            with pytest.raises(ModelError, match="the tokenizer has no end token"):
                encode({"text": TEXTS}, new_tokenizer(), EIGHT)


class TestWindows:
    @pytest.mark.parametrize("length", [8, 9, 64])
    def test_every_token_of_each_text_is_predicted_once(self, length: int, tokenizer: PreTrainedTokenizerBase) -> None:
        columns = CAUSAL.encode({"text": TEXTS}, tokenizer, DataSettings(max_length=length))
        assert max(map(len, columns["input_ids"])) <= length
        for row, text in enumerate(TEXTS):
            places = [place for place, example in enumerate(columns["example"]) if example == row]
            found = [token for place in places for token in predicted(columns, place)]
            assert found == ids_of(tokenizer, text)

    def test_the_last_window_reaches_back(self, tokenizer: PreTrainedTokenizerBase) -> None:
        text = " ".join(["film"] * 9)
        columns = CAUSAL.encode({"text": [text]}, tokenizer, EIGHT)
        assert [len(ids) for ids in columns["input_ids"]] == [8, 8]
        assert columns["labels"] == [7, 2]

    @pytest.mark.parametrize(
        ("text", "tokens"),
        [("a film", 1), ("film", 1), ("a film.", 2), ("a film .", 1), ("a good-film", 3), ("a film \n", 1)],
    )
    def test_the_last_word_is_counted_in_tokens(
        self, text: str, tokens: int, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        assert CAUSAL.encode({"text": [text]}, tokenizer, EIGHT)["last_word"] == [tokens]

    def test_only_the_last_window_knows_the_last_word(self, tokenizer: PreTrainedTokenizerBase) -> None:
        columns = CAUSAL.encode({"text": TEXTS}, tokenizer, EIGHT)
        assert [count for count in columns["last_word"] if count] == [1] * len(TEXTS)

    def test_serving_sees_the_start_of_a_text(self, tokenizer: PreTrainedTokenizerBase) -> None:
        columns = CAUSAL.encode_served({"text": TEXTS}, tokenizer, EIGHT)
        assert columns["input_ids"] == [ids_of(tokenizer, text)[:8] for text in TEXTS]
        assert columns["example"] == [0, 1, 2, 3]


class TestCausalLoss:
    @pytest.fixture
    def batch(self, tokenizer: PreTrainedTokenizerBase) -> Batch:
        rows = tokenize(Dataset.from_dict({"text": TEXTS}), tokenizer, CAUSAL, EIGHT, encode=CAUSAL.encode_training)
        return collator(tokenizer, CAUSAL)(list(rows))

    def test_it_is_torchs_mean_over_next_tokens(self, batch: Batch) -> None:
        torch.manual_seed(0)
        logits = torch.randn(*batch["input_ids"].shape, len(WORDS))
        mask = batch["attention_mask"]
        labels = batch["input_ids"].masked_fill(mask == 0, NO_LABEL)[:, 1:]
        expected = functional.cross_entropy(logits[:, :-1].reshape(-1, len(WORDS)), labels.reshape(-1))
        count = CAUSAL.num_labelled(batch, mask)
        assert count == (labels != NO_LABEL).sum()
        assert (mask == 0).any()
        torch.testing.assert_close(CAUSAL.task_loss(logits, batch, mask, num_items=count), expected)

    def test_it_is_the_models_own(self, batch: Batch, decoder: PreTrainedModel) -> None:
        mask = batch["attention_mask"]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": mask}
        with torch.no_grad():
            output = decoder(**inputs, labels=batch["input_ids"].masked_fill(mask == 0, NO_LABEL))
        ours = CAUSAL.task_loss(output.logits, batch, mask, num_items=CAUSAL.num_labelled(batch, mask))
        torch.testing.assert_close(ours, output.loss)

    def test_a_repeated_token_counts_once(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = tokenize(Dataset.from_dict({"text": TEXTS}), tokenizer, CAUSAL, EIGHT)
        batch = collator(tokenizer, CAUSAL)(list(rows))
        tokens = sum(len(ids_of(tokenizer, text)) for text in TEXTS)
        assert CAUSAL.num_labelled(batch, batch["attention_mask"]) == tokens

    def test_predictions_are_compared_at_every_real_position(self, batch: Batch) -> None:
        mask = batch["attention_mask"]
        assert torch.equal(CAUSAL.prediction_mask(batch, mask), mask)


class TestCausalMetrics:
    def test_figures_equal_those_of_a_loop(self, decoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        data = DataSettings(max_length=64)
        outputs = outputs_of(decoder, CAUSAL, Dataset.from_dict({"text": TEXTS}), data, 2)
        log_loss, tokens, last = 0.0, 0, []
        for text in TEXTS:
            ids = [tokenizer.eos_token_id, *ids_of(tokenizer, text)]
            with torch.no_grad():
                log_probabilities = decoder(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            for place, token in enumerate(ids[1:]):
                log_loss -= log_probabilities[place, token].item()
                tokens += 1
            last.append(log_probabilities[-2].argmax().item() == ids[-1])
        metrics = CAUSAL.metrics(outputs, CAUSAL.references(Dataset.from_dict({"text": TEXTS})))
        assert metrics == {
            "perplexity": pytest.approx(math.exp(log_loss / tokens), rel=1e-5),
            "bits_per_byte": pytest.approx(log_loss / math.log(2) / sum(map(len, TEXTS)), rel=1e-5),
            "last_word_accuracy": np.mean(last),
        }

    @pytest.mark.parametrize("size", [3, 64])
    def test_batches_and_padding_change_nothing(self, size: int, decoder: PreTrainedModel) -> None:
        rows = new_data("causal_lm")["test"]
        alone = outputs_of(decoder, CAUSAL, rows, EIGHT, 1)
        together = outputs_of(decoder, CAUSAL, rows, EIGHT, size)
        for name, values in alone.items():
            np.testing.assert_allclose(together[name], values, rtol=1e-5, err_msg=name)

    def test_bytes_are_those_of_utf8(self) -> None:
        assert CAUSAL.references(Dataset.from_dict({"text": ["abc", "\N{EURO SIGN}"]})).tolist() == [3, 3]

    def test_perplexity_is_over_tokens_not_over_rows(self) -> None:
        outputs = {"log_loss": np.array([2.0, 0.0]), "tokens": np.array([1.0, 3.0])}
        assert CAUSAL.primary(CAUSAL.scores(outputs, np.array([1, 1]))) == pytest.approx(math.exp(0.5))
        assert CAUSAL.row_quality(outputs, np.array([1, 1])).tolist() == [-2.0, 0.0]

    @pytest.mark.parametrize(
        ("wrong", "right"), [([], 1.0), ([0], 1.0), ([2], 0.0), ([3], 0.0), ([2, 3], 0.0), ([1], 1.0)]
    )
    def test_a_last_word_is_right_if_all_of_its_tokens_are(
        self, wrong: list[int], right: float, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Of "the film plot." the last two tokens are the last word; position p answers with the token after it."""
        rows = Dataset.from_dict({"text": ["the film plot."]})
        features = tokenize(rows, tokenizer, CAUSAL, EIGHT)
        batch = collator(tokenizer, CAUSAL)(list(features))
        answers = functional.one_hot(batch["input_ids"].roll(-1, 1), len(WORDS)).float()
        answers[0, wrong] = 0.0
        answers[0, wrong, 0] = 1.0
        collector = Collector(CAUSAL, features, rows)
        collector.add(answers, batch)
        assert CAUSAL.metrics(collector.outputs(), np.array([14]))["last_word_accuracy"] == right

    def test_one_models_text_does_not_judge_anothers(self) -> None:
        task: Task = CAUSAL
        assert task.predictions({}) is None
        assert (CAUSAL.higher_is_better, CAUSAL.has_labels, CAUSAL.output_labels) == (False, False, None)
        assert CAUSAL.serving() == {"max_new_tokens": 9}


class TestMasking:
    @pytest.fixture
    def columns(self) -> dict[str, list[Any]]:
        return MASKED.encode({"text": list(new_data("masked_lm", train=400)["train"]["text"])}, new_tokenizer(), EIGHT)

    def test_windows_cover_each_text(self) -> None:
        tokenizer = new_tokenizer()
        columns = MASKED.encode({"text": TEXTS}, tokenizer, EIGHT)
        for row, text in enumerate(TEXTS):
            tokens: list[int] = []
            for ids, labels, example in zip(columns["input_ids"], columns["labels"], columns["example"], strict=True):
                if example == row:
                    true = [old if label == NO_LABEL else label for old, label in zip(ids, labels, strict=True)]
                    assert true[0] == tokenizer.cls_token_id
                    tokens += true[1:-1]
            assert tokens == ids_of(tokenizer, text)

    def test_masks_hang_on_the_tokens_alone(self, columns: dict[str, list[Any]]) -> None:
        texts = list(new_data("masked_lm", train=400)["train"]["text"])
        again = MASKED.encode({"text": texts[::-1]}, new_tokenizer(), EIGHT)
        first, last = columns["example"].index(1), columns["example"].index(2)
        reversed_first = again["example"].index(len(texts) - 2)
        assert columns["input_ids"][first:last] == again["input_ids"][reversed_first:][: last - first]
        assert columns["labels"][first:last] == again["labels"][reversed_first:][: last - first]

    def test_about_the_asked_share_is_masked_and_no_special_token(self, columns: dict[str, list[Any]]) -> None:
        special = {WORDS.index(word) for word in ("[CLS]", "[SEP]", "[PAD]")}
        for labels in columns["labels"]:
            masked = [label for label in labels if label != NO_LABEL]
            assert len(masked) == max(1, round(0.15 * (len(labels) - 2)))
            assert not special & set(masked)

    def test_eighty_ten_ten(self) -> None:
        task = MaskedLM(TaskSettings(kind="masked_lm", mask_probability=0.5))
        generator = np.random.default_rng(0)
        texts = [" ".join(generator.choice(FILLING, 60)) for _ in range(200)]
        columns = task.encode({"text": texts}, new_tokenizer(), DataSettings(max_length=64))
        ids, labels = np.array(columns["input_ids"]), np.array(columns["labels"])
        chosen = labels != NO_LABEL
        mask = WORDS.index("[MASK]")
        assert chosen.sum() == 200 * 30
        assert (ids[chosen] == mask).mean() == pytest.approx(0.8, abs=0.03)
        kept = (ids[chosen] == labels[chosen]).mean()
        assert kept == pytest.approx(0.1 + 0.1 / len(WORDS), abs=0.03)
        assert len(np.unique(ids[chosen & (ids != labels) & (ids != mask)])) == len(WORDS) - 1

    def test_a_tokenizer_needs_a_mask(self) -> None:
        with pytest.raises(ModelError, match="the tokenizer has no mask token"):
            MASKED.encode({"text": TEXTS}, new_decoder_tokenizer(), EIGHT)

    def test_serving_masks_nothing(self) -> None:
        columns = MASKED.encode_served({"text": ["the [MASK]"]}, new_tokenizer(), EIGHT)
        assert columns["input_ids"] == [[WORDS.index(word) for word in ("[CLS]", "the", "[MASK]", "[SEP]")]]


class TestMaskedLossAndMetrics:
    @pytest.fixture
    def batch(self) -> Batch:
        tokenizer = new_tokenizer()
        rows = tokenize(Dataset.from_dict({"text": TEXTS}), tokenizer, MASKED, EIGHT)
        return collator(tokenizer, MASKED)(list(rows))

    def test_the_loss_is_torchs_mean_over_masked_tokens(self, batch: Batch) -> None:
        torch.manual_seed(0)
        logits = torch.randn(*batch["input_ids"].shape, len(WORDS))
        expected = functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        mask = batch["attention_mask"]
        count = MASKED.num_labelled(batch, mask)
        torch.testing.assert_close(MASKED.task_loss(logits, batch, mask, num_items=count), expected)
        assert torch.equal(MASKED.prediction_mask(batch, mask), batch["labels"] != NO_LABEL)

    def test_figures_equal_those_of_a_loop(self) -> None:
        torch.manual_seed(0)
        model = BertForMaskedLM(new_config(num_hidden_layers=1)).train(mode=False)
        rows = Dataset.from_dict({"text": TEXTS})
        outputs = outputs_of(model, MASKED, rows, EIGHT, 2)
        columns = MASKED.encode({"text": TEXTS}, new_tokenizer(), EIGHT)
        losses, right = [], []
        for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0]
            for place, label in enumerate(labels):
                if label != NO_LABEL:
                    losses.append(functional.cross_entropy(logits[place], torch.tensor(label)).item())
                    right.append(logits[place].argmax().item() == label)
        assert MASKED.metrics(outputs, MASKED.references(rows)) == {
            "perplexity": pytest.approx(math.exp(np.mean(losses)), rel=1e-5),
            "masked_accuracy": pytest.approx(np.mean(right)),
        }


MODELS: list[PreTrainedModel] = [
    GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=64)),
    BertForMaskedLM(new_config(num_hidden_layers=1)),
]


class TestHeads:
    @pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__)
    def test_they_share_the_models_own_output_embedding(self, model: PreTrainedModel) -> None:
        width = model.config.hidden_size
        heads = CAUSAL.filter_heads(3, width, FilterSettings(), model)
        layer = model.get_output_embeddings()  # type: ignore[no-untyped-call] # by transformers
        assert {buffer.data_ptr() for buffer in heads.buffers()} >= {layer.weight.data_ptr()}
        assert len(list(heads.buffers())) == (1 if layer.bias is None else 2)
        states = torch.randn(2, 4, width)
        for head in heads:
            torch.testing.assert_close(head(states, torch.ones(2, 4)), layer(functional.layer_norm(states, (width,))))

    def test_nothing_but_their_norms_is_stored_or_trained(self, decoder: PreTrainedModel) -> None:
        heads = CAUSAL.filter_heads(2, 16, FilterSettings(), decoder)
        norms = {f"{head}.norm.{part}" for head in (0, 1) for part in ("weight", "bias")}
        assert set(heads.state_dict()) == {name for name, _ in heads.named_parameters()} == norms

    def test_the_size_of_states_does_not_count(self, decoder: PreTrainedModel) -> None:
        """Layers below the last have states that are larger by orders of magnitude."""
        head, states, mask = CAUSAL.filter_head(16, FilterSettings(), decoder), torch.randn(1, 3, 16), torch.ones(1, 3)
        torch.testing.assert_close(head(1000 * states, mask), head(states, mask), rtol=1e-3, atol=1e-3)

    def test_states_of_another_width_are_widened(self, decoder: PreTrainedModel) -> None:
        heads = CAUSAL.filter_heads(2, 6, FilterSettings(), decoder)
        parts = ("widen.weight", "widen.bias", "norm.weight", "norm.bias")
        assert set(heads.state_dict()) == {f"{head}.{part}" for head in (0, 1) for part in parts}
        assert heads[0](torch.randn(2, 4, 6), torch.ones(2, 4)).shape == (2, 4, len(WORDS))

    def test_a_head_gives_no_gradient_to_the_model(self, decoder: PreTrainedModel) -> None:
        states = torch.randn(1, 2, 16, requires_grad=True)
        head = CAUSAL.filter_head(16, FilterSettings(), decoder)
        (gradient,) = torch.autograd.grad(head(states, torch.ones(1, 2)).square().sum(), states)
        assert gradient.abs().sum() > 0
        assert isinstance(head, VocabularyHead)

    def test_an_embedding_without_a_bias_has_none(self) -> None:
        assert OutputEmbedding(nn.Linear(3, 4, bias=False)).bias is None

    def test_an_embedding_in_bfloat16_reads_float32_states(self) -> None:
        states_BLD = torch.ones(1, 2, 3)
        assert OutputEmbedding(nn.Linear(3, 4).bfloat16())(states_BLD).dtype == torch.float32


def test_teacher_outputs_are_as_many_as_tokens_times_the_vocabulary() -> None:
    assert CAUSAL.num_logits(7, 100, 49152) == MASKED.num_logits(7, 100, 49152) == 4_915_200
