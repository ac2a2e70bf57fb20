"""What becomes of a migration: whether it converges, when, and with which downtime; and what would have to change."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from precopy.planning.forecast.doubt import doubt
from precopy.planning.forecast.simulate import CurveGuest, Outcome, simulate
from precopy.planning.model.curve import DirtyCurve
from precopy.planning.model.decision import Decide, Decision
from precopy.planning.model.downtime import expected_downtime, needed_speed, smallest_downtime
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics
from precopy.planning.policies.ours import decide


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of a migration, if guest, link and policy stay as they are.

    - ``decision``: what was decided now, as it was handed in;
    - ``converges``: whether the guest is switched over within the downtime limit; None where the range of what was
      measured allows both, or a busy machine may hold the downtime up beyond it, and after the first round unless it
      was enough. Where it is switched over now, that is as the policy sees it;
    - ``more_rounds`` before the switchover, ``downtime_s``, ``total_s`` since the migration's start: of the migration
      where it completes, and otherwise of the moment in which it is given up;
    - ``smallest_downtime_limit_s``: the downtime that rounds settle at, or where that is less, what switching over now
      or at the end of the forecast would have: with it as the limit, that is when it does. Its upper end, set as the
      limit, makes the migration converge; infinite where no limit does;
    - ``bandwidth_bytes_per_s``: B, of the rounds to come;
    - ``dirty_rate_bytes_per_s``: D, over an interval such as the last round's;
    - ``largest_dirty_rate_bytes_per_s``: the D with which it would converge within the limit; infinite where the
      working set is small enough for any, 0 where it would not even with an idle guest;
    - ``likely``: how it goes, round by round.
    """

    decision: Decision
    converges: bool | None
    more_rounds: Estimate
    downtime_s: Estimate
    total_s: Estimate
    smallest_downtime_limit_s: Estimate
    bandwidth_bytes_per_s: Estimate
    dirty_rate_bytes_per_s: float
    largest_dirty_rate_bytes_per_s: float
    likely: Outcome


def forecast(metrics: Metrics, limits: Limits, now: float, decision: Decision, policy: Decide = decide) -> Forecast:
    """Carries the migration on from ``metrics`` at ``now`` seconds since its start, where ``decision`` was made by
    ``policy``, which decides in all rounds to come: once with what was estimated, and once with each end of its range
    (the fast link with the quiet guest, the slow one with the busy one). The ranges of downtime and total time are
    widened for a busy machine (doubt.py)."""
    outcomes = [
        simulate(metrics, guest, policy, limits, now, decision=decision, most_rounds=_AHEAD)
        for guest in _guests(metrics)
    ]
    likely = outcomes[0]
    rate = metrics.dirty_rate
    enough = limits.downtime_limit_s * (1 + _ROUNDING)
    fits = [outcome.completed and outcome.downtime_s <= enough for outcome in outcomes]
    unknown = doubt(metrics.rounds)
    expected = _range([outcome.downtime_s for outcome in outcomes])
    downtime_s = unknown.downtime(expected, ahead=not decision.ends)
    # One round gives the bytes dirtied while all of memory was sent; shorter intervals are not known yet.
    unsure = len(set(fits)) > 1 or (
        not decision.ends and (len(metrics.rounds) == 1 or (fits[0] and unknown.held_up(expected.high) > enough))
    )
    return Forecast(
        decision=decision,
        converges=None if unsure else fits[0],
        more_rounds=_range([len(outcome.rounds) for outcome in outcomes]),
        downtime_s=downtime_s,
        total_s=unknown.total(_range([outcome.total_s for outcome in outcomes]), now),
        smallest_downtime_limit_s=_least(smallest_downtime(metrics), expected_downtime(metrics).total_s, downtime_s),
        bandwidth_bytes_per_s=unknown.bandwidth(metrics.costs.bandwidth),
        dirty_rate_bytes_per_s=rate,
        largest_dirty_rate_bytes_per_s=rate * needed_speed(metrics, limits.downtime_limit_s) if rate else math.inf,
        likely=likely,
    )


_ROUNDING = 1e-6
_AHEAD = 50
"""Rounds that a forecast simulates at most: it is made after each round while the guest goes on writing."""


def _range(values: list[float]) -> Estimate:
    return Estimate(values[0], min(values), max(values))


def _least(*estimates: Estimate) -> Estimate:
    return Estimate(*(min(getattr(estimate, end) for estimate in estimates) for end in ("value", "low", "high")))


def _guests(metrics: Metrics) -> list[CurveGuest]:
    """The likely one, and both ends of its range unless everything is known exactly."""
    costs, spread = metrics.costs, metrics.dirty_spread
    bandwidth, overhead = costs.bandwidth, costs.switchover_overhead_s
    curve = metrics.dirty.scaled(1 / (1 - metrics.throttled_share)) if metrics.throttled_share else metrics.dirty
    guests = [CurveGuest(costs, curve)]
    if spread or bandwidth.low < bandwidth.high or overhead.low < overhead.high:
        guests.append(_guest(metrics, bandwidth.high, overhead.low, curve.times(max(1 - spread, 0.0))))
        guests.append(_guest(metrics, bandwidth.low, overhead.high, curve.times(1 + spread)))
    return guests


def _guest(metrics: Metrics, bandwidth: float, switchover_overhead_s: float, curve: DirtyCurve) -> CurveGuest:
    costs = replace(
        metrics.costs, bandwidth=Estimate.exact(bandwidth), switchover_overhead_s=Estimate.exact(switchover_overhead_s)
    )
    return CurveGuest(costs, curve)
