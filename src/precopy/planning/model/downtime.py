"""What a downtime was, what it would be now, and what it would be at best."""

from __future__ import annotations

import math
from dataclasses import dataclass

from precopy.bounds import Number
from precopy.planning.model.curve import DirtyCurve
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.metrics import Costs, Metrics

PAUSE_S = 1e-3
"""Between the last sync and the moment in which all vCPUs stand still, the guest writes on for about this long."""


@dataclass(frozen=True)
class Downtime:
    """From the request to pause until the destination said that the guest runs, without verification.

    ``pause_s`` until every vCPU stood still; ``final_sync_s``; ``final_send_s`` until all of it had arrived;
    ``state_s`` saving, sending and loading the vCPUs' state; ``commit_s`` from the commit to its answer.
    """

    pause_s: Number
    final_sync_s: Number
    final_send_s: Number
    state_s: Number
    commit_s: Number

    @property
    def overhead_s(self) -> float:
        """All but the last sync and sending."""
        return self.pause_s + self.state_s + self.commit_s

    @property
    def total_s(self) -> float:
        return self.pause_s + self.final_sync_s + self.final_send_s + self.state_s + self.commit_s


@dataclass(frozen=True, slots=True)
class ExpectedDowntime:
    """A downtime before it happens, in seconds: the sync of the paused guest, the pages that clears and scans look at
    while they are read, sending them, and the rest (stopping the vCPUs, their state, the commit)."""

    final_sync_s: float
    clear_s: float
    send_s: float
    switchover_overhead_s: Estimate
    total_s: Estimate


def expected_downtime(metrics: Metrics) -> ExpectedDowntime:
    """The downtime of switching over now."""
    costs = metrics.costs
    late = metrics.dirty.dirty_bytes(PAUSE_S)
    size = metrics.remaining_bytes + late
    sync_s = costs.sync_time_s(late)
    clear_s = size * costs.read_s_per_byte
    sent = size * costs.sent_share
    fixed = sync_s + clear_s
    bandwidth, overhead = costs.bandwidth, costs.switchover_overhead_s
    return ExpectedDowntime(
        final_sync_s=sync_s,
        clear_s=clear_s,
        send_s=sent / bandwidth.value,
        switchover_overhead_s=overhead,
        total_s=Estimate(
            fixed + sent / bandwidth.value + overhead.value,
            fixed + sent / bandwidth.high + overhead.low,
            fixed + sent / bandwidth.low + overhead.high,
        ),
    )


def smallest_downtime(metrics: Metrics, speed: float = 1.0) -> Estimate:
    """The downtime that rounds settle at, however many are made, with the guest at ``speed`` times what it does now:
    so the smallest downtime limit with which the migration converges, in seconds. Infinite where the guest dirties
    memory faster than it is sent and nothing bounds its working set.

    It generalises the patch series' ``B x / (B - D)`` (docs/patch-series.md) to a working set that saturates.
    """
    curve, costs, spread = metrics.dirty, metrics.costs, metrics.dirty_spread
    if speed != 1.0:
        curve = curve.scaled(speed)
    bandwidth, overhead = costs.bandwidth, costs.switchover_overhead_s
    settled = _settled(curve, costs, bandwidth.value)
    if spread == 0.0 and bandwidth.low == bandwidth.high:
        return overhead + settled
    return Estimate(
        settled + overhead.value,
        _settled(curve.times(max(1 - spread, 0.0)), costs, bandwidth.high) + overhead.low,
        _settled(curve.times(1 + spread), costs, bandwidth.low) + overhead.high,
    )


def _settled(curve: DirtyCurve, costs: Costs, bandwidth: float) -> float:
    """Seconds of a last sync that finds almost nothing, and of sending what a round at the fixed point leaves."""
    per_byte = costs.s_per_byte(bandwidth)
    interval_s = curve.fixed_point(per_byte + costs.sync_s_per_byte, costs.sync_s)
    if math.isinf(interval_s) or not costs.sync_s_per_byte:
        return interval_s
    return costs.sync_s + curve.dirty_bytes(interval_s) * per_byte


def needed_speed(metrics: Metrics, downtime_limit_s: float) -> float:
    """The largest speed of the guest, as a factor of what it does now, at which the migration converges within the
    limit: below 1 it has to be slowed down, above 1 it may do that much more. 0 where no speed will do, infinite where
    every speed will."""
    if smallest_downtime(metrics, 0.0).high > downtime_limit_s:
        return 0.0
    if smallest_downtime(metrics, _FASTEST).high <= downtime_limit_s:
        return float("inf")
    low, high = 0.0, 1.0
    while smallest_downtime(metrics, high).high <= downtime_limit_s:
        low, high = high, 2 * high
    while high - low > _EXACT * high:
        middle = (low + high) / 2
        if smallest_downtime(metrics, middle).high <= downtime_limit_s:
            low = middle
        else:
            high = middle
        if high < _SLOWEST:
            return 0.0
    return low


_FASTEST, _SLOWEST, _EXACT = 1e6, 1e-6, 1e-3
"""Speeds of the guest that count as any and as none, as factors; and the relative precision between them."""
