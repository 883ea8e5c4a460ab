import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ted.errors import BundleError, DataError
from ted.serving.answers import softmax
from ted.serving.bundle import Bundle, open_bundle
from ted.serving.predictor import Predictor

WriteBundle = Callable[..., Path]
Weights = NDArray[np.float32]

CLS, SEP, GOOD, BAD, FILM = 2, 3, 4, 5, 6


def test_softmax_is_stable_and_sums_to_one() -> None:
    probabilities = softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3.0)]], np.float32))
    np.testing.assert_allclose(probabilities, [[0.5, 0.5], [0.25, 0.75]], rtol=1e-6)


def test_a_classification_names_the_label_and_all_probabilities(write_bundle: WriteBundle, weights_VC: Weights) -> None:
    answer = Predictor(open_bundle(write_bundle())).predict(["good film"])[0]
    logits_C = weights_VC[[CLS, GOOD, FILM, SEP]].sum(0)
    expected = np.exp(logits_C) / np.exp(logits_C).sum()
    assert answer["text"] == "good film"
    assert answer["label"] == ["negative", "positive"][int(logits_C.argmax())]
    assert list(answer["probabilities"]) == ["negative", "positive"]
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected, rtol=1e-5)
    json.dumps(answer)


def test_answers_keep_the_order_and_do_not_depend_on_the_texts_beside_them(write_bundle: WriteBundle) -> None:
    predictor = Predictor(open_bundle(write_bundle()))
    texts = [" ".join(["good", "bad", "film", "plot"][: 1 + index % 4]) for index in range(70)]
    together = predictor.predict(texts)
    assert [answer["text"] for answer in together] == texts
    for text, answer in zip(texts, together, strict=True):
        alone = predictor.predict([text])[0]
        assert alone["label"] == answer["label"]
        assert alone["probabilities"] == pytest.approx(answer["probabilities"], rel=1e-5)


def test_no_texts_have_no_answers(write_bundle: WriteBundle) -> None:
    assert Predictor(open_bundle(write_bundle())).predict([]) == []


def test_a_regression_answers_a_value(write_bundle: WriteBundle, weights_VC: Weights) -> None:
    folder = write_bundle(task={"kind": "regression", "labels": None})
    answers = Predictor(open_bundle(folder)).predict(["good", "bad film"])
    assert answers[0] == {"text": "good", "value": pytest.approx(weights_VC[[CLS, GOOD, SEP], 0].sum(), rel=1e-5)}
    assert answers[1]["value"] == pytest.approx(weights_VC[[CLS, BAD, FILM, SEP], 0].sum(), rel=1e-5)


def test_labels_above_the_threshold_are_answered(write_bundle: WriteBundle, weights_VC: Weights) -> None:
    task = {"kind": "multi_label", "labels": ["praise"], "threshold": 0.5}
    predictor = Predictor(open_bundle(write_bundle(task=task)))
    texts = ["good", "bad", "film", "plot", "and", "a"]
    logits_N = np.array([weights_VC[[CLS, place, SEP], 0].sum() for place in range(GOOD, GOOD + len(texts))])
    answers = predictor.predict(texts)
    assert [answer["labels"] for answer in answers] == [["praise"] if logit > 0 else [] for logit in logits_N]
    assert {len(answer["labels"]) for answer in answers} == {0, 1}
    probabilities = [answer["probabilities"]["praise"] for answer in answers]
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits_N)), rtol=1e-5)
    json.dumps(answers)


def test_pairs_tell_the_texts_apart(write_bundle: WriteBundle, weights_VC: Weights) -> None:
    predictor = Predictor(open_bundle(write_bundle(pair=True)))
    ((logits_C,),) = predictor.logits(predictor.encode([("good", "bad film")]))
    factor_L1 = np.array([1, 1, 1, 2, 2, 2])[:, None]
    np.testing.assert_allclose(logits_C, (weights_VC[[CLS, GOOD, SEP, BAD, FILM, SEP]] * factor_L1).sum(0), rtol=1e-5)


