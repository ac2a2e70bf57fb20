"""What a user can set about a migration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precopy.defaults import CLEAR_CHUNK_SHIFT, DOWNTIME_LIMIT_S, MAX_ROUNDS
from precopy.errors import UsageError
from precopy.migration.results import MOST_ROUNDS
from precopy.names import (
    ALL_CLEAR_POLICIES,
    CONVERGENCE_POLICIES,
    THROTTLE_MODES,
    THROTTLING_POLICIES,
    TIMEOUT_POLICIES,
    AnyClearPolicyName,
    ConvergencePolicyName,
    ThrottleMode,
    TimeoutPolicy,
    WantedTrackerName,
)
from precopy.planning import Limits
from precopy.ports.stream import SLOWEST_BYTES_PER_S
from precopy.ports.vm import MAX_THROTTLE
from precopy.units import check_bandwidth, check_seconds

MIN_BANDWIDTH = SLOWEST_BYTES_PER_S
"""Bytes a second. At a lower rate the peer's time-outs end the migration."""


@dataclass(frozen=True)
class MigrationOptions:
    """Raises `UsageError` for values that cannot be meant.

    ``tracker``: what tells of the guest's writes, ``auto`` for whichever suits them, empty for what it has.
    ``clear``: the clear policy; ``clear_chunk_shift``: chunks of 2**shift pages for ``deferred``.
    ``max_bandwidth``: bytes a second at most, None for no limit. ``downtime_limit_s``: seconds.
    ``policy``: how it is decided when to switch over, by name. ``max_rounds``, ``max_total`` (seconds, None for no
    limit): what the migration may take; ``on_timeout``: what then, one of `precopy.names.TimeoutPolicy`.
    ``throttle_mode``: ``off``, or how the guest is slowed down where it would not converge: ``auto-converge`` takes a
    share of every vCPU's time, ``dirty-limit`` limits how fast each vCPU dirties memory; ``max_throttle``: the largest
    share taken. ``verify``: compare the paused memories byte for byte and check the guest's invariant at the
    destination before the commit (the time is reported, not part of downtime).
    """

    tracker: WantedTrackerName | Literal[""] = ""
    clear: AnyClearPolicyName = "deferred"
    clear_chunk_shift: int = CLEAR_CHUNK_SHIFT
    max_bandwidth: int | None = None
    downtime_limit_s: float = DOWNTIME_LIMIT_S
    max_rounds: int = MAX_ROUNDS
    policy: ConvergencePolicyName = "precopy"
    max_total: float | None = None
    on_timeout: TimeoutPolicy = TimeoutPolicy.CANCEL
    throttle_mode: ThrottleMode = "off"
    max_throttle: float = MAX_THROTTLE
    verify: bool = False

    def __post_init__(self) -> None:
        if self.clear not in ALL_CLEAR_POLICIES:
            raise UsageError(f"no clear policy is called {self.clear!r}; there are {', '.join(ALL_CLEAR_POLICIES)}")
        if self.max_bandwidth is not None:
            check_bandwidth(self.max_bandwidth, MIN_BANDWIDTH)
        check_seconds("the downtime limit", self.downtime_limit_s, zero=True)
        if self.max_rounds < 1:
            raise UsageError(f"a migration makes at least one round, not {self.max_rounds}")
        if self.max_rounds > MOST_ROUNDS:
            raise UsageError(f"a migration makes at most {MOST_ROUNDS} rounds, not {self.max_rounds}")
        self._check_policy()

    def _check_policy(self) -> None:
        for what, value, known in (
            ("policy", self.policy, CONVERGENCE_POLICIES),
            ("time-out policy", self.on_timeout, TIMEOUT_POLICIES),
            ("way to throttle", self.throttle_mode, THROTTLE_MODES),
        ):
            if value not in known:
                raise UsageError(f"no {what} is called {value!r}; there are {', '.join(known)}")
        if self.max_total is not None:
            check_seconds("the time that a migration may take", self.max_total)
        if not 0 < self.max_throttle <= MAX_THROTTLE:
            raise UsageError(f"the largest throttle has to be above 0 and at most {MAX_THROTTLE}")
        if self.throttle_mode == "off" and self.policy == "qemu-auto-converge":
            raise UsageError(
                "the policy qemu-auto-converge slows the guest down; say how with throttle_mode (--throttle)"
            )
        throttling = (*THROTTLING_POLICIES, self.policy if self.on_timeout == TimeoutPolicy.THROTTLE else "")
        if self.throttle_mode != "off" and self.policy not in throttling:
            raise UsageError(
                f"the policy {self.policy} slows no guest down, so throttle_mode (--throttle) has no effect; take the "
                f"policy {' or '.join(THROTTLING_POLICIES)}, or throttle at the time-out (--on-timeout throttle)"
            )
        if self.throttle_mode == "off" and self.on_timeout == TimeoutPolicy.THROTTLE:
            raise UsageError("the guest cannot be slowed down at the time-out where throttling is off")

    @property
    def limits(self) -> Limits:
        """The same, as policies see it."""
        return Limits(
            downtime_limit_s=self.downtime_limit_s,
            max_rounds=self.max_rounds,
            timeout_s=self.max_total,
            on_timeout=TimeoutPolicy(self.on_timeout),
            max_throttle=0.0 if self.throttle_mode == "off" else self.max_throttle,
        )
