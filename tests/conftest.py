"""Every test runs without a network, and with a ZenML store, caches and threads of its own."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Libraries read these when they are imported, so they are set before any test module is.
STATE = Path(tempfile.mkdtemp(prefix="ted-tests-"))
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_CACHE=str(STATE / "datasets"),
    MPLCONFIGDIR=str(STATE / "matplotlib"),
    OMP_NUM_THREADS="1",
    ZENML_ANALYTICS_OPT_IN="false",
    ZENML_CONFIG_PATH=str(STATE / "zenml"),
    ZENML_LOGGING_VERBOSITY="WARNING",
    ZENML_REPOSITORY_PATH=str(STATE),
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to other machines."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:  # noqa: ANN401 - depends on the family
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise ConnectionRefusedError(f"a test must not reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(scope="session", autouse=True)
def state_is_removed() -> Iterator[None]:
    """Remove what the session wrote."""
    yield
    shutil.rmtree(STATE, ignore_errors=True)
