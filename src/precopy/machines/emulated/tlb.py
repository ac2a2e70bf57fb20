"""The emulated CPU's TLB, filled by us: a page that is armed has no write access there, so its next store is noticed.

Noticing a store disarms its page: the store after it finds write access and costs what it costs natively in Unicorn,
without a hook. Re-arming empties the TLB while the CPU stands between two instructions, so that no store is on its way
(law 1). That is what QEMU does with ``TLB_NOTDIRTY`` and ``tlb_reset_dirty``; docs/adr/0010-emulated-write-detection.md
says what the alternatives cost.

Access to execute is given only to a page whose code is protected (code.py), so that only those are translated.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

from precopy.machines.emulated.code import CodeClient
from precopy.machines.emulated.exclusive import Exclusive
from precopy.memory import GuestMemory
from precopy.trackers.write_log import WriteLog
from precopy.units import PAGE_SIZE

_PAGE_SHIFT = PAGE_SIZE.bit_length() - 1
_NOWHERE = -1  # no section maps the page
_ENTRIES = 256
"""Entries of Unicorn's TLB at first."""


class Tlb:
    """Fills the TLB of a Unicorn ``cpu`` that has the sections of ``memory`` mapped. ``no_ram(address)`` is told where
    the guest accesses addresses without RAM; its CPU stops then. Stores to armed pages are announced to ``log``.

    Unicorn's TLB has 256 entries at first, and doubles when it is emptied while most of it is in use. So it is emptied
    also after 512 fills, then after twice as many, and so on; at most after four times as many as the guest has pages,
    of which each may be read, written and executed.
    """

    def __init__(self, cpu: Any, memory: GuestMemory, exclusive: Exclusive, no_ram: Callable[[int], None]) -> None:
        import unicorn  # noqa: PLC0415 - an optional dependency

        self._cpu, self._exclusive, self._no_ram = cpu, exclusive, no_ram
        self.log = WriteLog(memory.layout.end_page, memory.layout.runs, self.rearming)
        self._flush_ctl = unicorn.unicorn_const.UC_CTL_TLB_FLUSH, unicorn.unicorn_const.UC_CTL_IO_WRITE
        self._read, self._write, self._fetch = unicorn.UC_PROT_READ, unicorn.UC_PROT_WRITE, unicorn.UC_PROT_EXEC
        self._writes, self._fetches = unicorn.UC_MEM_WRITE, unicorn.UC_MEM_FETCH
        sections = sorted(memory.layout.sections, key=lambda section: section.gpa)
        self._starts = [section.gpa >> _PAGE_SHIFT for section in sections]
        self._ends = [section.end_gpa >> _PAGE_SHIFT for section in sections]
        self._first = [section.first_page for section in sections]
        self._last = (0, 0, 0)
        self.code: CodeClient | None = None
        self.fills = 0
        """How often an entry was filled so far."""
        self._crowded, self._most = 2 * _ENTRIES, 4 * memory.layout.pages
        self._crowded_at = self._crowded
        cpu.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        cpu.hook_add(unicorn.UC_HOOK_TLB_FILL, self._fill)

    @contextlib.contextmanager
    def rearming(self) -> Iterator[None]:
        """Inside, the CPU stands still; afterwards its next store to any page is noticed again, where the page is not
        marked in the log. Raises `GuestError`."""
        with self._exclusive.section():
            yield
            self.flush()

    def flush(self) -> None:
        """Empties the TLB. The CPU must stand still."""
        self._cpu.ctl(*self._flush_ctl)
        self._crowded_at = self.fills + self._crowded

    def settle(self) -> None:
        """The CPU has stopped: does what had to wait for that."""
        if self.fills >= self._crowded_at:
            with self._exclusive.section():
                self._crowded = min(2 * self._crowded, self._most)
                self.flush()

    def _ram_page(self, page: int) -> int:
        """The ram_addr page of a guest page; the section of the last answer is tried first."""
        start, end, first = self._last
        if not start <= page < end:
            index = bisect_right(self._starts, page) - 1
            if index < 0 or page >= self._ends[index]:
                return _NOWHERE
            start, end, first = self._last = self._starts[index], self._ends[index], self._first[index]
        return first + page - start

    def _fill(self, cpu: Any, address: int, access: int, entry: Any, _data: object) -> bool:
        page = self._ram_page(address >> _PAGE_SHIFT)
        if page < 0:
            self._no_ram(address)
            return False
        self.fills += 1
        if self.fills == self._crowded_at:
            cpu.emu_stop()
        entry.paddr = address & -PAGE_SIZE
        code = self.code
        if access == self._fetches:
            if code is not None and self._exclusive.own:  # not where translations are being dropped
                code.fetched(page)
            entry.perms = self._read | self._fetch
        elif access == self._writes:
            self.log.wrote(page, page)
            entry.perms = self._read | self._write
            if code is None:
                entry.perms |= self._fetch
            elif code.translated[page]:
                # With access to execute, Unicorn looks at every store for translations that it hits; without, at none.
                entry.perms |= self._fetch
                code.stored(page)
        elif code is not None and code.translated[page]:
            entry.perms = self._read | self._fetch
        elif code is not None and self.log.marked(page):
            entry.perms = self._read | self._write
        else:
            entry.perms = self._read
        return True
