"""Tags of words, from the forms of a source to the spans that are served."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from sklearn.metrics import f1_score
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import BertModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.tiny import TAGS, distillation_inputs, new_config, new_data, new_settings, new_tokenizer, write_model
from ted import stages
from ted.config import DataSettings, FilterSettings, QualitySettings, TaskSettings
from ted.data.labels import read_tags
from ted.data.preparation import collator, forward_batches, tokenize
from ted.data.quality import Validation, validate
from ted.data.sources import load_dataset, select_rows
from ted.errors import DataError, DataQualityError
from ted.evaluation import evaluate_models, outputs_of
from ted.export.bundle import export_bundle
from ted.files import read_json
from ted.heads import TokenHead
from ted.models.frozen import run_model
from ted.models.loading import load_trained
from ted.serving.bundle import open_bundle
from ted.serving.predictor import Predictor
from ted.tasks.base import Array, Columns, Outputs
from ted.tasks.token_classification import TokenClassification

SETTINGS = TaskSettings(kind="token_classification")
ENTITIES = TokenClassification(SETTINGS, ("B-LOC", "B-PER", "I-PER", "O"))
SPEECH = TokenClassification(SETTINGS, ("ADP", "NOUN", "VERB"))
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "act", "##ing", "##or", "in", "a", "film", ".", "!")
LENIENT = QualitySettings(min_rows_per_class=1, max_excluded_fraction=1.0)


def ragged(rows: Iterable[Any]) -> Array:
    return np.fromiter(map(np.asarray, rows), dtype=object)


class TestSources:
    """Every form of words and tags gives the same rows."""

    WORDS = (["Ada", "Lovelace", "lived"], ["in", "London"], ["Rome"], ["a", "b"], ["c"], ["Ada"], ["Paris"], ["Bo"])
    TAGS = (["B-PER", "I-PER", "O"], ["O", "B-LOC"], ["B-LOC"], ["O", "O"], ["O"], ["B-PER"], ["B-LOC"], ["B-PER"])

    def load(self, path: Path, task: TaskSettings = SETTINGS, **data: Any) -> DatasetDict:
        names = {"text_column": "tokens", "label_column": "tags"}
        fractions = {"validation_fraction": 0.25, "test_fraction": 0.25}
        return load_dataset(DataSettings(source=str(path), **(names | fractions | data)), task, 6)

    def check(self, dataset: DatasetDict, names: tuple[str, ...] = ("B-LOC", "B-PER", "I-PER", "O")) -> None:
        found = [(row["row"], row["text"], row["label"]) for split in dataset.values() for row in split]
        texts = [" ".join(words) for words in self.WORDS]
        assert sorted(found) == list(zip(range(1, 9), texts, map(list, self.TAGS), strict=True))
        clean = validate(dataset, DataSettings(), LENIENT, TaskSettings(kind="token_classification", labels=names))
        assert clean.findings == ()
        assert clean.dataset["train"].features["label"] == List(ClassLabel(names=list(names)))
        for name, split in clean.dataset.items():
            assert [[names[tag] for tag in tags] for tags in split["label"]] == list(dataset[name]["label"])

    def test_lists_in_jsonl(self, tmp_path: Path) -> None:
        rows = zip(self.WORDS, self.TAGS, strict=True)
        lines = [json.dumps({"tokens": words, "tags": tags, "id": 1}) for words, tags in rows]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        self.check(self.load(tmp_path / "a.jsonl"))

    def test_text_and_lists_in_jsonl(self, tmp_path: Path) -> None:
        rows = zip(self.WORDS, self.TAGS, strict=True)
        lines = [json.dumps({"tokens": " \u3000".join(words) + "\n", "tags": tags}) for words, tags in rows]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        self.check(self.load(tmp_path / "a.jsonl"))

    def test_text_in_csv(self, tmp_path: Path) -> None:
        table = {"tokens": ["  ".join(words) for words in self.WORDS], "tags": [" ".join(tags) for tags in self.TAGS]}
        pd.DataFrame(table).to_csv(tmp_path / "a.csv", index=False)
        self.check(self.load(tmp_path / "a.csv"))

    def test_numbers_that_came_as_fractions(self) -> None:
        table = Dataset.from_dict({"label": [[0.0, 1.0, -0.0]]})
        column = read_tags(table, "a", {"0": "O", "1": "B-PER"})
        assert column.to_pylist() == [["O", "B-PER", "O"]]

    def test_numbers_of_declared_tags(self, tmp_path: Path) -> None:
        names = ("O", "B-PER", "I-PER", "B-LOC")
        numbers = [[names.index(tag) for tag in tags] for tags in self.TAGS]
        task = TaskSettings(kind="token_classification", labels=names)
        pq.write_table(pa.table({"tokens": list(self.WORDS), "tags": numbers}), tmp_path / "a.parquet")
        self.check(self.load(tmp_path / "a.parquet", task), names)
        table = {"tokens": [" ".join(words) for words in self.WORDS], "tags": [" ".join(map(str, n)) for n in numbers]}
        pd.DataFrame(table).to_csv(tmp_path / "a.csv", index=False)
        self.check(self.load(tmp_path / "a.csv", task), names)

    def test_class_labels_of_the_datasets_library(self, tmp_path: Path) -> None:
        names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
        features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=names))})
        columns = {"tokens": list(self.WORDS), "tags": [[names.index(tag) for tag in tags] for tags in self.TAGS]}
        pq_file = tmp_path / "a.parquet"
        pq.write_table(Dataset.from_dict(columns, features=features).with_format("arrow")[:], pq_file)
        self.check(self.load(pq_file))

    def test_unlabelled_text_has_the_form_of_the_source_or_is_text(self, tmp_path: Path) -> None:
        rows = zip(self.WORDS, self.TAGS, strict=True)
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"tokens": w, "tags": t}) for w, t in rows))
        (tmp_path / "more.jsonl").write_text('{"tokens": ["new", "words"]}')
        (tmp_path / "text.csv").write_text("tokens\nnew  words\n")
        for name in ("more.jsonl", "text.csv"):
            dataset = self.load(tmp_path / "a.jsonl", unlabelled=str(tmp_path / name))
            assert list(dataset["unlabelled"]["text"]) == ["new words"]

    def test_rows_can_lose_their_tags(self) -> None:
        data = new_data("token_classification")
        rows = select_rows(data, DataSettings(train_rows=40, labelled_rows=20), 0)
        assert {name: len(split) for name, split in rows.items()} == {
            "train": 20, "validation": 16, "test": 16, "unlabelled": 20,
        }  # fmt: skip
        with pytest.raises(DataError, match=r"^data\.labelled_rows is 8, and no row that is drawn has I-BAD; raise"):
            select_rows(data, DataSettings(train_rows=20, labelled_rows=8), 0)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"tokens": [1, 2], "tags": ["O", "O"]}], "column 'tokens' holds List(Value('int64')), not text"),
            ([{"tokens": ["a"], "tags": 1}], "column 'tags' holds int64, not lists of tags; give another column"),
            ([{"tokens": ["a"], "tags": ["O"]}, {"tokens": 3, "tags": ["O"]}], "column 'tokens' mixes types: row"),
        ],
    )
    def test_other_columns_are_refused(self, tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(DataError) as caught:
            self.load(tmp_path / "a.jsonl")
        assert message in str(caught.value)


# Validation and test rows beside which those of the training split are judged.
MEASURED = (
    ("validation", [("vale .", ["O", "O"]), ("vale Ada", ["O", "B-PER"])]),
    ("test", [("to", ["O"]), ("to Ada", ["O", "B-PER"])]),
)


class TestRules:
    """What makes a row or a split unfit."""

    GOOD = (("Ada left", ["B-PER", "O"]), ("in Rome", ["O", "B-LOC"]))

    def judge(
        self, rows: list[tuple[Any, Any]], quality: QualitySettings = LENIENT, labels: tuple[str, ...] | None = None
    ) -> Validation:
        features = Features(
            {"text": Value("string"), "label": List(Value("string")), "row": Value("int64"), "source": Value("string")}
        )
        splits = {}
        for name, table in (("train", rows), *MEASURED):
            columns = {"text": [row[0] for row in table], "label": [row[1] for row in table]}
            places = {"row": list(range(1, len(table) + 1)), "source": [f"{name}.jsonl"] * len(table)}
            splits[name] = Dataset.from_dict(columns | places, features=features)
        task = TaskSettings(kind="token_classification", labels=labels)
        return validate(DatasetDict(splits), DataSettings(), quality, task)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (("Ada left Rome", ["B-PER", "O"]), "the first has 2 tags for 3 words between white space"),
            (("New York", ["B-LOC"]), "the first has 1 tags for 2 words between white space"),
            (("Ada", ["B-GOD"]), "the first has tag 'B-GOD'"),
            (("Ada", [None]), "the first has tag None"),
            (("Ada", []), "the first has 0 tags for 1 words between white space"),
        ],
    )
    def test_a_tag_is_known_and_stands_for_a_word(self, row: tuple[str, Any], message: str) -> None:
        with pytest.raises(DataQualityError) as caught:
            self.judge([*self.GOOD, row], labels=("B-LOC", "B-PER", "O"))
        assert str(caught.value) == (
            "train: unknown_label: 1 row with a label other than a tag per word out of 'B-LOC', 'B-PER', 'O': "
            f"row 3 of train.jsonl; {message}"
        )

    def test_rows_can_be_excluded(self) -> None:
        quality = LENIENT.model_copy(update={"unknown_label": "exclude"})
        broken = [
            ("Ada", None),
            (None, ["O"]),
            ("a b", ["O"]),
            ("Ada  left", ["B-PER", "O"]),
            ("Ho", ["O"]),
            ("Ho", ["B-LOC"]),
            ("HO", ["O"]),
        ]
        validation = self.judge([*self.GOOD, *broken], quality)
        rules = {row["row"]: row["rule"] for row in validation.excluded}
        assert rules == {
            3: "missing", 4: "missing", 5: "unknown_label", 6: "duplicates", 7: "conflicting_labels",
            8: "conflicting_labels",
        }  # fmt: skip
        assert validation.excluded["label"][2] == "['O']"
        # A name is told from a word by its case: HO is another text than Ho.
        assert validation.dataset["train"]["label"][:] == [[1, 2], [2, 0], [2]]

    @pytest.mark.parametrize("labels", [[[10, -100], [2]], ["10 -100", "2"]])
    def test_numbers_below_zero_are_no_tags(self, labels: list[Any]) -> None:
        """Some sources say with -100 that a word has no tag."""
        table = TokenClassification(SETTINGS).read_labels(Dataset.from_dict({"label": labels}), "a")
        assert table.to_pylist() == [["10", None], ["2"]]

    def test_a_tag_may_begin_with_a_hyphen(self) -> None:
        table = TokenClassification(SETTINGS).read_labels(Dataset.from_dict({"label": [["-LRB-", "-", "-1st"]]}), "a")
        assert table.to_pylist() == [["-LRB-", "-", "-1st"]]

    def test_a_row_with_a_number_below_zero_breaks_a_rule(self, tmp_path: Path) -> None:
        rows = [{"text": f"a b {row}", "label": [0, 1, -100 if row == 2 else 0]} for row in range(40)]
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        task = TaskSettings(kind="token_classification", labels=("O", "NOUN"))
        data = DataSettings(source=str(tmp_path / "a.jsonl"))
        with pytest.raises(DataQualityError, match="a label other than a tag per word out of 'O', 'NOUN': row 3"):
            validate(load_dataset(data, task, 0), data, LENIENT, task)

    def test_a_split_to_measure_on_holds_an_entity(self) -> None:
        column = pa.chunked_array([[["O"], ["O", "O"]]])
        assert TokenClassification(SETTINGS).too_few(np.zeros(2), column, ("B-PER", "O"), 0) == "no row has an entity"

    def test_training_rows_hold_each_type_of_entity(self) -> None:
        more = [(f"{word} Ada", ["O", "B-PER"]) for word in "pq"]
        self.judge([*self.GOOD, *more], LENIENT)
        with pytest.raises(DataQualityError, match=r"train: min_rows_per_class: too few rows with 'LOC' 1; quality"):
            self.judge([*self.GOOD, *more], LENIENT.model_copy(update={"min_rows_per_class": 2}))

    def test_training_rows_hold_each_tag_that_stands_for_itself(self) -> None:
        rows = [("see Ada", ["VERB", "NOUN"]), ("Ada", ["NOUN"]), ("to go", ["O", "VERB"])]
        labels = ("NOUN", "VERB", "X", "O")
        with pytest.raises(DataQualityError) as caught:
            self.judge(rows, LENIENT.model_copy(update={"min_rows_per_class": 2}), labels)
        assert "too few rows with 'X' 0, 'O' 1; quality.min_rows_per_class is 2" in str(caught.value)

    def test_a_single_tag_is_refused(self) -> None:
        with pytest.raises(DataQualityError, match="train: min_rows_per_class: the only tag is 'O'; two are needed"):
            self.judge([("on we go", ["O", "O", "O"])])

    def test_a_split_without_rows_is_refused(self) -> None:
        with pytest.raises(DataQualityError, match="train: min_rows_per_class: no row is left"):
            self.judge([("to", ["O"])])


def features_of(
    texts: list[str], tags: list[list[int]] | None, data: DataSettings, *, task: TokenClassification
) -> Columns:
    rows: dict[str, Any] = {"text": texts} | ({} if tags is None else {"label": tags})
    return task.encode(rows, new_tokenizer(WORDS), data)


class TestFeatures:
    """Tags stand at the first token of their word; long texts become windows."""

    def test_a_tag_stands_at_the_first_token_of_its_word(self) -> None:
        data = DataSettings(max_length=16, stride=4)
        columns = features_of(["acting actor in", "film."], [[2, 1, 0], [1]], data, task=SPEECH)
        tokenizer = new_tokenizer(WORDS)
        tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in columns["input_ids"]]
        assert tokens[0] == ["[CLS]", "act", "##ing", "act", "##or", "in", "[SEP]"]
        assert columns["labels"][0] == [-100, 2, -100, 1, -100, 0, -100]
        assert tokens[1] == ["[CLS]", "film", ".", "[SEP]"]
        assert columns["labels"][1] == [-100, 1, -100, -100]
        assert columns["example"] == [0, 1]

    def test_text_without_tags_has_no_label_but_its_words(self) -> None:
        columns = features_of(["acting in"], None, DataSettings(max_length=16, stride=4), task=SPEECH)
        assert columns["labels"] == [[-100] * 5]
        assert columns["words"][0].tolist() == [-1, 0, -1, 1, -1]

    @pytest.mark.parametrize(("max_length", "stride"), [(8, 0), (8, 3), (8, 4), (12, 6)])
    def test_windows_hold_each_word_once(self, max_length: int, stride: int) -> None:
        text = " ".join(["acting", "in", "a", "film"] * 8)
        tags = list(np.random.default_rng(0).integers(0, 3, 32))
        data = DataSettings(max_length=max_length, stride=stride)
        columns = features_of(["a", text], [[0], tags], data, task=SPEECH)
        assert columns["example"] == [0] + [1] * (len(columns["example"]) - 1)
        assert len(columns["example"]) > 3
        assert {len(ids) for ids in columns["input_ids"][1:-1]} == {max_length}
        pairs = zip(np.concatenate(columns["words"][1:]), np.concatenate(columns["labels"][1:]), strict=True)
        found = sorted((word, label) for word, label in pairs if word >= 0)
        assert found == list(enumerate(tags))
        assert sum(label != -100 for labels in columns["labels"][1:] for label in labels) == 32

    @pytest.mark.parametrize("trim", [True, False])
    def test_tokens_that_hold_the_white_space_before_a_word(self, trim: bool) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: index for index, token in enumerate([*alphabet, "Ġf", "<pad>"])}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "f")]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.post_processor = processors.ByteLevel(trim_offsets=trim)
        options: dict[str, Any] = {"tokenizer_object": backend, "pad_token": "<pad>"}
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast(**options)  # type: ignore[no-untyped-call]
        columns = SPEECH.encode(
            {"text": ["at film \u20ac5"], "label": [[0, 1, 2]]}, tokenizer, DataSettings(max_length=16, stride=4)
        )
        tokens = tokenizer.convert_ids_to_tokens(columns["input_ids"][0])
        assert [(token, label) for token, label in zip(tokens, columns["labels"][0], strict=True) if label >= 0] == [
            ("a", 0), ("Ġf", 1), ("â", 2),
        ]  # fmt: skip

    def test_a_batch_pads_labels(self) -> None:
        dataset = Dataset.from_dict({"text": ["acting in", "a"], "label": [[2, 0], [1]]})
        tokenizer = new_tokenizer(WORDS)
        features = tokenize(dataset, tokenizer, SPEECH, DataSettings(max_length=16, stride=4))
        batch = collator(tokenizer, SPEECH)(list(features))
        assert batch["labels"].tolist() == [[-100, 2, -100, 0, -100], [-100, 1, -100, -100, -100]]
        assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels", "index"}
        assert SPEECH.num_labelled(batch, batch["attention_mask"]).item() == 3

    def test_a_model_answers_per_token(self) -> None:
        assert SPEECH.num_logits(5, 40, 1000) == 120
        head = SPEECH.filter_head(8, FilterSettings(head_dropout=0.3), BertModel(new_config()))
        assert isinstance(head, TokenHead)
        assert (head.out.out_features, head.dropout.p) == (3, 0.3)


class TestLosses:
    """The loss is torch's over first tokens; the divergence is over real tokens."""

    def test_the_task_loss_is_torchs_mean_over_labelled_words(self) -> None:
        torch.manual_seed(0)
        logits = torch.randn(2, 4, 3, requires_grad=True)
        labels = torch.tensor([[-100, 2, -100, 1], [0, -100, -100, -100]])
        mask_BL = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        batch = {"labels": labels, "attention_mask": mask_BL}
        loss = SPEECH.task_loss(logits, batch, mask_BL, num_items=SPEECH.num_labelled(batch, mask_BL))
        torch.testing.assert_close(loss, functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.equal(gradient.abs().sum(-1) > 0, labels != -100)

    def test_a_batch_without_tags_costs_nothing(self) -> None:
        logits, labels = torch.randn(1, 2, 3, requires_grad=True), torch.full((1, 2), -100)
        loss = SPEECH.task_loss(logits, {"labels": labels}, torch.ones(1, 2), num_items=torch.tensor(0))
        assert loss.item() == 0.0
        assert torch.autograd.grad(loss, logits)[0].abs().sum() == 0

    def test_predictions_are_compared_on_every_real_token(self) -> None:
        mask_BL = torch.tensor([[1, 1, 1], [1, 1, 0]])
        assert torch.equal(SPEECH.prediction_mask({"labels": torch.full((2, 3), -100)}, mask_BL), mask_BL)


# Right: LOC of row 0. Missed: PER of row 0, which is answered one word short. Wrong: LOC of row 2.
LABELLED = ragged([[1, 2, 3, 0], [3, 3], [3, 1]])
ANSWERED: Outputs = {
    "tags": ragged([[1, 3, 3, 0], [3, 3], [0, 1]]),
    "probabilities": ragged([[0.5, 0.5, 1.0, 1.0], [0.75, 0.25], [0.5, 0.5]]),
}


class TestMetrics:
    """Figures of entities and of words equal those counted by hand."""

    def test_entities_are_right_if_words_and_type_are(self) -> None:
        assert (ENTITIES.primary_metric, ENTITIES.higher_is_better) == ("f1", True)
        metrics = ENTITIES.metrics(ANSWERED, LABELLED)
        assert metrics == {
            "precision": pytest.approx(2 / 4),
            "recall": pytest.approx(2 / 3),
            "f1": pytest.approx(2 * 2 / (4 + 3)),
            "accuracy": pytest.approx(6 / 8),
        }
        assert all(type(value) is float for value in metrics.values())
        scores_NK = ENTITIES.scores(ANSWERED, LABELLED)
        assert scores_NK.tolist() == [[1, 2, 2], [0, 0, 0], [1, 2, 1]]
        assert ENTITIES.primary(scores_NK) == metrics["f1"]
        assert ENTITIES.row_quality(ANSWERED, LABELLED).tolist() == pytest.approx([0.5, 1.0, 2 / 3])

    def test_each_type_has_figures_and_a_slice(self) -> None:
        rows = ENTITIES.label_rows(ANSWERED, LABELLED)
        assert rows == [
            {"label": "LOC", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "entities": 1},
            {"label": "PER", "precision": 0.5, "recall": 0.5, "f1": 0.5, "entities": 2},
        ]
        slices = ENTITIES.slices(LABELLED)
        assert {name: (title, rows_N.tolist()) for name, (title, rows_N) in slices.items()} == {
            "label=LOC": ("with LOC", [True, False, False]),
            "label=PER": ("with PER", [True, False, True]),
        }

    def test_nothing_found_where_nothing_is_gives_no_points(self) -> None:
        nothing: Outputs = {"tags": ragged([[3, 3]]), "probabilities": ragged([[1.0, 1.0]])}
        metrics = ENTITIES.metrics(nothing, ragged([[3, 3]]))
        assert metrics == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "accuracy": 1.0}

    def test_tags_that_stand_for_themselves_have_accuracy_and_macro_f1(self) -> None:
        labelled, answered = [[0, 1, 2], [1], [2, 2]], [[0, 1, 1], [1], [2, 1]]
        outputs: Outputs = {"tags": ragged(answered), "probabilities": ragged([[1.0] * len(row) for row in answered])}
        flat = [np.concatenate(rows) for rows in (labelled, answered)]
        metrics = SPEECH.metrics(outputs, ragged(labelled))
        assert SPEECH.primary_metric == "accuracy"
        assert metrics == {
            "accuracy": pytest.approx(4 / 6),
            "macro_f1": pytest.approx(f1_score(*flat, labels=range(3), average="macro", zero_division=0)),
        }
        assert SPEECH.primary(SPEECH.scores(outputs, ragged(labelled))) == metrics["accuracy"]
        assert SPEECH.row_quality(outputs, ragged(labelled)).tolist() == pytest.approx([2 / 3, 1.0, 0.5])
        assert [row["words"] for row in SPEECH.label_rows(outputs, ragged(labelled))] == [1, 2, 3]
        assert SPEECH.slices(ragged(labelled)) == {}

    def test_a_word_without_an_answer_is_wrong(self) -> None:
        outputs: Outputs = {"tags": ragged([[0, -1]]), "probabilities": ragged([[1.0, 0.0]])}
        assert SPEECH.metrics(outputs, ragged([[0, 2]]))["accuracy"] == 0.5
        assert SPEECH.primary(SPEECH.scores(outputs, ragged([[0, 2]]))) == 0.5
        assert SPEECH.named(outputs["tags"]).tolist() == ["ADP "]
        broken: Outputs = {"tags": ragged([[1, -1, 2]]), "probabilities": ragged([[1.0, 0.0, 1.0]])}
        assert ENTITIES.scores(broken, ragged([[1, 2, 2]])).tolist() == [[0, 2, 1]]

    def test_answers_have_names_and_confidences(self) -> None:
        assert ENTITIES.named(LABELLED).tolist() == ["B-PER I-PER O B-LOC", "O O", "O B-PER"]
        assert ENTITIES.confidences(ANSWERED).tolist() == [0.75, 0.5, 0.5]

    def test_windows_are_joined_by_word(self) -> None:
        text = " ".join(["acting", "in", "a", "film"] * 5)
        rows = Dataset.from_dict({"text": ["a", text], "label": [[0], [2, 0, 0, 1] * 5]})
        tokenizer = new_tokenizer(WORDS)
        features = tokenize(rows, tokenizer, SPEECH, DataSettings(max_length=8, stride=4))
        batches = forward_batches(features, collator(tokenizer, SPEECH), 3)
        # A model that answers what the label is, and for tokens without one the first tag.
        outputs, _ = outputs_of(
            lambda batch: functional.one_hot(batch["labels"].clamp(min=0), 3).float(), SPEECH, rows, features, batches
        )
        assert [tags.tolist() for tags in outputs["tags"]] == rows["label"][:]
        assert SPEECH.metrics(outputs, SPEECH.references(rows)) == {"accuracy": 1.0, "macro_f1": 1.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of all stages; texts are longer than a window, and the tags are learnt."""
    folder = tmp_path_factory.mktemp("tags")
    new_data("token_classification", unlabelled=12).save_to_disk(str(folder / "data"))
    torch.manual_seed(0)
    write_model(folder / "backbone", BertModel(new_config()), new_tokenizer())
    learnt = {"max_steps": 40, "per_device_train_batch_size": 16, "learning_rate": 1e-2}
    settings = new_settings(
        folder,
        task={"kind": "token_classification"},
        data={"max_length": 8, "stride": 3},
        teacher={"training": learnt},
        student={"training": learnt},
        distillation={"training": learnt},
        evaluation={"latency_repeats": 3, "latency_batch_sizes": [1]},
        export={"int8": False},
    )
    data = folder / "data"
    stages.finetune_teacher(settings, data, folder / "teacher")
    stages.prepare_student(settings, data, folder / "student_start")
    stages.learn_filters(settings, data, folder / "teacher", "teacher", folder / "teacher_filters")
    stages.learn_filters(settings, data, folder / "student_start", "student", folder / "student_filters")
    stages.distill_student(settings, distillation_inputs(folder), folder / "student")
    stages.train_control(settings, data, folder / "student_start", folder / "control")
    models = {name: folder / name for name in ("teacher", "student_start", "control", "student")}
    evaluation = evaluate_models(settings, data, models, folder / "evaluation")
    export_bundle(settings, folder / "student", data, evaluation, 1, folder / "bundles")
    return folder


class TestRun:
    """From tagged rows to served spans."""

    def test_models_have_the_head_and_the_names_of_the_tags(self, run: Path) -> None:
        for name in ("teacher", "student"):
            config = load_trained(run / name).model.config
            assert config.architectures == ["BertForTokenClassification"]
            assert config.id2label == dict(enumerate(TAGS))

    def test_the_student_learns_the_entities(self, run: Path) -> None:
        evaluation = read_json(run / "evaluation" / "evaluation.json")
        assert evaluation["primary_metric"] == "f1"
        assert evaluation["models"]["teacher"]["primary"] > 0.7
        assert evaluation["models"]["student"]["primary"] > 0.7
        assert [row["label"] for row in evaluation["models"]["student"]["label_rows"]] == ["BAD", "GOOD"]
        frame = pd.read_parquet(run / "evaluation" / "predictions.parquet")
        assert set(" ".join(frame["label"]).split()) <= set(TAGS)
        assert (frame["student_prediction"].str.count(" ") == frame["text"].str.count(" ")).all()
        metrics = read_json(run / "student" / "metrics.json")
        assert {"task_loss", "prediction_loss", "layer_loss"} <= set(metrics["log_history"][0])

    def test_served_spans_are_those_of_the_evaluation(self, run: Path) -> None:
        loaded = load_trained(run / "student")
        task = TokenClassification(SETTINGS, TAGS)
        rows = DatasetDict.load_from_disk(str(run / "data"))["test"]
        features = tokenize(rows, loaded.tokenizer, task, DataSettings(max_length=8, stride=3))
        assert len(features) > len(rows)
        batches = forward_batches(features, collator(loaded.tokenizer, task))
        with torch.inference_mode():
            outputs, _ = outputs_of(lambda b: run_model(loaded.model, b, ()).logits, task, rows, features, batches)
        answers = Predictor(open_bundle(run / "bundles")).predict(list(rows["text"]))
        assert sum(len(answer["spans"]) for answer in answers) > 20
        for answer, tags_W, probabilities_W in zip(answers, outputs["tags"], outputs["probabilities"], strict=True):
            words = answer["text"].split()
            starts = np.cumsum([0, *(len(word) + 1 for word in words)])
            spans = sorted(task._spans(tags_W), key=lambda span: span.start)
            assert answer["spans"] == [
                {
                    "label": label,
                    "start": starts[start],
                    "end": starts[end] - 1,
                    "text": " ".join(words[start:end]),
                    "score": pytest.approx(probabilities_W[start:end].mean(), abs=1e-4),
                }
                for label, start, end in spans
            ]

    def test_raw_text_keeps_its_white_space(self, run: Path) -> None:
        manifest = read_json(run / "bundles" / "ted-student" / "1" / "bundle.json")
        assert manifest["task"] == {"kind": "token_classification", "labels": list(TAGS), "windows": True}
        assert manifest["output_dims"] == {"logits": [-1, len(TAGS)]}
        assert manifest["served_metrics"]["primary"] > 0.7
        text = "  the  good\tplot\n" * 9
        (answer,) = Predictor(open_bundle(run / "bundles")).predict([text])
        assert [(span["label"], span["text"]) for span in answer["spans"]] == [("GOOD", "good")] * 9
        assert all(text[span["start"] : span["end"]] == "good" for span in answer["spans"])
