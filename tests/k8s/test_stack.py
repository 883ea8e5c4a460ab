"""What a stack lacks, told before anything is registered."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import kube_config
from typer.testing import CliRunner

from k8s import stack
from k8s.stack import Place, findings

ROOT = Path(__file__).parents[2]
SETTINGS = yaml.safe_load((ROOT / "k8s/zenml_config.yaml").read_text())["settings"]
NOWHERE = "http://127.0.0.1:9"

Kubectl = Callable[..., Any]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """A stack whose bucket lies where nobody answers; nobody asks a cluster."""
    for name in stack.KEY_VARIABLES:
        monkeypatch.setenv(name, "key")
    monkeypatch.setattr(stack, "may", lambda *_: True)
    return Place("ted-kubernetes", "context", "ted", "s3://bucket/ted", NOWHERE, "registry", SETTINGS)


def missing(place: Place) -> dict[str, str]:
    return {finding.what: finding.missing for finding in findings(place) if finding.missing}


def test_a_local_database_and_a_bucket_that_nobody_serves_are_named(place: Place) -> None:
    found = missing(place)
    assert list(found) == ["ZenML server", "s3://bucket/ted"]
    assert found["ZenML server"].endswith("connect to a server: zenml login URL")
    assert found["s3://bucket/ted"].startswith("cannot be read: ")


def test_a_key_that_is_not_set_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert missing(place)["key of the bucket"] == "set AWS_SECRET_ACCESS_KEY"


@pytest.mark.parametrize(
    ("image", "named"), [("registry/ted:1", True), ("registry/ted@sha256:12", False), ("localhost/ted:1", False)]
)
def test_an_image_of_a_registry_is_named_by_its_digest(image: str, named: bool, place: Place) -> None:
    other = replace(place, settings={**SETTINGS, "docker": {"parent_image": image}})
    assert (f"image {image}" in missing(other)) == named


def test_rights_that_are_not_there_are_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "may", lambda _, verb, __, resource: (verb, resource) != ("create", "jobs"))
    assert missing(place)["rights in namespace ted"].startswith("context may not create jobs; apply k8s/base")


def test_nothing_is_registered_while_something_is_missing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "register", lambda _: pytest.fail("registered"))
    monkeypatch.chdir(ROOT)
    options = ["--artifacts", place.artifacts, "--endpoint", NOWHERE, "--cluster", "context"]
    done = CliRunner().invoke(stack.app, [*options, "up"])
    assert done.exit_code == 1
    assert "missing  ZenML server: pods cannot reach a local database" in done.output


def test_the_cluster_says_what_a_context_may_do(
    namespace: str, kubectl: Kubectl, cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library looks at the environment when it is imported.
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", cluster["KUBECONFIG"])
    context = kubectl("config", "current-context").stdout.strip()
    at = Place("ted-kubernetes", context, namespace, "s3://bucket/ted", None, "registry", SETTINGS)
    assert all(stack.may(at, verb, group, resource) for verb, group, resource in stack.NEEDED)
