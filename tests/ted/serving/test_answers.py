import json

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers, processors

from benchmarks.tiny import new_tokenizer
from ted.errors import DataError
from ted.serving.answers import Answer, new_answerer, softmax

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Ada", "Love", "##lace", "in", "Lon", "##don", "."]
TOKENIZER = Tokenizer(models.WordLevel({}, unk_token="[UNK]"))  # noqa: S106 - a token of the vocabulary
ENTITIES = ["B-LOC", "B-PER", "I-PER", "O"]


def windows_of(text: str, max_length: int = 16, stride: int = 0) -> list[Encoding]:
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106 - a token of the vocabulary
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(max_length, stride=stride)
    encoding = tokenizer.encode(text)
    return [encoding, *encoding.overflowing]


def logits_for(window: Encoding, tags: dict[str, str], labels: list[str]) -> NDArray[np.float32]:
    """Return logits of 2 for the tag of each token, which is the last label where none is named."""
    logits = np.zeros((len(window.tokens), len(labels)), np.float32)
    for place, token in enumerate(window.tokens):
        logits[place, labels.index(tags.get(token, labels[-1]))] = 2.0
    return logits


def answer(text: str, tags: dict[str, str], labels: list[str], **cut: int) -> Answer:
    windows = windows_of(text, **cut)
    answerer = new_answerer({"kind": "token_classification", "labels": labels}, TOKENIZER)
    return answerer.answer(text, windows, [logits_for(window, tags, labels) for window in windows])


SCORE = float(softmax(np.array([2.0, 0.0, 0.0, 0.0])).max())


def test_entities_are_spans_of_the_raw_text() -> None:
    text = "Ada  Lovelace in\tLondon."
    tags = {"Ada": "B-PER", "Love": "I-PER", "##lace": "B-LOC", "Lon": "B-LOC"}
    spans = answer(text, tags, ENTITIES)["spans"]
    assert [(span["label"], span["start"], span["end"], span["text"]) for span in spans] == [
        ("PER", 0, 13, "Ada  Lovelace"),
        ("LOC", 17, 24, "London."),
    ]
    assert [span["score"] for span in spans] == pytest.approx([SCORE, SCORE])
    json.dumps(spans)


def test_the_score_of_an_entity_is_the_mean_over_its_words() -> None:
    text = "Ada Lovelace"
    window = windows_of(text)[0]
    logits = logits_for(window, {"Ada": "B-PER", "Love": "I-PER"}, ENTITIES)
    logits[window.tokens.index("Love")] *= 2
    answerer = new_answerer({"kind": "token_classification", "labels": ENTITIES}, TOKENIZER)
    (span,) = answerer.answer(text, [window], [logits])["spans"]
    surer = float(softmax(np.array([4.0, 0.0, 0.0, 0.0])).max())
    assert span["score"] == pytest.approx((SCORE + surer) / 2)


def test_tags_without_entities_are_answered_for_every_word() -> None:
    labels = ["NOUN", "PREP"]
    spans = answer("Ada in London", {"Ada": "NOUN", "Lon": "NOUN"}, labels)["spans"]
    assert [(span["label"], span["text"]) for span in spans] == [("NOUN", "Ada"), ("PREP", "in"), ("NOUN", "London")]


def test_windows_answer_each_word_once() -> None:
    text = " ".join(["Ada Lovelace in London ."] * 5)
    tags = {"Ada": "B-PER", "Love": "I-PER", "Lon": "B-LOC"}
    assert len(windows_of(text, max_length=8, stride=3)) > 5
    whole = answer(text, tags, ENTITIES, max_length=64)
    assert answer(text, tags, ENTITIES, max_length=8, stride=3) == whole
    assert len(whole["spans"]) == 10


def test_padding_that_came_later_changes_nothing() -> None:
    text = " ".join(["Ada Lovelace in London ."] * 3)
    tags = {"Ada": "B-PER", "Love": "I-PER", "Lon": "B-LOC"}
    windows = windows_of(text, max_length=8, stride=4)
    logits = [logits_for(window, tags, ENTITIES) for window in windows]
    answerer = new_answerer({"kind": "token_classification", "labels": ENTITIES}, TOKENIZER)
    before = answerer.answer(text, windows, logits)
    for window in windows:
        window.pad(30)
    assert answerer.answer(text, windows, logits) == before


@pytest.mark.parametrize("text", ["", " \n", "in"])
def test_nothing_found_is_an_empty_list(text: str) -> None:
    assert answer(text, {}, ENTITIES) == {"spans": []}


class TestMasks:
    @pytest.fixture
    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_str(new_tokenizer().backend_tokenizer.to_str())
        tokenizer.enable_truncation(8)
        return tokenizer

    def answer(self, text: str, word: str, tokenizer: Tokenizer) -> Answer:
        """Return the answer of a model that expects one word everywhere."""
        window = tokenizer.encode(text)
        logits = np.zeros((len(window.ids), tokenizer.get_vocab_size()), np.float32)
        logits[:, tokenizer.token_to_id(word)] = 9.0
        answerer = new_answerer({"kind": "masked_lm", "mask_token": "[MASK]"}, tokenizer)
        return answerer.answer(text, [window], [logits])

    def test_every_mask_gets_its_likeliest_token(self, tokenizer: Tokenizer) -> None:
        found = self.answer("the [MASK] film is [MASK]", "good", tokenizer)
        assert [token["token"] for token in found["tokens"]] == ["good", "good"]

    def test_a_mask_behind_the_last_token_that_is_read_is_refused(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError, match=r"holds 2 \[MASK\], but 1 of them stand within the 8 tokens that are read"):
            self.answer("the [MASK] film is very very good and [MASK]", "good", tokenizer)
