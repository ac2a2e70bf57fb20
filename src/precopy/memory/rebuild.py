"""Memory regions from a flat view's text.

A flat view does not say which containers and aliases made it. What is built here is the simplest tree that shows the
same: one region for each RAM block, one for each range of a device, and for each root an alias of them a range.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from precopy.errors import LayoutError
from precopy.memory.address_space import AddressSpace
from precopy.memory.flat_view import FlatView
from precopy.memory.layout import RamBlock
from precopy.memory.monitor import MtreeRange, MtreeSpace, MtreeView, RamblockRow
from precopy.memory.region import MemoryRegion
from precopy.units import PAGE_SIZE, RamPage


def ram_blocks(rows: Iterable[RamblockRow]) -> tuple[RamBlock, ...]:
    """The named blocks in ascending ram_addr order, each as long as what is used of it, in whole pages.

    QEMU does not migrate a block without a name.
    """
    blocks = (
        RamBlock(row.name, RamPage(row.offset // PAGE_SIZE), -(-row.used // PAGE_SIZE)) for row in rows if row.name
    )
    return tuple(sorted(blocks, key=lambda block: block.first_page))


def block_of(blocks: Iterable[RamBlock], region: str) -> RamBlock:
    """The block behind the region called ``region``: of that name, or of one that ends in it after a slash.

    QEMU puts a device's path before the names of its blocks. Raises `LayoutError` where there is no such block, or
    where several devices have one.
    """
    found = {block.name: block for block in blocks if block.name == region or block.name.endswith(f"/{region}")}
    if not found:
        raise LayoutError(f"no RAM block is behind the memory region {region!r}")
    if region not in found and len(found) > 1:
        raise LayoutError(f"the memory region {region!r} can be of any of the RAM blocks {', '.join(sorted(found))}")
    return found.get(region) or next(iter(found.values()))


def mtree_ranges(view: FlatView, accel: str | None = None) -> tuple[MtreeRange, ...] | None:
    """A view as QEMU's monitor shows it; ``accel`` is noted where it has a slot, which is where there is a section."""
    ranges = tuple(
        MtreeRange(
            one.address,
            one.end - 1,
            one.region.priority,
            one.kind,
            one.region.name,
            one.offset,
            accel if one.section else None,
            one.nonvolatile,
        )
        for one in view
    )
    return ranges or None


class Rebuilder:
    """Builds the regions of ``views``; the same RAM region is behind all views that show its block."""

    def __init__(self, blocks: Sequence[RamBlock], views: Sequence[MtreeView]) -> None:
        self._blocks = blocks
        self._kinds: dict[str, set[str]] = {}
        for one in (one for view in views for one in view.ranges or ()):
            self._kinds.setdefault(one.name, set()).add(one.kind)
        self._backed: dict[tuple[str, int], MemoryRegion] = {}
        self._shelf = MemoryRegion.container("regions")
        """Where each region has its priority; no address space shows it."""

    def spaces(self, view: MtreeView) -> tuple[AddressSpace, ...]:
        """The view's address spaces, which share a root where they name the same one.

        Raises `LayoutError` where no tree shows these ranges, such as two that QEMU would have written as one.
        """
        if view.ranges is None:  # roots of devices that may not reach memory yet: each has one of its own
            return tuple(
                AddressSpace(space.name, _named_root(space, MemoryRegion.container(space.alias or space.root)))
                for space in view.address_spaces
            )
        roots = {view.root: self._root(view.root, view.ranges)}
        spaces: list[AddressSpace] = []
        for space in view.address_spaces:
            shown = space.alias or space.root
            if shown not in roots:
                roots[shown] = MemoryRegion.container(shown)
                roots[shown].add_subregion(_alias_of(view.root, roots[view.root]), 0)
            spaces.append(AddressSpace(space.name, _named_root(space, roots[shown])))
            _check(spaces[-1], view)
        return tuple(spaces)

    def _root(self, name: str, ranges: Sequence[MtreeRange]) -> MemoryRegion:
        root = MemoryRegion.container(name)
        for one in ranges:
            alias = MemoryRegion.alias(one.name, self._region(one), one.offset, one.size)
            alias.readonly = one.kind == "rom"
            alias.nonvolatile = one.nonvolatile
            root.add_subregion(alias, one.start)
        return root

    def _region(self, one: MtreeRange) -> MemoryRegion:
        if one.kind == "i/o":
            device = MemoryRegion.io(one.name, one.offset + one.size)
            self._shelf.add_subregion(device, 0, one.priority)
            return device
        key = (one.name, one.priority)
        if key not in self._backed:
            self._backed[key] = self._make_backed(one.name)
            self._shelf.add_subregion(self._backed[key], 0, one.priority)
        region = self._backed[key]
        if one.offset + one.size > region.size:
            raise LayoutError(f"a range shows more of {one.name!r} than the {region.size:#x} bytes of its RAM block")
        return region

    def _make_backed(self, name: str) -> MemoryRegion:
        """RAM that is read-only in some ranges only is RAM, with aliases that are read-only (QEMU: PAM on x86)."""
        block, kinds = block_of(self._blocks, name), self._kinds[name]
        if "romd" in kinds:
            return MemoryRegion.rom_device(name, block)
        return MemoryRegion.ram(name, block) if "ram" in kinds else MemoryRegion.rom(name, block)


def _alias_of(name: str, target: MemoryRegion) -> MemoryRegion:
    return MemoryRegion.alias(name, target, 0, target.size)


def _named_root(space: MtreeSpace, shown: MemoryRegion) -> MemoryRegion:
    """The root that ``space`` names, which may be an alias of what it shows."""
    return shown if space.alias is None else _alias_of(space.root, shown)


def _check(space: AddressSpace, view: MtreeView) -> None:
    accel = next((one.accel for one in view.ranges or () if one.accel), None)
    if mtree_ranges(space.view, accel) != view.ranges:
        raise LayoutError(f"no tree of memory regions shows address space {space.name!r} in just these ranges")
