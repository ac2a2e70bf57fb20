"""Which RAM blocks of a layout are main memory: what the machine was started with, and not what was plugged in.

The text does not say it. A block of a device has the device's path before its name; the nodes of a NUMA machine follow
each other without a gap; and what is plugged in stands above 4 GiB, behind main memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from precopy.memory.layout import RamBlock, RamLayout, Section

MIN_RAM = 2 << 20
"""Bytes of main memory, at least: what the page tables of a guest map at once."""
FOUR_GIB = 4 << 30
_NUMBERED = re.compile(r"(.*?)[0-9]+")


def main_memory(layout: RamLayout) -> tuple[RamBlock, ...]:
    """Its blocks, in the order in which the guest sees them; where nothing is mapped, the largest block.

    It begins with the block that is mapped at 0, or else with the lowest one of at least `MIN_RAM`. The nodes behind it
    begin where the one before ends, or at 4 GiB; and they lie below 4 GiB or have its name but for the number.
    """
    ranges = _ranges(layout)
    first = next((block for block, (start, _) in ranges.items() if start == 0 or _size(layout, block) >= MIN_RAM), None)
    if first is None:
        return (max(layout.blocks, key=lambda block: block.pages),)
    main, (start, end) = [first], ranges[first]
    for block, (follows, block_end) in ranges.items():
        behind = follows == end or (follows == FOUR_GIB and end < FOUR_GIB)
        if block != first and behind and ((block_end <= FOUR_GIB and not start) or _alike(block.name, first.name)):
            main.append(block)
            end = block_end
    return tuple(main)


def block_behind(layout: RamLayout, main: Sequence[RamBlock]) -> RamBlock | None:
    """A block that begins right where main memory ends, and may be another NUMA node of it or plugged memory.

    None where main memory has the name that QEMU gives it (``pc.ram``), and so is one block.
    """
    ranges = _ranges(layout)
    if main[-1].name.endswith(".ram") or main[-1] not in ranges:
        return None
    _, end = ranges[main[-1]]
    return next((block for block, (start, _) in ranges.items() if start == end and block not in main), None)


def _ranges(layout: RamLayout) -> dict[RamBlock, tuple[int, int]]:
    """Where each block that can be main memory is first and last seen, ascending: one past its end."""
    ranges: dict[RamBlock, tuple[int, int]] = {}
    for section in _writable(layout.sections):
        start, _ = ranges.get(section.block, (section.gpa, 0))
        ranges[section.block] = (start, section.end_gpa)
    return ranges


def _writable(sections: Iterable[Section]) -> list[Section]:
    own = (section for section in sections if not section.readonly and not _of_device(section.block.name))
    return sorted(own, key=lambda section: section.gpa)


def _of_device(name: str) -> bool:
    """Whether a path stands before the name, such as ``0000:00:02.0/vga.vram``; ``/objects/mem0`` is a backend."""
    return "/" in name.removeprefix("/objects/")


def _size(layout: RamLayout, block: RamBlock) -> int:
    return block.pages * layout.page_size


def _alike(one: str, other: str) -> bool:
    stems = [_NUMBERED.fullmatch(name) for name in (one, other)]
    return all(stems) and len({stem[1] for stem in stems if stem}) == 1
