"""How the page source reads memory: where it lies, or by copies where it is not mapped here.

Law 1 holds for both: pages are armed before they are read, so a write that a copy has torn, or missed, shows in the
next sync.

They differ in what a wrong checksum means. Mapped memory is sent from where it lies, so the guest may write it between
checksum and sending. A copy is never written, so a batch of copies that arrives with a wrong checksum was damaged
on the way.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Runs
from precopy.memory.ram import all_zero
from precopy.migration.channel import Content
from precopy.ports import MemoryCopier, MemoryReader
from precopy.wire.events import PageBatch


class Window(Protocol):
    """Pages that were read at once, which hold until the next ones are read."""

    @property
    def content(self) -> Runs:
        """Those that hold anything, in the order in which they were asked for."""

    @property
    def zero(self) -> Runs:
        """Those that are all zero."""

    def contents(self, cut: Runs) -> Content:
        """What to send of ``cut``, which is `content`, cut into any runs."""


class PageReader(Protocol):
    """Reads pages to send."""

    @property
    def page_size(self) -> int: ...

    @property
    def may_tear(self) -> bool:
        """Whether content may change between its checksum and its sending."""

    def read(self, runs: Runs) -> Window:
        """Raises `LayoutError`, and `GuestError` where the memory is gone."""

    def has_changed(self, batch: PageBatch) -> bool:
        """Whether content that was sent as ``batch`` is not what its checksum was made of any more."""


def reader_of(memory: MemoryReader | MemoryCopier) -> PageReader:
    """The way to read ``memory``."""
    return CopyingReader(memory) if isinstance(memory, MemoryCopier) else MappedReader(memory)


class MappedReader:
    """Hands out memory of this process, without a copy."""

    may_tear = True

    def __init__(self, memory: MemoryReader) -> None:
        self._memory = memory
        self.page_size = memory.layout.page_size

    def read(self, runs: Runs) -> Window:
        return _Mapped(self._memory, runs)

    def has_changed(self, batch: PageBatch) -> bool:
        return not batch.matches(self._memory.buffers(batch.content))


class _Mapped:
    def __init__(self, memory: MemoryReader, runs: Runs) -> None:
        self._memory = memory
        self.content, self.zero = memory.split_zero(runs)

    def contents(self, cut: Runs) -> Content:
        return Content(cut, self._memory.buffers(cut), self._memory.addresses(cut))


class CopyingReader:
    """Copies pages into a buffer of its own, which the next `read` uses again: what is in it is sent by
    `ByteStream.send`, which is done with it when it returns."""

    may_tear = False

    def __init__(self, memory: MemoryCopier) -> None:
        self._memory = memory
        self.page_size = memory.layout.page_size
        self._buffer = bytearray()

    def read(self, runs: Runs) -> Window:
        size = runs.pages * self.page_size
        if size > len(self._buffer):
            self._buffer = bytearray(size)
        copies = memoryview(self._buffer)[:size]
        self._memory.copy_into(runs, copies)
        return _Copied(copies, self.page_size, runs)

    def has_changed(self, batch: PageBatch) -> bool:  # noqa: ARG002 - a copy is never written
        return False


class _Copied:
    """``copies`` has the pages of ``runs``, without gaps."""

    def __init__(self, copies: memoryview, page_size: int, runs: Runs) -> None:
        words = np.frombuffer(copies, np.uint64).reshape(runs.pages, page_size // 8)
        zero = words[:, 0] == 0
        zero[zero] = all_zero(words, Runs.from_indexes(np.flatnonzero(zero)))
        self._view, self._page_size = copies, page_size
        self._rows = np.flatnonzero(~zero)
        self.content = _parts(runs, self._rows)
        self.zero = _parts(runs, np.flatnonzero(zero))

    def contents(self, cut: Runs) -> Content:
        first = np.cumsum(cut.lengths) - cut.lengths  # of each run, counted in pages with content
        starts = self._rows[first] * self._page_size
        ends = starts + cut.lengths * self._page_size
        views = list(map(self._view.__getitem__, map(slice, starts.tolist(), ends.tolist())))
        return Content(cut, views, None)


def _parts(runs: Runs, rows: npt.NDArray[np.int64]) -> Runs:
    """The pages at ``rows``, which count the pages of ``runs``, as runs that each lie in one of those."""
    if not rows.size:
        return Runs.of()
    run = np.repeat(np.arange(len(runs)), runs.lengths)[rows]
    first = np.flatnonzero(np.concatenate(([True], (np.diff(rows) != 1) | (np.diff(run) != 0))))
    return Runs(runs.indexes()[rows[first]], np.diff(first, append=rows.size))
