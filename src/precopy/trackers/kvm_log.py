"""The KVM dirty log with manual protect: GET_DIRTY_LOG harvests and leaves bits set, CLEAR_DIRTY_LOG re-arms.

Law 2: **Clear only what was harvested.** The kernel clears exactly the bits that are set in the bitmap handed to it,
so every clear hands over the slot's last harvest with all bits outside the request masked off. Bits that the request
re-armed leave that harvest, so that no later, wider clear can drop a write that no harvest has reported.

Law 3: **Alignment is the ABI's business.** ``first_page`` and ``num_pages`` are multiples of 64 unless the slot ends;
only this module knows. Callers give exact ranges of ram_addr pages.

Source: Documentation/virt/kvm/api.rst: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precopy.abi import kvm
from precopy.abi.ioctl import call
from precopy.bitmap import BITS_PER_WORD, Bitmap, Runs, Words, kernels
from precopy.bitmap.words import any_set
from precopy.dirty.log import LogCounters
from precopy.dirty.merge import Merge, Merged
from precopy.errors import Unsupported
from precopy.memory.layout import RamBlock
from precopy.trackers.kvm_slots import MemorySlot

if TYPE_CHECKING:  # it imports numba
    from precopy.trackers.kvm_native import NativeGets

GAP_WORDS = 16384
"""Clean words (64 pages each) between two dirty ones that cost the kernel about as much as another CLEAR_DIRTY_LOG:
measured 3700 with the vCPUs paused and 38700 with one running, which each call interrupts (benchmarks/clear_gap.py)."""


@dataclass(frozen=True)
class SlotCounters:
    """What one slot has cost so far: calls into the kernel, by kind, and seconds spent in them."""

    slot: MemorySlot
    counters: LogCounters


class _Slot:
    """A slot, its last harvest, and the argument of its GET_DIRTY_LOG (made once: a sync runs in microseconds).

    ``wanted`` is whether it is logged beyond a migration; ``shared`` whether its harvest is a view of the log's one
    bitmap."""

    def __init__(self, slot: MemorySlot, harvest: Bitmap, *, shared: bool, wanted: bool) -> None:
        self.slot, self.shared, self.wanted = slot, shared, wanted
        self.first, self.end = int(slot.first_page), slot.first_page + slot.pages
        self.harvest = harvest
        self.target = str(slot)
        self.get = kvm.DirtyLog(slot.id, 0, harvest.words.__array_interface__["data"][0])
        self.gets = self.clears = 0
        self.get_s = self.clear_s = 0.0


class KvmDirtyLog:
    """Implements `precopy.ports.DirtyLog`, and `SlotTracker` for one listener of the VM of descriptor ``vm``.

    ``pages`` is the size of the ram_addr space. Raises `Unsupported` where KVM has no manual protect.
    """

    def __init__(self, vm: int, pages: int, name: str = "kvm dirty log") -> None:
        self.name = name
        self._vm = vm
        self._gone = LogCounters()
        self._global = False
        # In-phase slots are harvested straight into one bitmap over the ram_addr space, so that merging all of them
        # is one operation; a slot that begins inside a word, or shares one with another, has a bitmap of its own.
        self._shared = Bitmap(pages)
        self._taken = np.zeros(self._shared.words.size, np.bool_)
        self._all: list[_Slot] = []
        self._asked: list[_Slot] = []
        self._own: list[_Slot] = []
        self._is_native = False
        self._native: NativeGets | None = None
        self._orphans = self._reported_orphans = Bitmap(0)
        self._enable_manual_protect()

    # Slots.

    def add(self, slot: MemorySlot, *, logging: bool = False) -> None:
        slot.set(self._vm, logging=logging or self._global)
        words = _words_of(slot)
        if slot.first_page % BITS_PER_WORD == 0 and not self._taken[words].any():
            self._taken[words] = True
            harvest, shared = self._shared.view(slot.first_page, slot.pages), True
        else:
            harvest, shared = Bitmap(slot.pages), False
        self._all.append(_Slot(slot, harvest, shared=shared, wanted=logging))
        self._arrange()

    def remove(self, slot: MemorySlot) -> None:
        known = self._find(slot)
        if known in self._asked:
            self._get([known])
            if not self._orphans.size:
                self._orphans, self._reported_orphans = Bitmap(self._shared.size), Bitmap(self._shared.size)
            self._orphans.add(known.harvest, at=known.first)
        slot.delete(self._vm)
        self._count_native()
        self._all.remove(known)
        self._gone += _counters(known)
        known.harvest.clear_all()
        if known.shared:
            self._taken[_words_of(slot)] = False
        self._arrange()

    def set_logging(self, slot: MemorySlot, on: bool) -> None:
        known = self._find(slot)
        known.wanted = on
        if not self._global:
            slot.set(self._vm, logging=on)
            known.harvest.clear_all()
        self._arrange()

    def _find(self, slot: MemorySlot) -> _Slot:
        return next(known for known in self._all if known.slot == slot)

    def _arrange(self) -> None:
        self._count_native()
        self._all.sort(key=lambda known: known.first)
        self._firsts = [known.first for known in self._all]
        self._longest = max((known.slot.pages for known in self._all), default=0)
        # A read-only slot has no dirty pages: a guest that writes it leaves to the host, and so does KVM itself.
        self._asked = [known for known in self._all if (self._global or known.wanted) and not known.slot.readonly]
        self._own = [known for known in self._asked if not known.shared]
        self._native = self._prepare_native() if self._is_native else None

    def use_native(self, on: bool) -> None:
        """Whether syncs are made by one native call from now on, which needs the extra ``fast``. Raises
        `Unsupported`."""
        if on:
            kernels.load()
        self._is_native = on
        self._arrange()

    def _prepare_native(self) -> NativeGets:
        from precopy.trackers.kvm_native import NativeGets  # noqa: PLC0415 - imports numba, where that pays

        arguments, targets = [known.get for known in self._asked], [known.target for known in self._asked]
        return NativeGets(self._vm, arguments, targets, self._shared)

    def _count_native(self) -> None:
        """Has each slot know of the calls that were made natively."""
        if self._native is not None:
            for known, calls, spent in zip(self._asked, *self._native.take_counts(), strict=True):
                known.gets += calls
                known.get_s += spent

    # The log.

    @property
    def counters(self) -> LogCounters:
        self._count_native()
        return sum((_counters(known) for known in self._all), self._gone)

    @property
    def slot_counters(self) -> tuple[SlotCounters, ...]:
        """The same for each slot, in ram_addr order."""
        self._count_native()
        return tuple(SlotCounters(known.slot, _counters(known)) for known in self._all)

    def start(self) -> None:
        """Starts logging. Where the kernel can, all pages count as dirty at first and none is protected until it is
        cleared (KVM_DIRTY_LOG_INITIALLY_SET), so that starting costs no walk over the guest's memory."""
        self._global = True
        for known in self._all:
            known.slot.set(self._vm, logging=True)
        self._arrange()

    def stop(self) -> None:
        if not self._global:
            return
        self._global = False
        for known in self._all:
            known.slot.set(self._vm, logging=known.wanted)
            known.harvest.clear_all()
        self._orphans = self._reported_orphans = Bitmap(0)
        self._arrange()

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        if block is not None:
            self._harvest_block(dirty, block)
            return
        try:
            self._get(self._asked)
        finally:  # also what the calls before one that failed have fetched: from now on it may be cleared
            dirty.add(self._shared)
            for known in self._own:
                dirty.add(known.harvest, at=known.first)
        self._report_orphans(dirty, 0, self._shared.size)

    def harvest_into(self, found: Bitmap, merge: Merge, *, empty: bool) -> Merged:
        """As `precopy.dirty.log.MergingLog`."""
        if self._own or self._orphans.size:
            self.harvest(found)
            return merge.take(found, found, empty=False)
        if self._native is not None:
            return self._native.sync(found, merge, empty=empty)
        try:
            self._get(self._asked)
        except BaseException:  # what was fetched may be cleared from now on
            found.add(self._shared)
            raise
        return merge.take(found, self._shared, empty=empty)

    def _harvest_block(self, dirty: Bitmap, block: RamBlock) -> None:
        slots = [known for known in self._asked if block.first_page <= known.first < block.end_page]
        try:
            self._get(slots)
        finally:
            for known in slots:
                dirty.add(known.harvest, at=known.first)
        self._report_orphans(dirty, block.first_page, block.pages)

    def _report_orphans(self, dirty: Bitmap, start: int, count: int) -> None:
        """What slots had logged that are gone, until it is cleared."""
        if self._orphans.size:
            found, reported = (bitmap.view(start, count) for bitmap in (self._orphans, self._reported_orphans))
            reported.add(found)
            found.clear_all()
            dirty.view(start, count).add(reported)

    def _get(self, slots: list[_Slot]) -> None:
        if self._native is not None and slots is self._asked:
            self._native.fetch()
            return
        start = time.perf_counter()
        for known in slots:
            call(self._vm, kvm.GET_DIRTY_LOG, known.get, target=known.target)
            end = time.perf_counter()
            known.get_s += end - start
            known.gets += 1
            start = end

    def clear(self, start: int, count: int) -> None:
        for known, lo, pages in self._overlapping(start, count):
            if pages == known.slot.pages:  # all of it: nothing to mask, and so nothing to copy
                first, words = 0, known.harvest.words
            else:
                first, words = known.harvest.masked(lo, pages)
            if any_set(words):
                for begin, end in _dirty_spans(words):
                    self._clear_words(known, first + begin, words[begin:end])
                known.harvest.clear_range(lo, pages)

    def clear_always(self, start: int, count: int) -> None:
        """One call a slot of the range, dirty or not, as QEMU makes it (``kvm_log_clear_one_slot``)."""
        for known, lo, pages in self._overlapping(start, count):
            first, words = known.harvest.masked(lo, pages)
            known.harvest.clear_range(lo, pages)
            self._clear_words(known, first, words)

    def _overlapping(self, start: int, count: int) -> Iterator[tuple[_Slot, int, int]]:
        """(slot, first page in it, pages) of each slot that maps a part of a range."""
        if self._reported_orphans.size:
            begin, end = min(start, self._shared.size), min(start + count, self._shared.size)
            self._reported_orphans.clear_range(begin, end - begin)
        # Slots are sorted by their first page and may overlap: none that begins further down than the longest is
        # long can reach into the range.
        candidates = slice(bisect_right(self._firsts, start - self._longest), bisect_left(self._firsts, start + count))
        for known in self._all[candidates]:
            lo, hi = max(start, known.first), min(start + count, known.end)
            if lo < hi:
                yield known, lo - known.first, hi - lo

    def _clear_words(self, known: _Slot, first: int, words: Words) -> None:
        pages = min(words.size * BITS_PER_WORD, known.slot.pages - first * BITS_PER_WORD)
        argument = kvm.ClearDirtyLog(known.slot.id, pages, first * BITS_PER_WORD, words.__array_interface__["data"][0])
        start = time.perf_counter()
        call(self._vm, kvm.CLEAR_DIRTY_LOG, argument, target=known.target)
        known.clear_s += time.perf_counter() - start
        known.clears += 1

    def _enable_manual_protect(self) -> None:
        cap = kvm.CAP_MANUAL_DIRTY_LOG_PROTECT2
        offered = call(self._vm, kvm.CHECK_EXTENSION, cap, target="the VM")
        if not offered & kvm.DIRTY_LOG_MANUAL_PROTECT_ENABLE:
            raise Unsupported("this kernel's KVM has no manual dirty log protect", "use Linux 5.2 or later")
        wanted = kvm.DIRTY_LOG_MANUAL_PROTECT_ENABLE | offered & kvm.DIRTY_LOG_INITIALLY_SET
        enable = kvm.EnableCap(cap=cap)
        enable.args[0] = wanted
        call(self._vm, kvm.ENABLE_CAP, enable, target="the VM")


def _words_of(slot: MemorySlot) -> slice:
    return slice(slot.first_page // BITS_PER_WORD, -(-(slot.first_page + slot.pages) // BITS_PER_WORD))


def _counters(known: _Slot) -> LogCounters:
    return LogCounters(known.gets, known.get_s, known.clears, known.clear_s)


def _dirty_spans(words: Words) -> Iterator[tuple[int, int]]:
    """(first, end) of the parts of ``words`` that one call each should clear: split at gaps dearer than a call."""
    if words.size == 1:
        yield 0, 1
        return
    nonzero = np.flatnonzero(words != 0)
    for first, length in Runs.from_indexes(nonzero).merged(GAP_WORDS):
        yield first, first + length
