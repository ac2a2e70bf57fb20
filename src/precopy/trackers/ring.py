"""One vCPU's dirty ring, as an array that the kernel fills: collecting entries in order, and noticing what was lost.

The kernel pushes an entry (flags, slot, offset) at its own index for each page that a vCPU dirties, and we collect from
ours; a collected entry is marked for reset, and KVM_RESET_DIRTY_RINGS re-arms its page and frees it, in the same order.

Law 1 here: **a ring that overflowed never loses a page.** A vCPU that has used all but a few entries leaves the guest,
but an emulator that runs a batch of instructions, or anything else that dirties many pages between two looks, pushes
on; then the kernel warns in its log and overwrites the oldest entries. To us that looks like a ring that is exactly
full, and so a full ring means that any page may be missing: `Collected.lost`, and all memory is dirty.

It also leaves both indexes apart: the kernel pushed ``size + k`` entries and we can see ``size``, so that it goes on
``k`` further than we look, and its own reset stops at the ``k`` entries between, which nobody will ever mark. So after
an overflow we look for where entries go on, and mark those between for reset ourselves (their pages, of old entries,
are re-armed once more, which is harmless: all memory was dirty). Measured with 1024 entries and a guest whose code KVM
emulates: without that, the next reset frees nothing and the vCPU leaves for ever.

Source: Documentation/virt/kvm/api.rst, KVM_CAP_DIRTY_LOG_RING.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.abi.kvm import DIRTY_GFN_F_DIRTY, DIRTY_GFN_F_RESET

Entries = npt.NDArray[np.uint32]
"""Shape (entries, 4): flags, slot, and the page in the slot in two halves."""

_LOOK = 1024
"""Entries looked at in one operation: a ring that is nearly empty costs one look."""


@dataclass(frozen=True)
class Collected:
    """``slots`` and ``offsets`` (pages in them) in the order in which they were dirtied; ``lost``: see above."""

    slots: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    lost: bool


class Ring:
    """Our end of a ring of ``entries``, which the kernel writes at any time (each entry's flags last)."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self.size = len(entries)
        self._next = 0
        self._adrift = False

    def collect(self) -> Collected:
        """Takes every entry that is there, and marks it for reset."""
        if self._adrift:
            self._find_the_kernel()
        parts: list[Entries] = []
        count = 0
        while count < self.size:
            part = self._take(min(_LOOK, self.size - count))
            if not len(part):
                break
            parts.append(part)
            count += len(part)
        self._adrift |= count == self.size
        taken = np.concatenate(parts) if parts else np.empty((0, 4), np.uint32)
        offsets = taken[:, 2].astype(np.int64) | taken[:, 3].astype(np.int64) << 32
        return Collected(taken[:, 1], offsets, count == self.size)

    def unblock(self, count: int) -> None:
        """Marks ``count`` entries for reset that nobody dirtied: for a vCPU that leaves because its ring is full while
        there is nothing in it, which only an overflow of more than the whole ring leaves behind."""
        for _ in range(count):
            self._entries[self._next, 0] = DIRTY_GFN_F_RESET
            self._next = (self._next + 1) % self.size
        self._adrift = True

    def _take(self, most: int) -> Entries:
        """Up to ``most`` entries that lie side by side in the array."""
        part = self._entries[self._next : self._next + most]
        flags = part[:, 0].copy()  # one look: an entry is whole once its flag is seen
        clean = np.flatnonzero(flags & DIRTY_GFN_F_DIRTY == 0)
        part = part[: int(clean[0])] if clean.size else part
        taken = part.copy()
        part[:, 0] = DIRTY_GFN_F_RESET
        self._next = (self._next + len(part)) % self.size
        return taken

    def _find_the_kernel(self) -> None:
        flags = np.concatenate((self._entries[self._next :, 0], self._entries[: self._next, 0]))
        ahead = np.flatnonzero(flags & DIRTY_GFN_F_DIRTY)
        if not ahead.size:
            return
        # Seen by the look above or not, the entry that is ours is dirty by now if any later one was.
        if not self._entries[self._next, 0] & DIRTY_GFN_F_DIRTY:
            self.unblock(int(ahead[0]))
        self._adrift = False
