"""How folders travel between steps: file by file, so that no step waits for the compression of a 90 MB model."""

import json
import posixpath
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from zenml.enums import ArtifactType
from zenml.io import fileio
from zenml.materializers.base_materializer import BaseMaterializer
from zenml.metadata.metadata_types import MetadataType
from zenml.utils import io_utils

from ted.files import sha256_folder


class FolderMaterializer(BaseMaterializer):
    """Stores a folder's files as they are, in any artifact store, with an index that is written last."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Path,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA
    SKIP_REGISTRATION: ClassVar[bool] = True
    INDEX: ClassVar[str] = "index.json"

    def save(self, data: Path) -> None:
        """Copy the folder's files to the artifact store.

        Raises:
            NotADirectoryError: the value is not an existing folder.
        """
        if not data.is_dir():
            raise NotADirectoryError(f"{data} is not a folder; a step must return the folder that it has written")
        names = [file.relative_to(data).as_posix() for file in sorted(data.rglob("*")) if file.is_file()]
        for name in names:
            target = posixpath.join(self.uri, "files", name)
            fileio.makedirs(posixpath.dirname(target))
            fileio.copy(str(data / name), target, overwrite=True)
        io_utils.write_file_contents_as_string(posixpath.join(self.uri, self.INDEX), json.dumps(names))

    def load(self, data_type: type[Any]) -> Path:  # noqa: ARG002 - part of the interface
        """Return a local copy of the folder, which lives until the step ends.

        Raises:
            ValueError: the index names a file outside the folder.
        """
        names = json.loads(io_utils.read_file_contents_as_string(posixpath.join(self.uri, self.INDEX)))
        if outside := [name for name in names if not _is_inside(name)]:
            raise ValueError(f"{self.uri}/{self.INDEX} names {outside}, which lie outside the folder; run again")
        with self.get_temporary_directory(delete_at_exit=False) as directory:
            for name in names:
                target = Path(directory) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                fileio.copy(posixpath.join(self.uri, "files", name), str(target))
            return Path(directory)

    def compute_content_hash(self, data: Path) -> str:
        """Return a digest of all files: a step that writes what it wrote before does not make others run again."""
        return sha256_folder(data)

    def extract_metadata(self, data: Path) -> dict[str, MetadataType]:
        """Return how many files there are and what they weigh."""
        sizes = [file.stat().st_size for file in data.rglob("*") if file.is_file()]
        return {"num_files": len(sizes), "bytes": sum(sizes)}


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts
