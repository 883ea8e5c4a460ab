"""What the manifests allow and refuse, as a real API server says."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ROLES = {
    role["metadata"]["name"]: role["rules"]
    for role in yaml.safe_load_all((ROOT / "k8s/base/roles.yaml").read_text())
    if role["kind"] == "Role"
}
ACCOUNTS = ("ted-orchestrator", "ted-step", "ted-launcher", "ted-submitter", "default")
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
RESOURCES = (
    *(
        "pods",
        "pods/log",
        "pods/exec",
        "secrets",
        "configmaps",
        "services",
        "serviceaccounts",
        "persistentvolumeclaims",
    ),
    *("jobs.batch", "cronjobs.batch", "deployments.apps", "roles.rbac.authorization.k8s.io", "nodes"),
)

Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


def granted(account: str) -> set[tuple[str, str]]:
    """Return the verbs and resources that the manifests give an account."""
    return {
        (verb, f"{resource}.{group}" if group else resource)
        for rule in ROLES.get(account, ())
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def pod(settings: dict[str, Any], account: str) -> dict[str, Any]:
    """Return a pod as the settings of a file make it."""
    extra = settings["additional_pod_spec_args"]
    container = {
        "name": "main",
        "image": "localhost/ted-training:1",
        "resources": settings["resources"],
        "volumeMounts": settings["volume_mounts"],
        "securityContext": settings["container_security_context"],
    }
    spec = {
        "serviceAccountName": account,
        "containers": [container],
        "volumes": settings["volumes"],
        "securityContext": extra["security_context"],
        "priorityClassName": extra["priority_class_name"],
        "restartPolicy": "Never",
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": spec}


@pytest.fixture(scope="module")
def pods() -> dict[str, Any]:
    settings = yaml.safe_load((ROOT / "k8s/zenml_config.yaml").read_text())["settings"]["orchestrator.kubernetes"]
    return {
        "ted-step": pod(settings["pod_settings"], "ted-step"),
        "ted-orchestrator": pod(settings["orchestrator_pod_settings"], "ted-orchestrator"),
    }


@pytest.mark.parametrize("account", ACCOUNTS)
def test_an_account_may_do_what_its_role_says_and_nothing_else(account: str, namespace: str, kubectl: Kubectl) -> None:
    reviews = [
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "metadata": {},
            "spec": {
                "user": f"system:serviceaccount:{namespace}:{account}",
                "resourceAttributes": {
                    "namespace": namespace,
                    "verb": verb,
                    "resource": resource.partition("/")[0].partition(".")[0],
                    "subresource": resource.partition("/")[2],
                    "group": resource.partition(".")[2],
                },
            },
        }
        for verb in VERBS
        for resource in RESOURCES
    ]
    asked = [(verb, resource) for verb in VERBS for resource in RESOURCES]
    answers = kubectl("create", "-f", "-", "-o", "json", given="\n---\n".join(map(json.dumps, reviews))).stdout
    decoder, position, allowed = json.JSONDecoder(), 0, []
    while position < len(answers.rstrip()):
        answer, position = decoder.raw_decode(answers, position)
        position += 1
        allowed.append(answer["status"]["allowed"])
    assert len(allowed) == len(asked)
    assert {item for item, yes in zip(asked, allowed, strict=True) if yes} == granted(account)


def test_no_rule_has_a_wildcard_and_no_role_is_the_clusters() -> None:
    text = "\n".join(file.read_text() for file in (ROOT / "k8s/base").glob("*.yaml"))
    assert '"*"' not in text
    assert "ClusterRole" not in text


@pytest.mark.parametrize("account", ["ted-step", "ted-orchestrator"])
def test_pods_of_a_run_are_admitted(account: str, pods: dict[str, Any], namespace: str, kubectl: Kubectl) -> None:
    done = kubectl("create", "-n", namespace, "--dry-run=server", "-f", "-", given=json.dumps(pods[account]))
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"allowPrivilegeEscalation": True}, "allowPrivilegeEscalation != false"),
        ({"capabilities": {"add": ["NET_ADMIN"]}}, "unrestricted capabilities"),
        ({"runAsUser": 0}, "runAsUser=0"),
        ({"privileged": True, "allowPrivilegeEscalation": True}, "privileged"),
    ],
)
def test_a_pod_that_asks_for_more_is_refused(
    change: dict[str, Any], reason: str, pods: dict[str, Any], namespace: str, kubectl: Kubectl
) -> None:
    asking = json.loads(json.dumps(pods["ted-step"]))
    asking["spec"]["containers"][0]["securityContext"] |= change
    done = kubectl("create", "-n", namespace, "--dry-run=server", "-f", "-", given=json.dumps(asking), check=False)
    assert done.returncode == 1
    assert "violates PodSecurity" in done.stderr
    assert reason in done.stderr


def test_a_step_asks_for_a_gpu_and_gets_no_token(pods: dict[str, Any], namespace: str, kubectl: Kubectl) -> None:
    made = json.loads(
        kubectl(
            *("create", "-n", namespace, "--dry-run=server", "-o", "json", "-f", "-"),
            given=json.dumps(pods["ted-step"]),
        ).stdout
    )
    assert made["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert not any("projected" in volume for volume in made["spec"]["volumes"])
    assert made["spec"]["priority"] == -10


def test_the_overlay_is_valid_and_narrows_the_network(namespace: str, kubectl: Kubectl) -> None:
    manifests = kubectl("kustomize", ROOT / "k8s/overlays/example").stdout
    here = manifests.replace("namespace: ted\n", f"namespace: {namespace}\n")
    made = kubectl("apply", "-f", "-", "--dry-run=server", "-o", "json", given=here).stdout
    policies = {
        item["metadata"]["name"]: item["spec"] for item in json.loads(made)["items"] if item["kind"] == "NetworkPolicy"
    }
    assert policies["deny-all"]["policyTypes"] == ["Ingress", "Egress"]
    assert not policies["deny-all"].get("egress")
    assert all("to" in rule for rule in policies["allow-servers"]["egress"])
