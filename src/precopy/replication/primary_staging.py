"""The primary's staging, which a point is sent from: a copy, in memory of its own, of the pages that changed since the
point before.

Laws:

- A page that is copied again replaces what was here of it, so staging never takes more than the memory itself.
- Nothing here changes while a point is being sent: over a Unix socket the kernel reads pages until the peer has them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import xxhash

from precopy.bitmap import NO_RUNS, Runs
from precopy.errors import OutOfMemory
from precopy.memory import GuestMemory
from precopy.migration.channel import NO_CONTENT, Content
from precopy.migration.page_source import WINDOW_PAGES

_AT_ONCE = 1024
"""Pages that are replaced through one temporary (4 MiB, which stays in the cache)."""
_KEEP_BYTES = 64 << 20
"""Bytes of staging that are kept between points; the rest is given back to the system."""
_HUGE = 2 << 20  # bytes of a huge page of x86-64; smaller memory has no room for one

Index = npt.NDArray[np.int64]


class PrimaryStaging:
    """For ``memory``, whose layout has one block. Raises `OutOfMemory`."""

    def __init__(self, memory: GuestMemory) -> None:
        block = memory.layout.blocks[0]
        self._page_size = memory.layout.page_size
        self._from = memory.pages(block)
        try:
            # Taken from the system only as it is filled: from the start on, without gaps.
            self._room = mmap.mmap(-1, memory.layout.bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError) as error:
            raise OutOfMemory("the copy of a point", memory.layout.bytes, None, "replicate less memory") from error
        if memory.layout.bytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            self._room.madvise(mmap.MADV_HUGEPAGE)
        self._view = memoryview(self._room)
        self._rows = np.frombuffer(self._room, np.uint64).reshape(-1, self._page_size // 8)
        self._address = int(self._rows.__array_interface__["data"][0])
        self._slots: Index = np.full(block.pages, -1, np.int64)
        """For each page of the memory the row here that holds it, or -1."""
        self.pages = 0
        # Of each page that `clear` has forgotten, xxh3_64 of what was here; only once `unchanged` was asked for.
        self._sums: npt.NDArray[np.uint64] | None = None
        self._summed = np.zeros(block.pages, np.bool_)

    def copy(self, runs: Runs) -> None:
        """Copies the pages of ``runs`` as they are now; without the interpreter's lock, so that others run."""
        pages = runs.indexes()
        slots = self._slots[pages]
        fresh = pages[slots < 0]
        end = self.pages + fresh.size
        # Any mode but "raise" copies straight into out.
        np.take(self._from, fresh, axis=0, out=self._rows[self.pages : end], mode="clip")
        self._slots[fresh] = np.arange(self.pages, end)
        self.pages = end
        known = slots >= 0
        pages, slots = pages[known], slots[known]
        for lo in range(0, pages.size, _AT_ONCE):
            self._rows[slots[lo : lo + _AT_ONCE]] = self._from[pages[lo : lo + _AT_ONCE]]

    def batches(self, pages: int) -> Iterator[tuple[Content, Runs]]:
        """(content, zero runs) of each batch to send, of at most ``pages`` pages with content; ascending."""
        staged = np.flatnonzero(self._slots >= 0)
        for start in range(0, staged.size, WINDOW_PAGES):
            window = staged[start : start + WINDOW_PAGES]
            slots = self._slots[window]
            zero = self._zero(slots)
            if zero.any():
                yield NO_CONTENT, Runs.from_indexes(window[zero])
            window, slots = window[~zero], slots[~zero]
            for lo in range(0, window.size, pages):
                yield self._content(window[lo : lo + pages], slots[lo : lo + pages]), NO_RUNS

    def unchanged(self, pages: Index) -> Index:
        """Those of ``pages`` whose content now is what is staged of them or, where nothing is, what the peer has; as
        far as that is known here."""
        if self._sums is None:
            self._sums = np.zeros(self._slots.size, np.uint64)
        slots = self._slots[pages]
        same = np.zeros(pages.size, np.bool_)
        staged = np.flatnonzero(slots >= 0)
        for lo in range(0, staged.size, _AT_ONCE):
            part = staged[lo : lo + _AT_ONCE]
            same[part] = (self._from[pages[part]] == self._rows[slots[part]]).all(axis=1)
        for at in np.flatnonzero((slots < 0) & self._summed[pages]).tolist():
            same[at] = _sum(self._from[pages[at]]) == self._sums[pages[at]]
        return pages[same]

    def clear(self) -> None:
        """Forgets all pages: the peer has them."""
        if self._sums is not None:
            for page in np.flatnonzero(self._slots >= 0).tolist():
                self._sums[page] = _sum(self._rows[self._slots[page]])
                self._summed[page] = True
        self._slots.fill(-1)
        if self.pages * self._page_size > _KEEP_BYTES:
            self._room.madvise(mmap.MADV_DONTNEED, _KEEP_BYTES, len(self._room) - _KEEP_BYTES)
        self.pages = 0

    def _zero(self, slots: Index) -> npt.NDArray[np.bool_]:
        """Which of the rows are all zero; only those that begin with a zero are read whole."""
        zero: npt.NDArray[np.bool_] = self._rows[slots, 0] == 0
        zero[zero] = ~self._rows[slots[zero]].any(axis=1)
        return zero

    def _content(self, pages: Index, slots: Index) -> Content:
        """Runs of pages that follow each other both in the memory and here."""
        joined = (np.diff(pages) == 1) & (np.diff(slots) == 1)
        first = np.flatnonzero(np.concatenate(([True], ~joined)))
        lengths = np.diff(first, append=pages.size)
        table = np.empty((first.size, 2), np.uint64)
        table[:, 0] = slots[first] * self._page_size + self._address
        table[:, 1] = lengths * self._page_size
        starts = (slots[first] * self._page_size).tolist()
        ends = ((slots[first] + lengths) * self._page_size).tolist()
        views = list(map(self._view.__getitem__, map(slice, starts, ends)))
        return Content(Runs(pages[first], lengths), views, table)


def _sum(row: npt.NDArray[np.uint64]) -> int:
    return xxhash.xxh3_64_intdigest(row.data)
