"""A guest that can be migrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from precopy.dirty.clients import DirtyMemory
from precopy.ports.ram import MemoryWriter


@dataclass(frozen=True)
class SelfCheck:
    """What the guest's own invariant says of its paused memory.

    ``steps`` is how many writes the guest had made; ``pages`` how many pages were looked at; ``broken`` names up to a
    few of the pages that do not hold what those steps must have left there.
    """

    steps: int
    pages: int
    broken: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.broken


@dataclass(frozen=True)
class TrackerChoice:
    """The tracker that a guest is migrated with and ``why``; ``pause_s`` is how long the guest stood still for it."""

    tracker: str
    why: str
    pause_s: float = 0.0


MAX_THROTTLE = 0.99
"""The largest share of its time that may be taken from a vCPU, as in QEMU."""


@dataclass(frozen=True)
class Throttled:
    """What throttling has cost a guest since it was made: ``throttled_s``, the seconds that each vCPU was made to stand
    still; ``active_s``, for how long a throttle was in force while the guest was not paused. Both are measured."""

    throttled_s: tuple[float, ...]
    active_s: float

    @property
    def share(self) -> float:
        """The share of the guest's time that was taken while a throttle was in force; 0 where none ever was."""
        vcpu_s = self.active_s * len(self.throttled_s)
        return sum(self.throttled_s) / vcpu_s if vcpu_s else 0.0

    def __sub__(self, earlier: Throttled) -> Throttled:
        throttled_s = tuple(now - then for now, then in zip(self.throttled_s, earlier.throttled_s, strict=True))
        return Throttled(throttled_s, self.active_s - earlier.active_s)


class VmControl(Protocol):
    """One guest: its memory, its tracker, and its vCPUs to pause, resume, throttle, save and restore.

    A guest is made paused. tests/contract/test_vm_control.py holds every implementation to this.
    """

    @property
    def kind(self) -> str:
        """What runs it: ``kvm`` or ``emulated``."""
        ...

    @property
    def machine(self) -> str:
        """What a destination must be to take this guest's state, such as ``kvm x86_64, 2 vCPUs``."""
        ...

    @property
    def memory(self) -> MemoryWriter: ...

    @property
    def running(self) -> bool: ...

    @property
    def dirty(self) -> DirtyMemory:
        """Its dirty memory, which every client shares."""
        ...

    def choose_tracker(self, wanted: str) -> TrackerChoice:
        """Has the tracker called ``wanted`` tell of its writes (``auto``: whichever suits them); ``dirty`` may be
        another one afterwards. Raises `Unsupported`, `UsageError`, `GuestError`, with the guest as it was."""
        ...

    def pause(self) -> float:
        """Stops every vCPU at an instruction boundary; returns the seconds that took. Raises `GuestError`."""
        ...

    def resume(self) -> None:
        """Runs every vCPU. Raises `GuestError` where one has failed."""
        ...

    def throttle(self, share: float) -> None:
        """Takes this share of every vCPU's time from now on, from 0, which ends it, to 0.99; ends a dirty limit.
        What the guest would have written in that time it does not make up for. The guest may run or be paused. Raises
        `UsageError`; `GuestError` or `KernelCallError` where an earlier throttle came to an end of its own."""
        ...

    def limit_dirtying(self, bytes_per_s: float | None, max_share: float = MAX_THROTTLE) -> None:
        """Limits each vCPU to this many dirty bytes a second from now on, while dirty memory is logged; None ends it.
        Nothing is taken from a vCPU that dirties less, at most ``max_share`` of its time from one that dirties more.
        Ends what `throttle` began. Raises as `throttle`, and `Unsupported`, that also for None."""
        ...

    def throttled(self) -> Throttled:
        """What `throttle` and `limit_dirtying` have cost so far."""
        ...

    def save_state(self) -> bytes:
        """The state of all vCPUs of a paused guest, all that is not in its memory."""
        ...

    def load_state(self, state: bytes) -> None:
        """Puts a saved state into a paused guest. Raises `GuestError` where it does not fit this machine."""
        ...

    def self_check(self) -> SelfCheck:
        """Holds a paused guest's memory against its own invariant."""
        ...
