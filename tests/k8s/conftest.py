"""A real cluster, where TED_TEST_CLUSTER names a script that starts one; elsewhere these tests are skipped.

Called with `up`, the script starts what does not run; with `env`, it prints what a shell needs to reach the cluster.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = os.environ.get("TED_TEST_CLUSTER")

Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


def sourced(command: str) -> dict[str, str]:
    """Return the environment after the exports that a command prints."""
    done = subprocess.run(["bash", "-c", f'eval "$({command})" && env -0'], capture_output=True, check=True)
    return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)


@pytest.fixture(scope="session")
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a shell that reaches a running cluster."""
    if SCRIPT is None:
        pytest.skip("no cluster; name a script that starts one with TED_TEST_CLUSTER")
    subprocess.run([SCRIPT, "up"], check=True, capture_output=True, timeout=300)
    environment = sourced(f"{shlex.quote(SCRIPT)} env")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", environment["KUBECONFIG"])
        yield environment


@pytest.fixture(scope="session")
def kubectl(cluster: dict[str, str]) -> Kubectl:
    """Runs kubectl on the cluster."""

    def run(*arguments: str | Path, given: str | None = None, check: bool = True) -> "subprocess.CompletedProcess[str]":
        command = ["kubectl", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, input=given, env=cluster, timeout=120, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def namespace(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A namespace of its own with everything of k8s/base in it, so that one in use stays as it is."""
    folder = tmp_path_factory.mktemp("kustomize")
    shutil.copytree(ROOT / "k8s/base", folder / "base")
    (folder / "kustomization.yaml").write_text("namespace: ted-test\nresources: [base]\n")
    kubectl("apply", "-k", folder)
    yield "ted-test"
    kubectl("delete", "namespace", "ted-test", "--wait=false")
