"""Calling a function in a process of its own, so that the peak of its memory is its own. Linux only."""

import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_own_process(function: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Return what a function of a module returns when a fresh process calls it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def peak_mib() -> float:
    """Return the most resident memory that this process has had, in MiB.

    The peak of `getrusage` would not do: a new process begins with that of the one that started it.
    """
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024
