"""What the field's policies share: what they see after a sync, and the user's time and rounds.

Each project ends a migration in its own way: Nova aborts it or forces it to complete, KubeVirt aborts it or pauses the
guest, QEMU goes on for ever. So that policies can be compared, all of them keep the same `Limits`: ``timeout_s``
(where none is given, the project's own, if it has one) and ``max_rounds``, which counts as a timeout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from precopy.names import TimeoutPolicy
from precopy.planning.model.decision import Action, Decision
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics
from precopy.units import format_duration, format_rate, format_size

GIB = 1 << 30


def expected_downtime(metrics: Metrics, bandwidth: float) -> Estimate:
    """Seconds to send what remains at ``bandwidth`` bytes a second: a downtime as the field sees it, without the last
    sync, clears and the device state. Infinite while no bandwidth is known. It claims to be exact, as theirs do."""
    if metrics.remaining_bytes <= 0:
        return Estimate.exact(0.0)
    return Estimate.exact(metrics.remaining_bytes / bandwidth if bandwidth > 0 else math.inf)


@dataclass(frozen=True, slots=True)
class Situation:
    """A call of a policy: ``bandwidth``, bytes a second, and ``downtime_limit_s``, the downtime limit, are the values
    that the project uses at ``now``."""

    metrics: Metrics
    limits: Limits
    now: float
    bandwidth: float
    downtime_limit_s: float

    @property
    def throttled_share(self) -> float:
        """The throttled share in force; never more than is allowed."""
        return min(self.metrics.throttled_share, self.limits.max_throttle)

    @property
    def threshold(self) -> float:
        """Bytes that can be sent within the downtime limit."""
        return self.bandwidth * self.downtime_limit_s

    def decision(self, action: Action, reason: str, throttle_to: float | None = None) -> Decision:
        expected = expected_downtime(self.metrics, self.bandwidth)
        if throttle_to is None:
            throttle_to = self.throttled_share
        return Decision(action, reason, expected, self.downtime_limit_s, throttle_to)

    def compared(self, relation: str) -> str:
        """A reason: what is pending, ``relation``, and the threshold."""
        rate, limit = format_rate(self.bandwidth), format_duration(self.downtime_limit_s)
        pending = format_size(self.metrics.remaining_bytes)
        return f"{pending} pending {relation} {format_size(self.threshold)} = {rate} x {limit}"

    def guard(self, own_timeout_s: float | None = None) -> Decision | None:
        """The decision by ``limits.on_timeout`` once time or rounds are used up; None before that, and with ``ignore``.
        ``own_timeout_s``: the project's timeout, where the user gave none."""
        limits, rounds = self.limits, len(self.metrics.rounds)
        timeout_s = own_timeout_s if limits.timeout_s is None else limits.timeout_s
        if limits.on_timeout is TimeoutPolicy.IGNORE:
            return None
        if timeout_s is not None and self.now >= timeout_s:
            return self.resort(f"not done after {format_duration(self.now)}")
        if rounds >= limits.max_rounds:
            return self.resort(f"not done after {rounds} rounds")
        return None

    def resort(self, why: str) -> Decision:
        """The decision by ``limits.on_timeout`` for a migration that did not end as it should, because of ``why``."""
        allowed = self.limits.max_throttle
        match self.limits.on_timeout:
            case TimeoutPolicy.SWITCH:
                expected = expected_downtime(self.metrics, self.bandwidth).value
                cost = f"{format_duration(expected)} of downtime" if math.isfinite(expected) else "an unknown downtime"
                return self.decision(Action.SWITCH_OVER, f"{why}: switching over with {cost}")
            case TimeoutPolicy.THROTTLE if self.throttled_share < allowed:
                reason = f"{why}: throttling the guest by {allowed:.0%}"
                return self.decision(Action.THROTTLE, reason, allowed)
            case TimeoutPolicy.THROTTLE if allowed > 0:
                return self.decision(Action.GO_ON, f"{why}: going on with the guest throttled by {allowed:.0%}")
            case TimeoutPolicy.THROTTLE:
                return self.decision(Action.GIVE_UP, f"{why}, and the guest may not be throttled")
            case TimeoutPolicy.IGNORE:
                return self.decision(Action.GO_ON, f"{why}: going on all the same")
        return self.decision(Action.GIVE_UP, f"{why}: giving up")
