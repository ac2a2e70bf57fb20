"""A dirty log that needs no kernel: memory is compared with a copy of it, page by page.

It finds every write: of other processes, of devices, of system calls. It costs a second copy of the memory, and reading
both at each harvest.

Law 1 needs the copy to be what is read, and not only compared. A page that changes after a harvest, is then read,
and changes back before the next harvest would compare equal, though the reader has the content in between. So users of
this log read `ContentLog.copy`, in which a page changes only when a harvest reports it.
"""

from __future__ import annotations

import mmap
import time

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Bitmap
from precopy.dirty.log import LogCounters
from precopy.errors import OutOfMemory
from precopy.memory.layout import RamBlock, RamLayout
from precopy.memory.system_memory import available_memory
from precopy.trackers.mapped import check_touchable

_AT_ONCE = 256
"""Pages that are compared at a time (1 MiB), which with their copy stay in the CPU's cache."""

Rows = npt.NDArray[np.uint64]


class ContentLog:
    """Implements `precopy.ports.DirtyLog` for memory that ``live`` shows, whose ``layout`` has one block.

    Any thread, process or device may write at any time; one thread at a time calls the log. Raises `OutOfMemory` where
    there is no room for the copy.
    """

    name = "content"

    def __init__(self, layout: RamLayout, live: memoryview) -> None:
        self._words, self._block = layout.page_size // 8, layout.blocks[0]
        self._live = np.frombuffer(live, np.uint64).reshape(-1, self._words)
        self._address = int(self._live.__array_interface__["data"][0])
        available = available_memory()
        if available is not None and live.nbytes > available:
            raise OutOfMemory("the copy to compare with", live.nbytes, available, "use less memory")
        try:
            room = mmap.mmap(-1, live.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise OutOfMemory("the copy to compare with", live.nbytes, available, "use less memory") from error
        self.copy = memoryview(room)
        """The memory as harvests have seen it: what was found by none is not in here."""
        self._copy: Rows = np.frombuffer(room, np.uint64).reshape(-1, self._words)
        self._unequal = np.empty((_AT_ONCE, self._words), np.bool_)
        self._held = Bitmap(layout.end_page)  # reported, not cleared
        self._running = False
        self._gets = self._clears = 0
        self._get_s = 0.0

    @property
    def counters(self) -> LogCounters:
        """It makes no system calls: what is counted are harvests, and clears that had something to forget."""
        return LogCounters(self._gets, self._get_s, self._clears, 0.0)

    def start(self) -> None:
        """Copies the memory; nothing is dirty at first."""
        self._running = True
        self._compare(Bitmap(self._held.size))
        self._held.clear_all()

    def stop(self) -> None:
        """Leaves the copy unchanged."""
        self._running = False
        self._held = Bitmap(self._held.size)

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:  # noqa: ARG002 - there is one block
        if not self._running:
            return
        began = time.perf_counter()
        try:
            self._compare(self._held)
        finally:
            dirty.add(self._held)
            self._gets += 1
            self._get_s += time.perf_counter() - began

    def clear(self, start: int, count: int) -> None:
        start, end = min(start, self._held.size), min(start + count, self._held.size)
        self._clears += self._held.take_count(start, end - start) > 0

    def _compare(self, found: Bitmap) -> None:
        """Sets the pages that differ, before they are copied: an exception half-way then loses none. Raises
        `MappingChanged` where there is nothing to read, which would end the process."""
        check_touchable(self._address, len(self._live), f"block {self._block.name!r}")
        for lo in range(0, len(self._live), _AT_ONCE):
            live, copy = self._live[lo : lo + _AT_ONCE], self._copy[lo : lo + _AT_ONCE]
            changed = np.flatnonzero(np.not_equal(live, copy, out=self._unequal[: len(live)]).any(axis=1))
            if changed.size:
                found.set_indexes(changed + lo)
                copy[changed] = live[changed]
