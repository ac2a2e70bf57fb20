"""What would become of a migration that has not begun, from a few numbers. Seconds, bytes, bytes a second.

A round reads r bytes in t = r / B (and what else `Costs` has), the sync after it takes x, and what was dirtied in
t + x is read by the next one:

    r(1) = RAM        r(n + 1) = W(t + x)        W(interval) = min(D interval, working set)

The downtime after n rounds is x + r(n + 1) / B + switchover overhead. It falls with every round, so the smallest limit
is what it is after the last round that is allowed. `simulate` says when `decide` switches over; the closed forms here
say the same of the two limits, in a few microseconds, for a sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from precopy.bounds import Count, Number
from precopy.defaults import DOWNTIME_LIMIT_S, MAX_ROUNDS, UNCERTAINTY
from precopy.planning.forecast.simulate import CurveGuest, Outcome, simulate
from precopy.planning.model.curve import DirtyCurve
from precopy.planning.model.downtime import PAUSE_S, smallest_downtime
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Costs, Metrics
from precopy.planning.model.switchover import SWITCHOVER_OVERHEAD_S
from precopy.planning.plan.exact_policy import exact_policy
from precopy.planning.plan.qemu_model import QemuModel

_ROUNDING = 1e-9
_STEPS, _ANY = 28, 1e12
"""Bisection steps (to 4e-9 of the interval), and the factor beyond which a rate counts as unbounded."""


@dataclass(frozen=True, slots=True)
class PlanInput:
    """What is known beforehand.

    - ``dirty_rate_bytes_per_s``: D, of distinct pages in a short interval; ``working_set_bytes``: all that it writes;
      ``curve``: both and what lies between, where it was measured (measured_input.py);
    - ``bandwidth_bytes_per_s``: B, of time spent sending;
    - ``sync_s``: x; ``sync_s_per_byte``: what it grows by for each dirty byte;
    - ``sent_share``: bytes on the wire for each byte of memory; ``read_s_per_byte`` as in `Costs`;
    - ``first_bytes``: what the first round costs, as bytes of later ones, where it was measured: zero pages cost less,
      and it reads no more than there is; ``first_s``: seconds that it takes beyond these bytes, as the first
      reading of memory may be;
    - ``uncertainty``: how far B, D and the working set may be off, as a share.
    """

    ram_bytes: Count
    bandwidth_bytes_per_s: Number
    dirty_rate_bytes_per_s: Number
    working_set_bytes: Number
    sync_s: Number
    downtime_limit_s: Number = DOWNTIME_LIMIT_S
    max_rounds: Count = MAX_ROUNDS
    switchover_overhead_s: Number = SWITCHOVER_OVERHEAD_S.high
    uncertainty: Number = UNCERTAINTY
    sync_s_per_byte: Number = 0.0
    sent_share: Number = 1.0
    read_s_per_byte: Number = 0.0
    first_bytes: Number | None = None
    first_s: Number = 0.0
    curve: DirtyCurve | None = None

    def at_speed(self, factor: float) -> PlanInput:
        """With the guest at ``factor`` times its speed."""
        curve = self.curve and self.curve.scaled(factor)
        return replace(self, dirty_rate_bytes_per_s=self.dirty_rate_bytes_per_s * factor, curve=curve)

    def off_by(self, share: float) -> PlanInput:
        """With a guest that dirties more by ``share``, and a link that is slower by it."""
        more = 1 + share
        return replace(
            self,
            bandwidth_bytes_per_s=self.bandwidth_bytes_per_s * (1 - share),
            dirty_rate_bytes_per_s=self.dirty_rate_bytes_per_s * more,
            working_set_bytes=min(self.working_set_bytes * more, self.ram_bytes),
            curve=self.curve and self.curve.times(more),
        )

    @property
    def dirty(self) -> DirtyCurve:
        """W."""
        return self.curve or DirtyCurve.of(self.dirty_rate_bytes_per_s, self.working_set_bytes)

    @property
    def begin_bytes(self) -> float:
        """r(1)."""
        return float(self.ram_bytes) if self.first_bytes is None else self.first_bytes

    def metrics(self) -> Metrics:
        """What a policy would know of it before the first round, if it knew these numbers exactly."""
        costs = Costs(
            bandwidth=Estimate.exact(self.bandwidth_bytes_per_s),
            sent_share=self.sent_share,
            read_s_per_byte=self.read_s_per_byte,
            sync_s=self.sync_s,
            sync_s_per_byte=self.sync_s_per_byte,
            switchover_overhead_s=Estimate.exact(self.switchover_overhead_s),
        )
        return Metrics(self.ram_bytes, (), self.begin_bytes, self.dirty, 0.0, costs)

    def limits(self) -> Limits:
        return Limits(downtime_limit_s=self.downtime_limit_s, max_rounds=self.max_rounds)


@dataclass(frozen=True, slots=True)
class PlanForecast:
    """How it goes.

    Ranges are from what comes of the numbers as they are, of a better and of a worse case (`PlanInput.off_by`).
    ``sure``: whether all three end alike. ``rounds``, ``total_s`` and ``downtime_s`` are of the migration where it
    converges, otherwise of the moment in which it is given up. ``smallest_downtime_limit_s`` makes it converge within
    the rounds that are allowed; ``largest_dirty_rate_bytes_per_s`` is the D with which it would, infinite where the
    working set is small enough for any. ``likely``: the rounds, one by one.
    """

    converges: bool
    sure: bool
    rounds: Estimate
    total_s: Estimate
    downtime_s: Estimate
    smallest_downtime_limit_s: Estimate
    largest_dirty_rate_bytes_per_s: Estimate
    likely: Outcome


@dataclass(frozen=True, slots=True)
class Plan:
    """The input, the patch series' answers, and ours."""

    input: PlanInput
    qemu_model: QemuModel
    forecast: PlanForecast


