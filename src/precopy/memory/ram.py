"""The memory of one guest: its layout, and for each block the host memory that holds it.

Buffers handed out are views of guest memory itself: nothing here copies page content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Self

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Runs
from precopy.errors import LayoutError, OutOfMemory
from precopy.memory.host import Backing, Host, HostMemory
from precopy.memory.layout import RamBlock, RamLayout
from precopy.memory.system_memory import available_memory

Pages = npt.NDArray[np.uint64]
"""Shape (pages, words in a page)."""


class GuestMemory:
    """RAM blocks with their host memory. Raises `OutOfMemory` where the layout does not fit into what is available."""

    def __init__(self, layout: RamLayout, backing: Backing = Backing.ANONYMOUS) -> None:
        available = available_memory()
        if available is not None and layout.bytes > available:
            raise OutOfMemory("the guest's RAM", layout.bytes, available)
        self.layout = layout
        self.hosts: list[Host] = []
        try:
            for block in layout.blocks:
                self.hosts.append(HostMemory(block.name, block.pages * layout.page_size, backing))
        except OutOfMemory:
            self.close()
            raise

    @classmethod
    def of(cls, layout: RamLayout, hosts: Sequence[Host]) -> Self:
        """Over memory that exists already, one piece for each block. Raises `LayoutError` where one has another
        size than its block."""
        memory = cls.__new__(cls)
        memory.layout, memory.hosts = layout, list(hosts)
        for block, host in zip(layout.blocks, memory.hosts, strict=True):
            if host.size != block.pages * layout.page_size:
                raise LayoutError(f"{host.size} bytes cannot be RAM block {block.name!r} with {block.pages} pages")
        return memory

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives all memory back to the system."""
        for host in self.hosts:
            host.close()
        self.hosts = []

    def touch(self) -> None:
        """Makes the system give every page now, so that nothing later pays for first touch."""
        for host in self.hosts:
            host.touch()

    def host(self, block: RamBlock) -> Host:
        return self.hosts[self.layout.blocks.index(block)]

    def pages(self, block: RamBlock) -> Pages:
        """The block's content as one row of words a page; shares the memory."""
        return self._pages(self.layout.blocks.index(block))

    def buffers(self, runs: Runs) -> list[memoryview]:
        """One writable view a run, in order. Raises `LayoutError` where a run does not lie in one block."""
        views: list[memoryview] = []
        size = self.layout.page_size
        for host, _, part in self._by_block(runs):
            starts, ends = (part.starts * size).tolist(), (part.ends * size).tolist()
            views.extend(map(self.hosts[host].view.__getitem__, map(slice, starts, ends)))
        return views

    def addresses(self, runs: Runs) -> npt.NDArray[np.uint64]:
        """Host address and length in bytes of each run, in order; shape (runs, 2). Raises `LayoutError`."""
        table = np.empty((len(runs), 2), np.uint64)
        at = 0
        for host, _, part in self._by_block(runs):
            table[at : at + len(part), 0] = part.starts * self.layout.page_size + self.hosts[host].address
            at += len(part)
        table[:, 1] = runs.lengths * self.layout.page_size
        return table

    def split_zero(self, runs: Runs) -> tuple[Runs, Runs]:
        """(runs of pages with content, runs of pages that are all zero).

        Looks at one word of each page first; only pages that pass are read whole.
        """
        content: list[Runs] = []
        zero: list[Runs] = []
        for host, first, part in self._by_block(runs):
            pages = self._pages(host)
            maybe = _first_words(pages, part) == 0
            if not maybe.any():
                content.append(part.shifted(first))
                continue
            index = part.indexes()
            maybe[maybe] = all_zero(pages, Runs.from_indexes(index[maybe]))
            content.append(Runs.from_indexes(index[~maybe]).shifted(first))
            zero.append(Runs.from_indexes(index[maybe]).shifted(first))
        return Runs.concatenate(content), Runs.concatenate(zero)

    def write_zero(self, runs: Runs) -> None:
        """Zeroes every page of ``runs``."""
        for host, _, part in self._by_block(runs):
            pages = self._pages(host)
            for start, length in part:
                pages[start : start + length] = 0

    def _pages(self, host: int) -> Pages:
        return self.hosts[host].words.reshape(-1, self.layout.page_size // 8)

    def _by_block(self, runs: Runs) -> Iterator[tuple[int, int, Runs]]:
        """(block index, block's first page, its runs counted from there) for consecutive runs of one block."""
        at = 0
        blocks = self.layout.block_of(runs)
        if len(set(blocks)) == 1:
            first = self.layout.blocks[blocks[0]].first_page
            yield blocks[0], first, runs.shifted(-first)
            return
        for block, group in groupby(blocks):
            count = sum(1 for _ in group)
            first = self.layout.blocks[block].first_page
            yield block, first, runs[at : at + count].shifted(-first)
            at += count


def _first_words(pages: Pages, runs: Runs) -> npt.NDArray[np.uint64]:
    """The first word of each page of ``runs``."""
    if len(runs) * 16 > runs.pages:  # short runs: one gather costs less than a slice of each
        words: npt.NDArray[np.uint64] = pages[runs.indexes(), 0]
        return words
    return np.concatenate([pages[start : start + length, 0] for start, length in runs])


def all_zero(pages: Pages, runs: Runs) -> npt.NDArray[np.bool_]:
    """One bool a page of ``runs``: whether all its words are zero."""
    if len(runs) * 8 > runs.pages:  # short runs: one gather costs less than a call for each
        parts = [pages[runs.indexes()]]
    else:
        parts = [pages[start : start + length] for start, length in runs]
    zero = np.empty(runs.pages, np.bool_)
    at = 0
    for part in parts:
        np.equal(np.bitwise_or.reduce(part, axis=1), 0, out=zero[at : at + len(part)])
        at += len(part)
    return zero
