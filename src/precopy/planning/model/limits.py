"""What a user allows a migration."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class TimeoutPolicy(enum.Enum):
    """What becomes of a migration that is out of time, or that cannot converge, or that has made all its rounds.

    - ``CANCEL``: give up; the guest stays at the source;
    - ``SWITCH``: switch over all the same, at a moment as good as can be had, with a downtime above its limit;
    - ``THROTTLE``: slow the guest down until it converges;
    - ``IGNORE``: go on for ever.

    Cloud Hypervisor's timeout policy has the first two; it calls the second one ``ignore``.
    """

    CANCEL = "cancel"
    SWITCH = "switch"
    THROTTLE = "throttle"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Limits:
    """``downtime_s``: y; ``max_rounds``; ``timeout_s``: of the whole migration (None: none); ``on_timeout``: what
    then; ``max_throttle``: the largest share of the vCPUs' time that may be taken (0: the guest is not throttled)."""

    downtime_s: float = 0.3
    max_rounds: int = 30
    timeout_s: float | None = None
    on_timeout: TimeoutPolicy = TimeoutPolicy.CANCEL
    max_throttle: float = 0.0

    def timed_out(self, now: float) -> bool:
        """Whether ``now``, seconds since the migration's start, is past its time."""
        return self.timeout_s is not None and now >= self.timeout_s
