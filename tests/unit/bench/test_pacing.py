"""When the next sync is made, and which syncs had equal work."""

from __future__ import annotations

import pytest

from precopy.bench.pacing import PacedSync, Pacing


@pytest.mark.parametrize(("found", "equal"), [(1301, True), (1236, True), (1302, True), (1100, False), (1500, False)])
def test_equal_is_as_many_pages_as_the_guest_rewrites(found: int, equal: bool) -> None:
    assert Pacing(1301, 0.02).equal(found) is equal


def test_syncs_come_farther_apart_while_they_find_less_and_closer_again_when_they_find_all() -> None:
    pacing = Pacing(1000, 0.02)
    waits = []
    for found in (1000, 300, 999, 500, *[1000] * 11):
        pacing.found(found)
        waits.append(round(pacing.wait_s, 4))
    assert waits[:4] == [0.02, 0.04, 0.04, 0.08]
    assert waits[4:] == [*[0.08] * 4, *[0.04] * 5, *[0.02] * 2]


def test_a_sync_that_found_more_makes_no_others_wait() -> None:
    pacing = Pacing(1000, 0.02)
    pacing.found(2000)
    assert pacing.wait_s == 0.02


def test_however_little_is_found_waits_have_an_end() -> None:
    pacing = Pacing(1000, 0.02)
    for _ in range(100):
        pacing.found(0)
    assert pacing.wait_s == pytest.approx(0.64)


def test_done_when_as_many_had_equal_work_or_too_many_had_not() -> None:
    pacing = Pacing(100, 0.02)
    same, other = PacedSync(1e-5, 0.02, 100), PacedSync(1e-5, 0.02, 10)
    assert not pacing.done([same, other], 2)
    assert pacing.done([same, other, same], 2)
    assert not pacing.done([other] * 7, 2)
    assert pacing.done([other] * 8, 2)
