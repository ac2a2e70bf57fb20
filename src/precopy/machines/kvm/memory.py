"""A VM's memory as KVM knows it: the guest's regions, the listeners that make slots of them, and its dirty memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.dirty import DirtyLog, DirtyMemory
from precopy.errors import UsageError
from precopy.memory import AddressSpace, GuestMemory, RamBlock, ram_regions, smram, system_region
from precopy.names import KVM_TRACKERS, KvmTrackerName
from precopy.trackers import kvm_ring
from precopy.trackers.kvm_listener import KvmListener
from precopy.trackers.kvm_log import KvmDirtyLog
from precopy.trackers.kvm_ring import KvmDirtyRing
from precopy.trackers.kvm_slots import MemorySlot, SlotTracker
from precopy.units import HostAddress


class SlotLog(SlotTracker, DirtyLog, Protocol):
    """What makes a listener's slots, and says what was written in them."""


def _dirty_log(vm: int, pages: int, listeners: list[str], _ring_entries: int) -> list[SlotLog]:
    called = [f"kvm dirty log ({name})" for name in listeners] if len(listeners) > 1 else ["kvm dirty log"]
    return [KvmDirtyLog(vm, pages, name) for name in called]


def _dirty_ring(vm: int, pages: int, listeners: list[str], ring_entries: int) -> list[SlotLog]:
    kvm_ring.enable(vm, ring_entries)
    return [KvmDirtyRing(vm, pages)] * len(listeners)


_TRACKERS: dict[KvmTrackerName, Callable[[int, int, list[str], int], list[SlotLog]]] = {
    "dirty-log": _dirty_log,
    "dirty-ring": _dirty_ring,
}
"""By name: what makes a tracker for each listener of a VM, or one for all."""


class VmMemory:
    """Maps ``memory`` into the VM of descriptor ``vm``, which has no vCPU yet.

    ``tracker`` is one of `precopy.names.KVM_TRACKERS`; a ring has ``ring_entries`` entries for each vCPU. With
    ``smram_listener`` a second listener sees the same memory, as under QEMU with system management mode. Raises
    `Unsupported`, `KernelCallError`.
    """

    def __init__(
        self,
        vm: int,
        memory: GuestMemory,
        tracker: str = "dirty-log",
        *,
        smram_listener: bool = False,
        ring_entries: int = kvm_ring.DEFAULT_ENTRIES,
    ) -> None:
        make = next((make for name, make in _TRACKERS.items() if name == tracker), None)
        if make is None:
            raise UsageError(f"no tracker is called {tracker!r}; there are {', '.join(KVM_TRACKERS)}")
        self.tracker, self._memory, self._vm = tracker, memory, vm
        layout = memory.layout
        self.system = system_region(layout)
        self.regions = {region.block.name: region for region in ram_regions(self.system) if region.block}
        self.spaces = [AddressSpace("memory", self.system)]
        names = ["kvm-memory"]
        if smram_listener:
            self.spaces.append(smram(self.system))
            names.append("kvm-smram")
        trackers = make(vm, layout.end_page, names, ring_entries)
        self.ring = next((tracker for tracker in trackers if isinstance(tracker, KvmDirtyRing)), None)
        numbers = itertools.count()
        self.listeners = [KvmListener(names[0], trackers[0], numbers, self._address_of)]
        if smram_listener:
            self.listeners.append(self._second(names[1], trackers[1], numbers))
        for space, listener in zip(self.spaces, self.listeners, strict=True):
            space.add_listener(listener)
        self.logs: tuple[DirtyLog, ...] = tuple(dict.fromkeys(trackers))
        """The VM's own; more may be attached to ``dirty``."""
        self.dirty = DirtyMemory(layout, self.logs, self.regions)

    @property
    def slots(self) -> tuple[MemorySlot, ...]:
        """All slots of all listeners."""
        return tuple(slot for listener in self.listeners for slot in listener.slots)

    def close(self) -> None:
        """Listens no more and lets go of the rings. The slots end with the VM."""
        for space in self.spaces:
            space.root.detach(space)
        if self.ring is not None:
            self.ring.close()

    def _second(self, name: str, tracker: SlotTracker, numbers: itertools.count[int]) -> KvmListener:
        if call(self._vm, kvm.CHECK_EXTENSION, kvm.CAP_MULTI_ADDRESS_SPACE, target="the VM") > 1:
            return KvmListener(name, tracker, itertools.count(), self._address_of, address_space=1)
        end = max((section.end_gpa for section in self.spaces[0].view.sections), default=0)
        return KvmListener(name, tracker, numbers, self._address_of, base=1 << (end - 1).bit_length())

    def _address_of(self, block: RamBlock) -> HostAddress:
        return self._memory.host(block).address
