"""A standby's handling of the frames that bring pages.

Law: **A point is applied whole or not at all.** Until the first one, pages go straight into the memory, which is
not handed out yet. From then on they are staged, and `apply` puts them into the memory when the point that ends them
has come whole, every batch of it having matched its checksum.

Law 5: **The peer is not trusted.** Runs are checked against the layout before a byte is written or memory is allocated
for it. Staging holds what has come, no page twice, and no more than `Room` allows. A page of a torn batch is in doubt
until it comes again, and a point with such a page is not applied.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Runs
from precopy.errors import LayoutError, PeerProtocolError
from precopy.memory import GuestMemory
from precopy.ports import ByteStream
from precopy.replication.room import Room
from precopy.wire.events import MAX_TORN, PageBatch, Point, RoundAck, RoundEnd

_LONG_RUN = 16
"""Pages in a run from which on a copy of each run costs less than one scatter of all."""

Rows = npt.NDArray[np.uint64]


class Arrivals:
    """Takes pages for ``memory``, which is all zero and has one block, from ``stream``. Every method raises
    `PeerProtocolError` where what comes is not what the protocol allows, and `HelloMismatch` where it is more than
    ``room`` has."""

    def __init__(self, memory: GuestMemory, stream: ByteStream, room: Room) -> None:
        self._memory, self._stream, self._room = memory, stream, room
        self._page_size = memory.layout.page_size
        self._rows = memory.pages(memory.layout.blocks[0])
        pages = memory.layout.pages
        # Which pages have content: a zero page that never had any needs no write, and so no memory.
        self._written = np.zeros(pages, np.bool_)
        self._came = np.zeros(pages, np.bool_)
        """Before the first point: in any round. From then on: since the last point."""
        self.missing = pages
        """Pages that have never come."""
        self._doubtful = np.zeros(pages, np.bool_)
        """Came in a torn batch, and not again since."""
        self._staged: deque[tuple[PageBatch, Rows]] = deque()
        self._fresh = 0
        """Bytes that `apply` will take, because their pages have no content yet."""
        self._torn: list[int] = []
        self._batches = self._pages = 0
        self.rounds = self.point = 0
        self.received_bytes = self.staged_bytes = 0

    def pages(self, batch: PageBatch) -> None:
        """Takes a batch and its content. Raises `PeerLost`."""
        try:
            self._memory.layout.block_of(batch.zero)
            self._memory.layout.block_of(batch.content)
        except LayoutError as error:
            raise PeerProtocolError(f"the source sends {error}") from error
        if self.point:
            self._stage(batch)
        else:
            self._put_straight(batch)
        self._batches += 1
        self._pages += batch.pages
        self.received_bytes += batch.content.pages * self._page_size

    def _put_straight(self, batch: PageBatch) -> None:
        buffers = self._memory.buffers(batch.content)
        self._room.check_system(batch.content.pages * self._page_size)
        self._stream.receive_into(buffers)
        torn = not batch.matches(buffers)
        if torn:
            if len(self._torn) >= MAX_TORN:
                raise PeerProtocolError(f"more than {MAX_TORN} batches of round {self.rounds + 1} do not match")
            self._torn.append(self._batches)
        for index in (batch.content.indexes(), batch.zero.indexes()):
            self.missing -= np.unique(index[~self._came[index]]).size
            self._came[index] = True
            self._doubtful[index] = torn
        self._written[batch.content.indexes()] = True
        self._zero_out(batch.zero)

    def _stage(self, batch: PageBatch) -> None:
        content, zero = batch.content.indexes(), batch.zero.indexes()
        for index in (content, zero):
            if self._came[index].any():
                raise PeerProtocolError(f"a page of point {self.point + 1} comes twice")
            self._came[index] = True
            if np.count_nonzero(np.diff(np.sort(index)) == 0):
                raise PeerProtocolError(f"a page of point {self.point + 1} comes twice in one batch")
        size = content.size * self._page_size
        self._fresh += int(np.count_nonzero(~self._written[content])) * self._page_size
        self._room.check_staging(self.staged_bytes + size, self.point + 1)
        self._room.check_system(size, self._fresh)
        rows = np.empty((content.size, self._page_size // 8), np.uint64)
        view = rows.reshape(-1).data.cast("B") if content.size else memoryview(b"")
        self._stream.receive_into([view])
        if not batch.matches([view]):
            raise PeerProtocolError(f"the link damages data: a batch of point {self.point + 1} has a wrong checksum")
        self._staged.append((batch, rows))
        self.staged_bytes += view.nbytes

    def end_round(self, end: RoundEnd) -> RoundAck:
        """What to answer to the end of a round."""
        if end.final:
            raise PeerProtocolError("the source ends its last round without a point")
        self._add_up("round", end.number, self.rounds + 1, end.batches, end.pages)
        ack = RoundAck(end.number, end.pages, tuple(self._torn))
        self.rounds, self._torn = end.number, []
        return ack

    def end_point(self, point: Point) -> None:
        """Checks that all of ``point`` has come; changes nothing in the memory."""
        self._add_up("point", point.number, self.point + 1, point.batches, point.pages)
        if self._torn:
            raise PeerProtocolError(
                f"the link damages data: {len(self._torn)} batches of point {point.number} arrived with wrong checksums"
            )
        if self.missing:
            raise PeerProtocolError(f"point 1 is no whole memory: {self.missing} pages of it have never come")
        doubtful = 0 if self.point else int(np.count_nonzero(self._doubtful))
        if doubtful:
            raise PeerProtocolError(
                f"point 1 is no whole memory: {doubtful} pages of it came in batches that did not match, and not again"
            )

    def apply(self) -> None:
        """Makes the memory that of the point which `end_point` checked. Until this returns it is neither that nor the
        one before: nobody may look at it meanwhile."""
        while self._staged:  # and each goes before the next takes more
            batch, rows = self._staged.popleft()
            self._put(batch.content, rows)
            self._zero_out(batch.zero)
        self.point += 1
        self.staged_bytes = self._fresh = 0
        self._came.fill(False)

    def _put(self, runs: Runs, rows: Rows) -> None:
        index = runs.indexes()
        self._written[index] = True
        if runs.pages < _LONG_RUN * len(runs):
            self._rows[index] = rows
            return
        at = 0
        for start, length in runs:
            self._rows[start : start + length] = rows[at : at + length]
            at += length

    def _zero_out(self, zero: Runs) -> None:
        index = zero.indexes()
        written = index[self._written[index]]
        self._rows[written] = 0
        self._written[written] = False

    def _add_up(self, what: str, number: int, due: int, batches: int, pages: int) -> None:
        if (number, batches, pages) != (due, self._batches, self._pages):
            raise PeerProtocolError(
                f"{what} {number} claims {batches} batches with {pages} pages; {what} {due} had {self._batches} with "
                f"{self._pages}"
            )
        self._batches = self._pages = 0
