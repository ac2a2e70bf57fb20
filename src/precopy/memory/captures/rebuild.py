"""Memory regions from a flat view's text.

A flat view does not say which containers and aliases made it. What is built here is the simplest tree that shows the
same: one region for each RAM block, one for each range of a device, and for each root an alias of them a range.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from precopy.bitmap import BITS_PER_WORD
from precopy.errors import LayoutError
from precopy.memory.captures.lookup import BlockLookup
from precopy.memory.captures.mtree import MtreeRange, MtreeSpace, MtreeView
from precopy.memory.captures.ramblock import RamblockRow
from precopy.memory.layout import RamBlock
from precopy.memory.topology.address_space import AddressSpace
from precopy.memory.topology.flat_view import FlatView
from precopy.memory.topology.region import MemoryRegion
from precopy.units import PAGE_SIZE, RamPage


def ram_blocks(rows: Iterable[RamblockRow]) -> tuple[RamBlock, ...]:
    """The named blocks in ascending ram_addr order, each as long as what is used of it, in whole pages.

    QEMU does not migrate a block without a name. A block that starts off a multiple of 64 pages, as before QEMU 2.12,
    stands at the next one that is free.
    """
    blocks: list[RamBlock] = []
    for row in sorted((row for row in rows if row.name), key=lambda row: row.offset):
        free = max(row.offset // PAGE_SIZE, blocks[-1].end_page if blocks else 0)
        first = -(-free // BITS_PER_WORD) * BITS_PER_WORD
        blocks.append(RamBlock(row.name, RamPage(first), -(-row.used // PAGE_SIZE)))
    return tuple(blocks)


def mtree_ranges(view: FlatView, accel: str | None = None) -> tuple[MtreeRange, ...] | None:
    """A view as QEMU's monitor shows it; ``accel`` is noted where it has a slot, which is where there is a section."""
    ranges = tuple(
        MtreeRange(
            flat.address,
            flat.end - 1,
            flat.region.priority,
            flat.kind,
            flat.region.name,
            flat.offset,
            accel if flat.section else None,
            flat.nonvolatile,
        )
        for flat in view
    )
    return ranges or None


