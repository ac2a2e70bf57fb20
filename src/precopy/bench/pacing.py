"""When the next of several syncs is made, so that all of them find the same work: by QEMU's as by ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

_TOLERANCE = 0.1
"""A sync had equal work if it found more or fewer pages than the guest rewrites by at most this share of them. QEMU 7.2
syncs when less is unsent than its link carries in a millisecond, its shortest downtime limit: about a twentieth of 1301
pages in 20 ms, which the next sync then does not find anew."""
_LONGEST = 32
"""The longest wait, in intervals: 0.64 s of 20 ms, in which a guest that has a thirtieth of a core gets round 1301
pages."""
_IN_A_ROW = 5
"""Syncs with equal work after which the next ones come closer again."""
_MOST = 4
"""Syncs are made until as many as asked for had equal work, and at most this many times as many."""


@dataclass(frozen=True)
class PacedSync:
    """``sync_s`` seconds long, begun ``interval_s`` seconds after the one before; it found ``pages``."""

    sync_s: float
    interval_s: float
    pages: int


@dataclass
class Pacing:
    """The guest rewrites ``pages`` pages, and syncs are to come ``interval_s`` seconds apart, and farther where the
    machine is so busy that the guest does not get round all of its pages in that time. ``wait_s`` is how far apart at
    present."""

    pages: int
    interval_s: float
    wait_s: float = field(init=False)
    _equal_in_a_row: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.wait_s = self.interval_s

    def equal(self, found: float) -> bool:
        """Whether a sync that ``found`` this number of pages had the work that it was to have."""
        return abs(found - self.pages) <= _TOLERANCE * self.pages

    def found(self, pages: int) -> None:
        """A sync found ``pages``: after too few, the next ones come farther apart, and closer after some that found
        all."""
        if pages < self.pages and not self.equal(pages):
            self.wait_s, self._equal_in_a_row = min(2 * self.wait_s, _LONGEST * self.interval_s), 0
            return
        self._equal_in_a_row += 1
        if self._equal_in_a_row >= _IN_A_ROW:
            self.wait_s, self._equal_in_a_row = max(self.wait_s / 2, self.interval_s), 0

    def done(self, syncs: Sequence[PacedSync], wanted: int) -> bool:
        """Whether ``wanted`` of ``syncs`` had equal work, or too many had not for more to be tried."""
        return len(syncs) >= _MOST * wanted or sum(self.equal(sync.pages) for sync in syncs) >= wanted
