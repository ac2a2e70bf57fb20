"""The KVM dirty log with manual protect: GET_DIRTY_LOG harvests and leaves bits set, CLEAR_DIRTY_LOG re-arms.

Law 2: **Clear only what was harvested.** The kernel clears exactly the bits that are set in the bitmap handed to it,
so every clear hands over the slot's last harvest with all bits outside the request masked off. Bits that the request
re-armed leave that harvest, so that no later, wider clear can drop a write that nobody has read.

Law 3: **Alignment is the ABI's business.** ``first_page`` and ``num_pages`` are multiples of 64 unless the slot ends;
only this module knows. Callers give exact ranges of ram_addr pages.

Source: Documentation/virt/kvm/api.rst: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.bitmap import BITS_PER_WORD, Bitmap, Runs, Words
from precopy.dirty.log import LogCounters
from precopy.errors import Unsupported
from precopy.trackers.kvm_slot import MemorySlot

GAP_WORDS = 16384
"""Clean words (64 pages each) between two dirty ones that cost the kernel about as much as another CLEAR_DIRTY_LOG:
measured 3700 with the vCPUs paused and 38700 with one running, which each call interrupts (benchmarks/clear_gap.py)."""


class _Slot:
    """A slot, its last harvest, and the argument of its GET_DIRTY_LOG (made once: a sync runs in microseconds)."""

    def __init__(self, slot: MemorySlot, harvest: Bitmap) -> None:
        self.slot = slot
        self.first, self.end = int(slot.first_page), slot.first_page + slot.pages
        self.harvest = harvest
        self.target = str(slot)
        self.get = kvm.DirtyLog(slot.number, 0, harvest.words.__array_interface__["data"][0])


class KvmDirtyLog:
    """Implements `precopy.ports.DirtyLog` for the ``slots`` of the VM of descriptor ``vm``.

    ``pages`` is the size of the ram_addr space. Raises `Unsupported` where KVM has no manual protect.
    """

    name = "kvm dirty log"

    def __init__(self, vm: int, slots: Sequence[MemorySlot], pages: int) -> None:
        self._vm = vm
        self._gets = self._clears = 0
        self._get_s = self._clear_s = 0.0
        self._logging = False
        # In-phase slots are harvested straight into one bitmap over the ram_addr space, so that merging all of them
        # is one operation; a slot that begins inside a word, or shares one with another, has a bitmap of its own.
        self._shared = Bitmap(pages)
        taken = np.zeros(self._shared.words.size, np.bool_)
        self._slots: list[_Slot] = []
        self._own: list[_Slot] = []
        for slot in slots:
            words = slice(slot.first_page // BITS_PER_WORD, -(-(slot.first_page + slot.pages) // BITS_PER_WORD))
            if slot.first_page % BITS_PER_WORD == 0 and not taken[words].any():
                taken[words] = True
                self._slots.append(_Slot(slot, self._shared.view(slot.first_page, slot.pages)))
            else:
                self._own.append(_Slot(slot, Bitmap(slot.pages)))
        self._all = sorted([*self._slots, *self._own], key=lambda slot: slot.first)
        self._firsts = [slot.first for slot in self._all]
        self._longest = max((slot.slot.pages for slot in self._all), default=0)
        self._enable_manual_protect()

    @property
    def counters(self) -> LogCounters:
        return LogCounters(self._gets, self._get_s, self._clears, self._clear_s)

    def start(self) -> None:
        """Starts logging. Where the kernel can, all pages count as dirty at first and none is protected until it is
        cleared (KVM_DIRTY_LOG_INITIALLY_SET), so that starting costs no walk over the guest's memory."""
        self._logging = True
        for slot in self._all:
            slot.slot.set(self._vm, kvm.MEM_LOG_DIRTY_PAGES)

    def stop(self) -> None:
        if self._logging:
            self._logging = False
            for slot in self._all:
                slot.slot.set(self._vm, 0)
                slot.harvest.clear_all()

    def harvest(self, dirty: Bitmap) -> None:
        start = time.perf_counter()
        for slot in self._all:
            call(self._vm, kvm.GET_DIRTY_LOG, slot.get, target=slot.target)
        self._get_s += time.perf_counter() - start
        self._gets += len(self._all)
        dirty.union(self._shared)
        for slot in self._own:
            dirty.union(slot.harvest, at=slot.first)

    def clear(self, start: int, count: int) -> None:
        # Slots are sorted by their first page and may overlap: none that begins further down than the longest is
        # long can reach into the range.
        candidates = slice(bisect_right(self._firsts, start - self._longest), bisect_left(self._firsts, start + count))
        for slot in self._all[candidates]:
            lo, hi = max(start, slot.first), min(start + count, slot.end)
            if lo < hi:
                self._clear_slot(slot, lo - slot.first, hi - lo)

    def _clear_slot(self, slot: _Slot, start: int, count: int) -> None:
        first, words = slot.harvest.masked(start, count)
        if not words.any():
            return
        slot.harvest.clear_range(start, count)
        for lo, hi in _dirty_spans(words):
            self._clear_words(slot, first + lo, words[lo:hi])

    def _clear_words(self, slot: _Slot, first: int, words: Words) -> None:
        pages = min(words.size * BITS_PER_WORD, slot.slot.pages - first * BITS_PER_WORD)
        argument = kvm.ClearDirtyLog(
            slot.slot.number, pages, first * BITS_PER_WORD, words.__array_interface__["data"][0]
        )
        start = time.perf_counter()
        call(self._vm, kvm.CLEAR_DIRTY_LOG, argument, target=slot.target)
        self._clear_s += time.perf_counter() - start
        self._clears += 1

    def _enable_manual_protect(self) -> None:
        cap = kvm.CAP_MANUAL_DIRTY_LOG_PROTECT2
        offered = call(self._vm, kvm.CHECK_EXTENSION, cap, target="the VM")
        if not offered & kvm.DIRTY_LOG_MANUAL_PROTECT_ENABLE:
            raise Unsupported("this kernel's KVM has no manual dirty log protect", "use Linux 5.2 or later")
        wanted = kvm.DIRTY_LOG_MANUAL_PROTECT_ENABLE | offered & kvm.DIRTY_LOG_INITIALLY_SET
        enable = kvm.EnableCap(cap=cap)
        enable.args[0] = wanted
        call(self._vm, kvm.ENABLE_CAP, enable, target="the VM")


def _dirty_spans(words: Words) -> Iterator[tuple[int, int]]:
    """(first, end) of the parts of ``words`` that one call each should clear: split at gaps dearer than a call."""
    if words.size == 1:
        yield 0, 1
        return
    nonzero = np.flatnonzero(words != 0)
    for first, length in Runs.from_indexes(nonzero).merged(GAP_WORDS):
        yield first, first + length
