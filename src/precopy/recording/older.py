"""Recordings that older versions wrote: their records, as today's.

Version 1 called the downtime limit ``downtime_s``, the share of the time that throttling took ``throttle``, and the
switchover's overhead ``handover_s``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from precopy.dirty import LogCounters
from precopy.names import TimeoutPolicy
from precopy.planning import Estimate, Limits, RoundSample
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.trace import NO_CALLS, RecordedFacts, RecordedOutcome
from precopy.recording.format import Beginning, BlockRecord, Packed, PageSize, SectionRecord, Wrong, decode


@dataclass(frozen=True)
class LimitsOfVersion1:
    downtime_s: float = 0.3
    max_rounds: int = 30
    timeout_s: float | None = None
    on_timeout: TimeoutPolicy = TimeoutPolicy.CANCEL
    max_throttle: float = 0.0

    def now(self) -> Limits:
        return Limits(self.downtime_s, self.max_rounds, self.timeout_s, self.on_timeout, self.max_throttle)


@dataclass(frozen=True)
class FactsOfVersion1:
    machine: str
    guest: str
    tracker: str
    clear: str
    clear_chunk_shift: int
    policy: str
    limits: LimitsOfVersion1
    max_bandwidth: int | None
    handover_s: Estimate

    def now(self) -> RecordedFacts:
        return RecordedFacts(
            machine=self.machine,
            guest=self.guest,
            tracker=self.tracker,
            clear=self.clear,
            clear_chunk_shift=self.clear_chunk_shift,
            policy=self.policy,
            limits=self.limits.now(),
            max_bandwidth=self.max_bandwidth,
            switchover_overhead_s=self.handover_s,
        )


@dataclass(frozen=True)
class BeginningOfVersion1:
    facts: FactsOfVersion1
    page_size: PageSize
    blocks: list[BlockRecord]
    sections: list[SectionRecord]


@dataclass(frozen=True)
class SampleOfVersion1:
    number: int
    ended_s: float
    transfer_s: float
    send_s: float
    scan_s: float
    clear_s: float
    sync_s: float
    sent_bytes: float
    read_bytes: float
    dirty_bytes: float
    remaining_bytes: float
    throttle: float = 0.0

    def now(self) -> RoundSample:
        return RoundSample(*(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True)
class RoundOfVersion1:
    sample: SampleOfVersion1
    dirty: Packed
    did: LogCounters = NO_CALLS


@dataclass(frozen=True)
class OutcomeOfVersion1:
    completed: bool
    total_s: float
    sent_bytes: float
    downtime_s: float = 0.0
    pause_s: float = 0.0
    final_sync_s: float = 0.0
    final_send_s: float = 0.0
    state_s: float = 0.0
    commit_s: float = 0.0
    error: str = ""
    expected_handover_s: Estimate | None = None

    def now(self) -> RecordedOutcome:
        parts = (self.pause_s, self.final_sync_s, self.final_send_s, self.state_s, self.commit_s)
        if not math.isclose(sum(parts), self.downtime_s, rel_tol=1e-6, abs_tol=1e-9):
            raise Wrong("the parts of its downtime are not its downtime")
        downtime = Downtime(*parts) if self.completed else None
        return RecordedOutcome(
            self.completed, self.total_s, self.sent_bytes, downtime, self.error, self.expected_handover_s
        )


def outcome(record: bytes) -> RecordedOutcome:
    """That of version 1. Raises `Wrong`."""
    return decode(record, OutcomeOfVersion1).now()


def round_record(record: bytes) -> tuple[RoundSample, Packed, LogCounters]:
    """That of version 1: a round's sending and the sync of the next one, and what that found. Raises `Wrong`."""
    old = decode(record, RoundOfVersion1)
    return old.sample.now(), old.dirty, old.did


def beginning(record: bytes) -> Beginning:
    """That of version 1. Raises `Wrong`."""
    old = decode(record, BeginningOfVersion1)
    return Beginning(old.facts.now(), old.page_size, old.blocks, old.sections)
