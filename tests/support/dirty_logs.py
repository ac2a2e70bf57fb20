"""Dirty logs with something real behind them that writes: a stand-in CPU, an emulated one, and a vCPU under KVM."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np

from precopy.bitmap import Runs, kernels
from precopy.machines.emulated import EmulatedGuest
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import BURST_PORT, CODE_GPA, Workload, params_gpa
from precopy.machines.workload.image import RESERVED_END, words_at
from precopy.memory import GuestMemory, RamLayout, Section
from precopy.ports import DirtyLog
from precopy.trackers.kvm_log import KvmDirtyLog
from precopy.trackers.kvm_ring import KvmDirtyRing
from precopy.trackers.write_log import WriteLog
from precopy.units import PAGE_SIZE, GuestPhysicalAddress
from support.scripted_log import ScriptedLog

from .patience import IN_TIME_S

LENGTHS = (1, 2, 7, 63, 64, 65, 127, 129, 1000, 4095)
"""Lengths of the blocks that are one slot each, in pages."""
SPLIT_AT, SPLIT_PAGES = 37, 100
"""A block in two slots, of which the second begins inside a word of the bitmap."""
HOLE = (70, 130)
"""All that is mapped of a block of 200 pages."""

_MIB = 1 << 20


def several_slots() -> RamLayout:
    """The reserved low memory, a block of each length, one that is split, and one of which only a part is mapped."""
    blocks = [("low", RESERVED_END), *((f"b{pages}", pages * PAGE_SIZE) for pages in LENGTHS)]
    blocks += [("split", SPLIT_PAGES * PAGE_SIZE), ("holey", 200 * PAGE_SIZE)]
    sections = [(name, 0, size, at * 32 * _MIB) for at, (name, size) in enumerate(blocks[:-2])]
    at = len(sections) * 32 * _MIB
    sections += [
        ("split", 0, SPLIT_AT * PAGE_SIZE, at),
        ("split", SPLIT_AT * PAGE_SIZE, (SPLIT_PAGES - SPLIT_AT) * PAGE_SIZE, at + 32 * _MIB),
        ("holey", HOLE[0] * PAGE_SIZE, (HOLE[1] - HOLE[0]) * PAGE_SIZE, at + 64 * _MIB),
    ]
    return RamLayout.of_blocks(blocks).mapped(sections)


class Harness(Protocol):
    """A dirty log, and the guest whose writes it hears of."""

    layout: RamLayout
    memory: GuestMemory

    @property
    def log(self) -> DirtyLog: ...

    def write(self, pages: Iterable[int]) -> None:
        """Has the guest write these ram_addr pages, in this order; it stands still again afterwards."""

    def close(self) -> None: ...


def writable(layout: RamLayout) -> list[int]:
    """The ram_addr pages that a guest can write, but for the reserved low memory."""
    mapped = [section for section in layout.sections if section.gpa >= RESERVED_END]
    return [page for section in mapped for page in range(section.first_page, section.first_page + section.pages)]


class Places:
    """Where a guest sees its pages, in the first section that maps each: looked up once, for pages that are written
    again and again."""

    def __init__(self, layout: RamLayout) -> None:
        self._gpas: dict[int, GuestPhysicalAddress] = {}
        for section in reversed(layout.sections):
            for page in range(section.first_page, section.first_page + section.pages):
                self._gpas[page] = gpa_in(section, page)

    def gpa_of(self, page: int) -> GuestPhysicalAddress:
        assert page in self._gpas, f"page {page} is not mapped"
        return self._gpas[page]


def gpa_in(section: Section, page: int) -> GuestPhysicalAddress:
    return GuestPhysicalAddress(section.gpa + (page - section.first_page) * PAGE_SIZE)


class StandIn:
    """A `WriteLog` whose CPU is this class: it announces a store, and then stores."""

    def __init__(self, layout: RamLayout) -> None:
        self.layout, self.memory = layout, GuestMemory(layout)
        self.log = WriteLog(layout.end_page, layout.runs)
        self.stamp, self._places = 0, Places(layout)

    def write(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.stamp += 1
            word = words_at(self.memory, self._places.gpa_of(page), 8)
            self.log.wrote(page, page)
            word[0] = self.stamp
        self.log.settled()

    def close(self) -> None:
        self.memory.close()


class ScriptedHarness:
    """A `ScriptedLog`, told of what this class stores."""

    def __init__(self, layout: RamLayout) -> None:
        self.layout, self.memory = layout, GuestMemory(layout)
        self.log = ScriptedLog(layout.end_page)
        self.stamp, self._places = 0, Places(layout)

    def write(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.stamp += 1
            words_at(self.memory, self._places.gpa_of(page), 8)[0] = self.stamp
            self.log.wrote(Runs.of((page, 1)))

    def close(self) -> None:
        self.memory.close()


_LIST_GPA = params_gpa(1)
_MOST = 14_000
_COUNT, _GENERATION, _DONE = 0x800, 0x808, 0x810


@cache
def _stamper() -> bytes:
    """Waits for another generation, stores it into the first word of each address of a list, and says that it did."""
    import keystone

    source = f"""
        xor   r8, r8
    again:
        mov   ecx, 1000
    spin:
        mov   rdx, [rbx + {_GENERATION}]
        cmp   rdx, r8
        jne   work
        dec   ecx
        jnz   spin
        out   {BURST_PORT}, al
        jmp   again
    work:
        mov   rcx, [rbx + {_COUNT}]
        mov   rsi, {_LIST_GPA}
    stamp:
        mov   rax, [rsi]
        add   rsi, 8
        mov   [rax], rdx
        dec   rcx
        jnz   stamp
        mov   r8, rdx
        mov   [rbx + {_DONE}], rdx
        jmp   again
    """
    code, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(source, as_bytes=True)
    return bytes(code)


class RealGuest:
    """A guest with a CPU of its own that stamps the pages it is told to.

    It is told by writes of the host, which no dirty log hears of, and answers in its page of parameters, which lies in
    the reserved low memory.
    """

    def __init__(self, layout: RamLayout, kind: str, tracker: str = "dirty-log") -> None:
        self.layout, self.memory = layout, GuestMemory(layout)
        self.guest: KvmGuest | EmulatedGuest = (
            KvmGuest(self.memory, tracker=tracker) if kind == "kvm" else EmulatedGuest(self.memory)
        )
        try:
            self.guest.boot(Workload("idle", rate=None))
            code = np.frombuffer(_stamper(), np.uint8)
            words_at(self.memory, GuestPhysicalAddress(CODE_GPA), PAGE_SIZE).view(np.uint8)[: code.size] = code
            self._params = words_at(self.memory, params_gpa(0), PAGE_SIZE)
            self._list = words_at(self.memory, _LIST_GPA, 8 * _MOST)
            self.log: DirtyLog = self.guest.dirty.logs[0]
        except BaseException:
            self.guest.close()
            raise
        self.stamp, self._places = 0, Places(layout)

    def write(self, pages: Iterable[int]) -> None:
        self.write_at([self._places.gpa_of(page) for page in pages])

    def write_at(self, addresses: list[GuestPhysicalAddress]) -> None:
        """As `write`, by guest-physical address."""
        if not addresses:
            return
        assert len(addresses) <= _MOST
        self.stamp += 1
        self._list[: len(addresses)] = addresses
        self._params[_COUNT // 8] = len(addresses)
        self._params[_GENERATION // 8] = self.stamp
        self.guest.resume()
        end = time.monotonic() + IN_TIME_S
        while self._params[_DONE // 8] != self.stamp:
            assert time.monotonic() < end, "the guest does not write"
            time.sleep(2e-5)
        self.guest.pause()

    def close(self) -> None:
        self.guest.close()


class KvmHarness(RealGuest):
    """A VM under KVM, and its `KvmDirtyLog`."""

    log: KvmDirtyLog
    guest: KvmGuest

    def __init__(self, layout: RamLayout) -> None:
        super().__init__(layout, "kvm")


class NativeKvmHarness(KvmHarness):
    """The same, whose syncs are native calls."""

    def __init__(self, layout: RamLayout) -> None:
        super().__init__(layout)
        try:
            self.log.use_native(True)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        super().close()
        kernels.use(None)


class RingHarness(RealGuest):
    """A VM under KVM, and its `KvmDirtyRing`."""

    log: KvmDirtyRing
    guest: KvmGuest

    def __init__(self, layout: RamLayout) -> None:
        super().__init__(layout, "kvm", "dirty-ring")


class EmulatedHarness(RealGuest):
    """An emulated CPU, and its `WriteLog`."""

    def __init__(self, layout: RamLayout) -> None:
        super().__init__(layout, "emulated")


@runtime_checkable
class Counting(Protocol):
    """A harness whose log may count pages as written that were not."""

    counted: set[int]
    """Of the harvests since `rearmed`."""

    def rearmed(self) -> None:
        """All pages have just been armed."""

    def note(self) -> None:
        """A harvest was just made."""


MakeHarness = Callable[[RamLayout], Harness]
