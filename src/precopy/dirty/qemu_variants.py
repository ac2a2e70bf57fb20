"""The clear policies of the patch series "migration: merge fragmented clear_dirty ioctls", block by block as in QEMU.

A block whose start and length are multiples of 64 pages is *aligned*: its words are merged, and its chunks are marked
in ``clear_bmap`` and cleared just before their first page is sent. Every other block is *unaligned*, and here the
versions differ: a clear a page (before the patch), one after the loop (RFC v1, upstream), or clear_bmap as well (what
the reviewer asked about). docs/patch-series.md maps the series' functions one by one.

Two things are QEMU's and not ours. Its clears are unconditional: the kernel is called also where nothing was dirty
(`LogClear.clear_always`). And its unaligned path loops over single pages; there the loop's own work, testing a bit,
costs nanoseconds in C and microseconds in Python, so the bits of a block are taken over in one operation, and what is
looped over are the calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Bitmap
from precopy.dirty.clear import TICK_CLEARS, no_tick
from precopy.dirty.log import LogClear
from precopy.memory.layout import RamBlock, RamLayout

CLEAR_BITMAP_SHIFT = 18
"""QEMU's default for ``x-clear-bitmap-shift``: chunks of 1 GiB."""


class _ClearBitmap:
    """QEMU's ``clear_bmap``: one flag for each chunk of a block."""

    def __init__(self, blocks: list[RamBlock], shift: int) -> None:
        self._blocks, self._shift = blocks, shift
        self._firsts = [block.first_page for block in blocks]
        self._marked: list[npt.NDArray[np.bool_]] = [np.zeros((block.pages >> shift) + 1, np.bool_) for block in blocks]

    def mark(self, block: RamBlock) -> None:
        """All of a block, as a sync of it does whether or not it found anything."""
        self._marked[self._blocks.index(block)][:] = True

    def clear(self, start: int, count: int, log: LogClear) -> None:
        """Clears the marked chunks that hold one of ``count`` pages from ``start``, which lie in one block."""
        index = bisect_right(self._firsts, start) - 1
        if index < 0 or start >= self._blocks[index].end_page:
            return
        block, marked = self._blocks[index], self._marked[index]
        first, last = start - block.first_page, start + count - 1 - block.first_page
        for chunk in range(first >> self._shift, (last >> self._shift) + 1):
            if marked[chunk]:
                marked[chunk] = False
                begin = chunk << self._shift
                log.clear_always(block.first_page + begin, min(1 << self._shift, block.pages - begin))


class BlockByBlock(ABC):
    """QEMU's sync; what it does with an unaligned block is a subclass's, which `defers` it or clears it now."""

    name: ClassVar[str]
    defers: ClassVar[bool] = False
    unconditional = True
    whole_arrays = False
    marks = None

    def __init__(self, layout: RamLayout, shift: int = CLEAR_BITMAP_SHIFT) -> None:
        self.blocks = layout.blocks
        self.at_once = tuple(block for block in layout.blocks if not (block.aligned or self.defers))
        self.deferred = [block for block in layout.blocks if block not in self.at_once]
        self._chunks = _ClearBitmap(self.deferred, shift)

    def merge(self, dirty: Bitmap, pending: Bitmap) -> tuple[int, int]:
        new = sum(
            pending.view(block.first_page, block.pages).union(dirty.view(block.first_page, block.pages))
            for block in self.blocks
        )
        return dirty.count(), new

    def harvested(self, dirty: Bitmap, log: LogClear, tick: Callable[[], None] = no_tick) -> None:  # noqa: ARG002 - unconditional
        for block in self.deferred:
            self._chunks.mark(block)
        for block in self.at_once:
            self.clear_now(block, log, tick)

    @abstractmethod
    def clear_now(self, block: RamBlock, log: LogClear, tick: Callable[[], None]) -> None:
        """Re-arms all of a block that is not deferred."""

    def before_read(self, start: int, count: int, log: LogClear) -> None:
        self._chunks.clear(start, count, log)


class BeforePatch(BlockByBlock):
    """One clear for every page of an unaligned block, dirty or not.

    Source: ``physical_memory_sync_dirty_bitmap`` before the patch, which calls
    ``physical_memory_test_and_clear_dirty`` for one page at a time; that ends in ``memory_region_clear_dirty_bitmap``
    whatever it found.
    """

    name = "before-patch"

    def clear_now(self, block: RamBlock, log: LogClear, tick: Callable[[], None]) -> None:
        for page in range(block.first_page, block.end_page):
            log.clear_always(page, 1)
            if not page % TICK_CLEARS:
                tick()


class RfcV1(BlockByBlock):
    """One clear after the loop, behind a flag that every other caller has to set (the series' RFC v1), but for the
    range that was meant: the series' own one ends a page later, which the sync did not look at."""

    name = "rfc-v1"

    def clear_now(self, block: RamBlock, log: LogClear, tick: Callable[[], None]) -> None:  # noqa: ARG002 - one call
        log.clear_always(block.first_page, block.pages)


class Upstream(RfcV1):
    """As merged (v4 of the series): test_and_clear takes the destination bitmap, returns the count, and makes one
    clear for the range. The same calls as RFC v1's; what differs is the interface, `DirtyMemory.test_and_clear`."""

    name = "upstream"


class ClearBmap(BlockByBlock):
    """The reviewer's alternative: unaligned blocks go through clear_bmap too, so that a sync makes no clear."""

    name = "clear-bmap"
    defers = True

    def clear_now(self, block: RamBlock, log: LogClear, tick: Callable[[], None]) -> None:
        """Never called: every block is deferred."""
