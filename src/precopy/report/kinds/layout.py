"""``precopy layout``: the RAM blocks of a captured machine, and the clears that their lengths cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Text
from precopy.memory import Capture, RamBlock, RamLayout
from precopy.memory.captures.main_memory import main_memory
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.table import Shown, tabulate
from precopy.units import PAGE_SIZE, format_size


@dataclass(frozen=True)
class MappedSection:
    """Pages of a block that the guest sees at ``gpa``."""

    gpa: Count
    offset_pages: Count
    pages: Count
    readonly: bool


@dataclass(frozen=True)
class MachineBlock:
    """A RAM block; ``whole_words``: its length is a multiple of 64 pages."""

    name: Text
    ram_addr: Count
    pages: Count
    whole_words: bool
    sections: Annotated[tuple[MappedSection, ...], Meta(max_length=10_000)]


@dataclass(frozen=True)
class Clears:
    """Clears of a sync that is made page by page."""

    one_listener: Count
    two_listeners: Count


@dataclass(frozen=True)
class MachineLayout:
    """``main_memory`` names the blocks that --ram changes; ``command`` is QEMU's, where it was captured."""

    name: Text
    command: Text | None
    bytes: Count
    main_memory: Annotated[tuple[Text, ...], Meta(max_length=1000)]
    blocks: Annotated[tuple[MachineBlock, ...], Meta(max_length=10_000)]
    address_spaces: Count
    flat_views: Count
    unaligned_mapped_pages: Count
    clears_page_by_page: Clears
    notes: Annotated[tuple[Text, ...], Meta(max_length=10_000)]

    @classmethod
    def of(cls, capture: Capture, layout: RamLayout) -> MachineLayout:
        """``layout`` is the capture's, with the RAM that was asked for."""
        pages = unaligned_mapped_pages(layout)
        return cls(
            name=capture.name,
            command=capture.command,
            bytes=layout.bytes,
            main_memory=tuple(block.name for block in main_memory(capture.layout())),
            blocks=tuple(_block(layout, block) for block in layout.blocks),
            address_spaces=sum(len(view.address_spaces) for view in capture.views),
            flat_views=len(capture.views),
            unaligned_mapped_pages=pages,
            clears_page_by_page=Clears(pages, 2 * pages),
            notes=tuple(capture.notes),
        )


def unaligned_mapped_pages(layout: RamLayout) -> int:
    """Pages that sections show of blocks that are not aligned; one that is shown twice counts twice.

    It is how often QEMU before its merged clear asked each of its listeners to clear one page of the dirty log in one
    sync, whether the page was dirty or not (``cpu_physical_memory_sync_dirty_bitmap``, the path page by page).
    """
    return sum(section.pages for section in layout.sections if not section.block.aligned)


def _block(layout: RamLayout, block: RamBlock) -> MachineBlock:
    sections = tuple(
        MappedSection(section.gpa, section.offset, section.pages, section.readonly)
        for section in layout.sections
        if section.block == block
    )
    return MachineBlock(block.name, block.first_page * PAGE_SIZE, block.pages, block.aligned, sections)


def _mapped_at(block: MachineBlock) -> str:
    ends = ((section.gpa, section.gpa + section.pages * PAGE_SIZE - 1) for section in block.sections)
    return "\n".join(f"{first:#x}-{last:#x}" for first, last in ends) or "-"


_COLUMNS: tuple[Shown[MachineBlock], ...] = (
    Shown("RAM block", lambda block: block.name, numeric=False),
    Shown("ram_addr", lambda block: f"{block.ram_addr:#x}"),
    Shown("pages", lambda block: str(block.pages)),
    Shown("whole words", lambda block: "yes" if block.whole_words else "no", numeric=False),
    Shown("mapped at", _mapped_at),
)


def _text(layout: MachineLayout) -> list[TextPart]:
    main = sum(block.pages for block in layout.blocks if block.name in layout.main_memory) * PAGE_SIZE
    sections = sum(len(block.sections) for block in layout.blocks)
    clears = layout.clears_page_by_page
    sizes = f"{format_size(layout.bytes)} in {len(layout.blocks)} RAM blocks, {sections} sections"
    unaligned = (
        f"{layout.unaligned_mapped_pages} mapped pages lie in blocks whose length is no multiple of 64 pages; cleared "
        f"page by page, a sync makes {clears.one_listener} clears of them with one listener, {clears.two_listeners} "
        f"with two"
    )
    return [
        tabulate("RAM blocks in ascending ram_addr order, and where each is mapped", _COLUMNS, layout.blocks),
        f"{layout.name}: {sizes}; {layout.address_spaces} address spaces in {layout.flat_views} flat views",
        f"main memory, which --ram changes: {format_size(main)} in {', '.join(layout.main_memory)}",
        unaligned,
        *layout.notes,
    ]


KIND = Kind(MachineLayout, _text)
