"""Make the example's splits: `python make_data.py SPEECHES [OUTPUT] [--other FILE]`.

SPEECHES is a folder of JSONL files with a speech per line: `text` and `year`. Speeches before 2000 are training text,
but for every tenth, which is validation text; later ones are test text. Texts that are not trained on are cut to their
first characters. `--other` names a JSONL file of another kind of text, such as SQuAD's, for a second test file.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

FIRST_TEST_YEAR = 2000
VALIDATION_INTERVAL = 10
HELD_OUT_CHARACTERS = 4000
OTHER_TEXTS = 60


def read(file: Path) -> list[dict[str, object]]:
    """Return the objects of a JSONL file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def cut(text: str) -> str:
    """Return the first characters of a text, up to the last white space among them."""
    return text if len(text) <= HELD_OUT_CHARACTERS else text[:HELD_OUT_CHARACTERS].rsplit(maxsplit=1)[0]


def split(speeches: list[dict[str, object]]) -> dict[str, list[str]]:
    """Return the texts of each file, in the order of their years."""
    ordered = sorted(speeches, key=lambda speech: int(str(speech["year"])))
    early = [str(speech["text"]) for speech in ordered if int(str(speech["year"])) < FIRST_TEST_YEAR]
    late = [str(speech["text"]) for speech in ordered if int(str(speech["year"])) >= FIRST_TEST_YEAR]
    held_out = early[VALIDATION_INTERVAL - 1 :: VALIDATION_INTERVAL]
    train = [text for place, text in enumerate(early, start=1) if place % VALIDATION_INTERVAL]
    return {"train": train, "validation": [cut(text) for text in held_out], "test_speeches": [cut(t) for t in late]}


def other_texts(rows: list[dict[str, object]], column: str) -> list[str]:
    """Return different texts, evenly picked."""
    texts = list(dict.fromkeys(str(row[column]) for row in rows))
    return [cut(text) for text in texts[:: max(1, len(texts) // OTHER_TEXTS)][:OTHER_TEXTS]]


def write(file: Path, texts: Iterable[str]) -> None:
    """Write a JSONL file with a text per line and say how much it holds."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(f"{file}: {len(lines)} texts, {file.stat().st_size:,} bytes")


def main() -> None:
    """Read the arguments and write the splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speeches", type=Path, help="folder of JSONL files with text and year")
    parser.add_argument(
        "output", type=Path, nargs="?", default=Path(__file__).parent / "data", help="folder to write to"
    )
    parser.add_argument("--other", type=Path, help="JSONL file of another kind of text")
    parser.add_argument("--other-column", default="context", help="its column of text")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    files = split([speech for file in sorted(arguments.speeches.glob("*.jsonl")) for speech in read(file)])
    if arguments.other is not None:
        files["test_other"] = other_texts(read(arguments.other), arguments.other_column)
    for name, texts in files.items():
        write(arguments.output / f"{name}.jsonl", texts)


if __name__ == "__main__":
    main()
