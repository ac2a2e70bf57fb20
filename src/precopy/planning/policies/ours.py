"""Our policy, when to switch over, throttle, wait or give up: one pure function that a migration and its forecast both
call after every sync."""

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
"""Rounds needed before a migration may be called hopeless: the first is of all memory, and a trend needs two more."""

_LITTLE = 0.1
"""Share of the downtime: further rounds that would save less than this are not made."""
_LATE_ROUNDS = 3
"""Rounds past the time limit for which ``on_timeout=switch`` waits for a local minimum before it switches over
anyway."""
_STILL_ROUNDS = 5
"""Rounds without progress after which the likely downtime decides instead of the upper end of its range: on a busy
machine the range may stay wide although remaining bytes fall no further."""
_MARGIN = 0.8
"""Share of the downtime limit that throttling aims at: with the limit itself as the aim, it would take many rounds."""
_HALF = 0.5
"""While throttled, each round is at most this share of the one before (QEMU's throttle trigger has the same value)."""
_NEARLY = 0.9
"""Once the largest throttle was asked for, the share of it from which it counts as taken: a dirty limit takes no more
than it needs, and never quite all."""
_STEP = 0.01
"""Share of the vCPUs' time by which a throttle that was not enough grows at least, so that all that is allowed is asked
for after a few rounds, also where what is measured says that the one before ought to have done."""


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
    expected, limit = expected_downtime(metrics).total_s, limits.downtime_limit_s

    def decision(action: Action, reason: str, throttle_to: float = metrics.throttled_share) -> Decision:
        return Decision(action, reason, expected, limit, throttle_to)

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
            throttle_to = _throttle_for(metrics, limits)
            return decision(Action.THROTTLE, f"{settles} unless the guest is slowed down", throttle_to)
        why = settles if hopeless else "out of time" if limits.timed_out(now) else "out of rounds"
        return _end(metrics, limits, expected, why, late)
    if least.value > limit:
        return decision(Action.WAIT, f"{_settles(least)}; a quieter moment may fit")
    return decision(Action.GO_ON, f"{_range(expected)} of downtime now, {_range(least)} at best")


OURS = Policy("precopy", "precopy: planning/policies/ours.py", decide)


def _no_reason_to_wait(metrics: Metrics, expected: Estimate, least: Estimate, late: int) -> str:
    """Why the likely downtime decides instead of the upper end of its range; empty where more rounds are better."""
    if expected.value <= least.value * (1 + _LITTLE):
        return "more rounds would gain little"
    if _stands_still(metrics):
        return f"{_STILL_ROUNDS} rounds have gained nothing"
    return "there are no more rounds" if late else ""


def _end(metrics: Metrics, limits: Limits, expected: Estimate, why: str, late: int) -> Decision:
    """The decision, by ``limits.on_timeout``, where time or rounds are used up or the migration cannot converge."""
    limit = limits.downtime_limit_s

    def decision(action: Action, reason: str, throttle_to: float = metrics.throttled_share) -> Decision:
        return Decision(action, f"{why}: {reason}", expected, limit, throttle_to)

    match limits.on_timeout:
        case TimeoutPolicy.SWITCH:
            if late > _LATE_ROUNDS or _is_local_minimum(metrics):
                return decision(Action.SWITCH_OVER, f"switching over with {_range(expected)} of downtime")
            return decision(Action.WAIT, "waiting for a local minimum to switch over")
        case TimeoutPolicy.THROTTLE if not _exhausted(metrics, limits):
            return decision(Action.THROTTLE, "slowing the guest down", _throttle_for(metrics, limits))
        case TimeoutPolicy.IGNORE:
            return decision(Action.GO_ON, "going on all the same")
    return decision(Action.GIVE_UP, f"{_range(expected)} of downtime now do not fit {format_duration(limit)}")


