"""The dirty log of vhost devices: other processes, which set a bit of shared memory for each page they have written.

A device stores the content first and sets the bit second, atomically. Here words are taken atomically first and the
content is read second (law 1): a bit that is found has its content in memory, and the bit of a later store comes
with a later sync.

All devices of a guest share one log. Asking each of them for its dirty pages would walk the same words once a device,
and all but the first walk would find nothing; here a sync walks the log once for all devices.

Source: linux/vhost.h (VHOST_SET_LOG_BASE, VHOST_LOG_PAGE); the vhost-user protocol, section "Migration".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from precopy.abi.atomic import clear_words, exchange_words, set_bits
from precopy.bitmap import BITS_PER_WORD, Bitmap
from precopy.bitmap.words import any_set, or_count_new, shifted_up, words_for
from precopy.dirty.log import LogCounters
from precopy.errors import LayoutError
from precopy.memory import RamBlock, RamLayout
from precopy.trackers.shared_log import VHOST_LOG_PAGE, SharedLog, guest_pages

LOG = logging.getLogger("precopy")


@dataclass(frozen=True)
class _Part:
    """A section of ``block``, in pages: where the guest sees it, and where it lies in the ram_addr space.

    ``alone``: no other section has a bit in its first or its last word of the log.
    """

    block: str
    guest_page: int
    ram_page: int
    pages: int
    alone: bool

    @property
    def guest_end(self) -> int:
        return self.guest_page + self.pages


class VhostLog:
    """Implements `precopy.ports.DirtyLog` for the devices of ``shared_log``, whose guest has ``layout``.

    Pages taken from the log stay in a bitmap of our own until they are cleared. Both are indexed by guest-physical
    page, so that taking is one pass for all sections, at any phase in the ram_addr space.

    `clear` clears the log's bits of the same pages, too. A device that has written such a page again since the harvest
    had stored its content before it set that bit, and the page is read after the clear (law 1); so that write needs no
    second transfer. A bit that no harvest has reported stays (law 2).

    ``shared`` is False only to measure what sharing saves: each harvest walks the log once for each device.

    Raises `LayoutError` where the log cannot be this guest's.
    """

    name = "vhost log"

    def __init__(self, layout: RamLayout, shared_log: SharedLog, *, shared: bool = True) -> None:
        if shared_log.pages < guest_pages(layout):
            raise LayoutError(
                f"a log of {shared_log.pages} pages is too small for a guest with {guest_pages(layout)} pages"
            )
        self.log, self.shared = shared_log, shared
        self._parts = _parts(layout)
        self._gaps = _gaps(self._parts, shared_log.pages)
        self._taken = Bitmap(shared_log.pages)
        self._gets = self._clears = 0
        self._get_s = self._clear_s = 0.0
        self._stray = 0

    @property
    def counters(self) -> LogCounters:
        """``get_calls`` are walks over the log, or over a block's part of it; ``clear_calls`` are clears that had
        something to forget."""
        return LogCounters(self._gets, self._get_s, self._clears, self._clear_s)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices that log."""
        return self.log.devices

    @property
    def stray_pages(self) -> int:
        """How often a harvest found a page that no section maps, of which the logger ``precopy`` is told once.

        It has no RAM, so there is nothing to send. But the device believes that it has: where this is not 0, it knows
        another memory map than ``layout``, and what it writes may be missing at the destination.
        """
        return self._stray

    def start(self) -> None:
        """Forgets what it took before, and leaves what the devices have logged since: these pages may have been read
        already, for example by a migration that this log was attached to (law 1)."""
        self._taken.clear_all()

    def stop(self) -> None:
        """Devices that are still attached go on logging, which is ignored."""
        self._taken.clear_all()

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        start = time.perf_counter()
        walks = 1 if self.shared else max(len(self.log.devices), 1)
        parts = self._parts if block is None else [part for part in self._parts if part.block == block.name]
        for _ in range(walks):
            if block is None:
                self._take_all()
            else:
                self._take(parts)
        for part in parts:
            self._merge(part, dirty)
        self._gets += walks
        self._get_s += time.perf_counter() - start

    def clear(self, start: int, count: int) -> None:
        began = time.perf_counter()
        forgot = False
        for part in self._parts:
            lo, hi = max(start, part.ram_page), min(start + count, part.ram_page + part.pages)
            if lo < hi:
                forgot |= self._forget(lo - part.ram_page + part.guest_page, hi - lo)
        if forgot:
            self._clears += 1
            self._clear_s += time.perf_counter() - began

    def _forget(self, start: int, count: int) -> bool:
        """Forgets the taken pages of a guest-physical range; returns whether there were any."""
        first, words = self._taken.masked(start, count)
        if not any_set(words):
            return False
        self._taken.clear_range(start, count)
        clear_words(self.log.words[first : first + words.size], words)
        return True

    def _take_all(self) -> None:
        if not exchange_words(self.log.words, self._taken.words):
            return
        for start, count in self._gaps:
            stray = self._taken.count(start, count)
            if stray:
                if not self._stray:
                    found = self._taken.indexes()
                    self._warn(int(found[np.searchsorted(found, start)]))
                self._stray += stray
                self._taken.clear_range(start, count)

    def _warn(self, page: int) -> None:
        LOG.warning(
            "%s logged guest-physical page %d, where the guest has no RAM: it knows another memory map, and what it "
            "writes may be missing at the destination; compare the sections that it was given with the guest's",
            ", ".join(self.devices) or "a device",
            page,
        )

    def _take(self, parts: list[_Part]) -> None:
        """Takes only the pages of ``parts``. Bits of others in their first and last words are put back: they count as
        dirty, and not as harvested, all the same (law 2)."""
        for part in parts:
            first, end = part.guest_page // BITS_PER_WORD, words_for(part.guest_end)
            found = Bitmap((end - first) * BITS_PER_WORD)
            if not exchange_words(self.log.words[first:end], found.words):
                continue
            start = part.guest_page % BITS_PER_WORD
            mine, words = found.masked(start, part.pages)
            found.clear_range(start, part.pages)
            for bit in found.indexes().tolist():
                set_bits(self.log.words, first * BITS_PER_WORD + bit)
            self._taken.words[first + mine : first + mine + words.size] |= words

    def _merge(self, part: _Part, dirty: Bitmap) -> None:
        """Adds the taken pages of ``part`` to ``dirty``, at their place in the ram_addr space."""
        first = part.guest_page // BITS_PER_WORD
        if part.alone:  # and strays were dropped: what is in its words is its own
            words = self._taken.words[first : words_for(part.guest_end)]
        else:
            _, words = self._taken.masked(part.guest_page, part.pages)
        if not any_set(words):
            return
        # Bit 0 of the first word may lie before the ram_addr space, or the shift push empty bits over its end.
        at, shift = divmod(first * BITS_PER_WORD + part.ram_page - part.guest_page, BITS_PER_WORD)
        moved = shifted_up(words, words.size * BITS_PER_WORD, shift) if shift else [(0, words)]
        for offset, piece in moved:
            lo = at + offset
            skipped = max(-lo, 0)
            into = dirty.words[lo + skipped : lo + piece.size]
            or_count_new(into, piece[skipped : skipped + into.size])


def _parts(layout: RamLayout) -> list[_Part]:
    """The sections of ``layout`` in guest-physical order."""
    parts: list[_Part] = []
    sections = sorted(layout.sections, key=lambda section: section.gpa)
    ranges = [(section.gpa // VHOST_LOG_PAGE, section.end_gpa // VHOST_LOG_PAGE) for section in sections]
    for number, (section, (start, end)) in enumerate(zip(sections, ranges, strict=True)):
        before = ranges[number - 1][1] - 1 if number else -1
        after = ranges[number + 1][0] if number + 1 < len(ranges) else end + BITS_PER_WORD
        alone = before // BITS_PER_WORD < start // BITS_PER_WORD and (end - 1) // BITS_PER_WORD < after // BITS_PER_WORD
        parts.append(_Part(section.block.name, start, int(section.first_page), section.pages, alone))
    return parts


def _gaps(parts: Iterable[_Part], pages: int) -> list[tuple[int, int]]:
    """(start, count) of the guest-physical pages of the log that no section maps."""
    edges = [0, *(edge for part in parts for edge in (part.guest_page, part.guest_end)), pages]
    return [(start, end - start) for start, end in list(pairwise(edges))[::2] if start < end]
