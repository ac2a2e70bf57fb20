"""Memory regions: the tree of RAM, ROM and devices that a guest's address spaces show (QEMU: ``MemoryRegion``).

A region has a size and, where it stands in another one, an address there and a priority. Regions in one container may
overlap: the one with the higher priority covers the other, and of two with the same priority the one that was added
or moved later. Any region but an alias may hold others; they cover it, and it shows through where they leave gaps.
An alias shows a part of another region at a place of its own.

What the tree looks like from above is a `FlatView`; an `AddressSpace` keeps one and is updated by every change here.
"""

from __future__ import annotations

import enum
from bisect import insort_right
from collections.abc import Callable, Iterable, Iterator
from typing import Final
from weakref import WeakKeyDictionary

from precopy.errors import LayoutError
from precopy.memory.layout import RamBlock
from precopy.memory.topology.log_mask import NO_CLIENTS, DirtyClient
from precopy.memory.topology.transaction import Viewer, note_change
from precopy.units import PAGE_SIZE

MAX_SIZE = 1 << 64
"""Bytes in the largest region: all that 64-bit addresses can name."""


class RegionKind(enum.Enum):
    """What a region is."""

    RAM = "RAM"
    ROM = "ROM"
    ROM_DEVICE = "ROM device"
    RAM_DEVICE = "RAM device"
    UNMIGRATED = "RAM that does not migrate"
    IO = "I/O"
    CONTAINER = "container"
    ALIAS = "alias"


_BACKED = (RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE)


