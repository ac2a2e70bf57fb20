"""An emulated guest whose code is written by the test, by itself, and by a device."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from precopy.machines.emulated import EmulatedGuest
from precopy.machines.workload import CODE_GPA, Workload
from precopy.machines.workload.image import words_at
from precopy.memory import GuestMemory, RamLayout
from precopy.units import PAGE_SIZE, GuestPhysicalAddress

from .patience import IN_TIME_S

OTHER = 0x200000
"""A page of code that is not the one that programs start in."""
DATA = 0x210000
"""What programs answer with; no code is near it."""


def assembled(source: str, at: int) -> bytes:
    import keystone

    code, _ = keystone.Ks(keystone.KS_ARCH_X86, keystone.KS_MODE_64).asm(source, addr=at, as_bytes=True)
    return bytes(code)


def immediate(source: str, at: int) -> int:
    """Where the 32-bit immediate of the one instruction of ``source`` is: its last four bytes."""
    return at + len(assembled(source, at)) - 4


class CodeGuest:
    """An `EmulatedGuest` with ``programs`` (assembly by guest-physical address) that starts at ``CODE_GPA``."""

    def __init__(self, layout: RamLayout, programs: dict[int, str], protect_code: bool = True) -> None:
        self.layout = layout
        self.memory = GuestMemory(layout)
        self.guest = EmulatedGuest(self.memory, protect_code)
        self.guest.boot(Workload("idle", rate=None))
        for gpa, source in programs.items():
            code = assembled(source, gpa)
            self.bytes(gpa, len(code))[:] = np.frombuffer(code, np.uint8)
        self.entry = CODE_GPA

    def __enter__(self) -> CodeGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.close()

    def bytes(self, gpa: int, size: int) -> npt.NDArray[np.uint8]:
        """Guest memory; shares it."""
        page = gpa & -PAGE_SIZE
        pages = -(-(gpa + size - page) // PAGE_SIZE) * PAGE_SIZE
        return words_at(self.memory, GuestPhysicalAddress(page), pages).view(np.uint8)[gpa - page : gpa - page + size]

    def word(self, index: int) -> int:
        """What the guest answered."""
        return int(words_at(self.memory, GuestPhysicalAddress(DATA + 8 * index), 8)[0])

    def set_word(self, index: int, value: int) -> None:
        words_at(self.memory, GuestPhysicalAddress(DATA + 8 * index), 8)[0] = value

    def page(self, gpa: int) -> int:
        """The ram_addr page."""
        for section in self.layout.sections:
            if section.gpa <= gpa < section.end_gpa:
                return section.first_page + (gpa - section.gpa) // PAGE_SIZE
        raise AssertionError(f"nothing is at {gpa:#x}")

    def device_writes(self, gpa: int, value: int) -> None:
        """A device writes 32 bits by DMA, and says so when it has."""
        self.bytes(gpa, 4)[:] = np.frombuffer(value.to_bytes(4, "little"), np.uint8)
        self.guest.dirty.set_range(self.page(gpa), 1)

    def until(self, done: Callable[[], bool], within: float = IN_TIME_S) -> bool:
        """Waits until it is, while the guest runs; returns whether it was in time."""
        end = time.monotonic() + within
        while not done():
            if time.monotonic() > end:
                return False
            time.sleep(2e-4)
        return True

    def runs_until(self, done: Callable[[], bool], within: float = IN_TIME_S) -> bool:
        """Lets the guest run until it is, and pauses it."""
        self.guest.resume()
        try:
            return self.until(done, within)
        finally:
            self.guest.pause()
