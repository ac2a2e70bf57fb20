"""What a standby makes of the frames that bring pages.

Law: **A point is applied whole or not at all.** Until the first one, pages go straight into the memory, of which nobody
is told yet. From then on they are staged, and `apply` puts them into the memory when the point that ends them has come
whole, every batch of it having matched its checksum.

Law 5: **The peer is not trusted.** Runs are held against the layout before a byte is written or room is made for it.
Staging holds what has come, and no page twice, so it is never larger than the memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Runs
from precopy.errors import LayoutError, PeerProtocolError
from precopy.memory import GuestMemory
from precopy.ports import ByteStream
from precopy.wire import PageBatch, Point, RoundAck, RoundEnd
from precopy.wire.frames import MAX_TORN

_LONG_RUN = 16
"""Pages in a run from which on a copy of each run costs less than one scatter of all."""

Rows = npt.NDArray[np.uint64]


class Arrivals:
    """Takes pages for ``memory``, which is all zero and has one block, from ``stream``. Every method raises
    `PeerProtocolError` where what comes is not what the protocol allows."""

    def __init__(self, memory: GuestMemory, stream: ByteStream) -> None:
        self._memory, self._stream = memory, stream
        self._page_size = memory.layout.page_size
        self._rows = memory.pages(memory.layout.blocks[0])
        pages = memory.layout.pages
        # Which pages have content: a zero page that never had any needs no write, and so no memory.
        self._written = np.zeros(pages, np.bool_)
        self._came = np.zeros(pages, np.bool_)
        """Before the first point: in any round. From then on: since the last point."""
        self._staged: list[tuple[PageBatch, Rows]] = []
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
        self._stream.receive_into(buffers)
        if not batch.matches(buffers):
            if len(self._torn) >= MAX_TORN:
                raise PeerProtocolError(f"more than {MAX_TORN} batches of round {self.rounds + 1} do not match")
            self._torn.append(self._batches)
        for runs in (batch.content, batch.zero):
            self._came[runs.indexes()] = True
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
        missing = 0 if self.point else self._came.size - int(np.count_nonzero(self._came))
        if missing:
            raise PeerProtocolError(f"point 1 is no whole memory: {missing} pages of it have never come")

    def apply(self) -> None:
        """Makes the memory that of the point which `end_point` checked. Until this returns it is neither that nor the
        one before: nobody may look at it meanwhile."""
        for batch, rows in self._staged:
            self._put(batch.content, rows)
            self._zero_out(batch.zero)
        self.point += 1
        self._staged, self.staged_bytes = [], 0
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
