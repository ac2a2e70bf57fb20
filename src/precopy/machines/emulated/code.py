"""The CODE client of an emulated guest: drops translations of pages that are written by others than the code itself.

Unicorn invalidates what the guest's own stores hit, through the same mapping and down to the instruction after the
store. It does not see what others write into its memory: a device, the VMM, or the guest through a second
mapping of the page. Before code of a page is translated, the page's CODE bit is cleared; a write through
`DirtyMemory.set_range` drops its translations. After a store of the guest itself the same is done at the CPU's
next stop, so that a page which holds no code any more is plain memory again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from precopy.dirty import DirtyMemory
from precopy.machines.emulated.exclusive import Exclusive
from precopy.memory import RamLayout
from precopy.memory.topology.log_mask import DirtyClient
from precopy.units import PAGE_SIZE


class CodeClient:
    """Implements `precopy.dirty.code.Translator` for one Unicorn ``cpu``. ``flush`` empties its TLB; the CPU must
    stand still."""

    def __init__(self, cpu: Any, dirty: DirtyMemory, exclusive: Exclusive, flush: Callable[[], None]) -> None:
        self._cpu, self._dirty, self._exclusive, self._flush = cpu, dirty, exclusive, flush
        self.translated = bytearray(dirty.layout.end_page)
        """One byte a ram_addr page: whether there may be translations of it. The CODE bits' inverse, for a hot path."""
        self._sections = dirty.layout.sections
        self._aliased = _has_aliases(dirty.layout)
        self._stored: set[int] = set()
        self._to_flush = False
        self.invalidations = 0
        """Pages whose translations were dropped so far."""
        dirty.translate_with(self)

    # For the CPU's thread, in its hooks.

    def fetched(self, page: int) -> None:
        """Code of the page is about to be translated."""
        if not self.translated[page]:
            self._dirty.test_and_clear(DirtyClient.CODE, page, 1)

    def stored(self, page: int) -> None:
        """The CPU is about to write a page of which there are translations."""
        self._stored.add(page)
        if self._aliased:  # Unicorn invalidates only what it was written through
            self._cpu.emu_stop()

    def settle(self) -> None:
        """The CPU has stopped: does what had to wait for that."""
        while self._stored:
            self._dirty.set_range(self._stored.pop(), 1, DirtyClient.CODE)
        if self._to_flush:
            self._to_flush = False
            with self._exclusive.section():
                self._flush()

    # The translator.

    def stopped(self) -> AbstractContextManager[object]:
        return self._exclusive.section()

    def protect(self, start: int, count: int) -> None:
        self.translated[start : start + count] = b"\1" * count
        if not self._exclusive.own:
            with self._exclusive.section():
                self._flush()
        elif self._aliased:  # the page that is fetched from loses its write access now, other mappings of it at a stop
            self._to_flush = True
            self._cpu.emu_stop()

    def invalidate(self, start: int, count: int) -> None:
        end, page = start + count, self.translated.find(1, start, start + count)
        if page < 0:
            return
        while page >= 0:
            for gpa in self._gpas(page):
                self._cpu.ctl_remove_cache(gpa, gpa + PAGE_SIZE)
            self.translated[page] = 0
            self.invalidations += 1
            page = self.translated.find(1, page + 1, end)
        self._flush()  # the next fetch is to ask again
        self._cpu.emu_stop()  # a CPU that rests in a hook leaves its block at the end, and not for another old one

    def _gpas(self, page: int) -> Iterator[int]:
        for section in self._sections:
            if 0 <= page - section.first_page < section.pages:
                yield section.gpa + (page - section.first_page) * PAGE_SIZE


def _has_aliases(layout: RamLayout) -> bool:
    """Whether any page is mapped twice."""
    end = 0
    for section in sorted(layout.sections, key=lambda section: section.first_page):
        if section.first_page < end:
            return True
        end = section.first_page + section.pages
    return False
