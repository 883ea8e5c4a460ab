import sys

import pytest

from benchmarks import vocabulary_losses
from ted import losses


def test_both_ways_give_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_NUMBERS", losses.CHUNK_NUMBERS)
    monkeypatch.setattr(vocabulary_losses, "WAYS", {"chunks": 200, "at once": sys.maxsize})
    found = [vocabulary_losses.measure(way, rows=12, vocabulary=50)["loss"] for way in ("chunks", "at once")]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
