"""Measure memory and time of loading and validating a large table: `python -m benchmarks.validation_memory`.

The rows are made here: words drawn at random, two classes, one row in a thousand a copy of an earlier one.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ted.config import DataSettings, QualitySettings, TaskSettings
from ted.data.quality import validate
from ted.data.sources import load_dataset

WORDS = np.array(["a", "the", "film", "plot", "scene", "actor", "joy", "bore", "long", "short", "loud", "quiet", "old"])
WORDS_PER_ROW = 18
CHUNK = 10_000
COPY_INTERVAL = 1000


def write_table(path: Path, rows: int) -> None:
    """Write a CSV file of so many rows, a chunk at a time."""
    generator = np.random.default_rng(0)
    schema = pa.schema({"text": pa.string(), "label": pa.string()})
    with pyarrow.csv.CSVWriter(path, schema) as writer:
        for start in range(0, rows, CHUNK):
            numbers = np.arange(start, min(start + CHUNK, rows))
            words = WORDS[generator.integers(len(WORDS), size=(len(numbers), WORDS_PER_ROW))]
            ends = np.where(numbers % COPY_INTERVAL == COPY_INTERVAL - 1, start, numbers)
            words[ends == start] = WORDS[0]
            text = [f"{' '.join(row)} {end}" for row, end in zip(words, ends, strict=True)]
            labels = np.where(ends % 2 == 0, "negative", "positive")
            writer.write_table(pa.table({"text": text, "label": labels}, schema=schema))


def measure(path: Path, cache: Path) -> dict[str, float]:
    """Return seconds and peak resident memory of this process (MiB) for loading and validating the table."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = str(cache)
    data, task, quality = DataSettings(source=str(path)), TaskSettings(), QualitySettings()
    start = time.perf_counter()
    dataset = load_dataset(data, task, seed=0)
    loaded = time.perf_counter()
    validation = validate(dataset, data, quality, task)
    end = time.perf_counter()
    return {
        "load_seconds": round(loaded - start, 1),
        "validate_seconds": round(end - loaded, 1),
        "excluded_rows": len(validation.excluded),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Make a table, measure and write the dated result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        write_table(table, rows)
        values = {
            "rows": rows,
            "table_mib": round(table.stat().st_size / 2**20),
            **measure(table, Path(folder) / "cache"),
        }
    # Imported after the measurement: it loads torch.
    from benchmarks.results import write_result

    write_result("validation-memory", values)


if __name__ == "__main__":
    main()
