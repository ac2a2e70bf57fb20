"""A KVM memory slot: which pages of the ram_addr space it maps, and where the guest sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, HostAddress, RamPage


@dataclass(frozen=True)
class MemorySlot:
    """Slot ``number`` of address space ``address_space`` of a VM: ``pages`` pages at ``gpa``, which are those from
    ram_addr page ``first_page``; a guest that writes a ``readonly`` slot leaves to the host instead."""

    number: int
    name: str
    first_page: RamPage
    pages: int
    gpa: GuestPhysicalAddress
    host_address: HostAddress
    address_space: int = 0
    readonly: bool = False

    @property
    def id(self) -> int:
        """What the kernel calls it: the address space in the upper half (KVM_CAP_MULTI_ADDRESS_SPACE)."""
        return self.address_space << 16 | self.number

    def set(self, vm: int, *, logging: bool) -> None:
        """Makes or changes the slot in the VM of descriptor ``vm``. Raises `KernelCallError`."""
        flags = kvm.MEM_LOG_DIRTY_PAGES * logging | kvm.MEM_READONLY * self.readonly
        self._call(vm, flags, self.pages * PAGE_SIZE)

    def delete(self, vm: int) -> None:
        """Takes the slot away. Raises `KernelCallError`."""
        self._call(vm, 0, 0)

    def _call(self, vm: int, flags: int, size: int) -> None:
        region = kvm.UserspaceMemoryRegion(self.id, flags, self.gpa, size, self.host_address)
        call(vm, kvm.SET_USER_MEMORY_REGION, region, target=str(self))

    def __str__(self) -> str:
        where = f" of address space {self.address_space}" if self.address_space else ""
        return f"slot {self.number}{where} ({self.name} at {self.gpa:#x})"


class SlotTracker(Protocol):
    """A tracker of KVM slots, which makes and deletes them, because a slot that goes may take dirty bits along."""

    def add(self, slot: MemorySlot, *, logging: bool) -> None:
        """Makes the slot; ``logging`` asks for its log beyond a migration's. Raises `KernelCallError`."""
        ...

    def remove(self, slot: MemorySlot) -> None:
        """Deletes the slot. What it had logged is still reported. Raises `KernelCallError`."""
        ...

    def set_logging(self, slot: MemorySlot, on: bool) -> None:
        """Whether the slot is logged also while no migration is under way. Raises `KernelCallError`."""
        ...
