"""Hold the rows against the rules of the task, then take those that the run uses."""

import logging
from pathlib import Path
from typing import Annotated, Any

from zenml import ArtifactConfig, log_metadata, step

from steps._cache import cached_by, code_digest
from steps._folders import new_folder
from steps._materializers import FolderMaterializer
from steps._settings import StepSettings


def _code() -> str:
    return code_digest(__name__)


@step(
    cache_policy=cached_by(_code),
    output_materializers={"validated_data": FolderMaterializer, "excluded_rows": FolderMaterializer},
)
def validate_data(
    settings: StepSettings,
    raw_data: Path,
) -> tuple[
    Annotated[Path, ArtifactConfig(name="validated_data", tags=["data"])],
    Annotated[Path, ArtifactConfig(name="excluded_rows", tags=["data"])],
    Annotated[dict[str, Any], ArtifactConfig(name="data_findings")],
]:
    """Return the rows of the run, the rows that were excluded, and which rules were broken.

    Args:
        settings: Sections data, quality and task.
        raw_data: Splits as they were read.
    """
    # ZenML shows every library's messages; this one describes its own insides.
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    from datasets import DatasetDict

    from ted.data.quality import validate
    from ted.data.sources import dataset_fingerprint, no_progress_bars, select_rows

    validation = validate(DatasetDict.load_from_disk(str(raw_data)), settings.data, settings.quality, settings.task)
    dataset = select_rows(validation.dataset, settings.data, settings.seed)
    folder, excluded = new_folder("validated_data"), new_folder("excluded_rows")
    excluded.mkdir()
    with no_progress_bars():
        dataset.save_to_disk(str(folder))
        validation.excluded.to_parquet(str(excluded / "excluded.parquet"))
    findings = [finding.as_dict() for finding in validation.findings]
    rows = {name: len(split) for name, split in dataset.items()}
    fingerprint = dataset_fingerprint(dataset)
    log_metadata({"rows": rows, "excluded": len(validation.excluded), "fingerprint": fingerprint})
    return folder, excluded, {"findings": findings, "split_rows": rows, "fingerprint": fingerprint}
