"""A machine's layout with another amount of main memory."""

from __future__ import annotations

from dataclasses import replace

from precopy.bitmap import BITS_PER_WORD
from precopy.errors import LayoutError
from precopy.memory.layout import RamBlock, RamLayout, Section
from precopy.memory.machines import MIN_RAM
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, RamPage

_GIB = 1 << 30
_HIGH = 4 * _GIB
_SPLIT_FROM = 0xB0000000
"""With this much RAM or more, QEMU's q35 leaves only 2 GiB of it below 4 GiB."""


def scaled(layout: RamLayout, ram: int) -> RamLayout:
    """``layout`` with ``ram`` bytes in its main block, which is the largest.

    Blocks after it move, by a multiple of 64 pages, and keep the gaps between them. Of the main block's sections below
    4 GiB the last one ends where memory ends or where q35 begins its hole for devices; the rest of the block is mapped
    at 4 GiB. Other sections stay. Raises `LayoutError` where ``ram`` is no whole pages, less than 2 MiB or less than
    what the sections need that stay, and where the memory would reach into what is mapped there.
    """
    main = max(layout.blocks, key=lambda block: block.pages)
    pages, odd = divmod(ram, PAGE_SIZE)
    if odd or ram < MIN_RAM:
        raise LayoutError(f"--ram is {ram} bytes; it has to be at least 2M and a multiple of {PAGE_SIZE}")
    if pages == main.pages:
        return layout
    shift = _whole_words(pages) - _whole_words(main.pages)
    moved = {block: _moved(block, shift) if block.first_page > main.first_page else block for block in layout.blocks}
    moved[main] = replace(main, pages=pages)
    others = [replace(one, block=moved[one.block]) for one in layout.sections if one.block != main]
    own = [replace(one, block=moved[main]) for one in layout.sections if one.block == main and one.gpa < _HIGH]
    sections = sorted(others + _main_sections(own, moved[main]), key=lambda section: section.gpa)
    return RamLayout(tuple(moved.values()), tuple(sections), layout.page_size)


def _main_sections(low: list[Section], main: RamBlock) -> list[Section]:
    """Sections for all of ``main``, from those that it has below 4 GiB."""
    if not low:
        raise LayoutError(f"the layout cannot have another --ram: {main.name!r} is not mapped below 4 GiB")
    *before, last = sorted(low, key=lambda section: section.gpa)
    if last.gpa != last.offset * PAGE_SIZE:
        raise LayoutError(f"the layout cannot have another --ram: {main.name!r} is not mapped at its own offsets")
    needed = max([last.offset + 1, *(one.offset + one.pages for one in before)])
    if main.pages < needed:
        raise LayoutError(f"--ram is {main.pages * PAGE_SIZE} bytes; this layout needs at least {needed * PAGE_SIZE}")
    split = 2 * _GIB if main.pages * PAGE_SIZE >= _SPLIT_FROM else _SPLIT_FROM
    low_end = min(main.pages, split // PAGE_SIZE)
    sections = [*before, replace(last, pages=low_end - last.offset)]
    if low_end < main.pages:
        sections.append(Section(main, low_end, main.pages - low_end, GuestPhysicalAddress(_HIGH)))
    return sections


def _whole_words(pages: int) -> int:
    return -(-pages // BITS_PER_WORD) * BITS_PER_WORD


def _moved(block: RamBlock, by: int) -> RamBlock:
    return replace(block, first_page=RamPage(block.first_page + by))
