"""What a migration reports. Seconds, bytes and pages; see each field.

Law 6: **What is printed was measured.** What is expected is an `Estimate`, with its range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import MOST, Count, Number, Text
from precopy.planning import Estimate
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.round import Round
from precopy.planning.model.trace import RecordedOutcome
from precopy.ports import Stall, Throttled
from precopy.progress import NO_CPU_TIME, CpuTime, Progress


@dataclass(frozen=True)
class Range:
    """An estimate as documents hold it: its value and its ends, none of them negative; None is infinite."""

    value: Number | None
    low: Number | None
    high: Number | None

    @classmethod
    def of(cls, estimate: Estimate) -> Range:
        return cls(*(finite(max(value, 0.0)) for value in (estimate.value, estimate.low, estimate.high)))


def finite(value: float) -> float | None:
    """``value``, or None for infinity, which JSON does not have, and for what is as good as that."""
    return value if abs(value) <= MOST else None


MOST_ROUNDS = 2000
"""Rounds of a migration. Each has a record in the result, which goes over the control socket as one message."""


@dataclass(frozen=True)
class Verdict:
    """What is to be expected once ``round`` has arrived and the next one's sync is done, ``elapsed_s`` since the
    migration's start.

    - ``action`` and ``reason``: what the policy said; ``downtime_limit_s``: the downtime limit that it applied;
    - ``converges``: whether the guest will be switched over within its downtime limit; None where that is uncertain;
    - ``more_rounds``, ``downtime_s``, ``total_s``: of the migration as it will go (`precopy.planning.Forecast`);
    - ``smallest_downtime_limit_s``: its upper end, set as the limit, makes the migration converge;
    - ``largest_dirty_rate_bytes_per_s``: with which it would converge within the limit (None: with any);
    - ``dirty_rate_bytes_per_s``: D now; ``bandwidth_bytes_per_s``: B; ``remaining_bytes``; ``throttle_to``: the share
      of the vCPUs' time that is taken from now on.
    """

    round: Count
    elapsed_s: Number
    action: Text
    reason: Text
    downtime_limit_s: Number
    converges: bool | None
    more_rounds: Range
    downtime_s: Range
    total_s: Range
    smallest_downtime_limit_s: Range
    largest_dirty_rate_bytes_per_s: Number | None
    dirty_rate_bytes_per_s: Number
    bandwidth_bytes_per_s: Range
    remaining_bytes: Count
    throttle_to: Number


@dataclass(frozen=True)
class GuestStall:
    """What a migration took from its guest until it was paused, by the guest's own clock (docs/stall.md): ``precopy``
    in all rounds, and ``before`` in a window before them that is as long as the first round, or as the guest can tell
    of. Where that is not measured both are None, and ``why_not`` says why."""

    before: Stall | None = None
    precopy: Stall | None = None
    why_not: Text = ""

    @property
    def share_above_before(self) -> float | None:
        """The share of the pre-copy time that was taken, above the share that was before."""
        if self.before is None or self.precopy is None:
            return None
        return max(self.precopy.share - self.before.share, 0.0)


NOT_MEASURED = GuestStall()


@dataclass(frozen=True)
class Migrated:
    """A migration that completed. ``policy`` decided when to switch over, ``verdicts`` are what was expected after each
    round; ``throttled`` is what slowing it down has cost the guest, ``stall`` what all of it did until the switchover.

    ``sync_way``: how its syncs were made, and ``sync_way_why``: numpy, or numba's one native call.

    Times: ``total_s`` runs from the first frame to the destination's last answer, of which ``setup_s`` went by before
    the first page and ``verify_s`` was verification; the rest is ``moving_s``.

    Bytes given to the stream: ``setup_bytes`` before the first page; ``sent_bytes``, which are those of the rounds and
    ``other_bytes`` (the device state, the commit, signs of life in long syncs); and the ``verify_bytes`` of
    verification, which compared ``compared_pages`` (all 0 where it was not asked for). No other figure counts
    verification: `throughput_bytes_per_s` is ``sent_bytes`` a second of ``moving_s``.

    CPU time: ``source_cpu`` and ``destination_cpu`` of each side's thread that migrates, so without vCPUs; without
    verification, too."""

    session: Text
    guest: Text
    tracker: Text
    tracker_why: Text
    tracker_pause_s: Number
    clear: Text
    clear_chunk_shift: Count
    policy: Text
    rounds: Annotated[tuple[Round, ...], Meta(min_length=1, max_length=MOST_ROUNDS)]
    verdicts: Annotated[tuple[Verdict, ...], Meta(max_length=MOST_ROUNDS)]
    downtime: Downtime
    downtime_limit_s: Number
    total_s: Number
    verify_s: Number
    setup_s: Number
    sent_bytes: Count
    ram_bytes: Count
    compared_pages: Count
    throttled: Throttled
    sync_way: Text = "numpy"
    sync_way_why: Text = ""
    verify_bytes: Count = 0
    setup_bytes: Count = 0
    other_bytes: Count = 0
    source_cpu: CpuTime = NO_CPU_TIME
    destination_cpu: CpuTime = NO_CPU_TIME
    stall: GuestStall = NOT_MEASURED

    @property
    def cpu_s_per_gb(self) -> float:
        """CPU seconds of both sides for each 10^9 bytes that were sent."""
        return 1e9 * (self.source_cpu.total_s + self.destination_cpu.total_s) / max(self.sent_bytes, 1)

    @property
    def moving_s(self) -> float:
        """From the first page to the end, verification excluded."""
        return self.total_s - self.verify_s - self.setup_s

    @property
    def guest_time_lost_s(self) -> float:
        """What the guest lost of its time: the downtime, and what throttling took from each vCPU on average."""
        return self.downtime.total_s + sum(self.throttled.throttled_s) / max(len(self.throttled.throttled_s), 1)

    @property
    def verified(self) -> bool:
        return self.compared_pages > 0

    @property
    def unverified_s(self) -> float:
        """The whole time but verification's."""
        return self.total_s - self.verify_s

    @property
    def get_log_ioctls(self) -> int:
        return sum(made.get_log_ioctls for made in self.rounds)

    @property
    def clear_log_ioctls(self) -> int:
        return sum(made.clear_log_ioctls for made in self.rounds)

    @property
    def outcome(self) -> RecordedOutcome:
        """The same, as recordings keep it."""
        return RecordedOutcome(True, self.unverified_s, self.sent_bytes, self.downtime)

    @property
    def throughput_bytes_per_s(self) -> float:
        return self.sent_bytes / max(self.moving_s, 1e-9)


