"""A dirty log whose writes are given by the caller, to test trackers, policies and engines without a kernel."""

from __future__ import annotations

from precopy.bitmap import Bitmap, Runs
from precopy.dirty.log import LogCounters
from precopy.memory.layout import RamBlock

_CALL_S = 1e-6
"""Seconds that each call is said to take: the same in each run."""


class ScriptedLog:
    """Implements `precopy.ports.DirtyLog` over a ram_addr space of ``pages`` pages: exactly as KVM's dirty log with
    manual protect would, where the guest writes what `wrote` says. `harvest` reads, `clear` drops what was harvested.
    """

    name = "scripted"

    def __init__(self, pages: int) -> None:
        self.dirty, self._harvested = Bitmap(pages), Bitmap(pages)
        self.started = False
        self._gets = self._clears = 0

    def wrote(self, runs: Runs) -> None:
        """The guest wrote these pages, now. Raises `BitmapRangeError`."""
        self.dirty.set_runs(runs)

    @property
    def counters(self) -> LogCounters:
        return LogCounters(self._gets, self._gets * _CALL_S, self._clears, self._clears * _CALL_S)

    def start(self) -> None:
        """No page is dirty at first."""
        self.dirty.clear_all()
        self._harvested.clear_all()
        self.started = True

    def stop(self) -> None:
        self._harvested.clear_all()
        self.started = False

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        first, pages = (0, self.dirty.size) if block is None else (block.first_page, block.pages)
        found = self.dirty.view(first, pages)
        self._harvested.view(first, pages).words[:] = found.words
        dirty.view(first, pages).add(found)
        self._gets += 1

    def clear(self, start: int, count: int) -> None:
        start, end = min(start, self.dirty.size), min(start + count, self.dirty.size)
        runs = self._harvested.take(start, end - start)
        if len(runs):
            for first, length in runs:
                self.dirty.clear_range(first, length)
            self._clears += 1
