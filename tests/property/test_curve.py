"""Curves of any classes against what makes them dirty curves, and settled rounds against making rounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.planning import DirtyClass, DirtyCurve

RATES = st.floats(1e3, 1e11)
SATURATIONS_S = st.floats(1e-4, 1e3)
INTERVALS_S = st.floats(0.0, 1e4)


@st.composite
def curves(draw: st.DrawFn, *, bounded: bool = False) -> DirtyCurve:
    ends = sorted(draw(st.lists(SATURATIONS_S, max_size=5)))
    classes = [DirtyClass(rate := draw(RATES), rate * end) for end in ends]
    if not bounded and draw(st.booleans()):
        classes.append(DirtyClass(draw(RATES), math.inf))
    return DirtyCurve(tuple(classes))


@given(curves(), INTERVALS_S, INTERVALS_S, st.floats(0.0, 1.0))
def test_it_is_concave_and_never_falls(curve: DirtyCurve, one: float, other: float, share: float) -> None:
    low, high = sorted((one, other))
    middle = low + share * (high - low)
    below, between, above = (curve.dirty_bytes(interval) for interval in (low, middle, high))
    assert 0.0 <= below <= between <= above
    assert between >= (below + share * (above - below)) * (1 - 1e-9)


@given(curves(), INTERVALS_S)
def test_it_is_bounded_by_its_rate_and_its_working_set(curve: DirtyCurve, interval: float) -> None:
    dirty = curve.dirty_bytes(interval)
    assert dirty <= curve.rate * interval * (1 + 1e-9)
    assert dirty <= curve.working_set * (1 + 1e-9)
    assert curve.dirty_bytes(0.0) == 0.0


@given(curves(bounded=True))
def test_a_very_long_interval_dirties_the_working_set(curve: DirtyCurve) -> None:
    assert curve.dirty_bytes(1e6) == pytest.approx(curve.working_set)


@given(curves(), INTERVALS_S, st.floats(0.01, 10.0))
def test_scaling_is_of_time_and_multiplying_of_bytes(curve: DirtyCurve, interval: float, factor: float) -> None:
    assert curve.scaled(factor).dirty_bytes(interval) == pytest.approx(curve.dirty_bytes(factor * interval))
    assert curve.times(factor).dirty_bytes(interval) == pytest.approx(factor * curve.dirty_bytes(interval))


@given(RATES, RATES, st.floats(1e-5, 10.0))
def test_one_unbounded_class_settles_at_the_critical_point(bandwidth: float, rate: float, sync_s: float) -> None:
    settled = DirtyCurve.of(rate, math.inf).fixed_point(1 / bandwidth, sync_s)
    if rate < bandwidth * (1 - 1e-9):
        assert settled == pytest.approx(bandwidth * sync_s / (bandwidth - rate), rel=1e-5)
    elif rate > bandwidth * (1 + 1e-9):
        assert math.isinf(settled)


@given(curves(), RATES, st.floats(1e-5, 10.0))
def test_a_settled_round_takes_as_long_as_what_it_sends(curve: DirtyCurve, bandwidth: float, fixed_s: float) -> None:
    settled = curve.fixed_point(1 / bandwidth, fixed_s)
    endless = sum(one.rate for one in curve.classes if math.isinf(one.size))
    if math.isinf(settled):
        assert endless >= bandwidth * (1 - 1e-9)
        return
    assert settled == pytest.approx(fixed_s + curve.dirty_bytes(settled) / bandwidth)


@given(curves(bounded=True), st.floats(1e-5, 10.0), st.floats(0.1, 3.0), st.booleans())
def test_rounds_come_to_where_they_settle(curve: DirtyCurve, fixed_s: float, load: float, long: bool) -> None:
    """From either side. ``load`` is the steepest part of the curve against the bandwidth."""
    per_byte = load / curve.rate if curve.classes else 1.0
    settled = curve.fixed_point(per_byte, fixed_s)
    interval = 10 * settled if long else 0.0
    for _ in range(2000):
        interval = fixed_s + curve.dirty_bytes(interval) * per_byte
        # Never past it, from wherever it came.
        assert interval >= settled * (1 - 1e-6) if long else interval <= settled * (1 + 1e-6)
    if long:
        slope = (curve.dirty_bytes(settled * 1.001) - curve.dirty_bytes(settled)) / (0.001 * settled) * per_byte
        in_time = slope < 0.99  # of a concave curve it is the steepest from there on
    else:
        # What a step gains is concave in the interval, so it is least at one of both ends of the way.
        near = settled * 0.999
        in_time = 2000 * min(fixed_s, fixed_s + curve.dirty_bytes(near) * per_byte - near) > settled
    if in_time:
        assert interval == pytest.approx(settled, rel=1.1e-3)
