"""The dirty log of an emulated CPU that announces stores: the first to each armed page, or every one.

An announced page may be written without another announcement until it is armed again. Lowering a page's flag therefore
re-arms the page in the CPU, and returns only when the CPU's next store to it will be announced (law 1). The CPU's way
of re-arming is handed in as ``rearming``.

The announcement comes *before* the store. A page whose flag is set can therefore be harvested, cleared and read while
its store is still to come; nothing would report that store again, and law 1 would be broken. So the page or pages of
the write that was announced last stay dirty through any clear, until the CPU says that it is done, or announces the
next. Each vCPU has its own log of the announcement in flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from precopy.bitmap import BITS_PER_WORD, Bitmap, Runs
from precopy.dirty.log import LogCounters
from precopy.memory.layout import RamBlock


class WriteLog:
    """Implements `precopy.ports.DirtyLog` for one emulated CPU over a ram_addr space of ``pages`` pages.

    ``tracked`` are the pages that exist (the RAM blocks). Flags are bytes and the announcement in flight is one
    tuple: under the interpreter's lock, setting either is indivisible, and the emulated CPU's hottest path needs no
    lock of our own. Flags are lowered inside ``rearming()``; by default for a CPU that announces every store.
    """

    name = "emulated write log"

    def __init__(
        self, pages: int, tracked: Runs, rearming: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self._tracked, self._rearming = tracked, rearming
        self._flags = bytearray(-(-pages // BITS_PER_WORD) * BITS_PER_WORD)
        self._view = np.frombuffer(self._flags, np.uint8)
        self._harvested = Bitmap(pages)
        self._in_flight: tuple[int, int] | None = None
        self._gets = self._clears = 0
        self._get_s = self._clear_s = 0.0

    def wrote(self, first: int, last: int) -> None:
        """Announces a store to pages ``first`` to ``last`` (equal but for a store across pages)."""
        self._in_flight = (first, last)
        self._flags[first] = self._flags[last] = 1

    def marked(self, page: int) -> bool:
        """Whether a store to the page need not be announced, because the page is dirty and not yet cleared."""
        return self._flags[page] == 1

    def settled(self) -> None:
        """The CPU stands between two instructions: the store announced last is done."""
        self._in_flight = None

    @property
    def counters(self) -> LogCounters:
        return LogCounters(self._gets, self._get_s, self._clears, self._clear_s)

    def start(self) -> None:
        """All pages count as dirty at first, as with the KVM dirty log."""
        for start, length in self._tracked:
            self._view[start : start + length] = 1

    def stop(self) -> None:
        """The CPU goes on announcing stores, which are ignored."""
        self._harvested.clear_all()

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        start = time.perf_counter()
        first, pages = (0, self._harvested.size) if block is None else (block.first_page, block.pages)
        part = self._harvested.view(first, pages)
        flags = self._view[first : first + part.words.size * BITS_PER_WORD]
        part.words[:] = np.packbits(flags, bitorder="little").view(np.uint64)
        dirty.view(first, pages).add(part)
        self._gets += 1
        self._get_s += time.perf_counter() - start

    def clear(self, start: int, count: int) -> None:
        size = self._harvested.size
        start, end = min(start, size), min(start + count, size)
        runs = self._harvested.take(start, end - start)
        if not len(runs):
            return
        began = time.perf_counter()
        with self._rearming():
            for first, length in runs:
                self._view[first : first + length] = 0
            in_flight = self._in_flight  # read after the flags are down: a later store raises its own
            if in_flight is not None:
                self._flags[in_flight[0]] = self._flags[in_flight[1]] = 1
        self._clears += 1
        self._clear_s += time.perf_counter() - began
