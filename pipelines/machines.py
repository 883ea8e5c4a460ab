"""What a run asks of a Kubernetes stack beside what its file says: the stack's image, and GPUs for some steps only.

`k8s.stack` registers a stack with its image as a label and with the settings of its pods, so that a file without
settings runs on it.
"""

from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

from zenml.enums import StackComponentType
from zenml.models import StackResponse

from ted.config import Settings

GPU = "nvidia.com/gpu"
ORCHESTRATOR = "orchestrator.kubernetes"
IMAGE_LABEL = "image"


def options_for(
    stack: StackResponse, settings: Settings, values: Mapping[str, Any], step_names: Collection[str]
) -> dict[str, Any]:
    """Return `settings` and `steps` of a run's configuration that a stack of Kubernetes needs; none for another one.

    Args:
        stack: that the run is started on.
        settings: of the run.
        values: the configuration file.
        step_names: of the run.
    """
    (orchestrator,) = stack.components[StackComponentType.ORCHESTRATOR]
    if orchestrator.flavor_name != "kubernetes":
        return {}
    given = values.get("settings") or {}
    options: dict[str, Any] = {}
    image = (stack.labels or {}).get(IMAGE_LABEL)
    if image is not None and "docker" not in given:
        docker = {"skip_build": True, "parent_image": image, "allow_download_from_artifact_store": False}
        options["settings"] = {"docker": docker}
    if settings.run.gpu_steps is not None:
        pods = given.get(ORCHESTRATOR, orchestrator.configuration).get("pod_settings", {})
        without = _without_gpu(pods)
        others = [name for name in step_names if name not in settings.run.gpu_steps]
        options["steps"] = {name: {"settings": {ORCHESTRATOR: {"pod_settings": without}}} for name in others}
    return options


def _without_gpu(pods: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of pods that ask for no GPU; a limit can be overwritten by a step, but not taken away."""
    changed = deepcopy(dict(pods))
    for bounds in changed.get("resources", {}).values():
        if GPU in bounds:
            bounds[GPU] = "0"
    return changed
