"""A plan's numbers from a migration that was recorded: what it would take to move that guest again."""

from __future__ import annotations

from precopy.planning.estimation.estimators import observe
from precopy.planning.model.trace import Trace
from precopy.planning.plan.plan import PlanInput

DIRTY_RATE_INTERVAL_S = 0.1
"""Seconds. The dirty rate of a measured curve is reported over 100 ms (QEMU's own window), or over the shortest
observed round if that is longer."""
_MOST_UNCERTAIN = 0.9


def measured_input(trace: Trace) -> PlanInput:
    """The estimates from all of its rounds, for the guest not throttled, and its own limits. The uncertainty
    is that of the estimates. Raises `UsageError` for a recording without a round."""
    samples = trace.samples
    last = samples[-1] if samples else None
    throttled_share = last.throttled_share if last else 0.0
    remaining = last.remaining_bytes if last else 0.0
    seen = observe(trace.ram_bytes, samples, remaining, trace.switchover_overhead_s, throttled_share=throttled_share)
    costs, bandwidth = seen.costs, seen.costs.bandwidth.value
    curve = seen.dirty.scaled(1 / (1 - throttled_share)) if throttled_share else seen.dirty
    off = max(seen.dirty_spread, (costs.bandwidth.high - costs.bandwidth.low) / (2 * bandwidth))
    shortest_s = max(DIRTY_RATE_INTERVAL_S, min(sample.interval_s * (1 - sample.throttled_share) for sample in samples))
    per_byte = costs.s_per_byte(bandwidth)
    return PlanInput(
        ram_bytes=trace.ram_bytes,
        bandwidth_bytes_per_s=bandwidth,
        dirty_rate_bytes_per_s=curve.dirty_bytes(shortest_s) / shortest_s,
        working_set_bytes=min(curve.working_set, trace.ram_bytes),
        sync_s=costs.sync_s,
        downtime_limit_s=trace.facts.limits.downtime_limit_s,
        max_rounds=trace.facts.limits.max_rounds,
        switchover_overhead_s=costs.switchover_overhead_s.value,
        uncertainty=min(off, _MOST_UNCERTAIN),
        sync_s_per_byte=costs.sync_s_per_byte,
        sent_share=costs.sent_share,
        read_s_per_byte=costs.read_s_per_byte,
        first_bytes=min(samples[0].transfer_s / per_byte, trace.ram_bytes) if per_byte else None,
        first_s=max(samples[0].transfer_s - trace.ram_bytes * per_byte, 0.0),
        curve=curve,
    )
