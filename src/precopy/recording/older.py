"""Recordings that older versions wrote: their records, as today's.

Version 1 called the downtime limit ``downtime_s``.
"""

from __future__ import annotations

from dataclasses import dataclass

from precopy.names import TimeoutPolicy
from precopy.planning import Estimate, Limits
from precopy.planning.model.trace import RecordedFacts
from precopy.recording.format import Beginning, BlockRecord, PageSize, SectionRecord, decode


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
            handover_s=self.handover_s,
        )


@dataclass(frozen=True)
class BeginningOfVersion1:
    facts: FactsOfVersion1
    page_size: PageSize
    blocks: list[BlockRecord]
    sections: list[SectionRecord]


def beginning(record: bytes) -> Beginning:
    """That of version 1. Raises `Wrong`."""
    old = decode(record, BeginningOfVersion1)
    return Beginning(old.facts.now(), old.page_size, old.blocks, old.sections)
