"""The interface that records a migration for replays; `precopy.recording.files.RecordingWriter` implements it."""

from __future__ import annotations

from typing import Protocol

from precopy.bitmap import Bitmap
from precopy.dirty import LogCounters
from precopy.memory.layout import RamLayout
from precopy.planning.model.round import NextSync, Round
from precopy.planning.model.trace import NO_CALLS, RecordedFacts, RecordedOutcome


class Recorder(Protocol):
    """Called by the source: ``begin``, then for each round any number of ``mid_round`` and one ``round``, then ``end``.
    Bitmaps are over the ram_addr space and only lent: they change after the call.

    No call raises: a recording that cannot be written ends, and the migration goes on.
    """

    def begin(self, layout: RamLayout, facts: RecordedFacts) -> None:
        """After the first sync."""
        ...

    def mid_round(self, interval_s: float, dirty: Bitmap) -> None:
        """A mid-round sample of the dirty log: all pages found dirty until ``interval_s`` after the last sync."""
        ...

    def round(self, done: Round, after: NextSync, dirty: Bitmap, did: LogCounters = NO_CALLS) -> None:
        """After the sync that follows the round ``done``: ``dirty`` is all that this sync harvested, pending before or
        not; ``did`` is what the dirty log did from the sync before until now (without it, a clear's cost is taken from
        elsewhere)."""
        ...

    def end(self, outcome: RecordedOutcome) -> None:
        """However it went. Nothing is recorded afterwards."""
        ...
