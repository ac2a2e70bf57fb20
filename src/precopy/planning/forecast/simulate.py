"""A migration carried out on paper: rounds of a guest and a link that are given, with any policy.

The forecast of a running migration, `precopy plan`, and the replay of a recorded one are all this function; they
differ in their `GuestModel`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from precopy.planning.model.curve import DirtyCurve
from precopy.planning.model.decision import Action, Decide, Decision
from precopy.planning.model.downtime import PAUSE_S
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Costs, Metrics, RoundSample

MOST_ROUNDS = 500
"""Rounds after which a simulation ends even if its policy would go on, so that it ends."""
_ROUNDING = 1e-9
_CUTS = 7
"""Bisection steps for the moment at which a round ends early: 7 find it to 1/128 of the round."""


class GuestModel(Protocol):
    """The guest and link that a simulation runs on: the costs (the values of their estimates) and the dirtied bytes."""

    @property
    def costs(self) -> Costs: ...

    def dirtied(self, start_s: float, end_s: float, throttled_share: float) -> float:
        """Bytes of the pages that the guest writes between two moments since the migration's start, with the share
        ``throttled_share`` of its time taken."""
        ...


@dataclass(frozen=True, slots=True)
class CurveGuest:
    """A guest that dirties ``curve`` when it is not throttled, over a link with ``costs``."""

    costs: Costs
    curve: DirtyCurve

    def dirtied(self, start_s: float, end_s: float, throttled_share: float) -> float:
        return self.curve.dirty_bytes((end_s - start_s) * (1 - throttled_share))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a simulated migration went. ``decision`` ended it; ``rounds`` are those made in the simulation.

    ``completed``: the guest was switched over, with ``downtime_s`` (otherwise what it would have been);
    ``total_s``: since the migration's start; ``sent_bytes`` in the simulated rounds and the last one;
    ``guest_time_lost_s``: time that throttling took from each vCPU, and the downtime.
    """

    completed: bool
    decision: Decision
    rounds: tuple[RoundSample, ...]
    downtime_s: float
    total_s: float
    sent_bytes: float
    guest_time_lost_s: float


Observe = Callable[[tuple[RoundSample, ...], float, float], Metrics]
"""What is known after a round: (all rounds, bytes remaining, throttled share) to metrics."""


def simulate(
    metrics: Metrics,
    guest: GuestModel,
    decide: Decide,
    limits: Limits,
    now: float,
    *,
    decision: Decision | None = None,
    observe: Observe | None = None,
    most_rounds: int = MOST_ROUNDS,
    first_s: float = 0.0,
) -> Outcome:
    """Goes on from ``metrics`` at ``now`` (seconds since the migration's start) until ``decide`` ends it, or for
    ``most_rounds`` more. ``decision``: what was decided at ``now``, where that is known already.

    ``observe`` makes the metrics that the policy sees from the rounds; by default, as in a forecast, estimates of guest
    and link stay as they are in ``metrics``. ``first_s``: seconds of a migration's first round beyond the time of its
    bytes.
    """
    costs, bandwidth = guest.costs, guest.costs.bandwidth.value
    made, throttled_s, sent = len(metrics.rounds), 0.0, 0.0
    while True:
        if decision is None:
            decision = decide(metrics, limits, now)
        if decision.ends or len(metrics.rounds) >= made + most_rounds:
            break
        throttled_share = decision.throttle_to
        besides_s = 0.0 if metrics.rounds else first_s
        whole_s = costs.transfer_s(metrics.remaining_bytes, bandwidth) + besides_s
        share = _share_before_its_end(metrics, whole_s, decide, limits, now)
        read = metrics.remaining_bytes * share
        left = metrics.remaining_bytes - read
        transfer_s = costs.transfer_s(read, bandwidth) + besides_s * share
        found = guest.dirtied(now, now + transfer_s, throttled_share)
        sync_s = costs.sync_time_s(found)
        found = guest.dirtied(now, now + transfer_s + sync_s, throttled_share)
        now += transfer_s + sync_s
        sent += read * costs.sent_share
        throttled_s += throttled_share * (transfer_s + sync_s)
        sample = RoundSample(
            number=len(metrics.rounds) + 1,
            ended_s=now,
            transfer_s=transfer_s,
            send_s=read * costs.sent_share / bandwidth,
            scan_s=0.0,
            clear_s=read * costs.read_s_per_byte,
            sync_s=sync_s,
            sent_bytes=read * costs.sent_share,
            read_bytes=read,
            dirty_bytes=found,
            remaining_bytes=min(found + left, metrics.ram_bytes),
            throttled_share=throttled_share,
        )
        metrics, decision = _after(metrics, sample, throttled_share, observe), None
    late = guest.dirtied(now, now + PAUSE_S, metrics.throttled_share)
    size = metrics.remaining_bytes + late
    downtime_s = costs.sync_time_s(late) + costs.transfer_s(size, bandwidth) + costs.switchover_overhead_s.value
    completed = decision.action is Action.SWITCH_OVER
    return Outcome(
        completed=completed,
        decision=decision,
        rounds=metrics.rounds[made:],
        downtime_s=downtime_s,
        total_s=now + (downtime_s if completed else 0.0),
        sent_bytes=sent + (size * costs.sent_share if completed else 0.0),
        guest_time_lost_s=throttled_s + (downtime_s if completed else 0.0),
    )


def _share_before_its_end(metrics: Metrics, whole_s: float, decide: Decide, limits: Limits, now: float) -> float:
    """Which share of a round, which takes ``whole_s``, is sent before the policy would end the migration; 1 where it
    would not."""
    remaining = metrics.remaining_bytes

    def ends(share: float) -> bool:
        known, then = metrics.in_round(remaining * (1 - share), whole_s * share), now + whole_s * share
        return decide(known, limits, then).ends_round_early(limits, then)

    low, high = 0.0, 1.0
    if limits.timeout_s is not None and now < limits.timeout_s < now + whole_s:
        high = (limits.timeout_s - now) / whole_s * (1 + _ROUNDING)
    if not ends(high):
        if high == 1.0 or not ends(1.0):
            return 1.0
        low, high = high, 1.0
    for _ in range(_CUTS):
        middle = (low + high) / 2
        low, high = (low, middle) if ends(middle) else (middle, high)
    return high


def _after(metrics: Metrics, sample: RoundSample, throttled_share: float, observe: Observe | None) -> Metrics:
    rounds = (*metrics.rounds, sample)
    if observe is not None:
        return observe(rounds, sample.remaining_bytes, throttled_share)
    curve = metrics.dirty
    if throttled_share != metrics.throttled_share:
        curve = curve.scaled((1 - throttled_share) / (1 - metrics.throttled_share))
    return replace(
        metrics,
        rounds=rounds,
        remaining_bytes=sample.remaining_bytes,
        dirty=curve,
        throttled_share=throttled_share,
        asked_share=throttled_share,
    )
