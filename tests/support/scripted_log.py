"""A dirty log whose writes are given by the caller, to test a policy without a kernel."""

from __future__ import annotations

import time

from precopy.bitmap import Bitmap, Runs
from precopy.dirty.log import LogCounters
from precopy.memory.layout import RamBlock


class ScriptedLog:
    """Implements `precopy.ports.DirtyLog` over a ram_addr space of ``pages`` pages: exactly as KVM's dirty log with
    manual protect would, where the guest writes what `wrote` says."""

    name = "scripted"

    def __init__(self, pages: int) -> None:
        self._dirty = Bitmap(pages)
        self._harvested = Bitmap(pages)
        self._gets = self._clears = 0
        self._get_s = self._clear_s = 0.0

    def wrote(self, runs: Runs) -> None:
        """The guest wrote these pages, now. Raises `BitmapRangeError`."""
        self._dirty.set_runs(runs)

    @property
    def counters(self) -> LogCounters:
        return LogCounters(self._gets, self._get_s, self._clears, self._clear_s)

    def start(self) -> None:
        """No page is dirty at first."""
        self._dirty.clear_all()
        self._harvested.clear_all()

    def stop(self) -> None:
        self._harvested.clear_all()

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        start = time.perf_counter()
        first, pages = (0, self._dirty.size) if block is None else (block.first_page, block.pages)
        found, harvested = self._dirty.view(first, pages), self._harvested.view(first, pages)
        harvested.words[:] = found.words
        dirty.view(first, pages).add(found)
        self._gets += 1
        self._get_s += time.perf_counter() - start

    def clear(self, start: int, count: int) -> None:
        start, end = min(start, self._dirty.size), min(start + count, self._dirty.size)
        began = time.perf_counter()
        runs = self._harvested.take(start, end - start)
        if len(runs):
            for first, length in runs:
                self._dirty.clear_range(first, length)
            self._clears += 1
            self._clear_s += time.perf_counter() - began
