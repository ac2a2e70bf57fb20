"""Chunks that are written all the time, and stay unarmed: what a tracker does that need not be exact.

A program that streams through its memory pays a fault for every page after every sync, and loses its huge pages. So a
chunk (2 MiB) that was wholly written in two harvests running is not armed again by the second. From then on it costs
its writer nothing, and all its pages count as written in every harvest, until it has cooled:

- **Sample.** At each harvest one page of each unarmed chunk, another one each time, is held against its content at the
  harvest before, by a sum of its words. A page that has not changed is a hint that the chunk has cooled.
- **Probe.** A chunk with that hint is armed; it counts as written once more, and the next harvest says exactly what was
  written of it. If that is all of it (the program stores what is there already), it stays unarmed at once, and is armed
  on a hint only after twice as many harvests as the time before, `MOST_WAIT` at most: what probing costs is bounded.

A chunk of which a share f is still written is found with probability 1 - f by each harvest.

Law 1: more pages are reported than were written, and never fewer. A page that is not armed reads as written in every
scan, by the kernel itself, until it is protected; and a page is protected by the harvest that reports it, before it is
read. What is noted here decides only which chunks a harvest protects.

An `exact` harvest arms everything, and reports what was unarmed whole, so the next one is exact. After one or more of
them `relax` says which chunks are to be unarmed again without having to prove once more that they are hot: those that
were unarmed, and have not cooled by their sample, and those that were wholly written in the first of these harvests and
in the one before it. What was written during the exact ones is known, and all that comes later counts as written.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from precopy.bitmap import BITS_PER_WORD, Bitmap, Runs
from precopy.bitmap.words import ALL_ONES

CHUNK_PAGES = 512
"""Pages of a chunk: 2 MiB, which is what a huge page and a page table have."""
MOST_WAIT = 32
"""Harvests between two probes of a chunk that no probe finds cooled, at most; twice as many where chance has it so. A
probe costs a fault a page, so a sync then costs a thirty-second of an exact one."""
_AT_ONCE = 1024
"""Sampled pages that are read at a time (4 MiB, which stay in the cache)."""

Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.uint64]

Scan = Callable[[Runs, bool], None]
"""Sets what was written of some runs of pages in the bitmap of the harvest; protects it where the flag says so."""


class HotChunks:
    """Of a mapping of ``pages`` pages, in chunks of ``chunk`` (a multiple of 64) from page ``first`` on. What lies
    before the first chunk and after the last whole one is always armed.

    ``rows`` are the pages' words, shape (pages, words of a page), which only `find` reads, of chunks that are unarmed.
    """

    def __init__(self, pages: int, rows: Rows, *, first: int = 0, chunk: int = CHUNK_PAGES) -> None:
        first = first if first % BITS_PER_WORD == 0 and first < pages else 0
        self.count, self.first, self._chunk, self._rows = (pages - first) // chunk, first, chunk, rows
        # Parts of the mapping: what lies before the chunks, the chunks, and what lies after them.
        self._bounds = np.array([0, *range(first, first + self.count * chunk + 1, chunk), pages], np.int64)
        self.unarmed: Flags = np.zeros(self.count, np.bool_)
        """Chunks that are not armed now."""
        self.counted: Flags = np.zeros(self.count, np.bool_)
        """Chunks whose pages the last harvest has counted as written, because they were not armed."""
        self._whole: Flags = np.zeros(self.count, np.bool_)  # wholly written in the last harvest, or counted so
        self._resume: Flags = np.zeros(self.count, np.bool_)  # to be unarmed when exactness is wanted no more
        self._exactly = False  # whether the last harvest was exact, and `relax` was not called since
        self._harvests = 0
        self._wait = np.zeros(self.count, np.int64)  # the harvest from which on a hint leads to a probe
        self._back_off = np.ones(self.count, np.int64)
        self._random = np.random.default_rng(1)
        self._sampled = np.full(self.count, -1, np.int64)  # pages, or -1
        self._sums = np.zeros(self.count, np.uint64)

    def runs(self, chunks: Flags) -> Runs:
        """The pages of some chunks."""
        found = Runs.from_indexes(np.flatnonzero(chunks) + 1)  # part 0 lies before the chunks
        return self._pages(found)

    def _rest(self, chunks: Flags) -> Runs:
        """The pages of all other chunks, and those outside all chunks."""
        parts = np.concatenate(([True], ~chunks, [True]))
        found = self._pages(Runs.from_indexes(np.flatnonzero(parts)))
        return Runs(found.starts[found.lengths > 0], found.lengths[found.lengths > 0])

    def _pages(self, parts: Runs) -> Runs:
        starts = self._bounds[parts.starts]
        return Runs(starts, self._bounds[parts.ends] - starts)

    def find(self, found: Bitmap, scan: Scan, *, exact: bool) -> None:
        """A harvest: ``scan`` sets in ``found``, which is empty at first, what was written. Raises what it raises;
        all that was protected by then has to be treated as written."""
        self._harvests += 1
        if exact:
            self._find_exactly(found, scan)
        else:
            self._find(found, scan)

    def _find(self, found: Bitmap, scan: Scan) -> None:
        self._exactly = False
        counted = self.unarmed.copy()
        open_ = self._whole | counted
        scan(self._rest(open_), True)
        scan(self.runs(open_), False)
        found.set_runs(self.runs(counted))
        whole = self.wholly(found)
        cooled = open_ & ~whole
        scan(self.runs(cooled), True)
        self._back_off[cooled] = 1
        self.unarmed = open_ & whole
        self._whole, self.counted = whole, counted
        self._probe(scan)
        self._sample(self.unarmed)

    def _find_exactly(self, found: Bitmap, scan: Scan) -> None:
        counted = self.unarmed.copy()
        scan(Runs.of((0, found.size)), True)
        found.set_runs(self.runs(counted))
        if not self._exactly:
            whole = self.wholly(found)
            self._resume = np.where(counted, ~self._unchanged(), whole & self._whole)
            self._whole = whole
        self.unarmed = np.zeros(self.count, np.bool_)
        self.counted, self._exactly = counted, True
        self._sample(self._resume)

    def relax(self) -> Runs:
        """The next harvest need not be exact: what is to be unprotected, and counts as written from now on."""
        resume, self._resume = self._resume, np.zeros(self.count, np.bool_)
        self.unarmed |= resume
        self._exactly = False
        return self.runs(resume)

    def wholly(self, found: Bitmap) -> Flags:
        """Which chunks have all their pages in ``found``."""
        words = self._chunk // BITS_PER_WORD
        at = self.first // BITS_PER_WORD
        chunks = found.words[at : at + self.count * words].reshape(-1, words)
        whole: Flags = (chunks == ALL_ONES).all(axis=1)
        return whole

    def _probe(self, scan: Scan) -> None:
        """Arms unarmed chunks of which a sampled page has not changed."""
        probed = self.unarmed & self._unchanged() & (self._harvests >= self._wait)
        if probed.any():
            scan(self.runs(probed), True)
            back_off = np.minimum(2 * self._back_off[probed], MOST_WAIT)
            # Some later than others, so that chunks that became hot together are not all probed by one harvest.
            self._wait[probed] = self._harvests + self._random.integers(back_off, 2 * back_off + 1)
            self._back_off[probed] = back_off
            self.unarmed &= ~probed

    def _unchanged(self) -> Flags:
        """Which chunks have a sample that has not changed."""
        unchanged = np.zeros(self.count, np.bool_)
        at = np.flatnonzero(self._sampled >= 0)
        unchanged[at] = self._sums[at] == self._sum(self._sampled[at])
        return unchanged

    def _sample(self, chunks: Flags) -> None:
        """Samples these chunks anew, and no others."""
        at = np.flatnonzero(chunks)
        self._sampled.fill(-1)
        self._sampled[at] = self._bounds[at + 1] + self._random.integers(0, self._chunk, at.size)
        self._sums[at] = self._sum(self._sampled[at])

    def _sum(self, pages: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        """Of each page, the sum of its words. It misses that words changed places, which costs a probe and no page."""
        sums = np.empty(pages.size, np.uint64)
        for lo in range(0, pages.size, _AT_ONCE):
            self._rows[pages[lo : lo + _AT_ONCE]].sum(axis=1, out=sums[lo : lo + _AT_ONCE])
        return sums
