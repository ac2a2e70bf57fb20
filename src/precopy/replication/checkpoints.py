"""Points: the memory at one moment at which no thread writes it, sent so that a standby has all of it or nothing.

Law: **A point is exactly the memory's content at one moment at which the program did not write.** `Points.copy` syncs,
which re-arms what was written, and copies those pages afterwards. What is staged is therefore the memory as it is now
wherever a later `copy` finds nothing, and wherever no thread wrote from the beginning of the last `copy` to its end.
Only then may `seal` be called; what is sealed is not copied over before the standby has acknowledged it.

A page that is copied while it is written may be torn in staging. That write shows in the next sync, and the page is
copied again before anything is sealed.

Pages that are written *perhaps* (trackers/unseen.py) were written if their content differs from what is staged, or from
what the standby has. They are compared at each copy, so also at the moment of the point itself.
"""

from __future__ import annotations

from collections.abc import Callable

from precopy.bitmap import Bitmap
from precopy.memory import GuestMemory
from precopy.migration.page_source import BATCH_PAGES
from precopy.migration.rounds import Rounds
from precopy.replication.primary_staging import PrimaryStaging


class Points:
    """Makes points of ``memory`` and sends them through the page source of ``rounds``.

    ``rounds`` brings what the first point does not have to send any more, and the syncs; ``perhaps`` gives those pages
    of the last sync that were written perhaps. ``number`` is the last point that the standby has; ``moment`` is when
    (by the page source's clock) its content was the memory's.
    """

    def __init__(self, rounds: Rounds, memory: GuestMemory, *, perhaps: Callable[[], Bitmap]) -> None:
        self._perhaps = perhaps
        self._rounds, self._bitmap, self._page_source = rounds, rounds.bitmap, rounds.page_source
        self._clock = rounds.page_source.clock
        self._page_size = memory.layout.page_size
        self.staging = PrimaryStaging(memory)
        self.number = 0
        self.moment: float | None = None
        self._sealed: float | None = None  # when
        self.dirty_rate = 0.0
        self.bandwidth = 0.0

    def due(self) -> bool:
        """Whether a point is sealed and not yet acknowledged."""
        return self._sealed is not None

    def copy(self) -> int:
        """Stages what was written since the last sync, and what was pending before; returns how many pages the sync
        found to be written. Raises what a sync raises."""
        found = self.written()
        self.staging.copy(self._bitmap.take(0, self._bitmap.pending.size))
        return found

    def written(self) -> int:
        """Syncs; what was written is pending, and how many pages that are is returned."""
        found = self._rounds.sync().dirty_pages
        perhaps = self._perhaps()
        if perhaps.any():
            # They are armed by the sync, and compared after it (law 1).
            unchanged = self.staging.unchanged(perhaps.indexes())
            self._bitmap.pending.difference(Bitmap.from_indexes(perhaps.size, unchanged))
            found -= unchanged.size
        return found

    def seal(self) -> None:
        """What is staged is the next point: the memory as it is now."""
        now = self._clock.now()
        since = now - self.moment if self.moment is not None else 0.0
        if since > 0:
            self.dirty_rate = self.staging.pages * self._page_size / since
        self._sealed = now

    def send(self) -> None:
        """Sends the sealed point and waits until the standby has it. Raises `PeerError`."""
        before, began = self._page_source.channel.sent_bytes, self._clock.now()
        self._page_source.begin()
        for content, zero in self.staging.batches(self._page_source.batch_pages(BATCH_PAGES)):
            self._page_source.send(content, zero)
        self._page_source.end_point(self.number + 1)
        if self._page_source.pages:
            took = self._clock.now() - began
            self.bandwidth = (self._page_source.channel.sent_bytes - before) / max(took, 1e-9)
        self.number, self.moment, self._sealed = self.number + 1, self._sealed, None
        self.staging.clear()
