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
from precopy.abi.system_calls import signals_wait
from precopy.bitmap import BITS_PER_WORD, Bitmap
from precopy.bitmap.words import Indexes, any_set, or_into, words_for
from precopy.dirty.log import LogCounters
from precopy.errors import GuestError, Unsupported
from precopy.memory.layout import RamBlock
from precopy.trackers.kvm_slots import MemorySlot
from precopy.trackers.ring import Entries, Ring, State

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
        self._dirtied: list[int] = []
        self._slots: dict[int, MemorySlot] = {}
        self._wanted: set[int] = set()
        self._global = False
        self._lock = threading.Lock()  # a vCPU whose ring is full collects in its own thread
        self._dirty = Bitmap(pages)
        self._harvested = Bitmap(pages)
        self._armed = True  # nothing was collected since the last reset
        self._span = slice(0, 0)  # words outside are zero in both bitmaps: a sync costs by what is dirty
        self._gets = self._clears = 0
        self._get_s = self._clear_s = 0.0
        self.overflows = self.full_exits = 0

    def attach(self, entries: Entries) -> None:
        """Adds a vCPU's ring: its mapping as rows of four 32-bit words."""
        self._rings.append(Ring(entries))
        self._dirtied.append(0)

    def close(self) -> None:
        """Lets go of the rings, whose mappings would keep the vCPUs' descriptors, and so the VM, in the kernel."""
        with self._lock:
            self._rings.clear()

    # Slots.

    def add(self, slot: MemorySlot, *, logging: bool = False) -> None:
        slot.set(self._vm, logging=logging or self._global)
        with self._lock:
            self._slots[slot.id] = slot
            self._wanted |= {slot.id} if logging else set()

    def remove(self, slot: MemorySlot) -> None:
        with self._lock:
            self._collect()
            # The kernel resets entries of one slot number together, and none of them where one lies beyond the slot's
            # end: none may be left for a smaller slot that gets the same number.
            self._reset()
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
            kept = Bitmap(self._dirty.size)  # what is logged on: written since it was harvested last
            for number in self._wanted:
                slot = self._slots[number]
                kept.set_runs(self._dirty.runs(slot.first_page, slot.pages))
            self._dirty = kept
            self._harvested.clear_all()
            self._span = slice(0, kept.words.size)
        for number, slot in self._slots.items():
            slot.set(self._vm, logging=number in self._wanted)

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        start = time.perf_counter()
        with self._lock:
            self._collect()
            if block is None:
                for found in (self._harvested, dirty):
                    or_into(found.words[self._span], self._dirty.words[self._span])
            else:
                for found in (self._harvested, dirty):
                    found.view(block.first_page, block.pages).add(self._dirty.view(block.first_page, block.pages))
        self._gets += 1
        self._get_s += time.perf_counter() - start

    def clear(self, start: int, count: int) -> None:
        with self._lock:
            low, high = self._span.start * BITS_PER_WORD, min(self._span.stop * BITS_PER_WORD, self._dirty.size)
            start, end = max(start, low), min(start + count, high)
            if start >= end:
                return
            first, words = self._harvested.masked(start, end - start)
            if not any_set(words):
                return
            began = time.perf_counter()
            if not self._armed:
                self._reset()
                self._clears += 1
            part = slice(first, first + words.size)
            self._harvested.words[part] &= ~words
            self._dirty.words[part] &= ~words
            if (start, end) == (low, high) and not any_set(self._dirty.words[self._span]):
                self._span = slice(0, 0)
            self._clear_s += time.perf_counter() - began

    def dirtied(self, vcpu: int) -> int:
        """Pages that the vCPU has dirtied since its ring was attached, while they were logged; one counts again once
        it was re-armed. A lower bound where its ring has overflowed.

        Takes over what its ring holds, for the next harvest. To be called from any thread."""
        with self._lock:
            self._collect_from(vcpu)
            return self._dirtied[vcpu]

    def relieve(self, vcpu: int) -> None:
        """What a vCPU does that left because its ring is nearly full: makes room, and lets it go on. Raises
        `GuestError` where there is no room to be made."""
        with self._lock:
            self.full_exits += 1
            ring = self._rings[vcpu]
            self._collect()
            full = ring.marked > 0
            self._reset()
            if full and ring.state is State.IN_STEP:
                return
            # Nothing to free. Another thread may have done it since the vCPU left, so it tries once more; if it comes
            # back with the ring as it was, the kernel counts entries that it has overwritten.
            if not ring.tried:
                ring.tried = True
                return
            if ring.state is State.IN_STEP:
                ring.give_up()
                self._lose()
            if not ring.free_some(self._call_reset):
                raise GuestError(f"the dirty ring of vCPU {vcpu} is full and cannot be emptied")
            ring.tried = True  # and once more, until it does find room

    def _collect(self) -> None:
        for vcpu in range(len(self._rings)):
            self._collect_from(vcpu)

    def _collect_from(self, vcpu: int) -> None:
        ring = self._rings[vcpu]
        found = ring.collect()
        self._dirtied[vcpu] += ring.size if found.lost else found.slots.size
        if found.lost:
            self._lose()
        for number in np.unique(found.slots).tolist():
            slot = self._slots.get(number)
            if slot is not None:
                pages = found.offsets[found.slots == number]
                self._mark(pages[(pages >= 0) & (pages < slot.pages)] + slot.first_page)
        self._armed &= not found.slots.size

    def _mark(self, pages: Indexes) -> None:
        if pages.size:
            self._dirty.set_indexes(pages)
            self._widen(int(pages.min()), int(pages.max()) + 1)

    def _widen(self, start: int, end: int) -> None:
        low, high = start // BITS_PER_WORD, words_for(end)
        old = self._span
        self._span = slice(min(old.start, low), max(old.stop, high)) if old.stop else slice(low, high)

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
                self._widen(slot.first_page, slot.first_page + slot.pages)

    def _reset(self) -> None:
        """Re-arms all that was collected."""
        self._armed = True
        self._call_reset()
        settled = [ring.settle() for ring in self._rings]
        if not all(settled):
            self._lose()

    def _call_reset(self) -> None:
        # A pending signal ends the walk (Linux 6.17), and pages of entries that it has freed by then may not be
        # re-armed, which nothing would show. A vCPU's thread gets signals whenever the guest is to be paused.
        with signals_wait():
            call(self._vm, kvm.RESET_DIRTY_RINGS, target="the VM")