def plan(asked: PlanInput) -> Plan:
    """All of it but the advice (advice.py)."""
    return Plan(asked, qemu_model(asked), forecast_plan(asked))


def qemu_model(asked: PlanInput) -> QemuModel:
    """The patch series' answers to the same input."""
    return QemuModel.of(asked.bandwidth_bytes_per_s, asked.dirty_rate_bytes_per_s, asked.sync_s, asked.downtime_limit_s)


def forecast_plan(asked: PlanInput) -> PlanForecast:
    """Ours. The uncertainty is of what is known now, not of what the migration will measure, so each case is carried
    out by a policy that knows it."""
    share = asked.uncertainty
    cases = [asked, asked.off_by(-share), asked.off_by(share)] if share else [asked]
    outcomes = [carry_out(case) for case in cases]
    return PlanForecast(
        converges=outcomes[0].completed,
        sure=len({outcome.completed for outcome in outcomes}) == 1,
        rounds=_range([len(outcome.rounds) for outcome in outcomes]),
        total_s=_range([outcome.total_s for outcome in outcomes]),
        downtime_s=_range([outcome.downtime_s for outcome in outcomes]),
        smallest_downtime_limit_s=_range([smallest_limit(case) for case in cases]),
        largest_dirty_rate_bytes_per_s=_range(
            [
                largest_dirty_rate(case) / off
                for case, off in zip(cases, (1.0, 1 - share, 1 + share), strict=False)  # of D as it was given
            ]
        ),
        likely=outcomes[0],
    )


def carry_out(asked: PlanInput) -> Outcome:
    """The simulated migration, with `decide` as its policy. Like every migration it makes at least one round."""
    metrics, limits = asked.metrics(), asked.limits()
    guest = CurveGuest(metrics.costs, metrics.dirty)
    return simulate(metrics, guest, exact_policy(metrics, limits), limits, 0.0, first_s=asked.first_s)


def smallest_limit(asked: PlanInput) -> float:
    """The smallest downtime limit with which it converges within its rounds and is not called hopeless."""
    least = downtime_after(asked, asked.max_rounds)
    if not _plain(asked):  # otherwise it falls towards what it settles at
        least = max(least, smallest_downtime(asked.metrics()).value)
    return least * (1 + _ROUNDING)


def fits(asked: PlanInput) -> bool:
    """Whether it converges: `carry_out` without carrying it out."""
    return smallest_limit(asked) <= asked.downtime_limit_s


