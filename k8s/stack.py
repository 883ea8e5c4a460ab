"""Register the ZenML stack that runs pipelines on a cluster, and say what it lacks.

    python -m k8s.stack --artifacts s3://BUCKET --endpoint URL check
    python -m k8s.stack --artifacts s3://BUCKET --endpoint URL up

The key of the bucket is read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and kept as a ZenML secret.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import s3fs
import typer
import yaml
from botocore.exceptions import BotoCoreError, ClientError
from kubernetes import client as kubernetes
from kubernetes import config as kubeconfig
from rich.console import Console
from zenml.client import Client
from zenml.enums import StackComponentType, StoreType
from zenml.exceptions import EntityExistsError

SETTINGS = Path("k8s/zenml_config.yaml")
# A server that is not there is told within seconds.
PATIENCE = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1}}
KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# What whoever starts runs needs: verb, group and resource; k8s/base/roles.yaml says what for.
NEEDED = (
    *((verb, "batch", "jobs") for verb in ("create", "get", "list", "delete")),
    *((verb, "batch", "cronjobs") for verb in ("create", "patch", "delete")),
    ("list", "", "pods"),
    ("get", "", "pods/log"),
)

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@dataclass(frozen=True)
class Place:
    """Where a stack runs its pods and keeps its artifacts."""

    name: str
    context: str
    namespace: str
    artifacts: str
    endpoint: str | None
    registry: str
    settings: Mapping[str, Any]
    """The blocks `docker` and `orchestrator.kubernetes` of a configuration file."""

    @property
    def image(self) -> str:
        """Image of every pod."""
        return str(self.settings["docker"]["parent_image"])

    @property
    def client_kwargs(self) -> dict[str, str]:
        """What the S3 client needs beside a key."""
        return {"endpoint_url": self.endpoint} if self.endpoint else {}


@dataclass(frozen=True)
class Finding:
    """What a stack has or lacks."""

    what: str
    missing: str | None
    """What to do about it; None where nothing is missing."""


@app.callback()
def options(  # noqa: PLR0913 - one argument per option
    context: typer.Context,
    *,
    artifacts: Annotated[
        str, typer.Option("--artifacts", help="Bucket and folder of the artifacts, such as s3://bucket/ted.")
    ],
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", help="URL of an S3 server other than AWS, as pods reach it.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="Context of the kubeconfig, or the current one.")
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", help="Namespace of the pods.")] = "ted",
    registry: Annotated[
        str | None, typer.Option("--registry", help="Registry of the images; the image's if not given.")
    ] = None,
    name: Annotated[
        str, typer.Option("--name", help="Name of the stack and of each of its components.")
    ] = "ted-kubernetes",
    config: Annotated[
        Path, typer.Option("--config", "-c", help="File whose `settings:` the stack takes as its own.")
    ] = SETTINGS,
) -> None:
    """Read what a stack is made of."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))["settings"]
    image = str(settings["docker"]["parent_image"])
    cluster = cluster or kubeconfig.list_kube_config_contexts()[1]["name"]
    registry = registry or image.rpartition("/")[0]
    context.obj = Place(name, cluster, namespace, artifacts, endpoint, registry, settings)


@app.command()
def check(context: typer.Context) -> None:
    """Say what a stack would lack; the exit status is 1 if anything."""
    _show(findings(context.obj))


@app.command()
def up(context: typer.Context) -> None:
    """Register the stack, or bring a registered one up to date; nothing is changed while something is missing."""
    _show(findings(context.obj))
    Console().print(f"zenml stack set {register(context.obj)}", highlight=False)


def findings(place: Place) -> list[Finding]:
    """Return what a stack at a place has and lacks."""
    return [
        Finding("ZenML server", _server_problem(place)),
        Finding("key of the bucket", _key_problem(place)),
        Finding(place.artifacts, _bucket_problem(place)),
        Finding(f"rights in namespace {place.namespace}", _rights_problem(place)),
        Finding(f"image {place.image}", _image_problem(place)),
    ]


