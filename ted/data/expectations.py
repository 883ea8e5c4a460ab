"""What a table and its rows must meet, as Great Expectations, and an engine that applies them to data frames in memory.

Great Expectations takes seconds to import, so that waits until an engine is made.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ted.config import QualitySettings

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

# Spelt out, because the regular expressions behind pandas may take \s and \S for ASCII only.
VISIBLE = "[^\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u3000\ufeff]"
BROKEN = "[\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]"
RESULT_FORMAT = {"result_format": "COMPLETE", "return_unexpected_index_query": False, "include_unexpected_rows": False}


class Engine:
    """Great Expectations on data frames in memory: nothing is stored or sent, no progress bars."""

    def __init__(self) -> None:
        with _known_warnings():
            import great_expectations as gx
            from great_expectations.data_context.types.base import ProgressBarsConfig

            # It announces a folder for pages that are never made.
            logging.getLogger("great_expectations").setLevel(logging.WARNING)
            context = gx.get_context(mode="ephemeral")
            context.enable_analytics(False)
            context.variables.progress_bars = ProgressBarsConfig(globally=False)
            asset = context.data_sources.add_pandas("memory").add_dataframe_asset("rows")
            self._batches = asset.add_batch_definition_whole_dataframe("batch")

    def broken(
        self, frame: pd.DataFrame, expectations: "Sequence[Expectation]"
    ) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Yield each failed expectation's rule and the positions of the rows that break it (none for a table's)."""
        import great_expectations as gx

        with _known_warnings():
            suite = gx.ExpectationSuite("suite", expectations=list(expectations))
            batch = self._batches.get_batch({"dataframe": frame.reset_index(drop=True)})
            outcomes = batch.validate(suite, result_format=RESULT_FORMAT).results
        for outcome in outcomes:
            information = outcome.exception_info
            assert information.get("raised_exception") is False, information
            assert outcome.expectation_config is not None
            if not outcome.success:
                positions = outcome.result.get("unexpected_index_list", [])
                yield outcome.expectation_config.meta["rule"], np.asarray(positions, dtype=np.int64)


def table_expectations(columns: Sequence[str]) -> "list[Expectation]":
    """Return what a split must meet as a table: it has these columns (and may have others)."""
    from great_expectations import expectations as gxe

    return [
        gxe.ExpectTableColumnsToMatchSet(column_set=list(columns), exact_match=False, meta={"rule": "columns"}),
    ]


def row_expectations(columns: Sequence[str], quality: QualitySettings) -> "list[Expectation]":
    """Return what the columns `text`, `text_pair` and `label` of each row must meet.

    The expectation on labels is that the column `number`, what the task takes the label for, is not null. Each
    expectation carries its rule in `meta`.
    """
    from great_expectations import expectations as gxe

    expectations: list[Expectation] = []
    for column in columns:
        expectations.append(gxe.ExpectColumnValuesToNotBeNull(column=column, meta={"rule": "missing"}))
        if column == "label":
            expectations.append(gxe.ExpectColumnValuesToNotBeNull(column="number", meta={"rule": "unknown_label"}))
        else:
            expectations += _text_expectations(column, quality)
    return expectations


def _text_expectations(column: str, quality: QualitySettings) -> "list[Expectation]":
    from great_expectations import expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeOfType(column=column, type_="str", meta={"rule": "types"}),
        gxe.ExpectColumnValuesToMatchRegex(column=column, regex=VISIBLE, meta={"rule": "empty_text"}),
        gxe.ExpectColumnValuesToNotMatchRegex(column=column, regex=BROKEN, meta={"rule": "broken_text"}),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column=column,
            min_value=quality.min_characters,
            max_value=quality.max_characters,
            meta={"rule": "text_length"},
        ),
    ]


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Silence what Great Expectations itself does with deprecated parts of Python and its own libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
