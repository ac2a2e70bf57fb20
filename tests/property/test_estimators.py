"""Series of rounds of guests and links that are known, with jitter, stalls and bursts: what is estimated of them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.planning import Estimate, Probe, RoundSample
from precopy.planning.estimators import estimate_bandwidth, estimate_costs, estimate_dirtying, observe

RAM = 8 << 30
SHORTEST_LOOK_S = 0.01
HANDOVER = Estimate(0.005, 0.002, 0.02)
Curve = Callable[[float], float]


@dataclass
class World:
    """A guest and a link. ``jitter`` is the relative error of everything that is measured; sync = fixed + dirty *
    per_byte. ``speed`` is what the link does in a round, as a factor of ``bandwidth``."""

    curve: Curve
    bandwidth: float = 1e9
    sync_s: float = 2e-3
    sync_s_per_byte: float = 1e-11
    jitter: float = 0.0
    seed: int = 0
    speed: dict[int, float] = field(default_factory=dict)

    def rounds(self, count: int, *, looks: int = 0) -> tuple[tuple[RoundSample, ...], list[Probe]]:
        """``count`` rounds from all of RAM, and ``looks`` in each, at geometric intervals."""
        chance, read, now = random.Random(self.seed), float(RAM), 0.0
        samples, probes = [], []
        for number in range(1, count + 1):
            off = 1 + chance.uniform(-self.jitter, self.jitter)
            send_s = read / (self.bandwidth * self.speed.get(number, 1.0)) * (1 + chance.uniform(-1, 1) * self.jitter)
            scan_s, clear_s, fixed_s = read * 4e-11, read * 6e-11, 5e-4
            transfer_s = send_s + scan_s + clear_s + fixed_s
            dirty = sync_s = 0.0
            for _ in range(6):
                sync_s = self.sync_s + self.sync_s_per_byte * dirty
                dirty = self.curve(transfer_s + sync_s)
            sync_s *= 1 + chance.uniform(-1, 1) * self.jitter
            interval_s = transfer_s + sync_s
            dirty = off * self.curve(interval_s)
            now += interval_s
            longer = interval_s / SHORTEST_LOOK_S
            times = (SHORTEST_LOOK_S * longer ** (look / looks) for look in range(looks) if longer > 1)
            probes += [Probe(number, when, off * self.curve(when)) for when in times]
            samples.append(
                RoundSample(number, now, transfer_s, send_s, scan_s, clear_s, sync_s, read, read, dirty, dirty)
            )
            read = dirty
        return tuple(samples), probes


def linear(rate: float, size: float) -> Curve:
    return lambda interval: min(rate * interval, size)


def hot_and_cold(rate: float, hot: float, size: float) -> Curve:
    return lambda interval: min(rate * 7 / 8 * interval, hot) + min(rate / 8 * interval, size - hot)


def exponential(rate: float, size: float) -> Curve:
    return lambda interval: size * -math.expm1(-rate * interval / size)


SEEDS = st.integers(0, 2**32)
BANDWIDTHS = st.floats(1e8, 1e10)
# Rates in shares of the bandwidth, sizes in shares of RAM.
LOADS = st.floats(0.2, 2.0)
SIZES = st.floats(0.02, 0.5)


@st.composite
def worlds(draw: st.DrawFn, jitter: float = 0.0) -> World:
    bandwidth, size = draw(BANDWIDTHS), draw(SIZES) * RAM
    rate = draw(LOADS) * bandwidth
    curve = draw(
        st.sampled_from(
            [linear(rate, size), exponential(rate, size), hot_and_cold(rate, size / 16, size), lambda _: 0.0]
        )
    )
    return World(curve, bandwidth, jitter=jitter, seed=draw(SEEDS))


@given(worlds(jitter=0.08), st.integers(1, 10))
def test_bandwidth_with_jitter(world: World, count: int) -> None:
    estimate = estimate_bandwidth(world.rounds(count)[0])
    assert abs(estimate.value / world.bandwidth - 1) < 0.1
    assert estimate.low <= world.bandwidth * 1.02
    assert estimate.high >= world.bandwidth * 0.98


def busy(world: World) -> World:
    """The same link, with a guest whose rounds all last long."""
    return replace(world, curve=linear(3 * world.bandwidth, world.bandwidth / 2))


@given(worlds(jitter=0.05), st.integers(4, 10), st.data(), st.sampled_from([0.2, 3.0]))
def test_bandwidth_with_a_stall_or_a_burst(world: World, count: int, data: st.DataObject, speed: float) -> None:
    """A round at a fifth of the bandwidth, or at three times it."""
    which = data.draw(st.integers(1, count))
    estimate = estimate_bandwidth(replace(busy(world), speed={which: speed}).rounds(count)[0])
    assert abs(estimate.value / world.bandwidth - 1) < (0.35 if which == count else 0.2)
    assert estimate.low <= world.bandwidth <= estimate.high
    if which == count:
        assert estimate.low <= world.bandwidth * speed * 1.06 or speed > 1
        assert estimate.high >= world.bandwidth * speed * 0.94 or speed < 1


@given(worlds(jitter=0.05), st.integers(2, 6), st.integers(2, 6), st.sampled_from([0.3, 0.5, 2.0, 4.0]))
def test_bandwidth_that_changes_is_believed_after_two_rounds(
    world: World, before: int, after: int, speed: float
) -> None:
    changed = dict.fromkeys(range(before + 1, before + after + 1), speed)
    estimate = estimate_bandwidth(replace(busy(world), speed=changed).rounds(before + after)[0])
    assert abs(estimate.value / (world.bandwidth * speed) - 1) < (0.3 if after == 2 else 0.1)


@given(worlds(jitter=0.05), st.integers(1, 8), st.floats(1e-3, 1e3))
def test_bandwidth_does_not_hang_on_a_round_of_a_few_pages(world: World, count: int, speed: float) -> None:
    samples, _ = busy(world).rounds(count)
    few = 12e3
    tiny = replace(samples[-1], sent_bytes=few, read_bytes=few, send_s=few / (world.bandwidth * speed))
    before, estimate = estimate_bandwidth(samples), estimate_bandwidth((*samples, tiny))
    assert abs(estimate.value / before.value - 1) < 0.08


@given(worlds(), st.integers(2, 7))
def test_what_the_next_round_dirties_of_a_steady_guest(world: World, count: int) -> None:
    samples, probes = world.rounds(count + 1, looks=30)
    known = [one for one in probes if one.round <= count]
    curve, spread = estimate_dirtying(samples[:-1], known, RAM, 0.0)
    last = samples[-1]
    found = curve.dirty_bytes(last.interval_s)
    assert found <= 1.05 * last.dirty_bytes
    if last.interval_s >= SHORTEST_LOOK_S:  # below it is the chord, the least that there can be
        assert found >= 0.95 * last.dirty_bytes
    assert 0.03 <= spread <= 0.15


@given(worlds(jitter=0.04), st.integers(3, 8))
def test_what_the_next_round_dirties_with_jitter(world: World, count: int) -> None:
    samples, probes = world.rounds(count + 1, looks=10)
    known = [one for one in probes if one.round <= count]
    curve, _ = estimate_dirtying(samples[:-1], known, RAM, 0.0)
    interval = max(samples[-1].interval_s, SHORTEST_LOOK_S)
    truth = world.curve(interval)
    assert abs(curve.dirty_bytes(interval) - truth) <= 0.15 * truth


@given(worlds(jitter=0.04), st.integers(3, 8), st.sampled_from([0.5, 2.0]))
def test_dirtying_that_changes_is_followed(world: World, count: int, factor: float) -> None:
    """The guest writes half as much, or twice as much, from round 3 on: after three rounds of that W has followed."""
    steady = replace(world, curve=linear(world.bandwidth / 3, 0.1 * RAM))
    before, _ = steady.rounds(3)
    samples = list(before)
    chance = random.Random(world.seed)
    for number in range(4, 4 + count):
        off = factor * (1 + chance.uniform(-0.04, 0.04))
        samples.append(replace(before[-1], number=number, dirty_bytes=off * before[-1].dirty_bytes))
    curve, _ = estimate_dirtying(samples, [], RAM, 0.0)
    truth = factor * before[-1].dirty_bytes
    assert abs(curve.dirty_bytes(before[-1].interval_s) - truth) <= 0.15 * truth


@given(BANDWIDTHS, st.floats(1.2, 5.0), SIZES, SEEDS, st.integers(3, 8))
def test_the_working_set_where_every_round_goes_round_it(
    bandwidth: float, load: float, size: float, seed: int, count: int
) -> None:
    world = World(linear(3 * load * bandwidth, size * RAM), bandwidth, jitter=0.05, seed=seed)
    samples, probes = world.rounds(count, looks=10)
    curve, _ = estimate_dirtying(samples, probes, RAM, 0.0)
    assert abs(curve.working_set / (size * RAM) - 1) <= 0.2


@given(worlds(jitter=0.03), st.floats(0.1, 0.9), st.integers(3, 6))
def test_a_throttled_guest_is_the_same_guest_at_another_speed(world: World, throttle: float, count: int) -> None:
    """Rounds at one throttle say what is dirtied at another."""
    slowed = replace(world, curve=lambda interval: world.curve(interval * (1 - throttle)))
    samples, probes = slowed.rounds(count, looks=10)
    throttled = [replace(one, throttle=throttle) for one in samples]
    looks = [replace(one, throttle=throttle) for one in probes]
    as_it_is, _ = estimate_dirtying(throttled, looks, RAM, throttle)
    let_go, _ = estimate_dirtying(throttled, looks, RAM, 0.0)
    interval = samples[-1].interval_s
    truth = world.curve(interval * (1 - throttle))
    assert abs(as_it_is.dirty_bytes(interval) - truth) <= 0.15 * truth
    assert abs(let_go.dirty_bytes(interval * (1 - throttle)) - truth) <= 0.15 * truth


@given(worlds(jitter=0.05), st.integers(3, 10), st.floats(1e-5, 0.1), st.sampled_from([0.0, 1e-12, 1e-11, 1e-10]))
def test_what_a_sync_costs(world: World, count: int, sync_s: float, per_byte: float) -> None:
    world = replace(world, sync_s=sync_s, sync_s_per_byte=per_byte)
    samples, _ = world.rounds(count)
    costs = estimate_costs(samples, HANDOVER)
    for one in (samples[0], samples[-1]):
        truth = sync_s + per_byte * one.dirty_bytes
        assert abs(costs.x_s(one.dirty_bytes) - truth) <= 0.2 * truth


@given(worlds(jitter=0.05), st.integers(1, 8))
def test_what_reading_and_sending_cost(world: World, count: int) -> None:
    samples, _ = world.rounds(count)
    costs = estimate_costs(samples, HANDOVER)
    assert abs(costs.sent_share - 1) < 1e-9
    assert abs(costs.round_s - 5e-4) < 1e-7
    assert abs(costs.read_s_per_byte - 1e-10) < 1e-14
    assert costs.handover_s == HANDOVER


FIGURES = st.one_of(st.just(0.0), st.floats(0.0, 1e-6), st.floats(0.0, 100.0), st.floats(0.0, 1e13))


@st.composite
def any_rounds(draw: st.DrawFn) -> tuple[tuple[RoundSample, ...], list[Probe]]:
    """Rounds that nobody could measure: each figure anything."""
    samples, probes = [], []
    for number in range(1, draw(st.integers(1, 15)) + 1):
        figures = draw(st.lists(FIGURES, min_size=10, max_size=10))
        samples.append(RoundSample(number, *figures, throttle=draw(st.sampled_from([0.0, 0.2, 0.99, 1.0]))))
        looks = draw(st.lists(st.tuples(st.integers(number, number + 1), FIGURES, FIGURES), max_size=3))
        probes += [Probe(*look) for look in looks]
    return tuple(samples), probes


@given(any_rounds(), st.sampled_from([0.0, 0.5, 0.99]))
@settings(max_examples=200)
def test_whatever_was_measured_the_figures_can_be_meant(
    measured: tuple[tuple[RoundSample, ...], list[Probe]], throttle: float
) -> None:
    samples, probes = measured
    metrics = observe(RAM, samples, probes, 4096.0, HANDOVER, throttle=throttle)
    costs, curve = metrics.costs, metrics.dirty
    assert 0 < costs.bandwidth.low <= costs.bandwidth.value <= costs.bandwidth.high < math.inf
    fixed = (costs.sent_share, costs.read_s_per_byte, costs.round_s, costs.sync_s, costs.sync_s_per_byte)
    assert all(0 <= figure < math.inf for figure in fixed)
    assert 0.03 <= metrics.dirty_spread <= 1.0
    assert all(one.rate > 0 and 0 < one.size < math.inf for one in curve.classes)
    ends = [one.size / one.rate for one in curve.classes]
    assert all(one <= other * (1 + 1e-6) for one, other in pairwise(ends))
    assert curve.working_set <= RAM * (1 + 1e-6)
    assert metrics.rounds == samples
    assert (metrics.remaining_bytes, metrics.throttle) == (4096.0, throttle)