def register(place: Place) -> str:
    """Register or update secret, components and stack, and return the stack's name."""
    secret = f"{place.name}-bucket"
    values = {name.lower(): os.environ[name] for name in KEY_VARIABLES}
    client = Client()
    try:
        client.create_secret(secret, values)
    except EntityExistsError:
        client.update_secret(secret, add_or_update_values=values)
    pods = place.settings["orchestrator.kubernetes"]
    where = {"kubernetes_context": place.context, "kubernetes_namespace": place.namespace}
    inside = {"incluster": True, "service_account_name": pods["step_pod_service_account_name"]}
    bucket = {"path": place.artifacts, "authentication_secret": secret, "client_kwargs": place.client_kwargs}
    components: dict[StackComponentType, tuple[str, dict[str, Any]]] = {
        StackComponentType.ARTIFACT_STORE: ("s3", bucket),
        StackComponentType.CONTAINER_REGISTRY: ("default", {"uri": place.registry}),
        # Nothing is built, but ZenML demands somebody who could.
        StackComponentType.IMAGE_BUILDER: ("local", {}),
        StackComponentType.ORCHESTRATOR: ("kubernetes", {**where, **pods}),
        StackComponentType.STEP_OPERATOR: (
            "kubernetes",
            {"kubernetes_namespace": place.namespace, **inside},
        ),
    }
    ids = {kind: _component(place, kind, *made) for kind, made in components.items()}
    try:
        client.create_stack(place.name, ids, labels={"image": place.image})
    except EntityExistsError:
        client.update_stack(place.name, component_updates=ids, labels={"image": place.image})
    return place.name


def _component(place: Place, kind: StackComponentType, flavor: str, configuration: dict[str, Any]) -> str:
    client = Client()
    try:
        return str(client.create_stack_component(place.name, flavor, kind, configuration).id)
    except EntityExistsError:
        return str(client.update_stack_component(place.name, kind, configuration=configuration).id)


def _server_problem(_: Place) -> str | None:
    store = Client().zen_store
    if store.type != StoreType.REST:
        return "pods cannot reach a local database; connect to a server: zenml login URL"
    if urlsplit(store.url).hostname in {"localhost", "127.0.0.1"}:
        return f"pods cannot reach {store.url}; connect to the server by a name that they know: zenml login URL"
    return None


def _key_problem(_: Place) -> str | None:
    unset = [name for name in KEY_VARIABLES if not os.environ.get(name)]
    return f"set {' and '.join(unset)}" if unset else None


def _bucket_problem(place: Place) -> str | None:
    try:
        s3fs.S3FileSystem(client_kwargs=place.client_kwargs, config_kwargs=PATIENCE).ls(place.artifacts)
    except FileNotFoundError:
        return "there is no such bucket or folder; create it"
    except (OSError, BotoCoreError, ClientError) as error:
        return f"cannot be read: {error}"
    return None


def _rights_problem(place: Place) -> str | None:
    refused = [f"{verb} {resource}" for verb, group, resource in NEEDED if not may(place, verb, group, resource)]
    if not refused:
        return None
    return f"{place.context} may not {', '.join(refused)}; apply k8s/base, and use the account ted-submitter"


def may(place: Place, verb: str, group: str, resource: str) -> bool:
    """Return whether the context may do something in the namespace."""
    name, _, subresource = resource.partition("/")
    attributes = kubernetes.V1ResourceAttributes(
        namespace=place.namespace, verb=verb, group=group, resource=name, subresource=subresource or None
    )
    review = kubernetes.V1SelfSubjectAccessReview(
        spec=kubernetes.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
    )
    api = kubernetes.AuthorizationV1Api(kubeconfig.new_client_from_config(context=place.context))
    return bool(api.create_self_subject_access_review(review).status.allowed)


def _image_problem(place: Place) -> str | None:
    """An image on the node itself has no digest to be pulled by."""
    if place.image.startswith("localhost/") or "@sha256:" in place.image:
        return None
    return "a tag may name another image tomorrow; write NAME@sha256:DIGEST in settings.docker.parent_image"


def _show(found: list[Finding]) -> None:
    console = Console()
    for finding in found:
        mark, rest = ("ok     ", "") if finding.missing is None else ("missing", f": {finding.missing}")
        console.print(f"{mark}  {finding.what}{rest}", highlight=False, soft_wrap=True)
    if any(finding.missing for finding in found):
        sys.exit(1)


if __name__ == "__main__":
    app()
