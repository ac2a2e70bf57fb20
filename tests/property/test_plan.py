"""The patch series' model against its own definitions, and a plan's closed forms against the simulation."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from precopy.planning import Action, CurveGuest, DirtyClass, DirtyCurve, Limits, Metrics, decide, simulate
from precopy.planning.model.decision import Decision
from precopy.planning.plan.advice import advise
from precopy.planning.plan.exact_policy import exact_policy
from precopy.planning.plan.plan import (
    PlanInput,
    carry_out,
    downtime_after,
    fits,
    forecast_plan,
    largest_dirty_rate,
    plan,
    smallest_limit,
)
from precopy.planning.plan.qemu_model import (
    critical_transfer,
    estimated_bandwidth,
    letters_dirty_rate,
    smallest_downtime_limit,
)
from precopy.planning.plan.qemu_model import (
    largest_dirty_rate as qemu_largest_dirty_rate,
)
from precopy.report.plan_words import lever_sentence, verdict

GB, MIB = 1e9, 1 << 20

bandwidths = st.floats(0.05 * GB, 100 * GB)
shares = st.floats(0.001, 0.995)
syncs = st.floats(1e-5, 2.0)
limits = st.floats(1e-3, 5.0)


# The patch series' model.


@given(bandwidths, shares, syncs)
def test_the_largest_rate_at_the_smallest_limit_is_the_rate(bandwidth: float, share: float, x: float) -> None:
    rate = share * bandwidth
    limit = smallest_downtime_limit(bandwidth, rate, x)
    assert math.isclose(qemu_largest_dirty_rate(bandwidth, x, limit), rate, rel_tol=1e-9)


@given(bandwidths, syncs, limits)
def test_the_smallest_limit_of_the_largest_rate_is_the_limit(bandwidth: float, x: float, limit: float) -> None:
    rate = qemu_largest_dirty_rate(bandwidth, x, limit)
    assume(1e-6 * bandwidth < rate < (1 - 1e-6) * bandwidth)
    assert math.isclose(smallest_downtime_limit(bandwidth, rate, x), limit, rel_tol=1e-6)


@given(bandwidths, syncs, limits)
def test_the_letters_rate_is_never_too_large(bandwidth: float, x: float, limit: float) -> None:
    letters, exact = letters_dirty_rate(bandwidth, x, limit), qemu_largest_dirty_rate(bandwidth, x, limit)
    assert letters <= exact * (1 + 1e-9)
    if limit <= 0.1 or x >= 0.1:
        assert letters == exact


@given(bandwidths, shares, syncs, st.none() | st.floats(-1e-3, 1e-3))
def test_the_limit_is_where_the_stop_test_begins_to_hold(
    bandwidth: float, share: float, x: float, near: float | None
) -> None:
    """R y > D (x + t), at the critical t; ``near``: x that close to the boundary of the two cases."""
    x = x if near is None else 0.1 * (1 - share) * (1 + near)
    rate = share * bandwidth
    t = critical_transfer(bandwidth, rate, x)
    believed, limit = estimated_bandwidth(bandwidth, x, t), smallest_downtime_limit(bandwidth, rate, x)
    assert believed * limit * (1 + 1e-6) > rate * (x + t)
    assert believed * limit * (1 - 1e-6) < rate * (x + t)


@given(bandwidths, shares, syncs, st.floats(1.0, 3.0))
def test_more_to_do_needs_no_smaller_limit(bandwidth: float, share: float, x: float, more: float) -> None:
    rate = share * bandwidth
    limit = smallest_downtime_limit(bandwidth, rate, x)
    slack = limit * (1 - 1e-12)
    assert smallest_downtime_limit(bandwidth, rate * more, x) >= slack
    assert smallest_downtime_limit(bandwidth, rate, x * more) >= slack
    assert smallest_downtime_limit(bandwidth / more, rate, x) >= slack


@given(bandwidths, st.floats(1.0, 10.0), syncs)
def test_no_limit_will_do_for_who_is_faster_than_the_link(bandwidth: float, times: float, x: float) -> None:
    assert smallest_downtime_limit(bandwidth, bandwidth * times, x) == math.inf
    assert critical_transfer(bandwidth, bandwidth * times, x) == math.inf


# A plan.


@st.composite
def plans(draw: st.DrawFn, *, plain: bool = False) -> PlanInput:
    ram = draw(st.integers(16 * MIB, 64 << 30))
    bandwidth = draw(bandwidths)
    asked = PlanInput(
        ram_bytes=ram,
        bandwidth_bytes_per_s=bandwidth,
        dirty_rate_bytes_per_s=draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 2.0]) | shares) * bandwidth,
        working_set_bytes=draw(st.floats(0.0, 1.0)) * ram,
        sync_s=draw(st.just(0.0) | syncs),
        downtime_limit_s=draw(limits),
        max_rounds=draw(st.integers(1, 40)),
        switchover_overhead_s=draw(st.floats(1e-4, 0.02)),
        uncertainty=draw(st.floats(0.0, 0.5)),
    )
    if plain or draw(st.booleans()):
        return asked
    return replace(asked, sync_s_per_byte=draw(st.floats(1e-13, 1e-9)))


def on_the_edge(asked: PlanInput) -> bool:
    """Roundings decide whether it converges."""
    return math.isclose(smallest_limit(asked), asked.downtime_limit_s, rel_tol=1e-6)


@given(plans())
def test_closed_forms_say_what_the_simulation_does(asked: PlanInput) -> None:
    assume(not on_the_edge(asked))
    outcome = carry_out(asked)
    if asked.sync_s_per_byte == 0:
        assert outcome.completed == fits(asked)
    else:
        assert outcome.completed or not fits(asked)
    if outcome.completed:
        assert outcome.downtime_s <= asked.downtime_limit_s * (1 + 1e-9)
    assert 1 <= len(outcome.rounds) <= asked.max_rounds


@given(plans())
def test_the_simulation_is_what_our_policy_does(asked: PlanInput) -> None:
    """`exactly` is `decide` without its words, but for the first round, which it makes in any case."""
    metrics, allowed = asked.metrics(), asked.limits()
    quick = exact_policy(metrics, allowed)

    def both(known: Metrics, limits: Limits, now: float) -> Decision:
        short, full = quick(known, limits, now), decide(known, limits, now)
        if known.rounds and not math.isclose(full.downtime_s.value, limits.downtime_limit_s, rel_tol=1e-9):
            going_on = (Action.GO_ON, Action.WAIT)
            assert short.action is full.action or (short.action in going_on and full.action in going_on)
        return short

    simulate(metrics, CurveGuest(metrics.costs, metrics.dirty), both, allowed, 0.0)


@given(plans())
def test_the_smallest_limit_makes_it_converge_and_no_smaller_one_does(asked: PlanInput) -> None:
    limit = smallest_limit(asked)
    assert carry_out(replace(asked, downtime_limit_s=limit * (1 + 1e-6))).completed
    if asked.sync_s_per_byte == 0:
        assert not carry_out(replace(asked, downtime_limit_s=limit * (1 - 1e-6))).completed


@given(plans())
def test_the_largest_dirty_rate_converges_and_no_larger_one_does(asked: PlanInput) -> None:
    rate = largest_dirty_rate(asked)
    if rate == 0.0:
        assert not fits(replace(asked, dirty_rate_bytes_per_s=1e-3 * asked.bandwidth_bytes_per_s))
        return
    if math.isinf(rate):
        assert carry_out(replace(asked, dirty_rate_bytes_per_s=1e3 * asked.bandwidth_bytes_per_s)).completed
        return
    assume(rate > 1e-3 * asked.bandwidth_bytes_per_s)  # it is found to within a share of B
    assert carry_out(replace(asked, dirty_rate_bytes_per_s=rate * (1 - 1e-4))).completed
    assert not fits(replace(asked, dirty_rate_bytes_per_s=rate * (1 + 1e-4)))


@given(plans(plain=True), st.integers(1, 50))
def test_the_geometric_sequence_is_that_of_the_rounds(asked: PlanInput, rounds: int) -> None:
    """A curve of the one class makes it go round by round instead."""
    curve = DirtyCurve.of(asked.dirty_rate_bytes_per_s, asked.working_set_bytes)
    one_by_one = downtime_after(replace(asked, curve=curve), rounds)
    assert math.isclose(downtime_after(asked, rounds), one_by_one, rel_tol=1e-6)


@given(plans(), st.integers(1, 50), st.integers(0, 50))
def test_more_rounds_never_harm(asked: PlanInput, rounds: int, more: int) -> None:
    assert downtime_after(asked, rounds + more) <= downtime_after(asked, rounds) * (1 + 1e-9)


@given(plans(plain=True), st.floats(1.0, 4.0))
def test_more_to_do_never_helps(asked: PlanInput, more: float) -> None:
    limit = smallest_limit(asked) * (1 - 1e-9)
    assert smallest_limit(asked.at_speed(more)) >= limit
    assert smallest_limit(replace(asked, sync_s=asked.sync_s * more)) >= limit
    assert smallest_limit(replace(asked, bandwidth_bytes_per_s=asked.bandwidth_bytes_per_s / more)) >= limit


@given(plans(plain=True), st.lists(st.tuples(st.floats(0.01, 2.0), st.floats(1e3, 1e10)), min_size=1, max_size=4))
def test_a_measured_curve_is_planned_with(asked: PlanInput, classes: list[tuple[float, float]]) -> None:
    """Several classes of pages, the first round's zero pages apart: the same promises hold."""
    bandwidth, ram = asked.bandwidth_bytes_per_s, asked.ram_bytes
    curve = DirtyCurve(tuple(DirtyClass(share * bandwidth, min(size, ram)) for share, size in classes))
    measured = replace(asked, curve=curve, first_bytes=ram / 2, dirty_rate_bytes_per_s=curve.rate)
    assume(not on_the_edge(measured))
    assert carry_out(measured).completed or not fits(measured)
    rate = largest_dirty_rate(measured)
    if 0 < rate < math.inf:
        assert fits(measured.at_speed(rate / curve.rate * (1 - 1e-4)))
        assert not fits(measured.at_speed(rate / curve.rate * (1 + 1e-4)))


