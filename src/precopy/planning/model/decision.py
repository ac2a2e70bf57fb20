"""What a policy says after a sync."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from precopy.planning.model.estimate import Estimate
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics


class Action(enum.Enum):
    """- ``GO_ON``: another round;
    - ``WAIT``: another round, in the hope of a moment in which the guest writes less (a local minimum);
    - ``THROTTLE``: another round, with ``Decision.throttle_to`` of the vCPUs' time taken;
    - ``SWITCH_OVER``: pause the guest and send the rest;
    - ``GIVE_UP``: leave the guest where it is.
    """

    GO_ON = "go on"
    WAIT = "wait"
    THROTTLE = "throttle"
    SWITCH_OVER = "switch over"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Decision:
    """``action`` and ``reason``, in words for people. ``downtime_s``: expected of switching over now;
    ``downtime_limit_s``: the downtime limit that was applied (some policies raise it as they go); ``throttle_to``: the
    share of the vCPUs' time to take from now on."""

    action: Action
    reason: str
    downtime_s: Estimate
    downtime_limit_s: float
    throttle_to: float = 0.0

    @property
    def ends(self) -> bool:
        """Whether no further round is made."""
        return self.action is Action.SWITCH_OVER or self.action is Action.GIVE_UP

    def ends_round_early(self, limits: Limits, now: float) -> bool:
        """Whether a round is cut short for it in mid-round: because the rest fits, or because time is up. What else a
        policy makes of a round that is half done, it may see otherwise when it is done."""
        if limits.timed_out(now):
            return self.ends
        return self.action is Action.SWITCH_OVER and self.downtime_s.value <= self.downtime_limit_s


Decide = Callable[[Metrics, Limits, float], Decision]
"""A policy: (metrics, limits, seconds since the migration's start) to what to do. Pure: it keeps nothing between calls;
what it needs to remember is in ``metrics.rounds``.

It is called after each sync; and in mid-round, with what would then remain (`Metrics.in_round`): where that is reason
enough (`Decision.ends_round_early`), the round is cut short, and it is asked again after another sync."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A way to decide, by ``name``; ``source`` says whose it is."""

    name: str
    source: str
    decide: Decide
