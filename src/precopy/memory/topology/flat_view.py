"""What an address space looks like: ascending ranges, each of one region (QEMU: ``FlatView``, ``FlatRange``)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from precopy.errors import LayoutError
from precopy.memory.layout import Section
from precopy.memory.topology.log_mask import NO_CLIENTS, DirtyClient
from precopy.memory.topology.region import MAX_SIZE, MemoryRegion, RegionKind
from precopy.units import PAGE_SIZE, GuestPhysicalAddress

MAX_RANGES = 100_000
"""Ranges in one view. A machine has some hundred; a tree of aliases can ask for any number."""
_KINDS = {RegionKind.RAM: "ram", RegionKind.UNMIGRATED: "ram", RegionKind.RAM_DEVICE: "ramd"}


@dataclass(frozen=True)
class FlatRange:
    """``size`` bytes at ``address`` which are ``region``'s from its byte ``offset``.

    A region changes; a range does not, and says how its region was seen when the view was drawn: whether it could only
    be read (the region or anything above it), in ROM mode, nonvolatile, unmergeable, and for which clients writes were
    logged.
    """

    address: GuestPhysicalAddress
    size: int
    region: MemoryRegion
    offset: int
    readonly: bool = False
    log_mask: DirtyClient = NO_CLIENTS
    romd_mode: bool = False
    nonvolatile: bool = False
    unmergeable: bool = False

    @property
    def end(self) -> int:
        """One past the last byte; up to 2^64."""
        return self.address + self.size

    @property
    def kind(self) -> str:
        """What QEMU's monitor calls it: ``ram``, ``rom``, ``romd``, ``ramd`` or ``i/o``.

        As there, anything that can only be read is called ``rom``; `section` says what RAM is behind.
        """
        if self.readonly:
            return "rom"
        if self.region.kind is RegionKind.ROM_DEVICE:
            return "romd" if self.romd_mode else "i/o"
        return _KINDS.get(self.region.kind, "i/o")

    @property
    def section(self) -> Section | None:
        """The whole pages of a range that is read straight from RAM; None where there are none.

        Pages at the ends of which the range has only a part are left out, and so is a range whose pages are not those
        of its block, which no page table can map (QEMU: ``kvm_align_section``).
        """
        block = self.region.block
        if block is None or (self.region.kind is RegionKind.ROM_DEVICE and not self.romd_mode):
            return None
        skipped = -self.address % PAGE_SIZE
        pages = (self.size - skipped) // PAGE_SIZE
        first, odd = divmod(self.offset + skipped, PAGE_SIZE)
        if pages <= 0 or odd:
            return None
        readonly = self.readonly or self.region.kind is RegionKind.ROM_DEVICE
        return Section(block, first, pages, GuestPhysicalAddress(self.address + skipped), readonly)

    def same_place(self, other: FlatRange) -> bool:
        """Whether both are equal but for their log masks."""
        mine = (self.address, self.size, self.region, self.offset, self.readonly, self.romd_mode, self.nonvolatile)
        theirs = (
            other.address,
            other.size,
            other.region,
            other.offset,
            other.readonly,
            other.romd_mode,
            other.nonvolatile,
        )
        return mine == theirs and self.unmergeable == other.unmergeable

    def continues(self, before: FlatRange) -> bool:
        """Whether ``before`` and this range could be one (QEMU: ``can_merge``)."""
        return (
            not (before.unmergeable or self.unmergeable)
            and before.end == self.address
            and before.region is self.region
            and before.offset + before.size == self.offset
            and (before.readonly, before.log_mask, before.romd_mode, before.nonvolatile)
            == (self.readonly, self.log_mask, self.romd_mode, self.nonvolatile)
        )


@dataclass(frozen=True)
class FlatView:
    """Disjoint ranges in ascending order; what lies between them is nothing."""

    ranges: tuple[FlatRange, ...] = ()

    def __iter__(self) -> Iterator[FlatRange]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)

    def lookup(self, address: int) -> FlatRange | None:
        """The range that the byte at ``address`` belongs to; None where there is nothing."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self.ranges[index].end:
            return None
        return self.ranges[index]

    @property
    def sections(self) -> tuple[Section, ...]:
        """The sections of all ranges that have one, in ascending order."""
        return tuple(section for flat in self.ranges if (section := flat.section) is not None)

    @cached_property
    def _starts(self) -> list[int]:
        return [flat.address for flat in self.ranges]


