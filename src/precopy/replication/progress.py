"""A replication's progress: records of measured numbers. Seconds and bytes; see each field."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Phase(enum.StrEnum):
    """Where a replication stands."""

    ROUNDS = "rounds"
    """The first copy: no state of it is the memory's at one moment yet."""
    POINTS = "points"
    """The standby has a point."""
    CUT_OVER = "cut over"
    """The standby has the exact memory, and it is its own."""
    CLOSED = "closed"
    FAILED = "failed"


@dataclass(frozen=True)
class ReplicationProgress:
    """Where a replication stands at the primary.

    - ``rounds`` and ``points`` that the standby has so far; ``quiet_misses``: intervals in which the program wrote all
      the time, so that no point could be made of them without its lock;
    - ``sent_bytes``: all that was given to the stream; ``remaining_bytes``: pages known to be written and not yet at
      the standby; ``staged_bytes``: copies of such pages, held for the next point;
    - ``dirty_rate``: bytes of pages newly written, a second, between the last two syncs of rounds, or the last two
      points; ``unarmed_bytes``: those of the last sync that count as written, in ``dirty_rate``, too, because they lay
      in chunks that were not armed (0 where the memory is exact); ``bandwidth``: bytes a second while the last round or
      point with any pages was sent;
    - ``last_point_age_s``: how old the standby's content is, None before its first point; ``lock_held_s``: how long
      the program's lock was held for the last point, None without one; ``elapsed_s``: since the start.
    """

    phase: Phase
    rounds: int
    points: int
    quiet_misses: int
    sent_bytes: int
    remaining_bytes: int
    staged_bytes: int
    dirty_rate_bytes_per_s: float
    unarmed_bytes: int
    bandwidth_bytes_per_s: float
    last_point_age_s: float | None
    lock_held_s: float | None
    elapsed_s: float


@dataclass
class CutOver:
    """A memory that is given to its standby: ``given`` once that has it, which is at the end of the block.

    ``waited_s``: for the round or point that was under way; ``copy_s``: for syncs and what they found to be at the
    standby, before the block and after it; ``block_s``: the block; ``commit_s``: from the commit to its answer; the
    last two are 0 before the end. In all four the program's other threads do not write. ``rounds`` and ``points`` are
    those of the whole replication, ``sent_bytes`` too.
    """

    waited_s: float
    copy_s: float
    rounds: int
    points: int
    sent_bytes: int
    block_s: float = 0.0
    commit_s: float = 0.0
    given: bool = False

    @property
    def total_s(self) -> float:
        """The part of the program's downtime that this side causes."""
        return self.waited_s + self.copy_s + self.commit_s


@dataclass(frozen=True)
class StandbyProgress:
    """Where a replication stands at the standby: its memory's size, and the rounds, points and bytes of content that
    have come; ``staged_bytes`` are those of the point that is coming."""

    memory_bytes: int
    rounds: int
    point: int
    received_bytes: int
    staged_bytes: int
