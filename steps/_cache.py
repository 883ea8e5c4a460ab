"""What a step's result depends on beside its inputs and parameters, as a digest for ZenML's cache key.

ZenML itself looks at the step function only, and would go on using results of library code that has changed since.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

import grimp
from zenml.client import Client
from zenml.config.cache_policy import CachePolicy
from zenml.enums import ModelStages

PACKAGES = ("steps", "ted")


def cached_by(digest: Callable[[], str]) -> CachePolicy:
    """Return ZenML's usual policy with a digest added, which a function at the top of the step's module gives."""
    return CachePolicy.model_validate({"cache_func": digest})


def code_digest(module: str) -> str:
    """Return a digest of the code that a module reaches by imports: own modules, their data files, library versions."""
    reached = {module, *_import_graph().find_upstream_modules(module)}
    return hashlib.sha256("\n".join(_state(name) for name in sorted(reached)).encode()).hexdigest()


def champion_digest() -> str:
    """Return a digest of the model versions that stand in production, so that a new champion is compared with."""
    versions = Client().list_model_versions(stage=ModelStages.PRODUCTION)
    champions = sorted(f"{champion.model.name} {champion.number}" for champion in versions)
    return hashlib.sha256("\n".join(champions).encode()).hexdigest()


@functools.cache
def _import_graph() -> grimp.ImportGraph:
    # A cache folder would have to be writable, which it is not in a pod.
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(packages_distributions())


@functools.cache
def _state(module: str) -> str:
    """Return what a module holds: a digest of its files, or the versions of the library that it belongs to."""
    package = module.partition(".")[0]
    if package not in PACKAGES:
        return " ".join(f"{name}=={version(name)}" for name in sorted(set(_distributions().get(package, ()))))
    digest = hashlib.sha256()
    for file in _files(module):
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return f"{module} {digest.hexdigest()}"


def _files(module: str) -> Iterator[Path]:
    """Yield the file of a module, then the data files that lie in folders beside it, such as templates."""
    # Finding a submodule by importlib would import its parents, and with them libraries that take seconds.
    package, _, rest = module.partition(".")
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    place = Path(found.submodule_search_locations[0], *rest.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    yield file
    for folder in sorted(file.parent.iterdir()):
        if folder.is_dir() and folder.name != "__pycache__" and not (folder / "__init__.py").exists():
            yield from sorted(item for item in folder.rglob("*") if item.is_file())
