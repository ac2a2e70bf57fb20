"""What a user allows a migration."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.bounds import Count, Number
from precopy.defaults import DOWNTIME_LIMIT_S, MAX_ROUNDS
from precopy.names import TimeoutPolicy


@dataclass(frozen=True, slots=True)
class Limits:
    """``downtime_limit_s``: the downtime limit; ``max_rounds``; ``timeout_s``: of the whole migration (None: none);
    ``on_timeout``: what then; ``max_throttle``: the largest share of the vCPUs' time that may be taken (0: the guest is
    not throttled)."""

    downtime_limit_s: Number = DOWNTIME_LIMIT_S
    max_rounds: Count = MAX_ROUNDS
    timeout_s: Number | None = None
    on_timeout: TimeoutPolicy = TimeoutPolicy.CANCEL
    max_throttle: Number = 0.0

    def timed_out(self, now: float) -> bool:
        """Whether ``now``, seconds since the migration's start, is past its time."""
        return self.timeout_s is not None and now >= self.timeout_s