@given(plans(plain=True))
def test_ranges_hold_their_values_and_the_worse_end_is_safe(asked: PlanInput) -> None:
    found = forecast_plan(asked)
    for figure in (
        found.rounds,
        found.total_s,
        found.downtime_s,
        found.smallest_downtime_limit_s,
        found.largest_dirty_rate_bytes_per_s,
    ):
        assert figure.low <= figure.value <= figure.high
    worst = asked.off_by(asked.uncertainty)
    assert carry_out(replace(worst, downtime_limit_s=found.smallest_downtime_limit_s.high * (1 + 1e-6))).completed
    if found.sure:
        assert carry_out(worst).completed == found.converges


# The largest and the smallest numbers that the command reads: one plan that raises would lose a whole sweep.

EXTREMES = {
    "ram_bytes": [4096, 2**62],
    "bandwidth_bytes_per_s": [1.0, 1e9, 2.0**62],
    "dirty_rate_bytes_per_s": [0.0, 1.0, 2.0**62],
    "working_set_bytes": [1.0, 4096.0, 2.0**62],
    "sync_s": [0.0, 1e-6, 2e6],
    "downtime_limit_s": [1e-6, 2e6],
    "max_rounds": [1, 500],
    "switchover_overhead_s": [0.0, 2e6],
    "uncertainty": [0.0, 0.1, 0.99],
}


@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in EXTREMES.items()}))
def test_no_plan_raises(numbers: dict[str, float]) -> None:
    made = PlanInput(**{**numbers, "working_set_bytes": min(numbers["working_set_bytes"], numbers["ram_bytes"])})  # type: ignore[arg-type]
    planned, advice = plan(made), advise(made)
    assert verdict(planned).startswith(("converges in", "will not converge"))
    assert all(lever_sentence(one, advice.converges) for one in advice.levers)
    for estimate in (planned.forecast.downtime_s, planned.forecast.total_s, planned.forecast.smallest_downtime_limit_s):
        assert 0 <= estimate.low <= estimate.value <= estimate.high
    assert not any(math.isnan(value) for value in (planned.forecast.total_s.high, smallest_limit(made)))
