"""Our policy: one pure function that a migration and its forecast both call after every sync."""

from __future__ import annotations

import math
from dataclasses import replace

from precopy.names import TimeoutPolicy
from precopy.planning.model.curve import DirtyCurve
from precopy.planning.model.decision import Action, Decision, Policy
from precopy.planning.model.downtime import expected_downtime, needed_speed, smallest_downtime
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics
from precopy.units import format_duration

SURE_ROUNDS = 3
"""Rounds that must have been seen before a migration is called hopeless."""

_LITTLE = 0.1
"""A round that shortens the downtime by less than this share is hardly worth it."""
_LATE_ROUNDS = 3
"""How many rounds past its end a migration waits for a good moment, where it is to switch over all the same."""
_STILL_ROUNDS = 5
"""Rounds without a gain after which the likely downtime decides and not the upper end of its range: on a machine that
others use, too, the range may stay wide for ever while what remains falls no further."""
_MARGIN = 0.8
"""A guest is slowed down until this share of the downtime limit is in reach, so that few rounds get there."""
_HALF = 0.5
_NEARLY = 0.9


def decide(metrics: Metrics, limits: Limits, now: float) -> Decision:
    """What to do next. Downtime is predicted as final sync + clear + send + device state, from what was measured.

    1. Switch over once the downtime fits its limit: with the upper end of its range or, where further rounds would
       gain little or have gained nothing for some time, with its value.
    2. Out of time or of rounds: switch over where the value fits, otherwise as ``limits.on_timeout`` says.
    3. Hopeless: not even the lower end of what rounds settle at (`smallest_downtime`) is within the limit, and they
       are about to. Then throttle by just what is needed, where that is allowed; otherwise as ``limits.on_timeout``
       says, at once.
    4. Wait for a local minimum while only a guest that writes less than it mostly does would fit.
    5. Otherwise, go on.
    """
    expected, limit = expected_downtime(metrics).total_s, limits.downtime_s

    def decision(action: Action, reason: str, throttle: float = metrics.throttle) -> Decision:
        return Decision(action, reason, expected, limit, throttle)

    if expected.high <= limit:
        return decision(Action.SWITCH_OVER, f"{_range(expected)} of downtime fit the limit")
    least = smallest_downtime(metrics)
    late = _rounds_late(metrics, limits, now)
    if expected.value <= limit and (why := _no_reason_to_wait(metrics, expected, least, late)):
        return decision(Action.SWITCH_OVER, f"{_range(expected)} of downtime, and {why}")
    hopeless = least.low > limit and _is_settling(metrics, limits, expected)
    if late or hopeless:
        settles = _settles(least)
        if not late and limits.max_throttle and not _exhausted(metrics, limits):
            throttle = _throttle_for(metrics, limits)
            return decision(Action.THROTTLE, f"{settles} unless the guest is slowed down", throttle)
        why = settles if hopeless else "out of time" if limits.timed_out(now) else "out of rounds"
        return _end(metrics, limits, expected, why, late)
    if least.value > limit:
        return decision(Action.WAIT, f"{_settles(least)}; a quieter moment may fit")
    return decision(Action.GO_ON, f"{_range(expected)} of downtime now, {_range(least)} at best")


OURS = Policy("precopy", "precopy: planning/policies/precopy.py", decide)


def _no_reason_to_wait(metrics: Metrics, expected: Estimate, least: Estimate, late: int) -> str:
    """Why the likely downtime decides instead of the upper end of its range; empty where that is to be waited for."""
    if expected.value <= least.value * (1 + _LITTLE):
        return "more rounds would gain little"
    if _stands_still(metrics):
        return f"{_STILL_ROUNDS} rounds have gained nothing"
    return "there are no more rounds" if late else ""


