"""The regions of a whole guest: ``system``, which its CPUs see, and KVM's second view of it."""

from __future__ import annotations

from precopy.errors import LayoutError
from precopy.memory.layout import RamLayout
from precopy.memory.topology.address_space import AddressSpace
from precopy.memory.topology.region import MAX_SIZE, MemoryRegion
from precopy.units import PAGE_SIZE


def system_region(layout: RamLayout) -> MemoryRegion:
    """A container ``system`` that shows each section of ``layout``, as an alias of its block's RAM region.

    Each section stays a range of its own, also where it continues its neighbour: it was one in the machine. A block
    that no section maps has no region there. Raises `LayoutError` for pages that are not of 4096 bytes.
    """
    if layout.page_size != PAGE_SIZE:
        raise LayoutError(f"regions have pages of {PAGE_SIZE} bytes, the layout's have {layout.page_size}")
    system = MemoryRegion.container("system")
    regions = {block: MemoryRegion.ram(block.name, block) for block in layout.blocks}
    for section in layout.sections:
        target, offset, size = regions[section.block], section.offset * PAGE_SIZE, section.pages * PAGE_SIZE
        alias = MemoryRegion.alias(f"{target.name}@{section.gpa:#x}", target, offset, size)
        alias.unmergeable = True
        system.add_subregion(alias, section.gpa)
    return system


def ram_regions(root: MemoryRegion) -> tuple[MemoryRegion, ...]:
    """The regions with a RAM block that can be reached from ``root``, in ascending ram_addr order; for `set_log`."""
    found = [(region.block.first_page, region) for region in root.descend() if region.block is not None]
    return tuple(region for _, region in sorted(found, key=lambda pair: pair[0]))


def smram(system: MemoryRegion, above: MemoryRegion | None = None) -> AddressSpace:
    """KVM's second address space, which a CPU sees in system management mode: ``system``, covered by ``above``.

    As QEMU sets it up for its listener kvm-smram (``register_smram_listener``). It is why a RAM block has two slots,
    and why each clear of its dirty log is made twice. ``above`` comes to stand in the space's root: `LayoutError`
    where it is in a container already.
    """
    root = MemoryRegion.container("mem-container-smram")
    root.add_subregion(MemoryRegion.alias("mem-smram", system, 0, MAX_SIZE), 0, 0)
    if above is not None:
        root.add_subregion(above, 0, 10)
    return AddressSpace("KVM-SMRAM", root)