class Rebuilder:
    """Builds the regions of ``views``; the same RAM region is behind all views that show its block.

    ``rows`` are those of all RAM blocks; ``blocks`` what `ram_blocks` makes of them.
    """

    def __init__(self, rows: Sequence[RamblockRow], blocks: Sequence[RamBlock], views: Sequence[MtreeView]) -> None:
        self.lookup = BlockLookup(blocks, (row.used for row in rows if not row.name), views)
        self._blocks = blocks
        self._kinds: dict[str, set[str]] = {}
        for shown in (shown for view in views for shown in view.ranges or ()):
            self._kinds.setdefault(shown.name, set()).add(shown.kind)
        self._backed: dict[tuple[str, int, RamBlock], MemoryRegion] = {}
        self._shelf = MemoryRegion.container("regions")
        """Where each region has its priority; no address space shows it."""

    def spaces(self, view: MtreeView) -> tuple[AddressSpace, ...]:
        """The view's address spaces, which share a root where they name the same one.

        Raises `LayoutError` where no tree shows these ranges, such as a range that is of two kinds.
        """
        if view.ranges is None:  # roots of devices that may not reach memory yet: each has one of its own
            return tuple(
                AddressSpace(space.name, _named_root(space, MemoryRegion.container(space.alias or space.root)))
                for space in view.address_spaces
            )
        roots = {view.root: self._root(view)}
        spaces: list[AddressSpace] = []
        for space in view.address_spaces:
            shown = space.alias or space.root
            if shown not in roots:
                roots[shown] = MemoryRegion.container(shown)
                roots[shown].add_subregion(_alias_of(view.root, roots[view.root]), 0)
            spaces.append(AddressSpace(space.name, _named_root(space, roots[shown])))
            _check(spaces[-1], view)
        return tuple(spaces)

    def flat_view(self, view: MtreeView) -> FlatView:
        """What all address spaces of ``view`` show. Raises as `spaces`."""
        if view.ranges is None:
            return FlatView()
        space = AddressSpace(view.root, self._root(view))
        _check(space, view)
        return space.view

    def _root(self, view: MtreeView) -> MemoryRegion:
        root, before = MemoryRegion.container(view.root), None
        for shown in view.ranges or ():
            alias = MemoryRegion.alias(shown.name, self._region(shown), shown.offset, shown.size)
            alias.readonly = shown.kind == "rom"
            alias.nonvolatile = shown.nonvolatile
            alias.unmergeable = before is not None and before.end + 1 == shown.start  # the text has them apart
            root.add_subregion(alias, shown.start)
            before = shown
        if view.cut and before is not None:
            self._refuse_cut(view, before)
        return root

    def _region(self, shown: MtreeRange) -> MemoryRegion:
        block = None if shown.kind == "i/o" else self.lookup.find(shown)
        if block is None:
            make = {"i/o": MemoryRegion.io, "ramd": MemoryRegion.ram_device}.get(
                shown.kind, MemoryRegion.unmigrated_ram
            )
            device = make(shown.name, shown.offset + shown.size)
            self._shelf.add_subregion(device, 0, shown.priority)
            return device
        key = (shown.name, shown.priority, block)
        if key not in self._backed:
            self._backed[key] = self._make_backed(shown.name, block)
            self._shelf.add_subregion(self._backed[key], 0, shown.priority)
        region = self._backed[key]
        if shown.offset + shown.size > region.size:
            raise LayoutError(f"a range shows more of {shown.name!r} than the {region.size:#x} bytes of its RAM block")
        return region

    def _make_backed(self, name: str, block: RamBlock) -> MemoryRegion:
        """RAM that is read-only in some ranges only is RAM, with aliases that are read-only (QEMU: PAM on x86)."""
        kinds = self._kinds[name]
        if "romd" in kinds:
            return MemoryRegion.rom_device(name, block)
        if "ramd" in kinds:
            return MemoryRegion.ram_device(name, block.pages * PAGE_SIZE, block)
        return MemoryRegion.ram(name, block) if "ram" in kinds else MemoryRegion.rom(name, block)

    def _refuse_cut(self, view: MtreeView, last: MtreeRange) -> None:
        """Raises `LayoutError` where the text's last line, which lacks its line feed, may lack more than that.

        What could be missing without being seen is the end of a name, an offset, the owner or the accelerator.
        """
        block = None if last.kind == "i/o" else self.lookup.find(last)
        if block is None:
            return
        others = [other for other in (view.ranges or ())[:-1] if other.kind != "i/o"]
        longer = any(other.name.startswith(block.name) and other != block for other in self._blocks)
        no_accel = last.accel is None and any(other.accel for other in others)
        no_owner = not last.owner and any(other.owner for other in others)
        no_offset = (
            not last.offset
            and last.size < block.pages * PAGE_SIZE
            and any(other.name == last.name and other.offset < last.size for other in others)
        )
        if longer or no_accel or no_owner or no_offset:
            raise LayoutError(
                f"the text of info mtree -f ends in the middle of a line, that of {last.name!r} at {last.start:#x}"
            )


def _alias_of(name: str, target: MemoryRegion) -> MemoryRegion:
    return MemoryRegion.alias(name, target, 0, target.size)


def _named_root(space: MtreeSpace, shown: MemoryRegion) -> MemoryRegion:
    """The root that ``space`` names, which may be an alias of what it shows."""
    return shown if space.alias is None else _alias_of(space.root, shown)


def _check(space: AddressSpace, view: MtreeView) -> None:
    """Not compared: which ranges have a slot, which the accelerator decides, and the owner of a region, which is not
    rebuilt."""
    wanted = None if view.ranges is None else tuple(replace(shown, accel=None, owner="") for shown in view.ranges)
    if mtree_ranges(space.view) != wanted:
        raise LayoutError(f"no tree of memory regions shows address space {space.name!r} in just these ranges")
