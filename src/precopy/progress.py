"""What is told of a migration while it runs, and what came of it at its destination: records for a client that has
nothing else of a migration, such as `precopy status`. Importing this costs next to nothing."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.bounds import Count, Number, Text


@dataclass(frozen=True)
class CpuTime:
    """CPU seconds: of the process's own instructions, and of the kernel's on its behalf."""

    user_s: Number = 0.0
    system_s: Number = 0.0

    @property
    def total_s(self) -> float:
        return self.user_s + self.system_s

    def __sub__(self, earlier: CpuTime) -> CpuTime:
        # The kernel shares a thread's run time out by ticks, so that a part may seem to have gone back by one.
        return CpuTime(max(self.user_s - earlier.user_s, 0.0), max(self.system_s - earlier.system_s, 0.0))

    def __add__(self, other: CpuTime) -> CpuTime:
        return CpuTime(self.user_s + other.user_s, self.system_s + other.system_s)


NO_CPU_TIME = CpuTime()


@dataclass(frozen=True)
class Progress:
    """Where a migration stands, while a round goes on. ``sent_bytes`` are those of moving the guest; verification's are
    ``verify_bytes``. ``eta_s`` is None before the first round is done and where the outcome is uncertain, and infinite
    where the migration will not converge."""

    phase: Text
    round: Count
    sent_bytes: Count
    remaining_bytes: Count
    dirty_rate_bytes_per_s: Number
    bandwidth_bytes_per_s: Number
    elapsed_s: Number
    expected_downtime_s: Number | None
    eta_s: Number | None
    verify_bytes: Count = 0


@dataclass(frozen=True)
class Arriving:
    """What has arrived so far of a guest that is being received."""

    round: Count
    received_bytes: Count


@dataclass(frozen=True)
class Received:
    """A guest that arrived and runs. Times in seconds.

    ``received_pages`` came in all rounds, with content or not; ``zero_pages`` of them without, and ``received_bytes``
    are the others' contents. Verification compared ``compared_pages``, whose contents are ``verify_bytes``, and took
    ``verify_s`` of ``total_s``; all 0 where it was not asked for.
    ``cpu``: of this side's migration, neither vCPUs nor verification counted.
    ``switchover_gap_s``: how long the guest had not gone on, by its own clock; None where it does not measure that.
    ``answered``: whether the source could be told; where not, it stays paused there with the outcome unknown.
    """

    session: Text
    rounds: Count
    received_bytes: Count
    received_pages: Count
    zero_pages: Count
    compared_pages: Count
    total_s: Number
    load_state_s: Number
    resume_s: Number
    answered: bool = True
    verify_bytes: Count = 0
    verify_s: Number = 0.0
    cpu: CpuTime = NO_CPU_TIME
    switchover_gap_s: Number | None = None

    @property
    def moving_s(self) -> float:
        """From the source's first word until the guest runs, verification excluded."""
        return self.total_s - self.verify_s
