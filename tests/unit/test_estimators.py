"""What is made of a few rounds with figures that can be checked by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from precopy.errors import UsageError
from precopy.planning import Estimate, Probe, RoundSample
from precopy.planning.estimators import estimate_bandwidth, estimate_costs, estimate_dirtying, observe

RAM = 4 << 30
HANDOVER = Estimate(0.005, 0.002, 0.02)


def sample(number: int, read: float, dirty: float, *, bandwidth: float = 1e9, sync_s: float = 0.0) -> RoundSample:
    """A round that only sends, and the sync after it."""
    took = read / bandwidth
    return RoundSample(number, 0.0, took, took, 0.0, 0.0, sync_s, read, read, dirty, dirty)


def test_nothing_is_known_before_the_first_round() -> None:
    with pytest.raises(UsageError, match="before its first round"):
        observe(RAM, (), [], 0.0, HANDOVER)


def test_what_is_observed_carries_what_it_was_made_of() -> None:
    rounds = (sample(1, 4e9, 1e9),)
    metrics = observe(RAM, rounds, [], 1e9, HANDOVER, throttle=0.25)
    assert (metrics.ram_bytes, metrics.rounds, metrics.remaining_bytes) == (RAM, rounds, 1e9)
    assert metrics.throttle == 0.25
    assert metrics.costs.handover_s == HANDOVER


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
    curve, spread = estimate_dirtying([sample(1, 4e9, 0.0), replace(sample(2, 0.0, 0.0), sync_s=1e-3)], [], RAM, 0.0)
    assert curve.classes == ()
    assert curve.dirty_bytes(10.0) == 0.0
    assert spread == pytest.approx(0.08)


def test_one_round_makes_a_line_up_to_all_of_ram() -> None:
    curve, spread = estimate_dirtying([sample(1, 4e9, 1e9)], [], RAM, 0.0)
    assert curve.dirty_bytes(1.0) == pytest.approx(0.25e9)
    assert curve.dirty_bytes(1e6) == curve.working_set == RAM
    assert spread == pytest.approx(0.16)


def test_looks_in_mid_round_give_a_shape_to_one_round() -> None:
    """A hot set of 100 MB is gone round in 0.1 s; the rest is written at 100 MB/s."""
    looks = [Probe(1, when, min(1e9 * when, 1e8) + 1e8 * when) for when in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)]
    curve, _ = estimate_dirtying([sample(1, 4e9, 5e8)], looks, RAM, 0.0)
    for when, dirty in ((0.01, 1.1e7), (0.1, 1.1e8), (0.5, 1.5e8), (4.0, 5e8), (10.0, 1.1e9)):
        assert curve.dirty_bytes(when) == pytest.approx(dirty, rel=0.02)


def test_a_working_set_that_was_gone_round_is_the_end_of_the_curve() -> None:
    looks = [Probe(1, when, min(1e9 * when, 256e6)) for when in (0.05, 0.1, 0.256, 0.5, 1.0, 2.0)]
    curve, _ = estimate_dirtying([sample(1, 4e9, 256e6)], looks, RAM, 0.0)
    assert curve.working_set == pytest.approx(256e6)
    assert curve.rate == pytest.approx(1e9)


def test_looks_before_pages_were_armed_do_not_count_as_time() -> None:
    """A round that reads what the guest writes only after two seconds: it shows nothing until then."""
    looks = [Probe(1, when, min(1e9 * max(when - 2.0, 0.0), 256e6)) for when in (0.5, 1.0, 2.0, 2.1, 2.2, 2.3, 3.0)]
    curve, _ = estimate_dirtying([sample(1, 4e9, 256e6)], looks, RAM, 0.0)
    assert curve.dirty_bytes(0.1) == pytest.approx(1e8, rel=0.02)


def test_older_points_take_up_the_level_of_newer_rounds() -> None:
    """Round 1 has the shape; the guest then writes half as much."""
    looks = [Probe(1, when, 1e9 * when / (1 + when)) for when in (0.05, 0.1, 0.2, 0.4, 0.5, 0.8, 1.6)]
    rounds = [sample(1, 4e9, 0.8e9), *(sample(number, 0.5e9, 0.5e9 / 3) for number in (2, 3, 4))]
    curve, _ = estimate_dirtying(rounds, looks, RAM, 0.0)
    assert curve.dirty_bytes(0.5) == pytest.approx(0.5e9 / 3, rel=0.08)
    assert curve.dirty_bytes(0.1) == pytest.approx(0.5 * 1e9 * 0.1 / 1.1, rel=0.15)


def test_rounds_at_another_throttle_count_at_the_speed_of_this_one() -> None:
    slowed = [replace(sample(number, 2e9, 5e8), throttle=0.75) for number in (1, 2)]
    curve, _ = estimate_dirtying(slowed, [], RAM, 0.5)
    assert curve.dirty_bytes(1.0) == pytest.approx(5e8)
    assert curve.rate == pytest.approx(5e8)


def test_rounds_that_disagree_widen_the_spread() -> None:
    steady = [sample(number, 1e9, 5e8) for number in range(1, 7)]
    restless = [replace(one, dirty_bytes=(4e8, 6e8)[one.number % 2]) for one in steady]
    assert estimate_dirtying(steady, [], RAM, 0.0)[1] == pytest.approx(0.03)
    assert 0.2 < estimate_dirtying(restless, [], RAM, 0.0)[1] < 0.8


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
    assert costs.x_s(2e9) == pytest.approx(1e-3 + 2e-2, rel=0.05)


def test_syncs_that_find_the_same_do_not_tell_what_a_byte_costs() -> None:
    costs = estimate_costs([sample(n, 1e9, 1e9, sync_s=x) for n, x in ((1, 9e-3), (2, 1e-2), (3, 1e-2))], HANDOVER)
    assert (costs.sync_s, costs.sync_s_per_byte) == (1e-2, 0.0)


def test_the_first_round_says_what_reading_costs_only_while_it_is_the_only_one() -> None:
    first = RoundSample(1, 9.0, 5.1, 4.0, 1.0, 0.0, 0.0, 1e9, 4e9, 1e9, 1e9)
    second = RoundSample(2, 11.0, 1.602, 1.0, 0.2, 0.4, 0.0, 9e8, 1e9, 1e9, 1e9)
    alone, both = estimate_costs([first], HANDOVER), estimate_costs([first, second], HANDOVER)
    assert (alone.sent_share, alone.read_s_per_byte) == (1.0, pytest.approx(0.25e-9))
    assert alone.round_s == pytest.approx(0.1)
    assert (both.sent_share, both.read_s_per_byte) == (pytest.approx(0.9), pytest.approx(0.6e-9))
    assert both.round_s == pytest.approx(2e-3)
    assert both.transfer_s(1e9, 9e8) == pytest.approx(1.602)


def test_no_round_costs_nothing() -> None:
    costs = estimate_costs([], HANDOVER)
    assert (costs.sent_share, costs.read_s_per_byte, costs.round_s, costs.x_s(1e9)) == (1.0, 0.0, 0.0, 0.0)
