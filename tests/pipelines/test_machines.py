"""What a run asks of a Kubernetes stack."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from zenml.enums import StackComponentType
from zenml.models import StackResponse

from pipelines.machines import options_for
from ted.config import Settings, parse_settings

STEPS = ("load_data", "distill_student")
PODS: dict[str, Any] = {"resources": {"limits": {"nvidia.com/gpu": "1", "memory": "8Gi"}}, "labels": {"team": "search"}}


def stack(flavor: str = "kubernetes", labels: dict[str, str] | None = None) -> StackResponse:
    orchestrator = SimpleNamespace(flavor_name=flavor, configuration={"pod_settings": PODS})
    return cast(
        "StackResponse",
        SimpleNamespace(labels=labels, components={StackComponentType.ORCHESTRATOR: [orchestrator]}),
    )


def options(settings: Settings | None = None, values: dict[str, Any] | None = None, **of: Any) -> dict[str, Any]:
    return options_for(stack(**of), settings or Settings(), values or {}, STEPS)


def test_another_stack_gets_nothing() -> None:
    assert not options(flavor="local", labels={"image": "registry/ted@sha256:1"})


def test_a_file_without_an_image_gets_that_of_the_stack() -> None:
    assert options(labels={"image": "registry/ted@sha256:1"}) == {
        "settings": {
            "docker": {
                "skip_build": True,
                "parent_image": "registry/ted@sha256:1",
                "allow_download_from_artifact_store": False,
            }
        }
    }
    given = {"settings": {"docker": {"parent_image": "other"}}}
    assert not options(values=given, labels={"image": "registry/ted@sha256:1"})


@pytest.mark.parametrize("values", [{}, {"settings": {"orchestrator.kubernetes": {"pod_settings": PODS}}}])
def test_steps_that_do_not_compute_ask_for_no_gpu_and_for_all_else(values: dict[str, Any]) -> None:
    settings = parse_settings({"run": {"gpu_steps": ["distill_student"]}})
    steps = options(settings, values)["steps"]
    assert list(steps) == ["load_data"]
    pods = steps["load_data"]["settings"]["orchestrator.kubernetes"]["pod_settings"]
    assert pods == {**PODS, "resources": {"limits": {"nvidia.com/gpu": "0", "memory": "8Gi"}}}
    assert PODS["resources"]["limits"]["nvidia.com/gpu"] == "1"
