"""Where RAM blocks lie in the ram_addr space, and where the guest sees them.

Each block starts at a multiple of 64 pages, so that its bitmap starts on a word (QEMU: ``RAMBlock.offset``, see
``find_ram_offset``). Its length is any number of pages; the pages up to the next block belong to none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from precopy.bitmap import BITS_PER_WORD, Runs
from precopy.errors import LayoutError
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, RamPage

MAX_BLOCKS = 1024
"""RAM blocks of a guest at most: a large QEMU guest has some fifty, and a peer may claim any number."""
MAX_PAGES = 1 << 36
"""256 TiB of 4 KiB pages: what 48-bit guest-physical addresses can name."""


@dataclass(frozen=True)
class RamBlock:
    """A named piece of guest RAM: ``pages`` pages from ram_addr page ``first_page``."""

    name: str
    first_page: RamPage
    pages: int

    @property
    def end_page(self) -> RamPage:
        return RamPage(self.first_page + self.pages)

    @property
    def aligned(self) -> bool:
        """Whether its bitmap is whole words: then QEMU's sync takes the path over words for it (its start always is a
        multiple of 64 pages)."""
        return self.pages % BITS_PER_WORD == 0


@dataclass(frozen=True)
class Section:
    """One range of a block as the guest sees it: ``pages`` pages of ``block`` from its page ``offset``, at ``gpa``,
    which the guest can only read where ``readonly`` is set."""

    block: RamBlock
    offset: int
    pages: int
    gpa: GuestPhysicalAddress
    readonly: bool = False

    @property
    def first_page(self) -> RamPage:
        """Its first page in the ram_addr space."""
        return RamPage(self.block.first_page + self.offset)

    @property
    def end_gpa(self) -> GuestPhysicalAddress:
        return GuestPhysicalAddress(self.gpa + self.pages * PAGE_SIZE)


@dataclass(frozen=True)
class RamLayout:
    """All blocks of a guest in ascending ram_addr order, and the sections that map them.

    Raises `LayoutError` where blocks overlap, start off a word, share a name or are empty, or where sections lie
    outside their block or overlap in guest-physical space.
    """

    blocks: tuple[RamBlock, ...]
    sections: tuple[Section, ...] = ()
    page_size: int = PAGE_SIZE

    def __post_init__(self) -> None:
        if not 0 < len(self.blocks) <= MAX_BLOCKS:
            raise LayoutError(f"a layout has 1 to {MAX_BLOCKS} RAM blocks, not {len(self.blocks)}")
        if self.page_size < 512 or self.page_size & (self.page_size - 1):
            raise LayoutError(f"the page size {self.page_size} is no power of two of at least 512 bytes")
        if len({block.name for block in self.blocks}) != len(self.blocks):
            raise LayoutError("two RAM blocks have the same name")
        self._check_blocks()
        self._check_sections()

    def _check_blocks(self) -> None:
        end = 0
        for block in self.blocks:
            if block.pages <= 0 or block.first_page % BITS_PER_WORD or block.first_page < 0:
                raise LayoutError(
                    f"RAM block {block.name!r} with {block.pages} pages at page {block.first_page}: a block has at "
                    f"least one page and starts at a multiple of {BITS_PER_WORD} pages"
                )
            if block.first_page < end:
                raise LayoutError(f"RAM block {block.name!r} overlaps the block before it")
            end = block.end_page
        if end > MAX_PAGES:
            raise LayoutError(f"the layout ends at page {end}, beyond the {MAX_PAGES} pages that can be addressed")

    def _check_sections(self) -> None:
        end, before = 0, None
        for section in sorted(self.sections, key=lambda section: section.gpa):
            name = section.block.name
            if section.block not in self.blocks:
                raise LayoutError(f"a section maps {name!r}, which is not a block of the layout")
            if section.pages <= 0 or section.offset < 0 or section.offset + section.pages > section.block.pages:
                raise LayoutError(f"a section of {name!r} lies outside its {section.block.pages} pages")
            if section.gpa % self.page_size or section.gpa < 0:
                raise LayoutError(f"a section of {name!r} is at {section.gpa:#x}, which is not page-aligned")
            if section.gpa < end:
                raise LayoutError(f"sections of {before!r} and {name!r} overlap at {section.gpa:#x}")
            end, before = section.gpa + section.pages * self.page_size, name

    @classmethod
    def of_blocks(cls, sizes: Iterable[tuple[str, int]], page_size: int = PAGE_SIZE) -> RamLayout:
        """Blocks of (name, bytes) laid side by side, each at the next multiple of 64 pages; nothing mapped."""
        blocks: list[RamBlock] = []
        at = 0
        for name, size in sizes:
            if size % page_size:
                raise LayoutError(f"RAM block {name!r} has {size} bytes, which is no multiple of {page_size}")
            blocks.append(RamBlock(name, RamPage(at), size // page_size))
            at += -(-blocks[-1].pages // BITS_PER_WORD) * BITS_PER_WORD
        return cls(tuple(blocks), (), page_size)

    def mapped(self, sections: Iterable[tuple[str, int, int, int]]) -> RamLayout:
        """With sections of (block name, byte offset in it, bytes, gpa). Raises `LayoutError`."""
        by_name = {block.name: block for block in self.blocks}
        size = self.page_size
        sections = list(sections)
        for name, offset, length, _ in sections:
            if name not in by_name or offset % size or length % size:
                raise LayoutError(f"{length} bytes at {offset} of {name!r} are no whole pages of a block of the layout")
        return RamLayout(
            self.blocks,
            tuple(
                Section(by_name[name], offset // size, length // size, GuestPhysicalAddress(gpa))
                for name, offset, length, gpa in sections
            ),
            size,
        )

    @property
    def end_page(self) -> int:
        """One past the last block's last page: the number of bits in a bitmap over the ram_addr space."""
        return self.blocks[-1].end_page

    @property
    def pages(self) -> int:
        """Pages in all blocks together; at most `end_page`, because of the gaps between blocks."""
        return sum(block.pages for block in self.blocks)

    @property
    def bytes(self) -> int:
        return self.pages * self.page_size

    @cached_property
    def runs(self) -> Runs:
        """The blocks as runs of the ram_addr space."""
        return Runs.of(*((block.first_page, block.pages) for block in self.blocks))

    def block_of(self, runs: Runs) -> list[int]:
        """Index of the block that holds each run. Raises `LayoutError` where a run does not lie in one block."""
        if not len(runs):
            return []
        if len(runs) == 1:  # most batches: a few comparisons cost less than a few array operations
            start, length = int(runs.starts[0]), int(runs.lengths[0])
            index = bisect_right(self._first_pages, start) - 1
            if index < 0 or length <= 0 or length > self.blocks[index].end_page - start:
                raise _not_in_one_block(start, length)
            return [index]
        block = np.searchsorted(self.runs.starts, runs.starts, side="right") - 1
        # Written so that no sum can wrap: lengths that a peer claims may be anything up to 2**63 - 1.
        room = self.runs.ends[block] - runs.starts
        bad = np.flatnonzero((block < 0) | (runs.lengths <= 0) | (runs.lengths > room))
        if bad.size:
            raise _not_in_one_block(int(runs.starts[bad[0]]), int(runs.lengths[bad[0]]))
        indexes: list[int] = block.tolist()
        return indexes

    @cached_property
    def _first_pages(self) -> list[int]:
        return [block.first_page for block in self.blocks]


def _not_in_one_block(start: int, length: int) -> LayoutError:
    return LayoutError(f"{length} pages from ram_addr page {start} do not lie in one RAM block")
