"""What is made of a few rounds with figures that can be checked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from precopy.errors import UsageError
from precopy.planning import Estimate, RoundSample
from precopy.planning.estimation.estimators import estimate_bandwidth, estimate_costs, estimate_dirtying, observe

RAM = 4 << 30
HANDOVER = Estimate(0.005, 0.002, 0.02)


def sample(number: int, read: float, dirty: float, *, bandwidth: float = 1e9, sync_s: float = 0.0) -> RoundSample:
    """A round that only sends, and the sync after it."""
    took = read / bandwidth
    return RoundSample(number, 0.0, took, took, 0.0, 0.0, sync_s, read, read, dirty, dirty)


def test_nothing_is_known_before_the_first_round() -> None:
    with pytest.raises(UsageError, match="before its first round"):
        observe(RAM, (), 0.0, HANDOVER)


def test_what_is_observed_carries_what_it_was_made_of() -> None:
    rounds = (sample(1, 4e9, 1e9),)
    metrics = observe(RAM, rounds, 1e9, HANDOVER, throttled_share=0.25)
    assert (metrics.ram_bytes, metrics.rounds, metrics.remaining_bytes) == (RAM, rounds, 1e9)
    assert metrics.throttled_share == 0.25
    assert metrics.costs.switchover_overhead_s == HANDOVER


def test_bandwidth_leaves_out_syncs_scans_and_clears() -> None:
    one = RoundSample(1, 9.0, 8.0, 4.0, 2.0, 1.0, 1.0, 4e9, 4e9, 0.0, 0.0)
    assert estimate_bandwidth([one]).value == 1e9


def test_bandwidth_of_one_round_has_a_range() -> None:
    estimate = estimate_bandwidth([sample(1, 4e9, 0)])
    assert estimate.low == pytest.approx(0.92e9, rel=0.01)
    assert estimate.high == pytest.approx(1.08e9, rel=0.01)


def test_a_stalled_round_is_outvoted_and_within_the_range() -> None:
    rounds = [sample(1, 4e9, 1e9), sample(2, 1e9, 1e9), sample(3, 1e9, 1e9, bandwidth=2e8)]
    estimate = estimate_bandwidth(rounds)
    assert (estimate.value, estimate.low) == (1e9, 2e8)
    later = estimate_bandwidth([*rounds, *(sample(number, 1e9, 1e9) for number in (4, 5, 6))])
    assert later.value == 1e9
    assert later.low > 0.7e9


def test_a_slower_link_is_believed_after_two_rounds() -> None:
    rounds = [*(sample(number, 1e9, 1e9) for number in range(1, 9)), sample(9, 1e9, 1e9, bandwidth=5e8)]
    assert estimate_bandwidth(rounds).value == 1e9
    assert estimate_bandwidth([*rounds, sample(10, 1e9, 1e9, bandwidth=5e8)]).value == 5e8


@pytest.mark.parametrize("rounds", [[], [sample(1, 0.0, 0.0)]])
def test_where_nothing_was_sent_memory_is_the_limit(rounds: list[RoundSample]) -> None:
    estimate = estimate_bandwidth(rounds)
    assert 0 < estimate.low < estimate.value < estimate.high < math.inf


def test_an_idle_guest_has_no_curve() -> None:
    curve, spread = estimate_dirtying([sample(1, 4e9, 0.0), replace(sample(2, 0.0, 0.0), sync_s=1e-3)], RAM, 0.0)
    assert curve.classes == ()
    assert curve.dirty_bytes(10.0) == 0.0
    assert spread == pytest.approx(0.08)


def test_one_round_makes_a_line_up_to_all_of_ram() -> None:
    curve, spread = estimate_dirtying([sample(1, 4e9, 1e9)], RAM, 0.0)
    assert curve.dirty_bytes(1.0) == pytest.approx(0.25e9)
    assert curve.dirty_bytes(1e6) == curve.working_set == RAM
    assert 0.5 < spread <= 1.0


def pairs(*found: tuple[float, float]) -> list[RoundSample]:
    """Rounds with these intervals (s) and dirty bytes (MB), each of which reads what the one before found."""
    read = [4e9, *(1e6 * dirty for _, dirty in found)]
    rounds = [sample(n, interval * 1e9, 1e6 * dirty) for n, (interval, dirty) in enumerate(found, 1)]
    return [replace(one, read_bytes=before) for one, before in zip(rounds, read, strict=False)]


def test_the_shape_that_rounds_show() -> None:
    """A hot set of 100 MB is gone round in 0.1 s; the rest is written at 100 MB/s."""
    curve, _ = estimate_dirtying(pairs((4.0, 500), (0.5, 150), (0.15, 115), (0.115, 111.5)), RAM, 0.0)
    for when, dirty in ((0.12, 1.12e8), (0.15, 1.15e8), (0.5, 1.5e8), (4.0, 5e8), (10.0, 1.1e9)):
        assert curve.dirty_bytes(when) == pytest.approx(dirty, rel=0.02)


def test_a_working_set_that_was_gone_round_is_the_end_of_the_curve() -> None:
    curve, _ = estimate_dirtying(pairs((4.0, 256), (0.256, 256), (0.256, 256)), RAM, 0.0)
    assert curve.working_set == pytest.approx(256e6)


def test_rounds_of_a_guest_that_does_not_write_the_same_twice() -> None:
    """Measured: 10000 pages a second at random places of 128 MB, over 80 MB/s."""
    found = ((1.78, 77.8), (0.972, 40.2), (0.502, 20.5), (0.254, 10.6), (0.131, 5.45), (0.067, 3.0))
    for count in range(2, 6):
        curve, _ = estimate_dirtying(pairs(*found[:count]), 134e6, 0.0)
        interval, dirty = found[count]
        assert curve.dirty_bytes(interval) == pytest.approx(1e6 * dirty, rel=0.08)
        assert curve.fixed_point(1 / 80e6, 1e-3) < 4e-3


def test_rounds_of_a_guest_that_rewrites_a_working_set_settle_where_they_are() -> None:
    """Measured: 16 MB; and all of 128 MB. A few per cent less are no reason to hope."""
    for found in (
        ((1.8, 16.0), (0.222, 16.0), (0.221, 15.6), (0.22, 16.1)),
        ((1.75, 134.0), (1.76, 133.5), (1.75, 134.0), (1.74, 134.2)),
    ):
        for count in (2, 3, 4):
            curve, _ = estimate_dirtying(pairs(*found[:count]), 135e6, 0.0)
            interval, dirty = found[-1]
            per_byte = (interval - 1e-3) / (1e6 * dirty)
            assert curve.fixed_point(per_byte, 1e-3) == pytest.approx(interval, rel=0.05)
            assert curve.times(0.9).fixed_point(per_byte, 1e-3) > 0.75 * interval


def test_older_points_take_up_the_level_of_newer_rounds() -> None:
    """Rounds have the shape; the guest then writes half as much."""
    rounds = pairs(*((when, 1e3 * when / (1 + when)) for when in (4.0, 0.8, 0.4, 0.2, 0.1)))
    rounds += [sample(number, 0.4e9, 1e9 * 0.2 / 1.4) for number in (6, 7, 8, 9)]
    curve, _ = estimate_dirtying(rounds, RAM, 0.0)
    assert curve.dirty_bytes(0.4) == pytest.approx(1e9 * 0.2 / 1.4, rel=0.08)
    assert curve.dirty_bytes(0.1) == pytest.approx(1e9 * 0.05 / 1.1, rel=0.15)


def test_rounds_at_another_throttle_count_at_the_speed_of_this_one() -> None:
    slowed = [replace(sample(number, 2e9, 5e8), throttled_share=0.75) for number in (1, 2)]
    curve, _ = estimate_dirtying(slowed, RAM, 0.5)
    assert curve.dirty_bytes(1.0) == pytest.approx(5e8)
    as_slow, _ = estimate_dirtying(slowed, RAM, 0.75)
    for interval in (0.01, 0.3, 1.0, 5.0):
        assert curve.dirty_bytes(interval) == pytest.approx(as_slow.dirty_bytes(2 * interval))


def test_rounds_that_disagree_widen_the_spread() -> None:
    steady = [sample(number, 5e8, 5e8) for number in range(1, 7)]
    restless = [replace(one, dirty_bytes=(4e8, 6e8)[one.number % 2]) for one in steady]
    assert estimate_dirtying(steady, RAM, 0.0)[1] == pytest.approx(0.03)
    assert 0.2 < estimate_dirtying(restless, RAM, 0.0)[1] <= 1.0


def test_a_syncs_cost_is_a_fixed_part_and_one_for_each_dirty_byte() -> None:
    found = (4e9, 1e9, 3e8, 1e8)
    rounds = [sample(n, 1e9, dirty, sync_s=1e-3 + 1e-11 * dirty) for n, dirty in enumerate(found, 1)]
    costs = estimate_costs(rounds, HANDOVER)
    assert costs.sync_s == pytest.approx(1e-3)
    assert costs.sync_s_per_byte == pytest.approx(1e-11)


def test_one_sync_that_was_held_up_does_not_count() -> None:
    found = (4e9, 1e9, 3e8, 1e8, 3e7)
    rounds = [sample(n, 1e9, dirty, sync_s=1e-3 + 1e-11 * dirty) for n, dirty in enumerate(found, 1)]
    rounds[3] = replace(rounds[3], sync_s=0.5)
    costs = estimate_costs(rounds, HANDOVER)
    assert costs.sync_time_s(2e9) == pytest.approx(1e-3 + 2e-2, rel=0.05)


def test_syncs_that_find_the_same_do_not_tell_what_a_byte_costs() -> None:
    costs = estimate_costs([sample(n, 1e9, 1e9, sync_s=x) for n, x in ((1, 9e-3), (2, 1e-2), (3, 1e-2))], HANDOVER)
    assert (costs.sync_s, costs.sync_s_per_byte) == (1e-2, 0.0)


def test_the_first_round_says_what_reading_costs_only_while_it_is_the_only_one() -> None:
    first = RoundSample(1, 9.0, 5.1, 4.0, 1.0, 0.0, 0.0, 1e9, 4e9, 1e9, 1e9)
    second = RoundSample(2, 11.0, 1.602, 1.0, 0.2, 0.4, 0.0, 9e8, 1e9, 1e9, 1e9)
    alone, both = estimate_costs([first], HANDOVER), estimate_costs([first, second], HANDOVER)
    assert (alone.sent_share, alone.read_s_per_byte) == (1.0, pytest.approx(0.275e-9))
    assert (both.sent_share, both.read_s_per_byte) == (pytest.approx(0.9), pytest.approx(0.602e-9))
    assert both.transfer_s(1e9, 9e8) == pytest.approx(1.602)


def test_no_round_costs_nothing() -> None:
    costs = estimate_costs([], HANDOVER)
    assert (costs.sent_share, costs.read_s_per_byte, costs.sync_time_s(1e9)) == (1.0, 0.0, 0.0)
