"""From what was measured of rounds to what a policy decides by: bandwidth, dirtying, and what moving memory costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from precopy.errors import UsageError
from precopy.planning.estimation.bandwidth import estimate_bandwidth
from precopy.planning.estimation.dirtying import estimate_dirtying
from precopy.planning.estimation.weighting import FORGET, recent_rounds, weighted_median
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.metrics import Costs, Metrics, RoundSample

__all__ = ["estimate_bandwidth", "estimate_costs", "estimate_dirtying", "observe"]

_VARIED = 1.3
"""The cost of a dirty byte is estimated where one sync found more than this many times the dirty bytes of another."""


def observe(
    ram_bytes: int,
    rounds: tuple[RoundSample, ...],
    remaining_bytes: float,
    switchover_overhead_s: Estimate,
    *,
    throttled_share: float = 0.0,
    asked_share: float | None = None,
) -> Metrics:
    """What a policy decides by right after a sync, with the guest throttled by ``throttled_share``, of which
    ``asked_share`` was asked for (None: just that). Raises `UsageError` without any round."""
    if not rounds:
        raise UsageError("nothing is known of a migration before its first round; estimate from one round or more")
    dirty, spread = estimate_dirtying(rounds, ram_bytes, throttled_share)
    costs = estimate_costs(rounds, switchover_overhead_s)
    asked_share = throttled_share if asked_share is None else asked_share
    return Metrics(ram_bytes, rounds, remaining_bytes, dirty, spread, costs, throttled_share, asked_share)


def estimate_costs(rounds: Sequence[RoundSample], switchover_overhead_s: Estimate) -> Costs:
    """What rounds and syncs cost here, by weighted medians in which newer rounds count more.

    The first round reads all memory, with its zero pages and untouched pages; later rounds read what the guest writes.
    So the cost of reading and the share that is sent come from later rounds. Before there is one, all that is read
    counts as sent.
    """
    kept = recent_rounds(rounds)
    later = [sample for sample in kept if sample.number > 1 and sample.read_bytes >= 1]
    reading = later or [sample for sample in kept if sample.read_bytes >= 1]
    per_byte, sent, read, recency = [], 0.0, 0.0, 1.0
    for sample in reversed(reading):
        per_byte.append(
            (max(sample.transfer_s - sample.send_s, 0.0) / sample.read_bytes, recency * math.sqrt(sample.read_bytes))
        )
        sent += recency * sample.sent_bytes
        read += recency * sample.read_bytes
        recency *= FORGET
    sync_s, sync_s_per_byte = _sync_cost(kept)
    return Costs(
        bandwidth=estimate_bandwidth(rounds),
        sent_share=sent / read if later else 1.0,
        read_s_per_byte=weighted_median(per_byte),
        sync_s=sync_s,
        sync_s_per_byte=sync_s_per_byte,
        switchover_overhead_s=switchover_overhead_s,
    )


def _sync_cost(rounds: Sequence[RoundSample]) -> tuple[float, float]:
    """(a, b) of ``sync_s = a + b * dirty_bytes``, both at least 0.

    b is the median of the slopes between any two rounds, weighted by how far they are apart (Theil, 1950; Sen, 1968;
    the weights: Sievers, 1978), which a few delayed syncs do not move. Where all syncs found about the same,
    b is 0."""
    points = [(sample.dirty_bytes, sample.sync_s) for sample in rounds]
    most, least = max((x for x, _ in points), default=0.0), min((x for x, _ in points), default=0.0)
    slope = 0.0
    if most > _VARIED * least:
        pairs = (
            (first[0] - second[0], first[1] - second[1])
            for first, second in combinations(points, 2)
            if abs(first[0] - second[0]) >= 1
        )
        slope = max(weighted_median((rise / run, abs(run)) for run, rise in pairs), 0.0)
    recent = [(x, y, FORGET**age) for age, (x, y) in enumerate(reversed(points))]
    fixed = weighted_median((y - slope * x, weight) for x, y, weight in recent)
    if fixed >= 0:
        return fixed, slope
    return 0.0, weighted_median((y / x, weight) for x, y, weight in recent if x >= 1)
