"""The memory listeners of a VM: sections of an address space become memory slots.

``kvm-memory`` listens to what a guest's CPUs see, ``kvm-smram`` to what they see in system management mode. KVM keeps
the latter in its address space 1 where KVM_CAP_MULTI_ADDRESS_SPACE has it; elsewhere its slots lie in address space 0,
further up: they alias the same host memory, so that they have dirty logs of their own just the same.

vCPUs stand still while regions change, as under QEMU's big lock: between the last harvest of a slot and its end a
write of the guest would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from precopy.memory.layout import RamBlock
from precopy.memory.topology.flat_view import FlatRange
from precopy.memory.topology.log_mask import DirtyClient
from precopy.memory.topology.region import RegionKind
from precopy.trackers.kvm_slots import MemorySlot, SlotTracker
from precopy.units import PAGE_SIZE, GuestPhysicalAddress, HostAddress


class KvmListener:
    """Implements `precopy.memory.MemoryListener`: makes a slot in ``tracker`` for each section.

    ``numbers`` hands out free slot numbers, ``address_of`` says where a block's host memory is. ``address_space`` is
    KVM's; ``base`` is added to every guest-physical address (an aliasing listener's).
    """

    def __init__(
        self,
        name: str,
        tracker: SlotTracker,
        numbers: Iterator[int],
        address_of: Callable[[RamBlock], HostAddress],
        *,
        address_space: int = 0,
        base: int = 0,
    ) -> None:
        self.name, self.tracker = name, tracker
        self.address_space, self.base = address_space, base
        self._numbers, self._address_of = numbers, address_of
        self._free: list[int] = []
        self._slots: dict[int, MemorySlot] = {}

    @property
    def slots(self) -> tuple[MemorySlot, ...]:
        """Every slot that it has, by ascending address."""
        return tuple(slot for _, slot in sorted(self._slots.items()))

    @property
    def how(self) -> str:
        """How the kernel keeps this listener's slots, for people."""
        if self.address_space:
            return f"{self.name}: address space {self.address_space}"
        return f"{self.name}: slots that alias host memory, at {self.base:#x}" if self.base else self.name

    def begin(self) -> None:
        """Nothing to prepare: each section is a slot of its own."""

    def commit(self) -> None:
        """Nothing is left to do: each call has done its own."""

    def region_add(self, added: FlatRange) -> None:
        section = added.section
        if section is None:
            return
        slot = MemorySlot(
            self._free.pop() if self._free else next(self._numbers),
            section.block.name,
            section.first_page,
            section.pages,
            GuestPhysicalAddress(section.gpa + self.base),
            HostAddress(self._address_of(section.block) + section.offset * PAGE_SIZE),
            self.address_space,
            added.readonly or added.region.kind is RegionKind.ROM_DEVICE,  # what is written to flash are commands
        )
        self.tracker.add(slot, logging=bool(added.log_mask))
        self._slots[added.address] = slot

    def region_del(self, removed: FlatRange) -> None:
        slot = self._slots.pop(removed.address, None)
        if slot is not None:
            self.tracker.remove(slot)
            self._free.append(slot.number)

    def log_start(self, changed: FlatRange, old: DirtyClient, new: DirtyClient) -> None:
        if not old and new and changed.address in self._slots:
            self.tracker.set_logging(self._slots[changed.address], on=True)

    def log_stop(self, changed: FlatRange, old: DirtyClient, new: DirtyClient) -> None:
        if old and not new and changed.address in self._slots:
            self.tracker.set_logging(self._slots[changed.address], on=False)