def _rounds_late(metrics: Metrics, limits: Limits, now: float) -> int:
    """Rounds that have ended since time or rounds were used up, this one included."""
    late = len(metrics.rounds) - limits.max_rounds + 1
    if limits.timed_out(now):
        late = max(late, 1, sum(1 for sample in metrics.rounds if limits.timed_out(sample.ended_s)))
    return max(late, 0)


def _is_settling(metrics: Metrics, limits: Limits, expected: Estimate) -> bool:
    """Whether the downtime that rounds settle at may be trusted: there were `SURE_ROUNDS` rounds, and at the pace of
    the last two the limit would not be reached within the rounds that are left."""
    rounds = metrics.rounds
    if len(rounds) < SURE_ROUNDS:
        return False
    remaining, before = rounds[-1].remaining_bytes, rounds[-3].remaining_bytes
    if remaining >= before:
        return True
    pairs = max(limits.max_rounds - len(rounds), 0) / 2
    return expected.value * math.pow(remaining / before, pairs) > limits.downtime_limit_s


def _stands_still(metrics: Metrics) -> bool:
    """Whether the last `_STILL_ROUNDS` rounds brought remaining bytes less than `_LITTLE` below the lowest before
    them."""
    remaining = [sample.remaining_bytes for sample in metrics.rounds]
    if len(remaining) <= _STILL_ROUNDS:
        return False
    return min(remaining[-_STILL_ROUNDS:]) >= (1 - _LITTLE) * min(remaining[:-_STILL_ROUNDS])


def _is_local_minimum(metrics: Metrics) -> bool:
    """Whether remaining bytes have nearly stopped falling (by less than `_LITTLE` in the last round) and are within
    `_LITTLE` of their lowest. Waiting helps while they fall, and after they have risen."""
    remaining = [sample.remaining_bytes for sample in metrics.rounds]
    if len(remaining) < 2:
        return False
    return (1 - _LITTLE) * remaining[-2] <= remaining[-1] <= (1 + _LITTLE) * min(remaining)


def _exhausted(metrics: Metrics, limits: Limits) -> bool:
    """Whether a round was made with the largest throttle that is allowed: asked for, and nearly all of it taken."""
    allowed, taken = limits.max_throttle, metrics.throttled_share
    return taken >= allowed or (metrics.asked_share >= allowed and taken >= _NEARLY * allowed)


def _throttle_for(metrics: Metrics, limits: Limits) -> float:
    """The share of the vCPUs' time to take so that the downtime limit comes within reach, and each round is at most
    half as long as the one before (QEMU's trigger is the same half). More than was asked for before, and all that is
    allowed where less would leave next to nothing."""
    costs, rate = metrics.costs, metrics.dirty_rate
    # Assumes an unbounded working set: the curve below the shortest round is the least certain part of it.
    known = replace(metrics, dirty=DirtyCurve.of(rate, math.inf))
    speed = needed_speed(known, _MARGIN * limits.downtime_limit_s)
    # Seconds that it takes to send what the guest dirties in a second: 0 where nothing that was read had to be sent.
    load = rate * (costs.s_per_byte(costs.bandwidth.low) + costs.sync_s_per_byte)
    if load > _HALF:
        speed = min(speed, _HALF / load)
    wanted = 1 - (1 - metrics.throttled_share) * min(speed, 1.0)
    before = max(metrics.throttled_share, metrics.asked_share)
    wanted = max(wanted, before + _STEP if before else 0.0)
    return wanted if wanted < limits.max_throttle - _STEP else limits.max_throttle


def _settles(least: Estimate) -> str:
    if math.isinf(least.low):
        return "the guest dirties memory faster than it is sent"
    return f"rounds settle at {_range(least)} of downtime"


def _range(estimate: Estimate) -> str:
    low, high = format_duration(estimate.low), format_duration(estimate.high)
    if math.isinf(estimate.high):
        return f"at least {low}"
    return low if low == high else f"{low} to {high}"
