"""The ratio of ours to the newest QEMU's."""

from __future__ import annotations

import pytest

from precopy.bench.equal_work import ours_to_newest
from precopy.report.kinds.bench_sync import RunningSyncs
from precopy.report.kinds.shared import Spread


def syncs(what: str, microseconds: float, *, equal: bool = True, tracker: str = "dirty log") -> RunningSyncs:
    spread = Spread.of([1e-6 * microseconds])
    return RunningSyncs(what, tracker, equal, 10, 0, spread, 0.02, 1301 if equal else 600, 0)


def test_the_newest_is_by_number_and_each_side_has_its_shortest() -> None:
    peers = [
        syncs("QEMU 7.2.22", 10),
        syncs("QEMU 10.0.2", 20),
        syncs("QEMU 9.2.1", 5),
        syncs("QEMU 10.0.2", 40, tracker="dirty ring"),
        syncs("precopy, deferred", 30),
        syncs("precopy, merged", 90),
    ]
    assert ours_to_newest(peers) == pytest.approx(1.5)


def test_unequal_work_is_compared_with_nothing() -> None:
    ours, ring = syncs("precopy, deferred", 30), syncs("QEMU 11.1.3", 40, tracker="dirty ring")
    assert ours_to_newest([syncs("QEMU 11.1.3", 10, equal=False), ring, ours]) == pytest.approx(0.75)
    assert ours_to_newest([syncs("QEMU 11.1.3", 10, equal=False), syncs("QEMU 7.2.22", 10), ours]) is None
    assert ours_to_newest([ring, syncs("precopy, deferred", 30, equal=False)]) is None
    assert ours_to_newest([ours]) is None
