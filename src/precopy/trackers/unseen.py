"""Writes that no dirty log of Linux reports, and how their pages are found all the same (law 1).

The kernel notes a write when a *CPU* makes it through a page table. Where a device writes (a read with O_DIRECT,
io_uring, RDMA), it pins the page when the transfer is submitted, takes the page's protection away then, and writes it
later. A sync in between reports the page and protects it again; the device's write is never reported. Therefore:

- **Announced**: `begin` and `end` around such a transfer. Its pages count as written in every sync in between, and in
  the next one after its end.
- **Buffers** (`buffer`): pages that may be written at any time, such as those registered with io_uring or pinned by a
  driver. They count as written in every sync.
- **Recent**: where the process has a descriptor that such transfers need, pages that a sync found count as written in
  all syncs of the next `RECENT_S` seconds, too, because a transfer into them may have been under way.

Buffers and recent pages are *perhaps* written: code that waits until nothing is written compares their content.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from precopy.bitmap import Bitmap, Runs

RECENT_S = 2.0
"""Seconds for which a page that a sync found may still have a transfer under way that began before the sync. A disk
answers within milliseconds, a busy one within tenths of a second."""
_SLICE_S = 0.25
"""Seconds of syncs that are kept in one bitmap."""


class UnseenWrites:
    """For a ram_addr space of ``pages`` pages. ``possible`` says whether this process may have unannounced
    transfers under way; ``now`` is a monotonic clock in seconds. Callers hold a lock."""

    def __init__(self, pages: int, possible: Callable[[], bool], now: Callable[[], float]) -> None:
        self._pages, self._possible, self._now = pages, possible, now
        self._under_way: list[Runs] = []
        self.buffers: list[Runs] = []
        self._recent: deque[tuple[float, Bitmap]] = deque()

    def begin(self, runs: Runs) -> None:
        self._under_way.append(runs)

    def end(self, runs: Runs) -> None:
        self._under_way = [announced for announced in self._under_way if announced is not runs]

    def buffer(self, runs: Runs) -> None:
        self.buffers.append(runs)

    def started(self) -> None:
        """The log has just protected all pages."""
        self._recent.clear()
        if self._possible():
            everything = Bitmap(self._pages)
            everything.set_all()
            self._recent.append((self._now(), everything))

    def harvested(self, found: Bitmap) -> Bitmap | None:
        """Adds to ``found``, which the log has just reported and protected, what is being written as announced; returns
        what is written perhaps, or None. ``found`` is asked about before its pages are read, so a transfer that
        has ended by now is in what they read."""
        for runs in self._under_way:
            found.set_runs(runs)
        now = self._now()
        while self._recent and now - self._recent[0][0] > RECENT_S + _SLICE_S:
            self._recent.popleft()
        perhaps = None
        if self._recent or self.buffers:
            perhaps = Bitmap(self._pages)
            for _, pages in self._recent:
                perhaps.add(pages)
            for runs in self.buffers:
                perhaps.set_runs(runs)
            perhaps.difference(found)
        if found.any() and self._possible():
            if not self._recent or now - self._recent[-1][0] > _SLICE_S:
                self._recent.append((now, Bitmap(self._pages)))
            self._recent[-1][1].add(found)
        return perhaps
