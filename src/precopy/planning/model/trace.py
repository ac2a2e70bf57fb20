"""A recorded migration, which can be replayed under another policy, link or clear policy."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.bitmap import Bitmap
from precopy.dirty.log import LogCounters
from precopy.memory.layout import RamLayout
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import RoundSample

NO_CALLS = LogCounters()


@dataclass(frozen=True)
class RecordedFacts:
    """What is known of a migration once its first sync is done.

    - ``machine``, ``guest``: what runs the guest, and its kind; ``tracker``: what tells of its writes;
    - ``clear``, ``clear_chunk_shift``: the clear policy; ``policy``, ``limits``: how it is decided when to switch over;
    - ``max_bandwidth``: bytes a second at most, None for no limit;
    - ``switchover_overhead_s``: what a downtime is expected to have besides its last sync and sending;
    - ``first_sync_s``: what the first sync took; None in recordings of version 1.
    """

    machine: str
    guest: str
    tracker: str
    clear: str
    clear_chunk_shift: int
    policy: str
    limits: Limits
    max_bandwidth: int | None
    switchover_overhead_s: Estimate
    first_sync_s: float | None = None


@dataclass(frozen=True)
class RecordedOutcome:
    """How a migration ended. ``downtime`` is None where it did not complete; then ``error`` says why, in one sentence.
    ``expected_switchover_overhead_s`` is what a downtime was expected to have besides its last sync and sending, in the
    end. ``total_s``: since its start; ``sent_bytes``: all bytes given to the stream, the last round's included;
    verification is in neither."""

    completed: bool
    total_s: float
    sent_bytes: float
    downtime: Downtime | None = None
    error: str = ""
    expected_switchover_overhead_s: Estimate | None = None

    @property
    def downtime_s(self) -> float:
        """0 where it did not complete."""
        return 0.0 if self.downtime is None else self.downtime.total_s


@dataclass(frozen=True)
class MidRoundSample:
    """A mid-round sample of the dirty log: all pages found dirty until ``interval_s`` after the last sync."""

    interval_s: float
    dirty: Bitmap


@dataclass(frozen=True)
class TraceRound:
    """A round and the sync after it: all pages that this sync harvested, the mid-round samples before it (ascending),
    and what the dirty log did from the sync before until after this one."""

    sample: RoundSample
    dirty: Bitmap
    mid_round: tuple[MidRoundSample, ...] = ()
    did: LogCounters = NO_CALLS


@dataclass(frozen=True)
class Trace:
    """A recorded migration. ``outcome`` is None where the recording ends before the migration did, and ``note`` then
    says so. Bitmaps are over the ram_addr space of ``layout``; they may be shared and must not be changed."""

    layout: RamLayout
    facts: RecordedFacts
    rounds: tuple[TraceRound, ...]
    outcome: RecordedOutcome | None
    note: str = ""

    @property
    def ram_bytes(self) -> int:
        return self.layout.bytes

    @property
    def samples(self) -> tuple[RoundSample, ...]:
        return tuple(entry.sample for entry in self.rounds)

    @property
    def switchover_overhead_s(self) -> Estimate:
        """Seconds of a downtime besides its last sync and sending: measured where the migration completed, else
        expected."""
        if self.outcome is not None and self.outcome.downtime is not None:
            return Estimate.exact(self.outcome.downtime.overhead_s)
        known = None if self.outcome is None else self.outcome.expected_switchover_overhead_s
        return known or self.facts.switchover_overhead_s
