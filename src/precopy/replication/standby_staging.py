"""The standby's staging: where the pages of a point wait until it is whole.

Law: **A point is applied whole or not at all.** `StandbyStaging` keeps what comes beside the memory; `apply` puts it
in.

Law 5: **The peer is not trusted.** It holds what has come, no page twice, and no more than `Room` allows.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Runs
from precopy.errors import PeerProtocolError
from precopy.memory import GuestMemory
from precopy.migration.page_sink import Straight
from precopy.replication.room import Room
from precopy.wire.events import PageBatch

_LONG_RUN = 16
"""Pages in a run from which on a copy of each run costs less than one scatter of all."""

Rows = npt.NDArray[np.uint64]


class StandbyStaging:
    """A `Landing` for ``memory``, which has one block and which ``straight`` has filled until now. ``point`` is the
    last one that was applied."""

    def __init__(self, memory: GuestMemory, straight: Straight, room: Room) -> None:
        self._straight, self._room = straight, room
        self._page_size = memory.layout.page_size
        self._rows = memory.pages(memory.layout.blocks[0])
        self.point = 0
        self.bytes = 0
        """Of content that waits."""
        self._came = np.zeros(memory.layout.pages, np.bool_)
        """Since the last point."""
        self._batches: deque[tuple[PageBatch, Rows]] = deque()
        self._coming = np.empty((0, self._page_size // 8), np.uint64)
        self._fresh = 0
        """Bytes that `apply` will take, because their pages have no content yet."""

    def buffers(self, batch: PageBatch) -> list[memoryview]:
        content = batch.content.indexes()
        for index in (content, batch.zero.indexes()):
            self._note_come(index)
        size = content.size * self._page_size
        self._fresh += int(np.count_nonzero(~self._straight.written[content])) * self._page_size
        self._room.check_staging(self.bytes + size, self.point + 1)
        self._room.check_system(size, self._fresh)
        self._coming = np.empty((content.size, self._page_size // 8), np.uint64)
        return [self._coming.reshape(-1).data.cast("B")] if size else []

    def _note_come(self, index: npt.NDArray[np.int64]) -> None:
        if self._came[index].any():
            raise PeerProtocolError(f"a page of point {self.point + 1} comes twice")
        self._came[index] = True
        if np.count_nonzero(np.diff(np.sort(index)) == 0):
            raise PeerProtocolError(f"a page of point {self.point + 1} comes twice in one batch")

    def landed(self, batch: PageBatch, matches: bool) -> None:
        if not matches:  # it was sent from a copy, which is not written
            raise PeerProtocolError(f"the link damages data: a batch of point {self.point + 1} has a wrong checksum")
        self._batches.append((batch, self._coming))
        self.bytes += self._coming.nbytes

    def apply(self) -> None:
        """Makes the memory that of the next point. Until this returns it is neither that nor the one before, and may
        not be read."""
        while self._batches:  # and each goes before the next takes more
            batch, rows = self._batches.popleft()
            self._put(batch.content, rows)
            self._straight.zero_out(batch.zero)
        self.point += 1
        self.bytes = self._fresh = 0
        self._came.fill(False)

    def _put(self, runs: Runs, rows: Rows) -> None:
        index = runs.indexes()
        self._straight.written[index] = True
        if runs.pages < _LONG_RUN * len(runs):
            self._rows[index] = rows
            return
        at = 0
        for start, length in runs:
            self._rows[start : start + length] = rows[at : at + length]
            at += length