def downtime_after(asked: PlanInput, rounds: int) -> float:
    """The smallest downtime of switching over within ``rounds`` rounds (1 or more)."""
    if _plain(asked):
        late = min(asked.dirty_rate_bytes_per_s * PAUSE_S, asked.working_set_bytes)
        left = _remaining(asked, asked.dirty_rate_bytes_per_s, rounds)
        return asked.sync_s + (left + late) * _per_byte(asked) + asked.switchover_overhead_s
    return downtime_with(asked, _left(asked, rounds))


def downtime_with(asked: PlanInput, remaining_bytes: float) -> float:
    """The downtime of switching over with ``remaining_bytes`` to be sent."""
    metrics = asked.metrics()
    late = asked.dirty.dirty_bytes(PAUSE_S)
    sent_s = metrics.costs.transfer_s(remaining_bytes + late, asked.bandwidth_bytes_per_s)
    return metrics.costs.sync_time_s(late) + sent_s + asked.switchover_overhead_s


def _plain(asked: PlanInput) -> bool:
    """Whether `_remaining` holds for it."""
    return asked.curve is None and asked.first_bytes is None and not asked.first_s and not asked.sync_s_per_byte


def _left(asked: PlanInput, rounds: int) -> float:
    """The least of r(2), ... r(rounds + 1), round by round."""
    costs, dirty, ram = asked.metrics().costs, asked.dirty, float(asked.ram_bytes)
    left, least, bandwidth, besides_s = asked.begin_bytes, ram, asked.bandwidth_bytes_per_s, asked.first_s
    for _ in range(rounds):
        transfer_s = costs.transfer_s(left, bandwidth) + besides_s
        besides_s = 0.0
        found = min(dirty.dirty_bytes(transfer_s + costs.sync_time_s(dirty.dirty_bytes(transfer_s))), ram)
        least = min(least, found)
        if found == left:
            break
        left = found
    return least


def _per_byte(asked: PlanInput) -> float:
    """Seconds to read and send a byte of memory."""
    return asked.sent_share / asked.bandwidth_bytes_per_s + asked.read_s_per_byte


def _remaining(asked: PlanInput, rate: float, rounds: int) -> float:
    """r(rounds + 1) with D = ``rate``. A round that fills the working set is followed by one of that size; from the
    first that does not fill it on, intervals are a geometric sequence with the ratio D / B."""
    size = min(asked.working_set_bytes, asked.ram_bytes)
    per_byte, fixed = _per_byte(asked), asked.sync_s
    interval, more = fixed + asked.ram_bytes * per_byte, rounds - 1
    if rate * interval >= size:
        interval, more = fixed + size * per_byte, more - 1
        if more < 0 or rate * interval >= size:
            return size
    ratio: float = rate * per_byte
    if ratio >= 1:  # by a rounding: such a guest fills any working set
        return size
    settled = fixed / (1 - ratio)
    return rate * (settled + ratio**more * (interval - settled))


def largest_dirty_rate(asked: PlanInput) -> float:
    """The D (in a short interval) with which it converges within its rounds; 0 where not even an idle guest's does,
    infinite where any does."""
    if asked.curve is not None:
        return _largest_speed(asked) * asked.dirty_rate_bytes_per_s
    if _plain(asked):
        spare = asked.downtime_limit_s - asked.sync_s - asked.switchover_overhead_s
        room, size = spare / (1 + _ROUNDING) / _per_byte(asked), asked.working_set_bytes
        return _largest(
            lambda rate: _remaining(asked, rate, asked.max_rounds) + min(rate * PAUSE_S, size) <= room,
            1 / _per_byte(asked),
        )
    return _largest(lambda rate: fits(replace(asked, dirty_rate_bytes_per_s=rate)), 1 / _per_byte(asked))


def _largest_speed(asked: PlanInput) -> float:
    return _largest(lambda speed: fits(asked.at_speed(speed)), 1.0)


def _largest(good: Callable[[float], bool], high: float) -> float:
    """The largest factor that is good, where all below it are; ``high`` is a guess."""
    if not good(0.0):
        return 0.0
    low = 0.0
    if good(high):
        if good(high * _ANY):
            return math.inf
        while good(high):
            low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def _range(values: list[float]) -> Estimate:
    return Estimate(values[0], min(values), max(values))
