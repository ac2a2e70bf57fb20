"""A machine's layout with another amount of main memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from precopy.bitmap import BITS_PER_WORD
from precopy.errors import LayoutError
from precopy.memory.captures.main_memory import FOUR_GIB, MIN_RAM, block_behind, main_memory
from precopy.memory.layout import RamBlock, RamLayout, Section
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, RamPage

_GIB_PAGES = (1 << 30) // PAGE_SIZE
_FOUR_GIB_PAGES = FOUR_GIB // PAGE_SIZE
_SPLIT_FROM = {2 * _GIB_PAGES: 0xB0000000 // PAGE_SIZE, 3 * _GIB_PAGES: 0xE0000000 // PAGE_SIZE}
"""Pages that stay below 4 GiB, and from how many pages on: QEMU's q35 and pc."""
_HOLE = 0xE0000000 // PAGE_SIZE
"""No machine with a hole for devices below 4 GiB has RAM here (in pages)."""


@dataclass(frozen=True)
class _Piece:
    """Pages ``start`` to ``end`` of main memory, its blocks one behind the other, which are seen in one piece."""

    start: int
    end: int
    readonly: bool


def scaled(layout: RamLayout, ram: int) -> RamLayout:
    """``layout`` with ``ram`` bytes of main memory; its blocks, where there are several, keep their shares of it.

    Blocks after a main block move, by a multiple of 64 pages, and keep the gaps between them. Main memory keeps the
    holes that it has; where it has one for devices below 4 GiB, it ends where that of QEMU's q35 or pc begins, and goes
    on at 4 GiB. What is mapped above main memory, such as plugged memory, moves up by whole GiB if it has to; other
    sections stay. Raises `LayoutError` where ``ram`` is no whole pages, less than 2 MiB or less than what lies below
    the last hole, and where the memory cannot be mapped so.
    """
    main = main_memory(layout)
    pages, odd = divmod(ram, PAGE_SIZE)
    if odd or ram < MIN_RAM:
        raise LayoutError(f"--ram is {ram} bytes; it has to be at least 2M and a multiple of {PAGE_SIZE}")
    if pages == sum(block.pages for block in main):
        return layout
    unclear = block_behind(layout, main)
    if unclear:
        raise LayoutError(
            f"the layout cannot have another --ram: whether {unclear.name!r}, which follows {main[-1].name!r}, is main "
            "memory too or was plugged in, the text does not say"
        )
    base, low, high = _seen(layout, main)
    low_end = _low_pages(layout, base, low, high, pages)
    needed = low[-1].start + 1
    if pages < needed:
        raise LayoutError(f"--ram is {ram} bytes; this layout needs at least {needed * PAGE_SIZE}")
    moved = _resized(layout.blocks, main, pages)
    blocks = [moved[block] for block in main]
    pieces = [*low[:-1], replace(low[-1], end=low_end)]
    sections = _sections(blocks, pieces, base)
    if low_end < pages:
        sections += _sections(blocks, [_Piece(low_end, pages, False)], _FOUR_GIB_PAGES - low_end)
    others = [replace(section, block=moved[section.block]) for section in layout.sections if section.block not in main]
    above = FOUR_GIB if base == 0 else max(section.end_gpa for section in layout.sections if section.block in main)
    others = _moved_up(others, above, max(section.end_gpa for section in sections))
    return RamLayout(
        tuple(moved.values()), tuple(sorted(sections + others, key=lambda section: section.gpa)), layout.page_size
    )


