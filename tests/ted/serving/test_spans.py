import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ted.serving.spans import OUTSIDE, QuestionCutter, Span, Window, best_span, context_places, token_span

CONTEXT = "one two three four five six seven eight nine ten"
WORDS = CONTEXT.split()
STARTS = [CONTEXT.index(word) for word in WORDS]
ENDS = [start + len(word) for start, word in zip(STARTS, WORDS, strict=True)]
SPECIAL = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}


def window(first: int, last: int, logits: Sequence[Sequence[float]]) -> Window:
    """Return a window of some words behind two tokens of a question, with a special token at its end."""
    starts = [OUTSIDE, OUTSIDE, *STARTS[first:last], OUTSIDE]
    ends = [OUTSIDE, OUTSIDE, *ENDS[first:last], OUTSIDE]
    return Window(np.array(logits, np.float32), np.array(starts), np.array(ends))


def random_windows(seed: int) -> list[Window]:
    generator = np.random.default_rng(seed)
    return [window(first, first + 5, generator.normal(scale=2, size=(8, 2)).tolist()) for first in (0, 3, 5)]


def brute_force(windows: Sequence[Window], longest: int, threshold: float | None) -> Span:
    """Return the best span by looking at each pair of tokens."""
    spans = []
    for logits, starts, ends in windows:
        for first, last in itertools.product(range(len(logits)), repeat=2):
            if starts[first] != OUTSIDE and starts[last] != OUTSIDE and first <= last < first + longest:
                spans.append((float(logits[first, 0]) + float(logits[last, 1]), int(starts[first]), int(ends[last])))
    null = min(float(logits[0, 0]) + float(logits[0, 1]) for logits, _, _ in windows)
    best = max(spans)
    total = sum(math.exp(score) for score, _, _ in spans) + math.exp(null)
    if threshold is not None and null - best[0] > threshold:
        return Span(0, 0, math.exp(null) / total)
    return Span(best[1], best[2], math.exp(best[0]) / total)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("longest", [1, 3, 30])
@pytest.mark.parametrize("threshold", [None, 0.0, -6.0])
def test_the_best_span_is_that_of_a_search_through_all(seed: int, longest: int, threshold: float | None) -> None:
    windows = random_windows(seed)
    found = best_span(CONTEXT, windows, max_answer_tokens=longest, null_threshold=threshold)
    expected = brute_force(windows, longest, threshold)
    assert (found.start, found.end) == (expected.start, expected.end)
    assert found.score == pytest.approx(expected.score, rel=1e-6)


def test_an_answer_may_be_longer_than_any_context() -> None:
    windows = random_windows(0)
    spans = [best_span(CONTEXT, windows, max_answer_tokens=longest, null_threshold=None) for longest in (5, 10**12)]
    assert spans[0] == spans[1]


def test_no_answer_needs_a_score_that_exceeds_the_best_span_by_more_than_the_threshold() -> None:
    logits = [[1.0, 1.5], [0.0, 0.0], [0.5, 0.0], [0.0, 1.0], [9.0, 9.0]]
    windows = [window(0, 2, logits)]
    spans = [
        best_span(CONTEXT, windows, max_answer_tokens=5, null_threshold=threshold) for threshold in (0.9, 1.0, None)
    ]
    assert [CONTEXT[span.start : span.end] for span in spans] == ["", "one two", "one two"]
    assert (spans[0].start, spans[0].end) == (0, 0)


def test_one_window_that_is_sure_of_an_answer_outweighs_others_without_it() -> None:
    none = [[8.0, 8.0], *[[0.0, 0.0]] * 4]
    some = [[-2.0, -2.0], [0.0, 0.0], [6.0, 6.0], [0.0, 0.0], [0.0, 0.0]]
    span = best_span(CONTEXT, [window(0, 2, none), window(2, 4, some)], max_answer_tokens=5, null_threshold=0.0)
    assert CONTEXT[span.start : span.end] == "three"


def test_a_context_without_a_token_has_no_answer() -> None:
    empty = Window(np.ones((3, 2), np.float32), np.full(3, OUTSIDE), np.full(3, OUTSIDE))
    assert best_span("", [empty], max_answer_tokens=5, null_threshold=None) == Span(0, 0, 1.0)


def test_white_space_that_a_token_covers_is_not_of_the_answer() -> None:
    logits = np.array([[0.0, 0.0], [5.0, 5.0]])
    covering = Window(logits, np.array([OUTSIDE, 3]), np.array([OUTSIDE, 8]))
    span = best_span("one two three", [covering], max_answer_tokens=5, null_threshold=None)
    assert (span.start, span.end) == (4, 7)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("three", (2, 2)),
        ("three four five", (2, 4)),
        ("hree fo", (2, 3)),
        ("six", None),  # behind the window
        ("five six", None),  # cut by the end of the window
        ("two three", None),  # cut by its start
    ],
)
def test_an_answer_is_the_tokens_that_cover_it(text: str, tokens: tuple[int, int] | None) -> None:
    part = window(2, 5, np.zeros((6, 2)).tolist())
    start = CONTEXT.index(text)
    assert token_span(part.starts_L, part.ends_L, start, start + len(text)) == tokens


def test_all_tokens_of_one_character_are_of_the_answer() -> None:
    starts, ends = np.array([OUTSIDE, 0, 1, 1, 1, 2]), np.array([OUTSIDE, 1, 2, 2, 2, 3])
    assert token_span(starts, ends, 1, 2) == (2, 4)


def new_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(SPECIAL | {word: 3 + place for place, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return tokenizer


def test_places_are_those_of_the_second_text() -> None:
    encoding = new_tokenizer().encode("two six", CONTEXT)
    starts, ends = context_places(encoding)
    assert starts == [OUTSIDE] * 4 + STARTS + [OUTSIDE]
    assert ends == [OUTSIDE] * 4 + ENDS + [OUTSIDE]


def test_a_window_leaves_out_what_its_encoding_was_padded_with() -> None:
    encoding = new_tokenizer().encode("two six", CONTEXT)
    encoding.pad(40)
    part = Window.of(encoding, np.zeros((15, 2)))
    assert part.starts_L.tolist() == [OUTSIDE] * 4 + STARTS + [OUTSIDE]


@pytest.mark.parametrize(("max_length", "stride", "limit"), [(16, 8, 2), (16, 4, 4), (128, 64, 30)])
def test_questions_are_cut_so_that_windows_move_on(max_length: int, stride: int, limit: int) -> None:
    tokenizer = new_tokenizer()
    cutter = QuestionCutter(tokenizer, max_length, stride)
    long = " ".join(WORDS * 30)
    (cut,) = cutter.cut([long])
    assert len(cut.split()) == limit
    tokenizer.enable_truncation(max_length, stride=stride, strategy="only_second")
    encoding = tokenizer.encode(cut, long)
    windows = [encoding, *encoding.overflowing]
    covered = [start for part in windows for start in context_places(part)[0] if start != OUTSIDE]
    assert set(covered) == {place.start() for place in re.finditer(r"\w+", long)}
    news = [len(set(context_places(part)[0]) - {OUTSIDE}) - stride for part in windows]
    assert all(new > 0 for new in news[:-1])


def test_short_questions_stay_as_they_are() -> None:
    tokenizer = new_tokenizer()
    tokenizer.enable_truncation(8)
    questions = ["two", "", " six seven "]
    assert QuestionCutter(tokenizer, 64, 8).cut(questions) == questions
    assert tokenizer.truncation is not None
    assert tokenizer.truncation["max_length"] == 8
