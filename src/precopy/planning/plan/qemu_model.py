"""Whether a QEMU migration converges, by the model of the patch series "migration: merge fragmented clear_dirty ioctls"
(docs/patch-series.md). Seconds, bytes a second.

    B, D, x, t, y     bandwidth, dirty rate, sync time, transfer time of a round, downtime limit
    R                 the bandwidth that QEMU believes

QEMU divides the bytes of at least 100 ms by that time, the sync included (``migration_update_counters``):

    x + t > 100 ms:   R = B t / (x + t)
    x + t < 100 ms:   R = B (100 ms - x) / 100 ms

Rounds settle where a round sends what is dirtied in it and its sync: B t = D (x + t), so at the critical
t = D x / (B - D). There QEMU switches over if R y > D (x + t). Nothing bounds the guest's working set in this model,
and nothing but the last round is in its downtime; plan.py has a better one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_S = 0.1
"""QEMU's BUFFER_DELAY, seconds: the shortest time over which it measures bandwidth."""


@dataclass(frozen=True, slots=True)
class QemuModel:
    """The patch series' answers. Infinite where there is none.

    - ``critical_transfer_s``: t that rounds settle at; ``estimated_bandwidth_bytes_per_s``: R there;
    - ``smallest_downtime_limit_s``: y has to be above it;
    - ``largest_dirty_rate_bytes_per_s``: D has to be below it, as the series computes it (see `letters_dirty_rate`);
    - ``largest_dirty_rate_exact_bytes_per_s``: the D whose smallest limit is y (see `largest_dirty_rate`).
    """

    critical_transfer_s: float
    estimated_bandwidth_bytes_per_s: float
    smallest_downtime_limit_s: float
    largest_dirty_rate_bytes_per_s: float
    largest_dirty_rate_exact_bytes_per_s: float

    @classmethod
    def of(cls, bandwidth: float, dirty_rate: float, sync_s: float, downtime_limit_s: float) -> QemuModel:
        """B and y above 0; D and x of at least 0."""
        return cls(
            critical_transfer_s=critical_transfer(bandwidth, dirty_rate, sync_s),
            estimated_bandwidth_bytes_per_s=critical_estimate(bandwidth, dirty_rate, sync_s),
            smallest_downtime_limit_s=smallest_downtime_limit(bandwidth, dirty_rate, sync_s),
            largest_dirty_rate_bytes_per_s=letters_dirty_rate(bandwidth, sync_s, downtime_limit_s),
            largest_dirty_rate_exact_bytes_per_s=largest_dirty_rate(bandwidth, sync_s, downtime_limit_s),
        )


def estimated_bandwidth(bandwidth: float, sync_s: float, transfer_s: float) -> float:
    """R in a migration whose rounds take ``transfer_s`` and whose syncs take ``sync_s``. Never above B."""
    interval = sync_s + transfer_s
    if interval > WINDOW_S:
        return bandwidth * (transfer_s / interval)
    return bandwidth * (WINDOW_S - sync_s) / WINDOW_S


def critical_transfer(bandwidth: float, dirty_rate: float, sync_s: float) -> float:
    """t that rounds settle at: D x / (B - D). Infinite for D >= B."""
    if dirty_rate >= bandwidth:
        return math.inf
    return dirty_rate * sync_s / (bandwidth - dirty_rate)


def critical_estimate(bandwidth: float, dirty_rate: float, sync_s: float) -> float:
    """R at the critical point; B for D >= B, where rounds grow and x is ever less of them."""
    transfer_s = critical_transfer(bandwidth, dirty_rate, sync_s)
    return bandwidth if math.isinf(transfer_s) else estimated_bandwidth(bandwidth, sync_s, transfer_s)


def smallest_downtime_limit(bandwidth: float, dirty_rate: float, sync_s: float) -> float:
    """The y that the downtime limit has to be above: B x / (B - D) where x > 100 ms - 100 ms D / B, and otherwise
    100 ms D x / ((B - D) (100 ms - x)). Infinite for D >= B."""
    if dirty_rate >= bandwidth:
        return math.inf
    share = dirty_rate / bandwidth
    if sync_s > WINDOW_S * (1 - share):
        return sync_s / (1 - share)
    return WINDOW_S * share * sync_s / ((1 - share) * (WINDOW_S - sync_s)) if sync_s else 0.0


def largest_dirty_rate(bandwidth: float, sync_s: float, downtime_limit_s: float) -> float:
    """The D below which the limit is large enough: `smallest_downtime_limit` inverted, so that
    ``largest_dirty_rate(B, x, smallest_downtime_limit(B, D, x)) == D``. 0 where no D is small enough.

    The smallest limit is above 100 ms in the first case and at most 100 ms in the second, so it is y that says which
    one to invert: D = B (y - x) / y, or D = B y (100 ms - x) / (100 ms x + y (100 ms - x)).
    """
    if downtime_limit_s > WINDOW_S:
        return bandwidth * max(downtime_limit_s - sync_s, 0.0) / downtime_limit_s
    return _second_case(bandwidth, sync_s, downtime_limit_s)


def letters_dirty_rate(bandwidth: float, sync_s: float, downtime_limit_s: float) -> float:
    """As the series computes it: it takes the second case for every x below 100 ms.

    Of B = 15 GB/s, x = 10 ms, y = 300 ms it says D < 14.46 GB/s. But with that D, rounds and syncs settle at 280 ms,
    so the first case holds, and D may be up to 14.5 GB/s. The series' D is never too large, and equals
    `largest_dirty_rate` for y <= 100 ms and for x >= 100 ms.
    """
    if sync_s >= WINDOW_S:
        return largest_dirty_rate(bandwidth, sync_s, downtime_limit_s)
    return _second_case(bandwidth, sync_s, downtime_limit_s)


def _second_case(bandwidth: float, sync_s: float, downtime_limit_s: float) -> float:
    reach = downtime_limit_s * max(WINDOW_S - sync_s, 0.0)
    return bandwidth * (reach / (WINDOW_S * sync_s + reach)) if reach else 0.0
