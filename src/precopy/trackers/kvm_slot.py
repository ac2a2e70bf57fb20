"""A KVM memory slot: which pages of the ram_addr space it maps, and where the guest sees them."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, HostAddress, RamPage


@dataclass(frozen=True)
class MemorySlot:
    """Slot ``number`` of a VM: ``pages`` pages at ``gpa``, which are those from ram_addr page ``first_page``."""

    number: int
    name: str
    first_page: RamPage
    pages: int
    gpa: GuestPhysicalAddress
    host_address: HostAddress

    def set(self, vm: int, flags: int) -> None:
        """Makes or changes the slot in the VM of descriptor ``vm``. Raises `KernelCallError`."""
        region = kvm.UserspaceMemoryRegion(self.number, flags, self.gpa, self.pages * PAGE_SIZE, self.host_address)
        call(vm, kvm.SET_USER_MEMORY_REGION, region, target=str(self))

    def __str__(self) -> str:
        return f"slot {self.number} ({self.name} at {self.gpa:#x})"
