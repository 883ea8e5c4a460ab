from typing import Any

import pytest

from benchmarks.own_process import in_own_process, peak_mib


def peak_with(mebibytes: int) -> dict[str, Any]:
    ballast = bytearray(b"x") * (mebibytes * 2**20)
    return {"mib": peak_mib(), "held": len(ballast)}


@pytest.mark.slow
def test_a_process_of_its_own_has_a_peak_of_its_own() -> None:
    large, small = (in_own_process(peak_with, size)["mib"] for size in (400, 1))
    assert large - small > 300
