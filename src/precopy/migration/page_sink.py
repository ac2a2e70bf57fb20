"""The one receiver of pages: a migration's destination and a replication's standby take theirs here.

Law 1: **No page is lost.** A page of a torn batch is in doubt until it comes again. `PageSink.check_whole` refuses a
memory of which a page is in doubt; neither side commits before it has passed.

Law 5: **The peer is not trusted.** Runs are held against the layout before a byte is read or memory is allocated for
it, and content goes only where a valid run says. What the source claims of its batches and pages has to be what came.
Batches come in the order of their ids, none twice and none left out: there is one channel, and it keeps their order.

Where content goes is for a `Landing` to say: straight into the memory (`Straight`), or beside it until it is whole
(`precopy.replication.standby_staging`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Runs
from precopy.errors import LayoutError, PeerProtocolError
from precopy.memory.layout import RamLayout
from precopy.ports import ByteStream, MemoryWriter
from precopy.wire.events import MAX_TORN, PageBatch, Point, RoundAck, RoundEnd

_FEW_RUNS = 16
"""Runs below which pages are marked run by run, which then costs less than one whole-array operation."""

Marks = npt.NDArray[np.bool_]
"""One bool for each ram_addr page."""


class Landing(Protocol):
    """Where the content of batches goes. Each batch's runs lie in the layout."""

    def buffers(self, batch: PageBatch) -> list[memoryview]:
        """Where to read the batch's content to, in order. Raises `PeerProtocolError` for pages that may not come now,
        `HelloMismatch` where there is no room for them."""

    def landed(self, batch: PageBatch, matches: bool) -> None:
        """The content was read; ``matches``: its checksum. Raises `PeerProtocolError` where a batch may not tear."""


class Straight:
    """Content goes into ``memory``, which is all zero at first. ``check_room`` is called with the bytes that are
    about to come, and may raise."""

    def __init__(self, memory: MemoryWriter, check_room: Callable[[int], None] = lambda _: None) -> None:
        self._memory, self._check_room = memory, check_room
        self.written: Marks = np.zeros(memory.layout.end_page, np.bool_)
        """Pages that have content: a zero page that never had any needs no write, and so no memory."""

    def buffers(self, batch: PageBatch) -> list[memoryview]:
        buffers = self._memory.buffers(batch.content)
        self._check_room(batch.content.pages * self._memory.layout.page_size)
        return buffers

    def landed(self, batch: PageBatch, matches: bool) -> None:  # noqa: ARG002 - torn content comes again to the same place
        mark(self.written, batch.content, True)
        self.zero_out(batch.zero)

    def zero_out(self, zero: Runs) -> None:
        """Makes these pages zero where they are not."""
        if len(zero) < _FEW_RUNS:
            for start, length in zero:
                written = self.written[start : start + length]
                if written.any():
                    self._memory.write_zero(Runs.of((start, length)))
                    written[:] = False
        else:
            index = zero.indexes()
            index = index[self.written[index]]
            self._memory.write_zero(Runs.from_indexes(np.unique(index)))
            self.written[index] = False


