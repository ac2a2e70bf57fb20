"""The patch series' model: its own numbers, and its edges."""

from __future__ import annotations

import math

import pytest

from precopy.planning.plan.qemu_model import (
    QemuModel,
    critical_estimate,
    critical_transfer,
    estimated_bandwidth,
    largest_dirty_rate,
    letters_dirty_rate,
    smallest_downtime_limit,
)

B = 15e9


def test_the_letters_first_example() -> None:
    """x = 250 ms, D = 7.5 GB/s: the limit has to be above 500 ms."""
    assert smallest_downtime_limit(B, 7.5e9, 0.25) == 0.5


def test_the_letters_second_example() -> None:
    """x = 10 ms: above 11.1 ms."""
    assert smallest_downtime_limit(B, 7.5e9, 0.01) == pytest.approx(11.1e-3, abs=0.05e-3)


def test_the_letters_third_example() -> None:
    """y = 300 ms, x = 250 ms: D below 2.5 GB/s."""
    assert letters_dirty_rate(B, 0.25, 0.3) == pytest.approx(2.5e9)
    assert largest_dirty_rate(B, 0.25, 0.3) == pytest.approx(2.5e9)


def test_the_letters_fourth_example() -> None:
    """y = 300 ms, x = 10 ms: D below 14.46 GB/s, it says; with that D its own model needs 280 ms, not 300."""
    assert letters_dirty_rate(B, 0.01, 0.3) == pytest.approx(14.46e9, abs=0.005e9)
    assert smallest_downtime_limit(B, letters_dirty_rate(B, 0.01, 0.3), 0.01) == pytest.approx(0.28)
    assert largest_dirty_rate(B, 0.01, 0.3) == pytest.approx(14.5e9)
    assert smallest_downtime_limit(B, 14.5e9, 0.01) == pytest.approx(0.3)


def test_both_cases_of_the_estimate_meet_at_100_ms() -> None:
    assert estimated_bandwidth(B, 0.04, 0.06) == pytest.approx(B * 0.6)
    assert estimated_bandwidth(B, 0.04, 0.06 + 1e-12) == pytest.approx(B * 0.6)
    assert estimated_bandwidth(B, 0.04, 0.01) == pytest.approx(B * 0.6)
    assert estimated_bandwidth(B, 0.3, 0.6) == pytest.approx(B * 2 / 3)


def test_both_cases_of_the_limit_meet_at_100_ms() -> None:
    """There x is 100 ms - 100 ms D / B, and the limit is 100 ms."""
    assert smallest_downtime_limit(B, 7.5e9, 0.05) == pytest.approx(0.1)
    assert smallest_downtime_limit(B, 7.5e9, 0.05 + 1e-12) == pytest.approx(0.1)
    assert largest_dirty_rate(B, 0.05, 0.1) == pytest.approx(7.5e9)
    assert largest_dirty_rate(B, 0.05, 0.1 + 1e-12) == pytest.approx(7.5e9)


def test_at_the_critical_point_what_is_sent_is_what_is_dirtied() -> None:
    t = critical_transfer(B, 7.5e9, 0.25)
    assert t == 0.25
    assert B * t == 7.5e9 * (0.25 + t)
    assert critical_estimate(B, 7.5e9, 0.25) == 7.5e9


@pytest.mark.parametrize("rate", [B, 1.5 * B])
def test_who_dirties_as_fast_as_is_sent_never_settles(rate: float) -> None:
    model = QemuModel.of(B, rate, 0.01, 0.3)
    assert model.critical_transfer_s == math.inf
    assert model.smallest_downtime_limit_s == math.inf
    assert model.estimated_bandwidth_bytes_per_s == B


def test_an_idle_guest_and_a_free_sync() -> None:
    assert smallest_downtime_limit(B, 0.0, 0.01) == 0.0
    assert critical_transfer(B, 0.0, 0.25) == 0.0
    assert smallest_downtime_limit(B, 0.99 * B, 0.0) == 0.0
    assert largest_dirty_rate(B, 0.0, 0.3) == B
    assert largest_dirty_rate(B, 0.0, 0.05) == B


@pytest.mark.parametrize(("x", "y"), [(0.25, 0.2), (0.25, 0.05), (0.1, 0.1), (0.1, 0.05)])
def test_a_sync_that_takes_the_limit_allows_no_dirty_rate(x: float, y: float) -> None:
    assert largest_dirty_rate(B, x, y) == 0.0
    assert letters_dirty_rate(B, x, y) == 0.0
