"""The kernel's log of writes to this process's own memory: userfaultfd write protection and PAGEMAP_SCAN.

No guest is needed: any mapping of this process can be tracked, with the writes of its threads and of the kernel on
their behalf (``read(2)`` into it). Memory is write-protected; the first write to a page makes the kernel take the
protection away again, which is all that a writer notices (a fault of about a microsecond, once a page and arming).
PAGEMAP_SCAN finds the pages without protection.

- **One step** (the default): a harvest finds and protects in the same ioctl. What it found stays in a bitmap of ours
  until it is cleared, which needs no system call.
- **Not exact**: as in one step, but chunks that are written all the time stay unarmed (hot_chunks.py).
- **Two steps**: a harvest only finds, and a clear protects, as the clear policies want it. A page written again between
  the two is reported once and faults once. Law 2: protecting a range also protects pages in it that no harvest has
  reported yet. The kernel names them while it does, and the next harvest reports them.

What it means for memory:

- Private and shared mappings, memfds and unpopulated memory are tracked alike. Pages given back count as written, as
  far as holes.py can find them. Of shared memory, only stores through *this* mapping are seen, not those of another
  process. What a device writes later into pages pinned for it before (O_DIRECT, RDMA, io_uring's registered buffers) is
  not seen: unseen.py says what is done about it. docs/memory.md has all of it as a table.
- Huge pages: a transparent huge page stays huge until it is written, and costs a scan almost nothing. Its
  first write splits it into small pages, of which just the one written is found; they stay small until khugepaged or
  MADV_COLLAPSE joins them after `stop`. Memory that was never touched has small pages when it is first written while it
  is tracked. Huge pages of hugetlbfs are reported and protected whole.
- fork: a child's memory is not tracked, and a child must not use its copy of the log, whose descriptors speak of the
  parent. Tracking of the parent goes on.
- ``stop`` first and unmap second: the kernel forgets mappings that go, but not what is mapped in their place. Every
  harvest looks whether the memory is still what it was (mapped.py).

Source: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst.
"""

from __future__ import annotations

import errno
import mmap
import time
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from precopy.bitmap import BITS_PER_WORD, NO_RUNS, Bitmap, Runs
from precopy.bitmap.words import words_for
from precopy.dirty.log import LogCounters
from precopy.errors import KernelCallError, LayoutError, MappingChanged, Unsupported
from precopy.memory.layout import RamBlock, RamLayout
from precopy.trackers.holes import Holes, replaced
from precopy.trackers.hot_chunks import CHUNK_PAGES
from precopy.trackers.mapped import check_mapped
from precopy.trackers.relaxed import RelaxedFinder
from precopy.trackers.write_protection import Mapping, WriteProtection, scan_into
from precopy.units import HostAddress

SCAN_US, SCAN_PAGE_US, PROTECT_US = 25.0, 0.0033, 2.5
"""What protecting costs in microseconds, besides what each dirty page costs either way: a scan with taking in what it
returns, each page that it walks over, and UFFDIO_WRITEPROTECT of one run. Measured over 1 GiB in small pages: one page
4 us so and 18 us in a scan, 256 single pages 615 and 730 us, 2048 of them 6200 and 1100 us."""
GAP_PAGES = int(SCAN_US / SCAN_PAGE_US)
"""Clean pages between two dirty ones that cost a scan as much as another scan."""


