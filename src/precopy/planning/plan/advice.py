"""What to change first, so that a planned migration converges, or ends sooner and with less downtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Number, Text
from precopy.planning.forecast.simulate import MOST_ROUNDS, Outcome
from precopy.planning.model.sync_cost import SyncCost
from precopy.planning.plan.plan import PlanInput, carry_out, downtime_after, fits, smallest_limit

_FURTHEST = 1e4
"""Largest factor by which a lever is tried."""
_SPARE = 1.01
"""Factor on the smallest change that makes a plan converge, so that rounding what is shown does not undo it."""
_STEPS = 32
"""Bisection steps for the smallest change: on the logarithm of the factor, to 2e-9."""
_GAIN = 2.0
"""Factor by which each lever is tried where the plan converges anyway."""


@dataclass(frozen=True, slots=True)
class Lever:
    """One number to change, from ``value`` to ``wanted``: ``factor`` times as much, or one so-many-th of it where less
    is better. None where no value will do. ``total_s`` and ``downtime_s`` are what comes of it.

    ``clears``: clear policies that bring x down to ``wanted``, with their x (only where a layout is known).
    """

    what: Text
    value: Number
    wanted: Number | None = None
    factor: Number | None = None
    total_s: Number | None = None
    downtime_s: Number | None = None
    clears: Annotated[tuple[tuple[Text, Number], ...], Meta(max_length=20)] = ()


@dataclass(frozen=True, slots=True)
class Advice:
    """All levers, the one to pull first at the front: where it does not converge, that of the smallest factor;
    otherwise that whose product of total time and downtime falls most."""

    converges: bool
    levers: tuple[Lever, ...]

    @property
    def first(self) -> Lever | None:
        """None where nothing helps."""
        return self.levers[0] if self.levers and self.levers[0].wanted is not None else None


@dataclass(frozen=True, slots=True)
class _Knob:
    """``at(factor)`` is the plan with the value better by ``factor``, ``best`` that with the best possible value."""

    what: str
    value: float
    less: bool
    at: Callable[[float], PlanInput]
    best: PlanInput

    def wanted(self, factor: float) -> float:
        return self.value / factor if self.less else self.value * factor


def advise(asked: PlanInput, clears: Mapping[str, SyncCost] | None = None) -> Advice:
    """Tries bandwidth, dirty rate, sync time, downtime limit and rounds, each alone. ``clears``: x by clear policy."""
    outcome = carry_out(asked)
    if outcome.completed:
        return Advice(True, _gains(asked, outcome, clears or {}))
    levers = [_least(knob, clears or {}) for knob in _knobs(asked)]
    levers += [_limit(asked), _rounds(asked)]
    return Advice(False, tuple(sorted(levers, key=lambda lever: lever.factor or math.inf)))


def _knobs(asked: PlanInput) -> list[_Knob]:
    """Those whose plan has no closed form for what is wanted; of a number that is 0 already there is no less."""
    x, per_byte = asked.sync_s, asked.sync_s_per_byte

    def bandwidth(factor: float) -> PlanInput:
        return replace(asked, bandwidth_bytes_per_s=asked.bandwidth_bytes_per_s * factor)

    def sync(factor: float) -> PlanInput:
        return replace(asked, sync_s=x / factor, sync_s_per_byte=per_byte / factor)

    rate = asked.dirty_rate_bytes_per_s
    knobs = [
        _Knob("bandwidth", asked.bandwidth_bytes_per_s, False, bandwidth, bandwidth(_FURTHEST)),
        _Knob("dirty rate", rate, True, lambda factor: asked.at_speed(1 / factor), asked.at_speed(0.0)),
        _Knob("sync time", x, True, sync, replace(asked, sync_s=0.0, sync_s_per_byte=0.0)),
    ]
    return [knob for knob in knobs if knob.value > 0]


def _least(knob: _Knob, clears: Mapping[str, SyncCost]) -> Lever:
    """The smallest change with which it converges."""
    if not fits(knob.best) or not fits(knob.at(_FURTHEST)):
        return Lever(knob.what, knob.value)
    low, high = 0.0, math.log(_FURTHEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(knob.at(math.exp(middle))) else (middle, high)
    return _pulled(knob, math.exp(high) * _SPARE, clears)


def _pulled(knob: _Knob, factor: float, clears: Mapping[str, SyncCost]) -> Lever:
    wanted = knob.wanted(factor)
    lever = _lever(knob.what, knob.value, factor, wanted, carry_out(knob.at(factor)))
    if knob.what != "sync time":
        return lever
    fast = sorted((cost.sync_s, name) for name, cost in clears.items() if cost.sync_s <= wanted)
    return replace(lever, clears=tuple((name, sync_s) for sync_s, name in fast))


def _limit(asked: PlanInput) -> Lever:
    limit = asked.downtime_limit_s
    wanted = smallest_limit(asked) * _SPARE
    outcome = carry_out(replace(asked, downtime_limit_s=wanted))
    return _lever("downtime limit", limit, wanted / limit, wanted, outcome)


def _rounds(asked: PlanInput) -> Lever:
    now, low, high = asked.max_rounds, asked.max_rounds, MOST_ROUNDS
    if downtime_after(asked, high) > asked.downtime_limit_s:
        return Lever("rounds", now)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if downtime_after(asked, middle) <= asked.downtime_limit_s else (middle, high)
    return _lever("rounds", now, high / now, high, carry_out(replace(asked, max_rounds=high)))


def _gains(asked: PlanInput, outcome: Outcome, clears: Mapping[str, SyncCost]) -> tuple[Lever, ...]:
    """What each lever gains, the largest gain first; those that gain nothing are left out."""
    levers = [_pulled(knob, _GAIN, clears) for knob in _knobs(asked)]
    limit = asked.downtime_limit_s / _GAIN
    lower = carry_out(replace(asked, downtime_limit_s=limit))
    if lower.completed:
        levers.append(_lever("downtime limit", asked.downtime_limit_s, _GAIN, limit, lower))
    before = outcome.total_s * outcome.downtime_s
    after = [(lever.total_s or 0.0) * (lever.downtime_s or 0.0) for lever in levers]
    ranked = sorted(zip(after, range(len(levers)), strict=True))
    return tuple(levers[index] for product, index in ranked if product < before)


def _lever(what: str, value: float, factor: float, wanted: float, outcome: Outcome) -> Lever:
    return Lever(what, value, wanted, factor, outcome.total_s, outcome.downtime_s)