def _seen(layout: RamLayout, main: Sequence[RamBlock]) -> tuple[int, list[_Piece], list[_Piece]]:
    """The page at which main memory begins, and its pieces below a hole for devices and above it, each ascending."""
    first = dict(zip(main, accumulate([0, *(block.pages for block in main)]), strict=False))
    own = sorted((section for section in layout.sections if section.block in first), key=lambda section: section.gpa)
    names = ", ".join(repr(block.name) for block in main)
    if not own:
        raise LayoutError(f"the layout cannot have another --ram: {names} is not mapped")
    if all(section.readonly for section in own):
        raise LayoutError(f"the layout cannot have another --ram: {names} is no RAM, and none is mapped")
    starts = [(section.gpa // PAGE_SIZE, first[section.block] + section.offset, section) for section in own]
    base = starts[0][0] - starts[0][1]
    if base < 0 or base * PAGE_SIZE % MIN_RAM:
        raise LayoutError(f"the layout cannot have another --ram: {names} is not mapped at its own offsets")
    low: list[_Piece] = []
    high: list[_Piece] = []
    for page, start, section in starts:
        piece = _Piece(start, start + section.pages, section.readonly)
        if page - start == base:
            low.append(piece)
        elif base == 0 and page - start == _FOUR_GIB_PAGES - (high[0].start if high else start):
            high.append(piece)
        else:
            raise LayoutError(
                f"the layout cannot have another --ram: {section.block.name!r} is mapped at {section.gpa:#x} too, "
                "which is neither at its own offsets nor behind a hole that ends at 4 GiB"
            )
    return base, _joined(low, first.values()), high


def _joined(pieces: Sequence[_Piece], firsts: Iterable[int]) -> list[_Piece]:
    """The pieces, without the cuts between blocks."""
    cuts, joined = set(firsts), [pieces[0]]
    for piece in pieces[1:]:
        if piece.start in cuts and piece.start == joined[-1].end and piece.readonly == joined[-1].readonly:
            joined[-1] = replace(joined[-1], end=piece.end)
        else:
            joined.append(piece)
    return joined


def _low_pages(layout: RamLayout, base: int, low: Sequence[_Piece], high: Sequence[_Piece], pages: int) -> int:
    """How many of ``pages`` pages of main memory lie below a hole for devices.

    A machine has such a hole if its memory goes on at 4 GiB, or if firmware ends there, as in all x86 machines.
    """
    firmware = max(section.end_gpa for section in layout.sections if section.gpa < FOUR_GIB) == FOUR_GIB
    if base or low[-1].end > _HOLE or not (high or firmware):
        return pages
    stays = high[0].start if high else 2 * _GIB_PAGES
    return pages if pages < _SPLIT_FROM.get(stays, stays) else stays


def _resized(blocks: Sequence[RamBlock], main: Sequence[RamBlock], pages: int) -> dict[RamBlock, RamBlock]:
    """Each block as it is with ``pages`` pages of main memory."""
    total = sum(block.pages for block in main)
    ends = [
        -(-pages * end // total) // BITS_PER_WORD * BITS_PER_WORD for end in accumulate(block.pages for block in main)
    ]
    sizes = [end - start for start, end in pairwise([0, *ends[:-1], pages])]
    if len(main) > 1 and min(sizes) < MIN_RAM // PAGE_SIZE:
        raise LayoutError(f"--ram is {pages * PAGE_SIZE} bytes, too little for the {len(main)} blocks of main memory")
    wanted, shift, resized = dict(zip(main, sizes, strict=True)), 0, {}
    for block in blocks:
        new = replace(block, first_page=RamPage(block.first_page + shift), pages=wanted.get(block, block.pages))
        shift += _whole_words(new.pages) - _whole_words(block.pages)
        resized[block] = new
    return resized


def _sections(blocks: Sequence[RamBlock], pieces: Sequence[_Piece], base: int) -> list[Section]:
    """What of each block the pieces show, ``base`` pages above where it lies in main memory."""
    sections: list[Section] = []
    for block, start in zip(blocks, accumulate([0, *(block.pages for block in blocks)]), strict=False):
        for piece in pieces:
            first, end = max(piece.start, start), min(piece.end, start + block.pages)
            if first < end:
                gpa = GuestPhysicalAddress((base + first) * PAGE_SIZE)
                sections.append(Section(block, first - start, end - first, gpa, piece.readonly))
    return sections


def _moved_up(sections: Sequence[Section], above: int, end: int) -> list[Section]:
    """The sections, those from ``above`` on moved up by whole GiB if they would begin before ``end``."""
    lowest = min((section.gpa for section in sections if section.gpa >= above), default=end)
    by = -(-max(0, end - lowest) // (1 << 30)) * (1 << 30)
    return [
        replace(section, gpa=GuestPhysicalAddress(section.gpa + by)) if by and section.gpa >= above else section
        for section in sections
    ]


def _whole_words(pages: int) -> int:
    return -(-pages // BITS_PER_WORD) * BITS_PER_WORD