class MemoryRegion:
    """One region; made by the class methods `ram`, `rom`, `rom_device`, `ram_device`, `unmigrated_ram`, `io`,
    `container` and `alias`.

    Sizes, offsets and addresses are bytes. Two regions are equal only where they are the same. Raises `LayoutError`
    for what cannot be meant.
    """

    def __init__(
        self,
        kind: RegionKind,
        name: str,
        size: int,
        *,
        block: RamBlock | None = None,
        target: MemoryRegion | None = None,
        offset: int = 0,
    ) -> None:
        if not 0 <= size <= MAX_SIZE:
            raise LayoutError(f"the memory region {name!r} has {size} bytes; it can have 0 to 2^64")
        may_be_backed = kind in _BACKED or kind is RegionKind.RAM_DEVICE
        is_backed = block is not None or kind is RegionKind.RAM_DEVICE
        if is_backed != may_be_backed or (target is not None) != (kind is RegionKind.ALIAS):
            raise LayoutError(
                f"the memory region {name!r} of kind {kind.value} lacks what is behind it, or has too much"
            )
        if not 0 <= offset < MAX_SIZE:
            raise LayoutError(f"the alias {name!r} begins {offset:#x} bytes into {target!r}, which is no offset")
        self.kind: Final = kind
        self.name: Final = name
        self.size: Final = size
        self.block: Final = block
        """The RAM block whose page 0 is the region's offset 0; None for what no RAM block is behind."""
        self.target: Final = target
        """What an alias shows; None for any other region."""
        self.target_offset: Final = offset
        """Where in its target an alias begins."""
        self._enabled, self._readonly, self._romd_mode, self._nonvolatile = True, kind is RegionKind.ROM, True, False
        self._unmergeable = False
        self._log_mask = NO_CLIENTS
        self._container: MemoryRegion | None = None
        self._address, self._priority = 0, 0
        self._subregions: list[MemoryRegion] = []
        """Ascending by priority, then in the order in which they were added: what covers comes after the covered."""
        self._aliases: WeakKeyDictionary[MemoryRegion, None] | None = None
        """Aliases of this region that are referred to, in the order in which they were made; None for most regions."""
        self._viewers: list[Viewer] = []
        if target is not None:
            target._aliases = WeakKeyDictionary() if target._aliases is None else target._aliases
            target._aliases[self] = None

    @classmethod
    def ram(cls, name: str, block: RamBlock) -> MemoryRegion:
        """All of ``block``, to be read and written."""
        return cls(RegionKind.RAM, name, block.pages * PAGE_SIZE, block=block)

    @classmethod
    def rom(cls, name: str, block: RamBlock) -> MemoryRegion:
        """All of ``block``, which the guest can only read."""
        return cls(RegionKind.ROM, name, block.pages * PAGE_SIZE, block=block)

    @classmethod
    def rom_device(cls, name: str, block: RamBlock) -> MemoryRegion:
        """All of ``block``, which the guest reads directly in ROM mode; writes always go to the device (flash)."""
        return cls(RegionKind.ROM_DEVICE, name, block.pages * PAGE_SIZE, block=block)

    @classmethod
    def ram_device(cls, name: str, size: int, block: RamBlock | None = None) -> MemoryRegion:
        """Memory of a device that the guest reads and writes directly, such as a BAR of an assigned PCI device; with
        the RAM block that it migrates in, if it does."""
        return cls(RegionKind.RAM_DEVICE, name, size, block=block)

    @classmethod
    def unmigrated_ram(cls, name: str, size: int) -> MemoryRegion:
        """RAM that has no named RAM block, so that it does not migrate and writes to it are not logged."""
        return cls(RegionKind.UNMIGRATED, name, size)

    @classmethod
    def io(cls, name: str, size: int) -> MemoryRegion:
        """Registers of a device."""
        return cls(RegionKind.IO, name, size)

    @classmethod
    def container(cls, name: str, size: int = MAX_SIZE) -> MemoryRegion:
        """A container: it shows only the regions inside it."""
        return cls(RegionKind.CONTAINER, name, size)

    @classmethod
    def alias(cls, name: str, target: MemoryRegion, offset: int, size: int) -> MemoryRegion:
        """``size`` bytes of ``target`` from its byte ``offset``; what lies beyond the target's end shows nothing."""
        return cls(RegionKind.ALIAS, name, size, target=target, offset=offset)

    def __repr__(self) -> str:
        return f"<MemoryRegion {self.name!r}, {self.kind.value}, {self.size:#x} bytes>"

    @property
    def parent(self) -> MemoryRegion | None:
        """The region that this one stands in."""
        return self._container

    @property
    def subregions(self) -> tuple[MemoryRegion, ...]:
        """What stands in this region, the covering before the covered."""
        return tuple(reversed(self._subregions))

    @property
    def priority(self) -> int:
        """Which of two overlapping regions in one container is seen: the one with the larger number."""
        return self._priority

    @property
    def address(self) -> int:
        """Where in its container the region begins; 0 where it is in none.

        A region that is moved then covers those of its own priority, as in QEMU (``memory_region_set_address``).
        """
        return self._address

    @address.setter
    def address(self, at: int) -> None:
        if self._container is None:
            raise LayoutError(f"the memory region {self.name!r} cannot be moved: it is in no container")
        if at != self._address:
            _check_address(self.name, at)
            self._container._subregions.remove(self)
            self._container._insert(self, at, self._priority)

    @property
    def enabled(self) -> bool:
        """Whether the region and all in it can be seen."""
        return self._enabled

    @enabled.setter
    def enabled(self, on: bool) -> None:
        if on != self._enabled:
            self._enabled = on
            self._changed()

    @property
    def readonly(self) -> bool:
        """Whether the region and all in it can only be read. A ROM cannot be anything else: `LayoutError`."""
        return self._readonly

    @readonly.setter
    def readonly(self, on: bool) -> None:
        if self.kind is RegionKind.ROM and not on:
            raise LayoutError(f"the memory region {self.name!r} is a ROM and stays read-only")
        if on != self._readonly:
            self._readonly = on
            self._changed()

    @property
    def nonvolatile(self) -> bool:
        """Whether the region and all in it keep what they hold without power (NVDIMM)."""
        return self._nonvolatile

    @nonvolatile.setter
    def nonvolatile(self, on: bool) -> None:
        if on != self._nonvolatile:
            self._nonvolatile = on
            self._changed()

    @property
    def unmergeable(self) -> bool:
        """Whether the region and all in it stay ranges of their own beside what continues them (virtio-mem, hv-balloon:
        a memory slot for each)."""
        return self._unmergeable

    @unmergeable.setter
    def unmergeable(self, on: bool) -> None:
        if on != self._unmergeable:
            self._unmergeable = on
            self._changed()

    @property
    def romd_mode(self) -> bool:
        """Whether a ROM device is read directly; otherwise reads go to the device too. Others refuse: `LayoutError`."""
        return self._romd_mode and self.kind is RegionKind.ROM_DEVICE

    @romd_mode.setter
    def romd_mode(self, on: bool) -> None:
        if self.kind is not RegionKind.ROM_DEVICE:
            raise LayoutError(f"the memory region {self.name!r} is no ROM device")
        if on != self._romd_mode:
            self._romd_mode = on
            self._changed()

    @property
    def log_mask(self) -> DirtyClient:
        """The clients for which writes to the region are logged; an alias has its target's."""
        return self._log_mask if self.target is None else self.target.log_mask

    def set_log(self, client: DirtyClient, on: bool) -> None:
        """Logs writes for ``client`` (one or several), or does no longer; calls are not counted.

        An alias hands it on to its target: what is logged is memory, wherever it is seen from. Raises `LayoutError`
        where there is no RAM block to log.
        """
        if self.target is not None:
            self.target.set_log(client, on)
            return
        if self.block is None:
            raise LayoutError(f"writes to the memory region {self.name!r} cannot be logged: no RAM block is behind it")
        mask = self._log_mask | client if on else self._log_mask & ~client
        if mask != self._log_mask:
            self._log_mask = mask
            self._changed()

    def add_subregion(self, region: MemoryRegion, at: int, priority: int = 0) -> None:
        """Has ``region`` stand in this one from byte ``at``; what lies beyond this region's end is not seen.

        Raises `LayoutError` where ``region`` is in a container already, where this region is an alias, and where it
        would come to stand in itself, also by way of aliases.
        """
        if self.target is not None:
            raise LayoutError(f"the alias {self.name!r} cannot hold {region.name!r}; add it to what the alias shows")
        if region._container is not None:
            raise LayoutError(f"the memory region {region.name!r} is in {region._container.name!r} already")
        _check_address(region.name, at)
        if any(below is self for below in region.descend()):
            raise LayoutError(f"the memory region {region.name!r} cannot stand in {self.name!r}, which it shows itself")
        region._container = self
        self._insert(region, at, priority)

    def descend(self) -> Iterator[MemoryRegion]:
        """This region and, once each, all that can be reached from it: what stands in it, and targets of aliases."""
        return _reach(self, lambda region: region.subregions if region.target is None else (region.target,))

    def attach(self, viewer: Viewer) -> None:
        """Has ``viewer`` told of changes of this region and of all that can be reached from it."""
        self._viewers.append(viewer)

    def detach(self, viewer: Viewer) -> None:
        """The opposite of `attach`; nothing where ``viewer`` is not attached."""
        if viewer in self._viewers:
            self._viewers.remove(viewer)

    def _insert(self, region: MemoryRegion, at: int, priority: int) -> None:
        region._address, region._priority = at, priority
        insort_right(self._subregions, region, key=lambda other: other._priority)
        self._changed()

    def _changed(self) -> None:
        """Tells every address space that sees this region, through containers and through aliases."""
        note_change(viewer for region in _reach(self, MemoryRegion._above) for viewer in region._viewers)

    def _above(self) -> list[MemoryRegion]:
        above = [] if self._aliases is None else list(self._aliases)
        return above if self._container is None else [*above, self._container]


def _reach(start: MemoryRegion, step: Callable[[MemoryRegion], Iterable[MemoryRegion]]) -> Iterator[MemoryRegion]:
    """``start`` and what any number of steps lead to, each once."""
    found, ahead = {start}, [start]
    while ahead:
        region = ahead.pop()
        yield region
        fresh = [other for other in step(region) if other not in found]
        found.update(fresh)
        ahead.extend(fresh)


def _check_address(name: str, at: int) -> None:
    if not 0 <= at < MAX_SIZE:
        raise LayoutError(f"the memory region {name!r} cannot begin at {at:#x}: addresses have 64 bits")
