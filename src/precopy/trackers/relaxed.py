"""Harvests of one mapping that need not be exact: hot_chunks.py over the kernel's write protection, and huge pages.

The first write after a huge page was protected splits it, and who streams through small pages is slower than through
huge ones, whether they are tracked or not. So a chunk that stays unarmed, and was a huge page when tracking began, is
joined again, in at most `JOIN_SHARE` of the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import time

import numpy as np

from precopy.abi.huge_pages import HUGE_BYTES, collapse
from precopy.bitmap import Bitmap, Runs
from precopy.errors import KernelCallError, Unsupported
from precopy.trackers.hot_chunks import CHUNK_PAGES, HotChunks
from precopy.trackers.write_protection import Mapping, WriteProtection, scan_into
from precopy.units import PAGE_SIZE

JOIN_SHARE = 0.05
"""Share of the time between two harvests in which chunks are joined to huge pages, at least one of them each time. It
copies 2 MiB (0.35 ms beside other load), and a thread that writes the chunk waits meanwhile."""


class RelaxedFinder:
    """For ``mapping``, which is registered and not protected yet. Raises `KernelCallError`."""

    def __init__(self, mapping: Mapping, kernel: WriteProtection, chunk: int = CHUNK_PAGES) -> None:
        self._mapping, self._kernel = mapping, kernel
        pages = mapping.block.pages
        memory = (ctypes.c_ubyte * (pages * PAGE_SIZE)).from_address(mapping.address)
        rows = np.frombuffer(memoryview(memory), np.uint64).reshape(pages, -1)
        first = (-mapping.address // PAGE_SIZE) % CHUNK_PAGES if chunk == CHUNK_PAGES else 0
        self.chunks = HotChunks(pages, rows, first=first, chunk=chunk)
        huge = Bitmap(pages)
        if chunk == CHUNK_PAGES:
            for runs in kernel.huge(mapping):
                huge.set_runs(runs)
        self._huge = self.chunks.wholly(huge)
        self._joined = np.zeros_like(self._huge)
        self._harvested = time.perf_counter()

    def find(self, written: Bitmap, *, exact: bool) -> None:
        """Adds the pages that were written since the harvest before, or may have been. Raises as
        `WriteProtection.written`."""
        found = Bitmap(written.size)

        def scan(runs: Runs, protect: bool) -> None:
            for start, count in runs:
                scan_into(self._kernel, self._mapping, start, found, protect=protect, at=start, count=count)

        try:
            self.chunks.find(found, scan, exact=exact)
        finally:
            written.add(found)
        self._join()

    def relax(self) -> None:
        """The next harvest need not be exact, after some that were."""
        for start, count in self.chunks.relax():
            # Where that fails, it is noted as unarmed, so it counts as written all the same.
            with contextlib.suppress(KernelCallError, Unsupported):
                self._kernel.unprotect(self._mapping, start, count)

    @property
    def counted(self) -> Runs:
        """Pages, over all blocks, that the last harvest has counted as written because they were not armed."""
        return self.chunks.runs(self.chunks.counted).shifted(int(self._mapping.block.first_page))

    def _join(self) -> None:
        """Makes chunks huge pages again, which stay so until they are armed and written."""
        self._joined &= self.chunks.unarmed
        began = time.perf_counter()
        until = began + JOIN_SHARE * (began - self._harvested)
        self._harvested = began
        for start, count in self.chunks.runs(self._huge & self.chunks.unarmed & ~self._joined):
            for page in range(start, start + count, CHUNK_PAGES):
                address = self._mapping.address + page * PAGE_SIZE
                if address % HUGE_BYTES == 0:
                    collapse(address)
                self._joined[(page - self.chunks.first) // CHUNK_PAGES] = True
                if time.perf_counter() > until:
                    return