@dataclass(frozen=True)
class Attempt:
    """A migration that did not complete, as far as it came: the ``rounds`` that arrived, and what was expected after
    each, but for the last where the next sync was not done. ``total_s`` runs from the first frame to the end;
    ``sent_bytes`` are those of the rounds and ``other_bytes``, the latter also of a round that was not ended;
    ``remaining_bytes`` were still to be sent. Verification, where it is what failed, is in none of them."""

    session: Text
    guest: Text
    clear: Text
    policy: Text
    rounds: Annotated[tuple[Round, ...], Meta(max_length=MOST_ROUNDS)]
    verdicts: Annotated[tuple[Verdict, ...], Meta(max_length=MOST_ROUNDS)]
    downtime_limit_s: Number
    total_s: Number
    sent_bytes: Count
    other_bytes: Count
    remaining_bytes: Count
    ram_bytes: Count


@dataclass(frozen=True)
class Note:
    """Something that went wrong and did not stop the migration, in one sentence."""

    text: Text


@dataclass(frozen=True)
class Committing:
    """The guest is being given away: from here on only the destination knows whether it runs there. It may be told
    before a commit that then does not happen, never after one. ``session`` is the migration's."""

    session: Text


Event = Progress | Round | Verdict | Note | Committing
"""What is told of a migration while it runs."""

EVENTS: dict[str, type[Event]] = {
    event.__name__.lower(): event for event in (Progress, Round, Verdict, Note, Committing)
}
"""The same by the name that each has on the control socket and in documents: see `event_name`."""


def event_name(event: Event) -> str:
    return type(event).__name__.lower()
