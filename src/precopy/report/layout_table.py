"""A guest's RAM layout as a table, and the clears that its block lengths cost."""

from __future__ import annotations

from rich.console import RenderableType

from precopy.memory import RamLayout
from precopy.report.console import table
from precopy.units import PAGE_SIZE


def unaligned_mapped_pages(layout: RamLayout) -> int:
    """Pages that sections show of blocks that are not aligned; one that is shown twice counts twice.

    It is how often QEMU before its merged clear asked each of its listeners to clear one page of the dirty log in one
    sync, whether the page was dirty or not (``cpu_physical_memory_sync_dirty_bitmap``, the path page by page).
    """
    return sum(section.pages for section in layout.sections if not section.block.aligned)


def layout_table(layout: RamLayout) -> RenderableType:
    """A line a RAM block, in ascending ram_addr order, and a line for each further section that maps it."""
    shown = table(("RAM block", "l"), ("ram_addr", "r"), ("pages", "r"), ("whole words", "l"), ("mapped at", "r"))
    for block in layout.blocks:
        at = [f"{one.gpa:#x}-{one.end_gpa - 1:#x}" for one in layout.sections if one.block == block]
        shown.add_row(
            block.name,
            f"{block.first_page * PAGE_SIZE:#x}",
            str(block.pages),
            "yes" if block.aligned else "no",
            "\n".join(at) or "-",
        )
    return shown
