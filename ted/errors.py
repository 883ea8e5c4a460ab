"""Exceptions that a caller branches on. All but :class:`NonFiniteError` mean that the input has to change."""

from collections.abc import Mapping, Sequence
from typing import Any


class TedError(ValueError):
    """Base of every error whose message is written for the user."""


class SettingsError(TedError):
    """Settings are unknown, out of bounds or without effect; one line per problem."""


class DataError(TedError):
    """A source cannot be read as the table that the settings describe."""


class DataQualityError(TedError):
    """A rule with policy `stop` was broken, or too many rows were excluded.

    `findings` are all that was found, by the fields of a JSON line; rules that exclude rows are among them.
    """

    def __init__(self, message: str, findings: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class ModelError(TedError):
    """A model cannot be loaded, or does not fit the task, the tokenizer or the other model."""


class GateError(TedError):
    """A student failed a gate."""


class ParityError(TedError):
    """An exported model does not equal the trained one within the tolerance."""


class BundleError(TedError):
    """A bundle is incomplete, or a file of it is not the one that was written."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient is not finite; raised before the parameters change."""
