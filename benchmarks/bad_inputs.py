"""Print each bad input of `tests/bad_inputs` with the answer it gets: `python -m benchmarks.bad_inputs`."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ted.config import DataSettings, QualitySettings, TaskSettings
from ted.data.quality import validate
from ted.data.sources import load_dataset
from ted.errors import TedError

FOLDER = Path("tests/bad_inputs")


def answers(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each case in the folder's cases.yaml, and the error or the findings it meets."""
    cases: dict[str, dict[str, Any]] = yaml.safe_load((folder / "cases.yaml").read_text(encoding="utf-8"))
    for name, case in cases.items():
        data = DataSettings(source=str(folder / case["source"]), **case.get("data", {}))
        task = TaskSettings(kind=case.get("kind", "classification"), labels=case.get("labels"))
        try:
            validation = validate(load_dataset(data, task, seed=0), data, QualitySettings(), task)
        except TedError as error:
            yield name, f"{type(error).__name__}: {error}"
        else:
            yield name, "\n".join(f"excluded: {finding.message}" for finding in validation.findings)


def main() -> None:
    """Print one block per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    for name, answer in answers(parser.parse_args().folder):
        print(f"{name}\n  {answer}")


if __name__ == "__main__":
    main()
