"""Calling a function in a process of its own, so that the peak of its memory is its own."""

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any


def in_own_process(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Return what a function of a module returns when a fresh process calls it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_mib() -> float:
    """Return the most resident memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
