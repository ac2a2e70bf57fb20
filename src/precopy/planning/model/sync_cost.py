"""What the sync time (x) would be, in seconds: clears that a clear policy makes in a sync of a layout, times what one
costs.

The defaults are single measurements on one machine; `precopy bench sync` measures this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precopy.bounds import Count, Number, Text
from precopy.errors import UsageError
from precopy.units import PAGE_SIZE

if TYPE_CHECKING:
    from precopy.memory.layout import RamLayout

CLEAR_S = 10e-6
"""A CLEAR_DIRTY_LOG for one page: 6 to 15 us with one vCPU running, which it interrupts; 4 us with none running."""
GET_S = 7e-6
"""A GET_DIRTY_LOG of 16384 pages."""
MERGE_S_PER_PAGE = 0.11e-9
"""Fetching and merging bits, for each page of RAM, dirty or not: the patch series (docs/patch-series.md) reports 7.5 ms
for 256 GB: 2.5 ms in the kernel and 5 ms in aligned blocks."""
LISTENERS = 2
"""kvm-memory, and kvm-smram where the machine has system management mode; each has slots of its own."""


@dataclass(frozen=True, slots=True)
class SyncCost:
    """x of one sync under the policy ``clear``: ``clears`` calls even if nothing is dirty, ``clears_per_dirty_page``
    more, each of ``clear_s``, and ``fixed_s`` for the rest, among it ``gets`` calls."""

    clear: Text
    clears: Count
    clears_per_dirty_page: Count
    gets: Count
    clear_s: Number
    fixed_s: Number

    @property
    def sync_s(self) -> float:
        """x where nothing is dirty."""
        return self.fixed_s + self.clears * self.clear_s

    @property
    def sync_s_per_byte(self) -> float:
        """What x grows by for each dirty byte."""
        return self.clears_per_dirty_page * self.clear_s / PAGE_SIZE


def sync_cost(
    layout: RamLayout,
    clear: str,
    *,
    listeners: int = LISTENERS,
    clear_s: float = CLEAR_S,
    fixed_s: float | None = None,
) -> SyncCost:
    """x of ``layout`` under the clear policy called ``clear``, with a slot a section and listener; ``fixed_s`` instead
    of what the constants above make of its slots and pages. Raises `UsageError` for a name that is no policy.

    Clears in the sync: dirty/clear.py and dirty/qemu_variants.py say what each policy does. Those that are made while
    pages are read, one for each 128 MiB or 1 GiB, take far less time than sending them and are not counted.
    """
    if clear not in _CLEARS:
        raise UsageError(f"no clear policy is called {clear!r}; there are {', '.join(_CLEARS)}")
    slots = len(layout.sections) * listeners
    if fixed_s is None:
        fixed_s = slots * GET_S + layout.pages * MERGE_S_PER_PAGE
    return SyncCost(
        clear=clear,
        clears=_CLEARS[clear](layout) * listeners,
        clears_per_dirty_page=listeners if clear == "per-page" else 0,
        gets=slots,
        clear_s=clear_s,
        fixed_s=fixed_s,
    )


def _unaligned_pages(layout: RamLayout) -> int:
    return sum(section.pages for section in layout.sections if not section.block.aligned)


def _unaligned_sections(layout: RamLayout) -> int:
    return sum(1 for section in layout.sections if not section.block.aligned)


_CLEARS: dict[str, Callable[[RamLayout], int]] = {
    "per-page": lambda _: 0,
    "merged": lambda layout: len(layout.sections),
    "deferred": lambda _: 0,
    "before-patch": _unaligned_pages,
    "rfc-v1": _unaligned_sections,
    "upstream": _unaligned_sections,
    "clear-bmap": lambda _: 0,
}
"""Clears in a sync for one listener, even if nothing is dirty (`merged` makes fewer where a slot has nothing dirty)."""
