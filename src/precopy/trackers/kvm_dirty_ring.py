"""The KVM dirty ring: each vCPU names the pages that it dirties, one by one, so that a sync costs by what was dirtied
and not by how much memory there is.

A page that was collected stays unprotected until a reset, and is in ``dirty`` until it is cleared; the reset comes with
the first clear that needs it and re-arms everything collected by then, because the kernel resets in order and knows no
ranges. That is earlier than asked for some pages, never later (law 1), and what it re-arms was collected (law 2).

What lost entries mean is in ring.py. Source: Documentation/virt/kvm/api.rst, KVM_CAP_DIRTY_LOG_RING.
"""

from __future__ import annotations

import threading
import time

import numpy as np

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.bitmap import Bitmap
from precopy.dirty.log import LogCounters
from precopy.errors import GuestError, Unsupported
from precopy.memory.layout import RamBlock
from precopy.trackers.kvm_slot import MemorySlot
from precopy.trackers.ring import Entries, Ring

DEFAULT_ENTRIES = 65536
"""Entries of each vCPU's ring: 1 MiB, and 256 MiB of memory dirtied between two harvests."""


def enable(vm: int, entries: int) -> None:
    """Gives every vCPU that the VM is yet to have a ring of ``entries``, a power of two. The VM has no dirty log then.
    Raises `Unsupported`, `KernelCallError`."""
    size = entries * kvm.DIRTY_GFN_SIZE
    for cap in (kvm.CAP_DIRTY_LOG_RING_ACQ_REL, kvm.CAP_DIRTY_LOG_RING):
        most = call(vm, kvm.CHECK_EXTENSION, cap, target="the VM")
        if most:
            break
    else:
        raise Unsupported("this kernel's KVM has no dirty ring", "use --tracker dirty-log, or Linux 5.11 or later")
    least = 2 * kvm.DIRTY_RING_RESERVED
    if entries & (entries - 1) or not least <= entries <= most // kvm.DIRTY_GFN_SIZE:
        raise Unsupported(
            f"a dirty ring of {entries} entries is not possible here",
            f"use a power of two from {least} to {most // kvm.DIRTY_GFN_SIZE}",
        )
    ask = kvm.EnableCap(cap=cap)
    ask.args[0] = size
    call(vm, kvm.ENABLE_CAP, ask, target="the VM")


class KvmDirtyRing:
    """Implements `precopy.ports.DirtyLog`, and `SlotTracker` for all listeners of the VM of descriptor ``vm``, which
    `enable` was called for. ``pages`` is the size of the ram_addr space; `attach` each vCPU's ring.

    ``overflows`` counts how often a ring was found to have lost entries, ``full_exits`` how often a vCPU left the guest
    because its ring was nearly full.
    """

    name = "kvm dirty ring"

    def __init__(self, vm: int, pages: int) -> None:
        self._vm = vm
        self._rings: list[Ring] = []
        self._slots: dict[int, MemorySlot] = {}
        self._wanted: set[int] = set()
        self._global = False
        self._lock = threading.Lock()  # a vCPU whose ring is full collects in its own thread
        self._dirty = Bitmap(pages)
        self._harvested = Bitmap(pages)
        self._unarmed = Bitmap(pages)
        self._gets = self._clears = 0
        self._get_s = self._clear_s = 0.0
        self.overflows = self.full_exits = 0

    def attach(self, entries: Entries) -> None:
        """Adds a vCPU's ring: its mapping as rows of four 32-bit words."""
        self._rings.append(Ring(entries))

    # Slots.

    def add(self, slot: MemorySlot, *, logging: bool = False) -> None:
        slot.set(self._vm, logging=logging or self._global)
        with self._lock:
            self._slots[slot.id] = slot
            self._wanted |= {slot.id} if logging else set()

    def remove(self, slot: MemorySlot) -> None:
        with self._lock:
            self._collect()
        slot.delete(self._vm)
        with self._lock:
            del self._slots[slot.id]
            self._wanted.discard(slot.id)

    def set_logging(self, slot: MemorySlot, on: bool) -> None:
        with self._lock:
            self._wanted = self._wanted | {slot.id} if on else self._wanted - {slot.id}
        if not self._global:
            slot.set(self._vm, logging=on)

    # The log.

    @property
    def counters(self) -> LogCounters:
        """Harvests count as gets, though they make no system call; resets as clears."""
        return LogCounters(self._gets, self._get_s, self._clears, self._clear_s)

    def start(self) -> None:
        """Starts logging: the kernel protects every page, and none is dirty at first."""
        self._global = True
        for slot in self._slots.values():
            slot.set(self._vm, logging=True)

    def stop(self) -> None:
        if not self._global:
            return
        with self._lock:
            self._collect()
            self._reset()
            self._global = False
            self._dirty.clear_all()
            self._harvested.clear_all()
        for number, slot in self._slots.items():
            slot.set(self._vm, logging=number in self._wanted)

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        start = time.perf_counter()
        with self._lock:
            self._collect()
            if block is None:
                self._harvested.add(self._dirty)
                dirty.add(self._dirty)
            else:
                for found in (self._harvested, dirty):
                    found.view(block.first_page, block.pages).add(self._dirty.view(block.first_page, block.pages))
        self._gets += 1
        self._get_s += time.perf_counter() - start

    def clear(self, start: int, count: int) -> None:
        start, end = min(start, self._dirty.size), min(start + count, self._dirty.size)
        with self._lock:
            runs = self._harvested.take(start, end - start)
            if not len(runs):
                return
            began = time.perf_counter()
            if self._unarmed.intersects(runs):
                self._reset()
                self._clears += 1
            for first, length in runs:
                self._dirty.clear_range(first, length)
            self._clear_s += time.perf_counter() - began

    def relieve(self, vcpu: int) -> None:
        """What a vCPU does that left because its ring is nearly full: makes room, and lets it go on. Raises
        `GuestError` where there is no room to be made."""
        with self._lock:
            self.full_exits += 1
            ring = self._rings[vcpu]
            before = self.overflows
            self._collect()
            if self._reset() or self.overflows > before:
                return
            # Nothing to reset in a ring that is full: the kernel waits for entries that it has overwritten.
            ring.unblock(ring.size - 2 * kvm.DIRTY_RING_RESERVED)
            self._lose()
            if not self._reset():
                raise GuestError(f"the dirty ring of vCPU {vcpu} is full and cannot be emptied")

    def _collect(self) -> None:
        for ring in self._rings:
            found = ring.collect()
            if found.lost:
                self._lose()
            for number in np.unique(found.slots).tolist():
                slot = self._slots.get(number)
                if slot is not None:
                    pages = np.unique(found.offsets[found.slots == number])
                    inside = pages[(pages >= 0) & (pages < slot.pages)] + slot.first_page
                    self._dirty.set_indexes(inside)
                    self._unarmed.set_indexes(inside)

    def _lose(self) -> None:
        """Entries are missing: every page that is logged may be dirty, and may be written without an entry from now
        on, because the kernel protects a page again only for the entry that named it. So logging is started anew,
        which protects all of them; what is written until then is dirty like everything else."""
        self.overflows += 1
        for number, slot in self._slots.items():
            if self._global or number in self._wanted:
                slot.set(self._vm, logging=False)
                slot.set(self._vm, logging=True)
                self._dirty.set_range(slot.first_page, slot.pages)
                self._unarmed.set_range(slot.first_page, slot.pages)

    def _reset(self) -> int:
        """Re-arms all that was collected; returns of how many entries the kernel says so."""
        self._unarmed.clear_all()
        return call(self._vm, kvm.RESET_DIRTY_RINGS, target="the VM")
