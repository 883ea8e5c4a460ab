import pytest

from ted.serving.tags import NO_WORD, Bounds, answered_words, find_spans, mark_entities, span_labels, word_bounds


def spans(tags: str) -> str:
    """Return the entities as "PER:0-2 LOC:3-4"."""
    found = find_spans(tags.split(), entities=True)
    return " ".join(f"{label}:{start}-{end}" for label, start, end in found)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", ""),
        ("O O", ""),
        ("B-PER I-PER O B-LOC", "PER:0-2 LOC:3-4"),
        ("B-PER B-PER I-PER", "PER:0-1 PER:1-3"),
        ("B-PER I-LOC I-LOC", "PER:0-1 LOC:1-3"),
        ("I-PER I-PER O I-PER", "PER:0-2 PER:3-4"),
        ("I-PER B-PER I-PER", "PER:0-1 PER:1-3"),
        ("O I-LOC B-LOC", "LOC:1-2 LOC:2-3"),
        ("B-PER O I-PER", "PER:0-1 PER:2-3"),
        ("B-PER I-PER", "PER:0-2"),
        ("S-PER S-PER B-LOC I-LOC E-LOC I-LOC", "PER:0-1 PER:1-2 LOC:2-5 LOC:5-6"),
        ("U-PER L-PER B-A-B L-A-B", "PER:0-1 PER:1-2 A-B:2-4"),
    ],
)
def test_entities_are_the_longest_runs_of_a_type(tags: str, expected: str) -> None:
    assert spans(tags) == expected


def test_tags_that_mark_nothing_stand_for_their_word() -> None:
    assert find_spans(["NOUN", "VERB"], entities=False) == [("NOUN", 0, 1), ("VERB", 1, 2)]


@pytest.mark.parametrize(
    ("names", "marked", "labels"),
    [
        (["B-LOC", "B-PER", "I-PER", "O"], True, ("LOC", "PER")),
        (["I-NP", "B-NP"], True, ("NP",)),
        (["NOUN", "O", "VERB"], False, ("NOUN", "O", "VERB")),
        (["B-LOC", "NOUN", "O"], False, ("B-LOC", "NOUN", "O")),
        (["B-", "O"], False, ("B-", "O")),
        (["O"], False, ("O",)),
        ([], False, ()),
    ],
)
def test_tags_mark_entities_if_all_but_o_have_a_prefix(names: list[str], marked: bool, labels: tuple[str, ...]) -> None:
    assert mark_entities(names) is marked
    assert span_labels(names) == labels


def test_words_stand_between_any_white_space() -> None:
    text = "  Jo\u00a0de\tla Cruz.\n"
    assert [text[start:end] for start, end in word_bounds(text)] == text.split() == ["Jo", "de", "la", "Cruz."]


SPECIAL: Bounds = (0, 0)


@pytest.mark.parametrize(
    ("windows", "answered"),
    [
        # "ab cd" in parts of one character, with special tokens around.
        ([[SPECIAL, (0, 1), (1, 2), (3, 4), (4, 5), SPECIAL]], [[-1, 0, -1, 1, -1, -1]]),
        # The token of a word also holds the white space before it, or that has a token of its own.
        ([[(0, 2), (2, 4), (4, 5)]], [[0, 1, -1]]),
        ([[(0, 2), (2, 3), (3, 5)]], [[0, -1, 1]]),
        # The tokenizer drops the first character of a word, or all of it.
        ([[(1, 2), (3, 5)]], [[0, 1]]),
        ([[(3, 5)]], [[1]]),
        # Bytes of one character are tokens that stand at the same place.
        ([[(0, 1), (0, 1), (1, 2), (3, 5)]], [[0, -1, -1, 1]]),
        # The second window begins within the first word, or holds the second word with more context.
        ([[(0, 1), (1, 2)], [(1, 2), (3, 5)]], [[0, -1], [-1, 1]]),
        ([[(0, 1), (1, 2), (3, 5)], [(1, 2), (3, 5), SPECIAL]], [[0, -1, -1], [-1, 1, -1]]),
        # As much context in both: the first one.
        ([[(0, 2), (3, 5)], [(3, 5), SPECIAL]], [[0, 1], [-1, -1]]),
        ([[SPECIAL, SPECIAL]], [[-1, -1]]),
    ],
)
def test_a_word_is_answered_once_by_its_first_token(windows: list[list[Bounds]], answered: list[list[int]]) -> None:
    assert NO_WORD == -1
    assert [words.tolist() for words in answered_words(windows, word_bounds("ab cd"))] == answered


def test_a_text_without_words_answers_none() -> None:
    assert [words.tolist() for words in answered_words([[SPECIAL, SPECIAL]], word_bounds(" "))] == [[-1, -1]]
