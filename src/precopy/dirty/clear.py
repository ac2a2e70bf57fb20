"""Clear policies: when pages that a sync found are re-armed, and in how many calls.

Every policy keeps law 1: `ClearPolicy.before_read` of a page range returns only when each page of it that was
harvested is armed again. What a policy decides is *when* and in which portions; turning a page range into calls that
the kernel accepts is the tracker's business (law 3), and so is masking by what was harvested (law 2).

The policies of QEMU's patch series, which go block by block, are in qemu_variants.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from precopy.bitmap import BITS_PER_WORD, Bitmap
from precopy.bitmap.taking import ChunkMarks
from precopy.defaults import CLEAR_CHUNK_SHIFT
from precopy.dirty.log import LogClear
from precopy.errors import UsageError

MIN_CHUNK_SHIFT, MAX_CHUNK_SHIFT = 6, 31
"""Chunks of 64 pages at least, a word of the bitmap, and of 8 TiB at most: QEMU's bounds of
``x-clear-bitmap-shift``."""

TICK_CLEARS = 256
"""Clears between two calls of ``tick``, by which a long sync shows that it is alive."""


def no_tick() -> None:
    """Default for ``tick``: does nothing."""


class ClearPolicy(Protocol):
    """When log_clear is called for what a sync found."""

    @property
    def name(self) -> str: ...

    @property
    def unconditional(self) -> bool:
        """Whether `harvested` is to be called also where a sync found nothing, as QEMU's paths are."""
        ...

    @property
    def whole_arrays(self) -> bool:
        """Whether `merge` is one operation over the whole ram_addr space, which a log may do as well."""
        ...

    @property
    def marks(self) -> ChunkMarks | None:
        """Chunks that are marked where something was found, which a log that merges does as well; `harvested` is not
        called then. None: there are none."""
        ...

    def merge(self, dirty: Bitmap, pending: Bitmap) -> tuple[int, int]:
        """Takes what a sync harvested over into what is pending; returns how many pages that are, and how many of them
        were not pending before."""
        ...

    def harvested(self, dirty: Bitmap, log: LogClear, tick: Callable[[], None] = no_tick) -> None:
        """Called by every sync with all that it harvested, pending before or not. What takes long calls ``tick`` now
        and then, which may raise to stop it."""

    def before_read(self, start: int, count: int, log: LogClear) -> None:
        """Called before the content of ``count`` pages from ram_addr page ``start`` is read for sending."""


class WholeArrays:
    """How a sync merges, whatever the blocks' lengths: a few operations over the whole ram_addr space."""

    unconditional = False
    whole_arrays = True
    marks: ChunkMarks | None = None

    def merge(self, dirty: Bitmap, pending: Bitmap) -> tuple[int, int]:
        return pending.merge(dirty)


class PerPage(WholeArrays):
    """One clear for each dirty page, at once: QEMU's path for unaligned blocks before the patch series.

    Source: ``physical_memory_sync_dirty_bitmap`` calling ``physical_memory_test_and_clear_dirty`` for one page at a
    time, each of which ends in ``memory_region_clear_dirty_bitmap``. This is the reference that others are compared
    against, and the only loop over single pages.
    """

    name = "per-page"

    def harvested(self, dirty: Bitmap, log: LogClear, tick: Callable[[], None] = no_tick) -> None:
        for done, page in enumerate(dirty.indexes().tolist()):
            log.clear(page, 1)
            if not done % TICK_CLEARS:
                tick()

    def before_read(self, start: int, count: int, log: LogClear) -> None:
        """Nothing is left to do: all was cleared in the sync."""


class Merged(WholeArrays):
    """One clear for all that a sync found, at once, as the merged patch does, but none where nothing is dirty.

    The tracker makes one call a slot of it, and more only where a gap of clean pages costs more than a call.
    """

    name = "merged"

    def harvested(self, dirty: Bitmap, log: LogClear, tick: Callable[[], None] = no_tick) -> None:  # noqa: ARG002 - it is quick
        found = np.flatnonzero(dirty.words != 0)
        if found.size:
            start = int(found[0]) * BITS_PER_WORD
            log.clear(start, min((int(found[-1]) + 1) * BITS_PER_WORD, dirty.size) - start)

    def before_read(self, start: int, count: int, log: LogClear) -> None:
        """Nothing is left to do: all was cleared in the sync."""


class Deferred(WholeArrays):
    """Chunks of ``2**shift`` pages, each cleared just before its first page is read after a sync that found some.

    Source: QEMU's ``clear_bmap`` (``migration_clear_memory_region_dirty_bitmap``), which serves aligned blocks only;
    here it serves every block. A sync makes no clear at all, and a page written again before its chunk is read costs
    neither a second write fault nor a second transfer.
    """

    name = "deferred"

    def __init__(self, pages: int, shift: int = CLEAR_CHUNK_SHIFT) -> None:
        if not MIN_CHUNK_SHIFT <= shift <= MAX_CHUNK_SHIFT:
            raise UsageError(f"the clear chunk shift is {MIN_CHUNK_SHIFT} to {MAX_CHUNK_SHIFT}, not {shift}")
        self.pages, self.shift = pages, shift
        self.marks: ChunkMarks = ChunkMarks.over(pages, shift)
        self._marked = self.marks.marked
        self._chunks = np.arange(self._marked.size) << self.marks.word_shift
        """Word at which each chunk begins."""

    def harvested(self, dirty: Bitmap, log: LogClear, tick: Callable[[], None] = no_tick) -> None:  # noqa: ARG002 - it defers
        np.logical_or(self._marked, np.bitwise_or.reduceat(dirty.words, self._chunks), out=self._marked)

    def before_read(self, start: int, count: int, log: LogClear) -> None:
        first, last = start >> self.shift, (start + count - 1) >> self.shift
        for chunk in range(first, last + 1):
            if self._marked[chunk]:
                self._marked[chunk] = False
                begin = chunk << self.shift
                log.clear(begin, min(1 << self.shift, self.pages - begin))