@dataclass(frozen=True)
class _Visit:
    """A region that has still to be drawn: where it begins, the bytes that may be seen, and what it inherits."""

    region: MemoryRegion
    at: int
    start: int
    end: int
    readonly: bool
    nonvolatile: bool
    unmergeable: bool
    own: bool = False
    """Whether only its own bytes are left to draw, below all that stands in it."""


def render(root: MemoryRegion) -> FlatView:
    """What an address space with this root shows (QEMU: ``generate_memory_topology``, ``render_memory_region``).

    A disabled region shows nothing, a region nothing beyond its container, and read-only and nonvolatile are handed
    down. Raises `LayoutError` where there are more than `MAX_RANGES` ranges.
    """
    canvas = _Canvas()
    ahead = [_Visit(root, 0, 0, MAX_SIZE, False, False, False)]
    while ahead:  # a stack and no recursion: trees may be of any depth; what covers comes first
        visit = ahead.pop()
        if visit.own:
            canvas.draw(visit)
        elif visit.region.enabled:
            ahead.extend(_visits_below(visit))
    return FlatView(tuple(canvas.simplified()))


def _visits_below(visit: _Visit) -> list[_Visit]:
    """What ``visit`` leads to, last what is to be drawn first."""
    region = visit.region
    start, end = max(visit.start, visit.at), min(visit.end, visit.at + region.size)
    if start >= end:
        return []
    inherited = (
        start,
        end,
        visit.readonly or region.readonly,
        visit.nonvolatile or region.nonvolatile,
        visit.unmergeable or region.unmergeable,
    )
    if region.target is not None:
        return [_Visit(region.target, visit.at - region.target_offset, *inherited)]
    own = [] if region.kind is RegionKind.CONTAINER else [_Visit(region, visit.at, *inherited, own=True)]
    return own + [_Visit(below, visit.at + below.address, *inherited) for below in reversed(region.subregions)]


class _Canvas:
    """Ranges drawn so far, in ascending order; what is drawn later shows only in the gaps."""

    def __init__(self) -> None:
        self._ranges: list[FlatRange] = []
        self._ends: list[int] = []
        """The end of each range, to find the first one that something new can touch."""

    def draw(self, visit: _Visit) -> None:
        """Draws the region's own bytes from ``visit.start`` to ``visit.end`` into the gaps there."""
        index, at = bisect_right(self._ends, visit.start), visit.start
        while at < visit.end:
            follows = self._ranges[index] if index < len(self._ranges) else None
            gap_end = visit.end if follows is None else min(visit.end, follows.address)
            if at < gap_end:
                self._insert(index, _range(visit, at, gap_end))
                index += 1
            if follows is None:
                return
            at = follows.end
            index += 1

    def simplified(self) -> Iterator[FlatRange]:
        """The ranges, with neighbours that are one put together (QEMU: ``flatview_simplify``)."""
        last: FlatRange | None = None
        for flat in self._ranges:
            if last is None or not flat.continues(last):
                if last is not None:
                    yield last
                last = flat
            else:
                last = replace(last, size=last.size + flat.size)
        if last is not None:
            yield last

    def _insert(self, index: int, flat: FlatRange) -> None:
        if len(self._ranges) >= MAX_RANGES:
            raise LayoutError(f"a flat view of more than {MAX_RANGES} ranges, at {flat.region.name!r}")
        self._ranges.insert(index, flat)
        self._ends.insert(index, flat.end)


def _range(visit: _Visit, start: int, end: int) -> FlatRange:
    region = visit.region
    return FlatRange(
        GuestPhysicalAddress(start),
        end - start,
        region,
        start - visit.at,
        visit.readonly,
        region.log_mask,
        region.romd_mode,
        visit.nonvolatile,
        visit.unmergeable,
    )
