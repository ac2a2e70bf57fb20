"""Dirty bytes of an interval as a sum of classes of memory, and where rounds settle."""

from __future__ import annotations

import math

import pytest

from precopy.planning import DirtyClass, DirtyCurve

HOT_AND_COLD = DirtyCurve((DirtyClass(700e6, 70e6), DirtyClass(100e6, 800e6)))


def test_a_class_grows_until_it_is_saturated() -> None:
    assert [HOT_AND_COLD.dirty_bytes(interval) for interval in (0.0, 0.05, 0.1, 1.0, 8.0, 100.0)] == pytest.approx(
        [0.0, 40e6, 80e6, 170e6, 870e6, 870e6]
    )


def test_its_rate_and_its_working_set() -> None:
    assert HOT_AND_COLD.rate == 800e6
    assert HOT_AND_COLD.working_set == 870e6
    assert math.isinf(DirtyCurve.of(1e6, math.inf).working_set)


@pytest.mark.parametrize(("rate", "size"), [(0.0, 1e6), (1e6, 0.0)])
def test_nothing_is_dirtied_where_there_is_no_rate_or_nothing_to_write(rate: float, size: float) -> None:
    idle = DirtyCurve.of(rate, size)
    assert idle.classes == ()
    assert idle.dirty_bytes(10.0) == idle.rate == idle.working_set == 0.0


def test_a_slower_guest_takes_longer_for_the_same_memory() -> None:
    slow = HOT_AND_COLD.scaled(0.5)
    assert slow.dirty_bytes(2.0) == HOT_AND_COLD.dirty_bytes(1.0)
    assert slow.working_set == HOT_AND_COLD.working_set


def test_a_guest_that_writes_more_does_so_in_every_interval() -> None:
    assert HOT_AND_COLD.times(1.5).dirty_bytes(0.3) == pytest.approx(1.5 * HOT_AND_COLD.dirty_bytes(0.3))


@pytest.mark.parametrize(("sync_s", "settles_s"), [(0.250, 0.500), (0.010, 0.020)])
def test_rounds_settle_where_the_cover_letter_says(sync_s: float, settles_s: float) -> None:
    """B = 15 GB/s, D = 7.5 GB/s: B x / (B - D)."""
    bandwidth, rate = 15e9, 7.5e9
    settled = DirtyCurve.of(rate, math.inf).fixed_point(1 / bandwidth, sync_s)
    assert settled == pytest.approx(bandwidth * sync_s / (bandwidth - rate)) == pytest.approx(settles_s)


def test_a_working_set_bounds_the_rounds_of_a_guest_that_is_faster_than_the_link() -> None:
    assert DirtyCurve.of(2e9, 256e6).fixed_point(1 / 1e9, 0.01) == pytest.approx(0.266)


def test_rounds_settle_past_a_hot_set_that_is_saturated() -> None:
    # 70 MB of the hot set and 100 MB/s of the cold one, at 500 MB/s: i = 10 ms + (70 MB + 100 MB/s i) / 500 MB/s.
    assert HOT_AND_COLD.fixed_point(1 / 500e6, 0.01) == pytest.approx(0.15 / 0.8)


@pytest.mark.parametrize("rate", [1e9, 2e9])
def test_without_a_bound_there_is_no_end_to_a_guest_that_is_as_fast_as_the_link(rate: float) -> None:
    assert math.isinf(DirtyCurve.of(rate, math.inf).fixed_point(1 / 1e9, 0.01))


def test_an_idle_guest_settles_at_what_a_round_costs_anyway() -> None:
    assert DirtyCurve(()).fixed_point(1 / 1e9, 0.01) == 0.01


def test_where_sending_costs_nothing_a_round_is_its_fixed_part() -> None:
    assert HOT_AND_COLD.fixed_point(0.0, 0.25) == 0.25