def _end(metrics: Metrics, limits: Limits, expected: Estimate, why: str, late: int) -> Decision:
    """What the user wants of a migration that has no more time or no more hope."""
    limit = limits.downtime_s

    def decision(action: Action, reason: str, throttle: float = metrics.throttle) -> Decision:
        return Decision(action, f"{why}: {reason}", expected, limit, throttle)

    match limits.on_timeout:
        case TimeoutPolicy.SWITCH:
            if late > _LATE_ROUNDS or _is_local_minimum(metrics):
                return decision(Action.SWITCH_OVER, f"switching over with {_range(expected)} of downtime")
            return decision(Action.WAIT, "waiting for a local minimum to switch over")
        case TimeoutPolicy.THROTTLE if not _exhausted(metrics, limits):
            return decision(Action.THROTTLE, "slowing the guest down", _throttle_for(metrics, limits))
        case TimeoutPolicy.IGNORE:
            return decision(Action.GO_ON, "going on all the same")
    return decision(Action.GIVE_UP, f"{_range(expected)} of downtime do not fit {format_duration(limit)}")


def _rounds_late(metrics: Metrics, limits: Limits, now: float) -> int:
    """How many rounds have ended, this one included, since the time or the rounds were used up."""
    late = len(metrics.rounds) - limits.max_rounds + 1
    if limits.timed_out(now):
        late = max(late, 1, sum(1 for one in metrics.rounds if limits.timed_out(one.ended_s)))
    return max(late, 0)


def _is_settling(metrics: Metrics, limits: Limits, expected: Estimate) -> bool:
    """Whether enough was seen to believe what rounds are said to settle at: some rounds, the last two of which made so
    little progress that going on like that would not do in the rounds that are left."""
    rounds = metrics.rounds
    if len(rounds) < SURE_ROUNDS:
        return False
    remaining, before = rounds[-1].remaining_bytes, rounds[-3].remaining_bytes
    if remaining >= before:
        return True
    pairs = max(limits.max_rounds - len(rounds), 0) / 2
    return expected.value * math.pow(remaining / before, pairs) > limits.downtime_s


def _stands_still(metrics: Metrics) -> bool:
    """Whether none of the last rounds brought what remains clearly below what remained before them."""
    remaining = [one.remaining_bytes for one in metrics.rounds]
    if len(remaining) <= _STILL_ROUNDS:
        return False
    return min(remaining[-_STILL_ROUNDS:]) >= (1 - _LITTLE) * min(remaining[:-_STILL_ROUNDS])


def _is_local_minimum(metrics: Metrics) -> bool:
    """Whether the last round brought what remains down by little or not at all, and not above its lowest so far: it
    still falls where it is better to wait, and has risen where a better moment will come again."""
    remaining = [one.remaining_bytes for one in metrics.rounds]
    if len(remaining) < 2:
        return False
    return (1 - _LITTLE) * remaining[-2] <= remaining[-1] <= (1 + _LITTLE) * min(remaining)


def _exhausted(metrics: Metrics, limits: Limits) -> bool:
    """Whether throttling has been tried as hard as is allowed, for a round at least; a dirty limit never takes quite as
    much."""
    return metrics.throttle >= _NEARLY * limits.max_throttle


def _throttle_for(metrics: Metrics, limits: Limits) -> float:
    """The share of the vCPUs' time to take so that the downtime limit comes within reach, and each round is at most
    half as long as the one before (QEMU's trigger is the same half). Never less than is taken."""
    costs, rate = metrics.costs, metrics.dirty_rate
    # As if nothing bounded what it writes: how a guest goes on below the shortest round is the least certain of all.
    known = replace(metrics, dirty=DirtyCurve.of(rate, math.inf))
    speed = needed_speed(known, _MARGIN * limits.downtime_s)
    if rate > 0:
        per_byte = costs.s_per_byte(costs.bandwidth.low) + costs.sync_s_per_byte
        speed = min(speed, _HALF / (rate * per_byte))
    wanted = 1 - (1 - metrics.throttle) * min(speed, 1.0)
    return min(max(wanted, metrics.throttle), limits.max_throttle)


def _settles(least: Estimate) -> str:
    if math.isinf(least.low):
        return "the guest dirties memory faster than it is sent"
    return f"rounds settle at {_range(least)} of downtime"


def _range(estimate: Estimate) -> str:
    low, high = format_duration(estimate.low), format_duration(estimate.high)
    if math.isinf(estimate.high):
        return f"at least {low}"
    return low if low == high else f"{low} to {high}"
