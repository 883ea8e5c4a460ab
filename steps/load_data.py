"""Read the source into splits."""

from pathlib import Path
from typing import Annotated

from zenml import ArtifactConfig, log_metadata, step

from steps._cache import cached_by, code_digest
from steps._folders import new_folder
from steps._materializers import FolderMaterializer
from steps._settings import StepSettings


def _code() -> str:
    return code_digest(__name__)


@step(cache_policy=cached_by(_code), output_materializers={"raw_data": FolderMaterializer})
def load_data(
    settings: StepSettings,
    source_digest: str,
) -> Annotated[Path, ArtifactConfig(name="raw_data", tags=["data"])]:
    """Return the splits of the source, unchecked.

    Args:
        settings: Sections data and task.
        source_digest: Digest of the source's files; here for the cache key.
    """
    from ted.data.sources import dataset_fingerprint, load_dataset, no_progress_bars

    dataset = load_dataset(settings.data, settings.task, settings.seed)
    folder = new_folder("raw_data")
    with no_progress_bars():
        dataset.save_to_disk(str(folder))
    rows = {name: len(split) for name, split in dataset.items()}
    log_metadata({"rows": rows, "source_digest": source_digest, "fingerprint": dataset_fingerprint(dataset)})
    return folder
