"""Forecasts against what they are made of: rounds in closed form, the patch series' model, and each other."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from precopy.planning import (
    Action,
    CurveGuest,
    Limits,
    Metrics,
    TimeoutPolicy,
    decide,
    needed_speed,
    simulate,
    smallest_downtime,
)
from support.planning import GB, forecast_of, metrics, samples

bandwidths = st.floats(1e7, 2e10)
ratios = st.floats(0.0, 3.0)
sync_times = st.floats(0.0, 0.5)
limits = st.floats(0.01, 5.0)
working_sets = st.one_of(st.just(math.inf), st.floats(1e6, 1e11))
spreads = st.sampled_from([0.0, 0.05, 0.2])


@given(bandwidths, st.floats(0.01, 0.95), sync_times)
def test_the_smallest_downtime_is_the_cover_letters(bandwidth: float, ratio: float, x: float) -> None:
    known = metrics(bandwidth=bandwidth, rate=ratio * bandwidth, x=x)
    assert smallest_downtime(known).value == pytest.approx(x / (1 - ratio))


@given(bandwidths, st.floats(0.0, 0.9), st.floats(0.0, 0.01), st.floats(0.1, 2.0))
def test_rounds_shrink_by_d_over_b(bandwidth: float, ratio: float, x: float, limit: float) -> None:
    known = metrics(bandwidth=bandwidth, rate=ratio * bandwidth, x=x, ram=100 * bandwidth)
    outcome = simulate(known, CurveGuest(known.costs, known.dirty), decide, Limits(limit, max_rounds=400), 0.0)
    assume(outcome.completed)
    remaining = 100.0 * bandwidth
    for one in outcome.rounds:
        if one is outcome.rounds[-1]:  # cut short once the rest fits
            assert one.transfer_s <= remaining / bandwidth * (1 + 1e-9)
            break
        assert one.transfer_s == pytest.approx(remaining / bandwidth)
        remaining = min(ratio * bandwidth * (one.transfer_s + x), known.ram_bytes)
        assert one.remaining_bytes == pytest.approx(remaining)
    assert outcome.downtime_s <= limit * (1 + 1e-9)
    assert outcome.total_s == pytest.approx(sum(one.interval_s for one in outcome.rounds) + outcome.downtime_s)


def _known(bandwidth: float, ratio: float, size: float, x: float, spread: float) -> Metrics:
    return metrics(bandwidth=bandwidth, rate=ratio * bandwidth, working_set=size, x=x, spread=spread)


@given(st.builds(_known, bandwidths, ratios, working_sets, sync_times, spreads), limits)
def test_figures_are_sane(known: Metrics, limit: float) -> None:
    ahead = forecast_of(known, Limits(limit), 0.0)
    for estimate in (ahead.more_rounds, ahead.downtime_s, ahead.total_s, ahead.smallest_downtime_limit_s):
        assert 0 <= estimate.low <= estimate.value <= estimate.high
        assert not math.isnan(estimate.high)
    if ahead.converges:
        assert ahead.downtime_s.high <= limit * (1 + 1e-6)
    assert ahead.likely.sent_bytes >= known.ram_bytes


@given(bandwidths, ratios, working_sets, st.floats(0.001, 0.5), spreads)
def test_the_limit_that_is_named_makes_it_converge(
    bandwidth: float, ratio: float, size: float, x: float, spread: float
) -> None:
    known = metrics(bandwidth=bandwidth, rate=ratio * bandwidth, working_set=size, x=x, spread=spread)
    least = smallest_downtime(known).high
    assume(math.isfinite(least))
    limits = Limits(least * 1.01, max_rounds=499)
    outcome = simulate(known, CurveGuest(known.costs, known.dirty), decide, limits, 0.0)
    assume(len(outcome.rounds) < 499)  # D all but as large as B: the limit is reached, but not so soon
    assert outcome.completed


@given(bandwidths, st.floats(0.1, 3.0), sync_times, limits, spreads)
def test_the_largest_dirty_rate_is_the_edge(
    bandwidth: float, ratio: float, x: float, limit: float, spread: float
) -> None:
    known = metrics(bandwidth=bandwidth, rate=ratio * bandwidth, x=x, spread=spread)
    speed = needed_speed(known, limit)
    assume(0 < speed < 1e4)
    assert smallest_downtime(known, speed).high <= limit
    assert smallest_downtime(known, 1.01 * speed).high > limit


def test_no_dirty_rate_helps_where_a_sync_alone_takes_too_long() -> None:
    assert needed_speed(metrics(x=0.5), 0.3) == 0.0


def test_any_dirty_rate_will_do_for_a_small_working_set() -> None:
    assert needed_speed(metrics(rate=5 * GB, working_set=0.1 * GB), 0.3) == math.inf


@given(bandwidths, st.floats(1.2, 3.0), limits)
def test_what_cannot_converge_is_given_up_after_three_rounds(bandwidth: float, ratio: float, limit: float) -> None:
    known = metrics(bandwidth=bandwidth, rate=ratio * bandwidth, ram=100 * bandwidth)
    ahead = forecast_of(known, Limits(limit), 0.0)
    assert ahead.converges is False
    assert ahead.likely.decision.action is Action.GIVE_UP
    assert len(ahead.likely.rounds) == 3


@given(bandwidths, st.floats(1.2, 3.0), st.floats(0.1, 2.0))
def test_throttling_makes_it_converge_and_says_what_that_cost(bandwidth: float, ratio: float, limit: float) -> None:
    known = metrics(bandwidth=bandwidth, rate=ratio * bandwidth, ram=100 * bandwidth)
    outcome = forecast_of(known, Limits(limit, max_throttle=0.99, max_rounds=400), 0.0).likely
    assert outcome.completed
    assert outcome.downtime_s <= limit * (1 + 1e-9)
    lost = sum(one.throttled_share * one.interval_s for one in outcome.rounds) + outcome.downtime_s
    assert outcome.guest_time_lost_s == pytest.approx(lost)
    assert lost > outcome.downtime_s


@given(bandwidths, st.floats(1.2, 3.0), st.floats(1.0, 50.0))
def test_a_round_is_cut_short_at_the_time_out(bandwidth: float, ratio: float, timeout: float) -> None:
    known = metrics(bandwidth=bandwidth, rate=ratio * bandwidth, ram=100 * bandwidth)
    allowed = Limits(0.3, timeout_s=timeout, on_timeout=TimeoutPolicy.CANCEL)
    outcome = forecast_of(known, allowed, 0.0).likely
    assert outcome.decision.action is Action.GIVE_UP
    assert outcome.total_s == pytest.approx(timeout, rel=0.1, abs=0.05)


def test_one_round_is_not_enough_to_say_that_it_converges() -> None:
    first = metrics(remaining=4 * GB, rounds=samples(4 * GB))
    assert forecast_of(first, Limits(0.3), 10.0).converges is None
    second = metrics(remaining=2 * GB, rounds=samples(4 * GB, 2 * GB))
    assert forecast_of(second, Limits(0.3), 10.0).converges is True
    enough = metrics(remaining=0.1 * GB, rounds=samples(0.1 * GB))
    assert forecast_of(enough, Limits(0.3), 10.0).converges is True