def test_a_run_is_padded_to_its_longest_text_only(write_bundle: WriteBundle) -> None:
    predictor = Predictor(open_bundle(write_bundle()))
    feeds = predictor.feeds([windows[0] for windows in predictor.encode(["good", "good film plot"])])
    assert {name: array.shape for name, array in feeds.items()} == dict.fromkeys(feeds, (2, 5))
    assert feeds["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert feeds["input_ids"].dtype == np.int64


def test_long_texts_are_cut_in_tokens_and_characters(write_bundle: WriteBundle) -> None:
    predictor = Predictor(open_bundle(write_bundle(max_characters=9)))
    assert predictor.encode(["good film plot"])[0][0].tokens == ["[CLS]", "good", "film", "[SEP]"]
    predictor = Predictor(open_bundle(write_bundle(version=2)))
    assert len(predictor.encode(["good " * 5_000_000])[0][0].ids) == 8


def test_a_text_that_is_read_in_windows_is_never_cut(write_bundle: WriteBundle) -> None:
    task = {"kind": "token_classification", "labels": ["O", "X"], "windows": True}
    predictor = Predictor(open_bundle(write_bundle(max_characters=9, task=task)))
    assert len(predictor.encode(["good film"])) == 1
    with pytest.raises(DataError, match=r"a text has 10 characters, and bundle tiny reads at most 9; give it in parts"):
        predictor.encode(["good films"])


def test_half_a_character_is_no_text(write_bundle: WriteBundle) -> None:
    with pytest.raises(DataError, match=r"holds '\\ud83d' at character 5, half of a character"):
        Predictor(open_bundle(write_bundle())).predict(["good \ud83d"])


def test_a_bundle_that_does_not_say_what_answers_need_is_refused(write_bundle: WriteBundle) -> None:
    bundle = open_bundle(write_bundle(task={"kind": "multi_label", "labels": ["a", "b"]}))
    with pytest.raises(BundleError, match=r"the block task of bundle\.json lacks threshold; export the bundle again"):
        Predictor(bundle)


@pytest.mark.parametrize("text", [None, 3, b"good", ("good", "bad"), ["good"]])
def test_what_is_not_a_text_is_refused(write_bundle: WriteBundle, text: str) -> None:
    with pytest.raises(DataError, match="bundle tiny answers single texts, not"):
        Predictor(open_bundle(write_bundle())).predict([text])


@pytest.mark.parametrize("text", ["good", ("good",), ("good", 3), ("a", "b", "c")])
def test_what_is_not_a_pair_is_refused(write_bundle: WriteBundle, text: str) -> None:
    with pytest.raises(DataError, match="answers pairs of two texts, not"):
        Predictor(open_bundle(write_bundle(pair=True))).predict([text])


def test_a_refused_text_is_shown_in_short(write_bundle: WriteBundle) -> None:
    with pytest.raises(DataError) as error:
        Predictor(open_bundle(write_bundle(pair=True))).predict(["long " * 10_000])
    assert len(str(error.value)) < 150


def test_a_tokenizer_that_cuts_elsewhere_is_refused(write_bundle: WriteBundle) -> None:
    with pytest.raises(BundleError, match="does not pad and cut to 16 tokens"):
        Predictor(open_bundle(write_bundle(max_length=16)))


def test_a_tokenizer_that_does_not_pad_is_refused(write_bundle: WriteBundle) -> None:
    bundle = open_bundle(write_bundle())
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_path))
    tokenizer.no_padding()
    tokenizer.save(str(bundle.tokenizer_path))
    with pytest.raises(BundleError, match="does not pad"):
        Predictor(Bundle(bundle.folder, bundle.manifest))


def test_serving_imports_nothing_of_the_training(write_bundle: WriteBundle) -> None:
    script = """
import sys
from pathlib import Path
from ted.serving.bundle import open_bundle
from ted.serving.predictor import Predictor
Predictor(open_bundle(Path(sys.argv[1]))).predict(["good film"])
heavy = {"torch", "transformers", "datasets", "zenml", "onnx", "pandas", "sklearn", "pydantic"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script, write_bundle()], check=True)
