"""Where the checkpoints of a step are copied to, so that it goes on after its pod was moved to another machine."""

from fsspec import AbstractFileSystem
from zenml.client import Client

from ted.checkpoints import CheckpointStore
from ted.errors import SettingsError

FOLDER = "checkpoints"


def checkpoint_store() -> CheckpointStore | None:
    """Return a folder of the active stack's artifact store; None where that is local, as checkpoints are then too.

    Raises:
        SettingsError: the artifact store is not one of files.
    """
    store = Client().active_stack.artifact_store
    if store.config.is_local:
        return None
    filesystem = getattr(store, "filesystem", None)
    if not isinstance(filesystem, AbstractFileSystem):
        raise SettingsError(
            f"artifact store {store.name}, of flavor {store.flavor}, takes no checkpoints; "
            "use one of flavor s3, gcp or azure"
        )
    return CheckpointStore(filesystem, f"{store.path.rstrip('/')}/{FOLDER}")
