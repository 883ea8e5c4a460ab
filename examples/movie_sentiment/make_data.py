"""Make the sample's Parquet files: `python make_data.py FOLDER [OUTPUT]`.

FOLDER holds train.jsonl, validation.jsonl and test.jsonl, one object per line: `sentence` (text) and `label` (mean
human valence from -4 to 4). Rows keep their split and order; rows closer to neutral than the bound are left out.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

LEAST_VALENCE = 0.5


def binary_sentiment(rows: pa.Table) -> pa.Table:
    """Return the rows that are clearly positive or negative as text, label and valence."""
    rows = rows.filter(pc.greater_equal(pc.abs(rows["label"]), LEAST_VALENCE))
    label = pc.if_else(pc.greater(rows["label"], 0.0), "positive", "negative")
    return pa.table({"text": rows["sentence"], "label": label, "valence": rows["label"]})


def main() -> None:
    """Read the arguments and write one Parquet file per split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the three JSONL files")
    parser.add_argument(
        "output", type=Path, nargs="?", default=Path(__file__).parent / "data", help="folder to write to"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        rows = pyarrow.json.read_json(arguments.folder / f"{split}.jsonl")
        kept = binary_sentiment(rows)
        pq.write_table(kept, arguments.output / f"{split}.parquet", compression="zstd")
        print(f"{split}: {kept.num_rows} of {rows.num_rows} rows")


if __name__ == "__main__":
    main()
