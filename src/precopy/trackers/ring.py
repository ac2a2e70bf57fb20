"""One vCPU's dirty ring, as an array that the kernel fills: collecting entries in order, and noticing what was lost.

The kernel pushes an entry (flags, slot, offset) at its own index for each page that a vCPU dirties, and we collect from
ours; a collected entry is marked for reset, and KVM_RESET_DIRTY_RINGS re-arms its page and frees it, in the same order.

Law 1 here: **a ring that overflowed never loses a page.** A vCPU that has used all but a few entries leaves the guest,
but an emulator that runs a batch of instructions, or anything else that dirties many pages between two looks, pushes
on; then the kernel warns in its log and overwrites the oldest entries, collected or not. To us that shows in two ways,
and either means that any page may be missing (`Collected.lost`) and all memory is dirty:

- entries reach into those that are marked and not yet reset; where none are, the ring is exactly full;
- a reset leaves marks behind, because the kernel waits for an entry that it has itself overwritten.

How far the kernel got then, with pushing and with resetting, shows nowhere. One mark too many is fatal: the kernel
would reset entries that it has not pushed yet, and find its ring full for ever. So the ring goes through three states:

- `BROKEN`: all flags are zero. That anything is pushed can be seen, but not in which order: whenever it is, all memory
  is dirty once more. The vCPU finds no room, and leaves the guest; it pushes nothing then.
- `FOUND`: while it stands there, a quarter of the ring is marked at a time, which is less than it has used, until a
  reset takes some of it: there the kernel resets. That is repeated until the vCPU finds room (`free_some`).
- `IN_STEP`: where the next entries appear the kernel pushes; what lies between the two places is marked as well.

Without that, the first reset after an overflow frees nothing and the vCPU leaves for ever (measured with 1024 entries
and a guest whose code KVM emulates).

Source: Documentation/virt/kvm/api.rst, KVM_CAP_DIRTY_LOG_RING; how the kernel walks: virt/kvm/dirty_ring.c.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.abi.kvm import DIRTY_GFN_F_DIRTY, DIRTY_GFN_F_RESET

Entries = npt.NDArray[np.uint32]
"""Shape (entries, 4): flags, slot, and the page in the slot in two halves."""

Flags = npt.NDArray[np.uint32]

_LOOK = 1024
"""Entries looked at in one operation: a ring that is nearly empty costs one look."""


@dataclass(frozen=True)
class Collected:
    """``slots`` and ``offsets`` (pages in them) in the order in which they were dirtied; ``lost``: see above."""

    slots: npt.NDArray[np.uint32]
    offsets: npt.NDArray[np.int64]
    lost: bool

    @classmethod
    def of(cls, entries: Entries, *, lost: bool) -> Collected:
        return cls(entries[:, 1], entries[:, 2].astype(np.int64) | entries[:, 3].astype(np.int64) << 32, lost)


_NONE = np.empty((0, 4), np.uint32)


class State(enum.Enum):
    """What is known of where the kernel is: see above."""

    IN_STEP = "in step"
    BROKEN = "broken"
    FOUND = "found"


class Ring:
    """Our end of a ring of ``entries`` (a power of two, at least 4), which the kernel writes at any time (each entry's
    flags last). Collecting and resetting exclude each other; that is the caller's business."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self.size = len(entries)
        self.state = State.IN_STEP
        self.marked = 0
        """Entries that are marked for reset; those right before the next one to collect."""
        self.tried = False
        """Whether its vCPU was let go with the ring as it is now: if it comes back, the kernel says that it is full."""
        self._next = 0
        self._resets_at = 0  # where the kernel resets next, while that was FOUND

    def collect(self) -> Collected:
        """Takes every entry that is there, and marks it for reset."""
        if self.state is State.BROKEN:
            return self._collect_broken()
        if self.state is State.FOUND:
            return self._collect_found()
        return self._collect_in_step()

    def settle(self) -> bool:
        """To be called after each reset. False where the kernel did not free all that was marked: entries were lost."""
        if not self.marked:
            return True
        left = self._flags(self._next - self.marked, self.marked)
        # All dirty: overwritten before the reset, or pushed after it by a kernel that is full again.
        if (left & DIRTY_GFN_F_RESET).any() or (left & DIRTY_GFN_F_DIRTY).all():
            self.give_up()
            return False
        self.marked, self.tried = 0, False
        return True

    def give_up(self) -> None:
        """Nothing is known any more of where the kernel is."""
        self._entries[:, 0] = 0
        self.state = State.BROKEN
        self.marked, self.tried = 0, False

    def free_some(self, reset: Callable[[], object]) -> bool:
        """Has ``reset`` free some entries that nothing else would, of a ring that is not in step and whose vCPU stands
        still after it was ``tried``. False where the kernel takes none.

        KVM lets a vCPU go on with less than ``size - 64`` entries used, and less its CPU's own log of 512 where there
        is one; a ring of twice that has at least a quarter in use.
        """
        quarter = self.size // 4
        starts = [self._resets_at] if self.state is State.FOUND else range(0, self.size, quarter)
        for start in starts:
            flags = self._entries[start : start + quarter, 0]
            flags[:] = DIRTY_GFN_F_RESET
            reset()
            freed = not flags[-1]
            flags[:] = 0  # the first ones stay, where the kernel was further than the start
            if freed:
                self.state, self._resets_at = State.FOUND, (start + quarter) % self.size
                return True
        return False

    def _collect_in_step(self, spare: int = 0) -> Collected:
        """Without loss there are at most as many as are not marked, less ``spare``."""
        taken = self._take_all()
        room = self.size - self.marked - spare
        self.marked += len(taken)
        lost = len(taken) > room or len(taken) == self.size
        if lost:
            self.give_up()
        return Collected.of(taken, lost=lost)

    def _collect_broken(self) -> Collected:
        pushed = bool((self._flags(0, self.size) & DIRTY_GFN_F_DIRTY).any())
        if pushed:
            self._entries[:, 0] = 0
        return Collected.of(_NONE, lost=pushed)

    def _collect_found(self) -> Collected:
        """All flags were zero, so that what is dirty now is all that was pushed since, and begins where it began."""
        seen = np.flatnonzero(self._flags(0, self.size) & DIRTY_GFN_F_DIRTY)
        if not seen.size:
            return Collected.of(_NONE, lost=False)
        # Another look, because while the first was taken the kernel may have pushed what it had passed already. All
        # that came before an entry that the first has seen is in the second: backwards from there to the first gap.
        dirty = self._flags(0, self.size) & DIRTY_GFN_F_DIRTY
        at = int(seen[0])
        gaps = np.flatnonzero(np.concatenate((dirty[:at][::-1], dirty[at:][::-1])) == 0)
        if not gaps.size:  # the order is unknown
            self.give_up()
            return Collected.of(_NONE, lost=True)
        self.state, self._next = State.IN_STEP, (at - int(gaps[0])) % self.size
        self.marked = (self._next - self._resets_at) % self.size
        self._entries[(self._resets_at + np.arange(self.marked)) % self.size, 0] = DIRTY_GFN_F_RESET
        return self._collect_in_step(spare=1)  # an entry pushed to one just marked would not be seen

    def _take_all(self) -> Entries:
        parts: list[Entries] = []
        count = 0
        while count < self.size:
            part = self._take(min(_LOOK, self.size - count))
            if not len(part):
                break
            parts.append(part)
            count += len(part)
        return np.concatenate(parts) if parts else _NONE

    def _take(self, most: int) -> Entries:
        """Up to ``most`` entries that lie side by side in the array."""
        flags = self._flags(self._next, min(most, self.size - self._next))
        clean = np.flatnonzero(flags & DIRTY_GFN_F_DIRTY == 0)
        part = self._entries[self._next : self._next + (int(clean[0]) if clean.size else len(flags))]
        taken = part.copy()
        part[:, 0] = DIRTY_GFN_F_RESET
        self._next = (self._next + len(part)) % self.size
        return taken

    def _flags(self, start: int, count: int) -> Flags:
        """One look at the flags of ``count`` entries from ``start``, counted round the ring: an entry is whole once its
        flag is seen."""
        start %= self.size
        first = self._entries[start : start + count, 0].copy()
        if len(first) == count:
            return first
        return np.concatenate((first, self._entries[: count - len(first), 0]))