class PagemapLog:
    """Implements `precopy.ports.DirtyLog` for memory of this process: ``addresses`` are where the blocks of ``layout``
    are mapped, one each. A process may have several logs of disjoint memory; `FanOut` shares one.

    Any thread may write at any time; one thread at a time calls the log. `start` protects all memory, so nothing is
    dirty at first. Raises `LayoutError` where the mappings cannot be the blocks'.

    ``exact``: see `precopy.dirty.log.Relaxable`; in two steps all harvests are. ``chunk``: pages, a multiple of 64.
    """

    name = "pagemap"

    def __init__(
        self,
        layout: RamLayout,
        addresses: Sequence[HostAddress],
        *,
        one_step: bool = True,
        exact: bool = True,
        chunk: int = CHUNK_PAGES,
    ) -> None:
        self.layout, self.one_step, self._exact, self._chunk = layout, one_step, exact, chunk
        self._relaxed: dict[Mapping, RelaxedFinder] = {}
        self._mappings = _mappings(layout, addresses)
        self._kernel: WriteProtection | None = None
        self._holes: dict[Mapping, Holes] = {}
        self._held = Bitmap(layout.end_page)  # reported, and protected again already
        self._open = Bitmap(layout.end_page)  # reported, and not protected
        self._unreported = Bitmap(layout.end_page)  # found while protecting others, and protected
        self._gets = self._clears = self._ioctls = 0
        self._get_s = self._clear_s = 0.0

    @property
    def counters(self) -> LogCounters:
        """``clear_calls`` of a one-step log are clears that had something to forget, without a system call."""
        return LogCounters(self._gets, self._get_s, self._clears, self._clear_s)

    @property
    def ioctls(self) -> int:
        """System calls that harvests and clears have made so far."""
        return self._ioctls

    @property
    def exact(self) -> bool:
        return self._exact

    @exact.setter
    def exact(self, exact: bool) -> None:
        if self._exact and not exact:
            for finder in self._relaxed.values():
                finder.relax()
        self._exact = exact

    @property
    def unarmed(self) -> Runs:
        """Pages that the last harvest has counted as written because they were not armed."""
        return Runs.concatenate([finder.counted for finder in self._relaxed.values()])

    def start(self) -> None:
        """Registers and protects all memory. Raises `Unsupported` where the kernel or a permission is missing, or where
        something else tracks the memory already; `MappingChanged` where a block is not mapped, `KernelCallError`."""
        self._forget()
        if self._kernel is None:
            self._kernel = WriteProtection()
        try:
            for mapping in self._mappings:
                self._look_at(mapping)
                self._kernel.register(mapping)
                if not self.exact:
                    self._relax(self._kernel, mapping)
                self._kernel.protect(mapping, 0, mapping.block.pages)
                self._holes[mapping].protected(self._kernel.page_map)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None
        while self._holes:
            self._holes.popitem()[1].close()
        self._forget()

    def _relax(self, kernel: WriteProtection, mapping: Mapping) -> None:
        if self.one_step and mapping not in self._relaxed:
            self._relaxed[mapping] = RelaxedFinder(mapping, kernel, self._chunk)

    def _look_at(self, mapping: Mapping) -> None:
        """What it is before it is protected."""
        check_mapped(mapping.address, mapping.block.pages, mapping.target)
        if mapping in self._holes:
            self._holes.pop(mapping).close()
        self._holes[mapping] = Holes(mapping)
        self._holes[mapping].check()

    def _forget(self) -> None:
        self._relaxed.clear()
        # New ones take memory where a bit is set only; clearing these would take it for all of them.
        self._held, self._open, self._unreported = (Bitmap(self.layout.end_page) for _ in range(3))

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        if self._kernel is None:
            return
        before = self._kernel.ioctls
        for mapping in self._mappings:
            if block not in (None, mapping.block):
                continue
            first, pages = mapping.block.first_page, mapping.block.pages
            held, into = self._held.view(first, pages), dirty.view(first, pages)
            began = time.perf_counter()
            check_mapped(mapping.address, pages, mapping.target)
            self._holes[mapping].check()
            if not self.exact:
                self._relax(self._kernel, mapping)
            if self.one_step:
                self._find(self._kernel, mapping, held, held)
                self._get_s += time.perf_counter() - began
            else:
                still_open, late = self._open.view(first, pages), self._unreported.view(first, pages)
                self._find(self._kernel, mapping, still_open, held)
                self._get_s += time.perf_counter() - began
                held.add(late)
                late.clear_all()
                into.add(still_open)
            into.add(held)
        self._gets += self._kernel.ioctls - before
        self._ioctls += self._kernel.ioctls - before

    def _find(self, kernel: WriteProtection, mapping: Mapping, written: Bitmap, lost: Bitmap) -> None:
        """Adds the pages that were written, and those that lost their content otherwise, which are protected."""
        try:
            if mapping in self._relaxed:
                self._relaxed[mapping].find(written, exact=self.exact)
            else:
                scan_into(kernel, mapping, 0, written, protect=self.one_step)
        except KernelCallError as error:
            gone = replaced(kernel.page_map, mapping) if error.errno == errno.EPERM else NO_RUNS
            if not len(gone):
                raise
            what = "is not the mapping any more that tracking began with"
            raise MappingChanged(mapping.target, what, int(gone.starts[0]), gone.pages) from error
        try:
            self._holes[mapping].look(kernel.page_map, written, lost)
        except BaseException:
            lost.set_range(0, mapping.block.pages)  # what it has found may be forgotten (law 1)
            raise

    def clear(self, start: int, count: int) -> None:
        if self._kernel is None:
            return
        began, before = time.perf_counter(), self._kernel.ioctls
        start, end = min(start, self._held.size), min(start + count, self._held.size)
        some = self._held.take_count(start, end - start) > 0
        if not self.one_step:
            for mapping in self._mappings:
                lo, hi = max(start, mapping.block.first_page), min(end, mapping.block.end_page)
                if lo < hi:
                    some |= self._rearm(self._kernel, mapping, lo, hi - lo)
        if some:
            self._clears += max(self._kernel.ioctls - before, 1)
            self._clear_s += time.perf_counter() - began
            self._ioctls += self._kernel.ioctls - before

    def _rearm(self, kernel: WriteProtection, mapping: Mapping, start: int, count: int) -> bool:
        """Protects the pages of a range that harvests have left open; returns whether there were any.

        Long gaps are left out. What remains is protected run by run, or by a scan where that costs less.
        """
        runs = self._open.runs(start, count)
        if not len(runs):
            return False
        splits = np.flatnonzero(runs.starts[1:] - runs.ends[:-1] > GAP_PAGES) + 1
        for lo, hi in pairwise((0, *splits.tolist(), len(runs))):
            part, first = runs[lo:hi], int(runs.starts[lo])
            span = int(runs.starts[hi - 1] + runs.lengths[hi - 1]) - first
            if len(part) * PROTECT_US <= SCAN_US + span * SCAN_PAGE_US:
                for at, pages in part:
                    kernel.protect(mapping, at - mapping.block.first_page, pages)
            else:
                self._scan_and_protect(kernel, mapping, first, span)
        self._open.clear_range(start, count)
        return True

    def _scan_and_protect(self, kernel: WriteProtection, mapping: Mapping, start: int, count: int) -> None:
        """Protects the written pages of a range; those that no harvest has reported are kept for the next one."""
        first, last = start // BITS_PER_WORD, words_for(start + count)
        late = Bitmap(min(last * BITS_PER_WORD, self._open.size) - first * BITS_PER_WORD)
        at = start - first * BITS_PER_WORD
        try:
            scan_into(kernel, mapping, start - mapping.block.first_page, late, protect=True, at=at, count=count)
        finally:
            late.words &= ~self._open.words[first:last]
            self._unreported.words[first:last] |= late.words


