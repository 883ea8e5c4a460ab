"""From the tags of words to spans of text, the same way in evaluation and in serving.

A word is what stands between white space; it is answered by its first token.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\S+")
OUTSIDE = "O"
ENTITY_TAG = re.compile(r"([BIESLU])-(.+)", re.DOTALL)
# Prefixes of a tag that begins an entity, and of one that ends it: BIO, and the schemes that also mark ends.
BEGINS = "BSU"
ENDS = "ESLU"
NO_WORD = -1
NO_TAG = ""

Bounds = tuple[int, int]
"""Characters of a text: the first one, and the one behind the last."""


class Span(NamedTuple):
    """Words with a label: the first one, and the one behind the last."""

    label: str
    start: int
    end: int


def entity_type(tag: str) -> str:
    """Return the type that a tag of an entity names; nothing for another tag."""
    match = ENTITY_TAG.fullmatch(tag)
    return match[2] if match else ""


def mark_entities(names: Iterable[str]) -> bool:
    """Return whether tags mark entities, as in BIO; if not, each tag stands for itself, as parts of speech do."""
    others = set(names) - {OUTSIDE}
    return bool(others) and all(map(entity_type, others))


def span_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that spans may have: types of entity, or the tags themselves."""
    if not mark_entities(names):
        return tuple(names)
    return tuple(dict.fromkeys(entity_type(name) for name in names if name != OUTSIDE))


def find_spans(tags: Sequence[str], *, entities: bool) -> list[Span]:
    """Return the entities that the tags of consecutive words mark, or else each word with its tag.

    A tag that continues nothing of its type begins an entity: so are sequences read that no scheme allows, and those
    that use B only between neighbours. Source: `conlleval`, the script of the shared task CoNLL-2000.
    """
    if not entities:
        return [Span(tag, word, word + 1) for word, tag in enumerate(tags)]
    found: list[Span] = []
    goes_on = ""
    for word, tag in enumerate(tags):
        match = ENTITY_TAG.fullmatch(tag)
        prefix, kind = match.groups() if match else ("", "")
        if kind and kind == goes_on and prefix not in BEGINS:
            found[-1] = found[-1]._replace(end=word + 1)
        elif kind:
            found.append(Span(kind, word, word + 1))
        goes_on = "" if prefix in ENDS else kind
    return found


def word_bounds(text: str) -> list[Bounds]:
    """Return where each word stands in a text."""
    return [match.span() for match in WORD.finditer(text)]


def answered_words(windows: Sequence[Sequence[Bounds]], words: Sequence[Bounds]) -> list[NDArray[np.int64]]:
    """Return the word that each token of each window answers, `NO_WORD` for most tokens.

    A word is answered once: by its first token, in the window where that has most tokens on its shorter side. A word
    that the tokenizer drops is not answered.

    Args:
        windows: of a text, in order; the characters of each token, empty for special tokens.
        words: of the text.
    """
    word_at = np.full(words[-1][1] if words else 0, NO_WORD)
    for word, (start, end) in enumerate(words):
        word_at[start:end] = word
    best: dict[int, tuple[int, int, int, int]] = {}
    for window, tokens in enumerate(windows):
        for word, token in _first_tokens(tokens, word_at).items():
            context = min(token, len(tokens) - 1 - token)
            place = (tokens[token][0], -context, window, token)
            best[word] = min(best.get(word, place), place)
    answered = [np.full(len(tokens), NO_WORD) for tokens in windows]
    for word, (_, _, window, token) in best.items():
        answered[window][token] = word
    return answered


def _first_tokens(tokens: Sequence[Bounds], word_at: NDArray[np.int64]) -> dict[int, int]:
    """Return the first token of each word in a window; the white space before a word may belong to its token."""
    first: dict[int, int] = {}
    for token, (start, end) in enumerate(tokens):
        word = word_at[end - 1] if start < end <= len(word_at) else NO_WORD
        if word != NO_WORD:
            first.setdefault(int(word), token)
    return first