class PageSink:
    """Takes batches that follow their frames on ``stream``. ``landing`` may be changed between two batches."""

    def __init__(self, layout: RamLayout, stream: ByteStream, landing: Landing) -> None:
        self.layout, self._stream, self.landing = layout, stream, landing
        self.round = 0
        """The last round that has ended."""
        self.missing = layout.pages
        """Pages that have never come."""
        self.received_pages = self.zero_pages = 0
        """In all batches: pages, and those of them without content."""
        self.batches = 0
        """Since the last round or point ended; ``pages`` are theirs."""
        self.pages = 0
        self._due = 0
        self._came: Marks = np.zeros(layout.end_page, np.bool_)
        self._torn: list[int] = []
        # Pages that came in a torn batch, and not again since; None before the first.
        self._doubtful: Marks | None = None

    @property
    def received_bytes(self) -> int:
        """Of content, in all batches."""
        return (self.received_pages - self.zero_pages) * self.layout.page_size

    def check(self, batch: PageBatch) -> None:
        """Raises `PeerProtocolError` where it is not the batch that is due, or a run does not lie in one RAM block."""
        if batch.id != self._due:
            raise PeerProtocolError(f"the source sends batch {batch.id} where batch {self._due} is due")
        self._due += 1
        try:
            self.layout.block_of(batch.zero)
            self.layout.block_of(batch.content)
        except LayoutError as error:
            raise PeerProtocolError(f"the source sends {error}") from error

    def take(self, batch: PageBatch) -> None:
        """Takes a batch and its content. Raises `PeerError`, and what the landing raises."""
        self.check(batch)
        buffers = self.landing.buffers(batch)
        self._stream.receive_into(buffers)
        matches = batch.matches(buffers)
        self.landing.landed(batch, matches)
        self._note_torn(batch, not matches)
        for runs in (batch.content, batch.zero):
            self._note_come(runs)
        self.batches += 1
        self.pages += batch.pages
        self.received_pages += batch.pages
        self.zero_pages += batch.zero.pages

    def _note_torn(self, batch: PageBatch, torn: bool) -> None:
        if torn:
            if len(self._torn) >= MAX_TORN:
                raise PeerProtocolError(f"more than {MAX_TORN} batches of round {self.round + 1} do not match")
            self._torn.append(batch.id)
            if self._doubtful is None:
                self._doubtful = np.zeros(self.layout.end_page, np.bool_)
        if self._doubtful is not None:
            mark(self._doubtful, batch.content, torn)
            mark(self._doubtful, batch.zero, torn)

    def _note_come(self, runs: Runs) -> None:
        if not self.missing:
            return
        if len(runs) < _FEW_RUNS:
            for start, length in runs:
                came = self._came[start : start + length]
                self.missing -= length - int(np.count_nonzero(came))
                came[:] = True
        else:
            index = runs.indexes()
            self.missing -= np.unique(index[~self._came[index]]).size
            self._came[index] = True

    def end_round(self, end: RoundEnd) -> RoundAck:
        """What to answer to the end of a round, which names the batches that have to come again."""
        self._add_up("round", (end.number, end.batches, end.pages), self.round + 1)
        ack = RoundAck(end.number, end.pages, tuple(self._torn))
        self.round, self._torn = end.number, []
        return ack

    def end_point(self, point: Point, due: int) -> None:
        """Raises `PeerProtocolError` where not all of ``point`` has come, or it is not the one that is ``due``."""
        self._add_up("point", (point.number, point.batches, point.pages), due)
        if self._torn:
            raise PeerProtocolError(
                f"the link damages data: {len(self._torn)} batches of point {point.number} arrived with wrong checksums"
            )

    def _add_up(self, what: str, claim: tuple[int, int, int], due: int) -> None:
        number, batches, pages = claim
        if claim != (due, self.batches, self.pages):
            raise PeerProtocolError(
                f"{what} {number} claims {batches} batches with {pages} pages; {what} {due} had {self.batches} with "
                f"{self.pages}"
            )
        self.batches = self.pages = 0

    def check_whole(self, *, doubtful: str, missing: str | None = None) -> None:
        """Raises `PeerProtocolError` where a page is in doubt (with the words ``doubtful``) or has never come (with
        ``missing``; None where such pages may stay zero). ``{}`` in the words stands for the number of such pages."""
        if self.missing and missing is not None:
            raise PeerProtocolError(missing.format(self.missing))
        pages = 0 if self._doubtful is None else int(np.count_nonzero(self._doubtful))
        if pages:  # the source was told of them, and has to send them again
            raise PeerProtocolError(doubtful.format(pages))


def mark(marks: Marks, runs: Runs, value: bool) -> None:
    """Sets the pages of ``runs``."""
    if len(runs) < _FEW_RUNS:
        for start, length in runs:
            marks[start : start + length] = value
    else:
        marks[runs.indexes()] = value