def unavailable() -> str | None:
    """Why memory cannot be tracked here, in one sentence with what to do; None where it can. Tries it on a page."""
    with mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as page:
        address = int(np.frombuffer(page, np.uint8).__array_interface__["data"][0])
        layout = RamLayout.of_blocks([("probe", mmap.PAGESIZE)], mmap.PAGESIZE)
        log = PagemapLog(layout, [HostAddress(address)])
        try:
            log.start()
            log.harvest(Bitmap(layout.end_page))
        except (Unsupported, KernelCallError) as error:
            return str(error)
        finally:
            log.stop()
    return None


def _mappings(layout: RamLayout, addresses: Sequence[HostAddress]) -> tuple[Mapping, ...]:
    if layout.page_size != mmap.PAGESIZE:
        raise LayoutError(f"pages of {layout.page_size} bytes cannot be tracked: this system's have {mmap.PAGESIZE}")
    if len(addresses) != len(layout.blocks):
        raise LayoutError(f"{len(layout.blocks)} blocks have {len(addresses)} addresses")
    mappings = tuple(Mapping(block, int(at)) for block, at in zip(layout.blocks, addresses, strict=True))
    for mapping in mappings:
        if mapping.address % mmap.PAGESIZE:
            raise LayoutError(f"{mapping.target} is mapped at {mapping.address:#x}, which is no whole page")
    for before, after in pairwise(sorted(mappings, key=lambda mapping: mapping.address)):
        if before.end_address > after.address:
            raise LayoutError(f"{before.target} and {after.target} are mapped at the same addresses")
    return mappings
