"""The CODE client: clean pages hold translated code, and a write to one drops its translations first.

All bits are set as long as nothing is translated. A translator clears a page's bit before it reads the page's code
(QEMU: ``tlb_protect_code``); a later writer finds the bit clear, has the translator stopped and the translations
dropped, and only then is the bit set. So translated code never outlives the code that it was made of, and
a set bit says that there is nothing to drop. No dirty log feeds this client, so taking its bits re-arms none.

Between a translator that clears a bit and then reads the page, and a device that writes the page and then reads the
bit, one of the two sees what the other did: each takes a lock between its write and its read.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Protocol

from precopy.bitmap import Bitmap


class Translator(Protocol):
    """A translator of guest code."""

    def stopped(self) -> AbstractContextManager[object]:
        """Inside, no translated code runs and none is made. Raises `GuestError` where it cannot be stopped."""
        ...

    def protect(self, start: int, count: int) -> None:
        """CODE bits of ``count`` pages from ``start`` were cleared: the next store to each has to be noticed (QEMU:
        ``physical_memory_dirty_bits_cleared``)."""
        ...

    def invalidate(self, start: int, count: int) -> None:
        """Drops the translations of ``count`` pages from ``start``; called while it is `stopped` (QEMU:
        ``tb_invalidate_phys_range``)."""
        ...


class CodeBits:
    """The CODE client's bitmap ``bits`` over the ram_addr space, and the translator that it protects code for.

    The lock is never held while anything is waited for: the translator's own thread may clear bits at any time.
    """

    def __init__(self, bits: Bitmap) -> None:
        self.bits = bits
        self.translator: Translator | None = None
        self._lock = threading.Lock()

    def set_range(self, start: int, count: int) -> None:
        """``count`` pages from ``start`` were written. Returns when no translation of what they held before can run.
        Raises `BitmapRangeError`, `GuestError`."""
        with self._lock:
            if self.bits.count(start, count) == count:
                return
            if self.translator is None:
                self.bits.set_range(start, count)
                return
        with self.translator.stopped():
            self.translator.invalidate(start, count)
            with self._lock:
                self.bits.set_range(start, count)

    def set_from(self, found: Bitmap, at: int) -> None:
        """As `set_range` for each page of a bitmap whose bit 0 is page ``at``."""
        written = Bitmap(self.bits.size)
        written.add(found, at)
        with self._lock:
            written.words[:] &= ~self.bits.words
        for start, count in written.runs():
            self.set_range(start, count)

    def test_and_clear(self, start: int, count: int, dest: Bitmap | None) -> int:
        """See `DirtyMemory.test_and_clear`: protects the range, whether or not any bit was set."""
        with self._lock:
            found = self.bits.count(start, count)
            new = self.bits.move_into(dest, start, count) if dest is not None else found
            self.bits.clear_range(start, count)
        if self.translator is not None:
            self.translator.protect(start, count)
        return new
