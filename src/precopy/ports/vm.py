"""What a machine can do, by role. To be migrated from it has to be a `SourceVm`, to be migrated to a `DestinationVm`;
each other role is optional. What an option needs is asked for once, when a migration starts; `lacks` is the error where
it is missing.

tests/contract holds every implementation to this, role by role.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

from msgspec import Meta

from precopy.bounds import Number
from precopy.dirty.dirty_memory import DirtyMemory
from precopy.errors import Unsupported
from precopy.ports.ram import MemoryCopier, MemoryReader, MemoryWriter
from precopy.ports.stall import StallMeter


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


@dataclass(frozen=True)
class SyncWay:
    """The ``way`` in which a guest's syncs are made, ``numpy`` or ``numba``, and ``why``."""

    way: str
    why: str


MAX_THROTTLE = 0.99
"""The largest share of its time that may be taken from a vCPU, as in QEMU."""


@dataclass(frozen=True)
class Throttled:
    """What throttling has cost a guest since it was made: ``throttled_s``, the seconds that each vCPU was made to stand
    still; ``active_s``, for how long a throttle was in force while the guest was not paused. Both are measured."""

    throttled_s: Annotated[tuple[Number, ...], Meta(max_length=1024)]
    active_s: Number

    @property
    def share(self) -> float:
        """The share of the guest's time that was taken while a throttle was in force; 0 where none ever was."""
        vcpu_s = self.active_s * len(self.throttled_s)
        return sum(self.throttled_s) / vcpu_s if vcpu_s else 0.0

    def __sub__(self, earlier: Throttled) -> Throttled:
        throttled_s = tuple(now - then for now, then in zip(self.throttled_s, earlier.throttled_s, strict=True))
        return Throttled(throttled_s, self.active_s - earlier.active_s)


class Pausable(Protocol):
    """A machine that stops and runs. It is made paused."""

    @property
    def kind(self) -> str:
        """What runs it: ``kvm`` or ``emulated``."""
        ...

    @property
    def machine(self) -> str:
        """What a destination must be to take this guest's state, such as ``kvm x86_64, 2 vCPUs``."""
        ...

    @property
    def running(self) -> bool: ...

    def pause(self) -> float:
        """Stops every vCPU at an instruction boundary; returns the seconds that took. Raises `GuestError`."""
        ...

    def resume(self) -> None:
        """Runs every vCPU. Raises `GuestError` where one has failed."""
        ...


class SourceVm(Pausable, Protocol):
    """All that a machine must be to be migrated from: it can be paused, and its memory read and tracked."""

    @property
    def memory(self) -> MemoryReader | MemoryCopier: ...

    @property
    def dirty(self) -> DirtyMemory:
        """Its dirty memory, which every client shares."""
        ...


class DestinationVm(Pausable, Protocol):
    """All that a machine must be to be migrated to: it can be run, and its memory written while it is paused."""

    @property
    def memory(self) -> MemoryWriter: ...


@runtime_checkable
class TrackerChoosing(Protocol):
    """A machine whose tracker can be another one."""

    def choose_tracker(self, wanted: str) -> TrackerChoice:
        """Has the tracker called ``wanted`` tell of its writes (``auto``: whichever suits them); ``dirty`` may be
        another one afterwards. Raises `Unsupported`, `UsageError`, `GuestError`, with the guest as it was."""
        ...


@runtime_checkable
class SyncWayChoosing(Protocol):
    """A machine whose syncs can be made in several ways, with the same results in different times."""

    def choose_sync_way(self) -> SyncWay:
        """Tries them with its own memory, which is being logged, and has its syncs made in the better one from now
        on. What is found stays dirty. Raises what a sync raises."""
        ...


@runtime_checkable
class Throttleable(Protocol):
    """A machine that can be slowed down."""

    def throttle(self, share: float) -> None:
        """Takes this share of every vCPU's time from now on, from 0, which ends it, to 0.99, and ends a dirty limit.
        What the guest would have written in that time it does not make up for. The guest may run or be paused. Raises
        `UsageError`; `GuestError` or `KernelCallError` where an earlier throttle came to an end of its own."""
        ...

    def throttled(self) -> Throttled:
        """What throttling has cost so far, a dirty limit included."""
        ...


@runtime_checkable
class DirtyLimiting(Throttleable, Protocol):
    """A machine whose vCPUs can be slowed down each by what it dirties itself. A dirty ring says that, and no other
    tracker that there is."""

    def limit_dirtying(self, bytes_per_s: float | None, max_share: float = MAX_THROTTLE) -> None:
        """Limits each vCPU to this many dirty bytes a second from now on, while dirty memory is logged; None ends it.
        Nothing is taken from a vCPU that dirties less, at most ``max_share`` of its time from one that dirties more.
        Ends what `throttle` began. Raises as `throttle`, and, also for None, `Unsupported` where the tracker does not
        say which vCPU dirtied a page; then nothing is changed."""
        ...


@runtime_checkable
class DeviceStates(Protocol):
    """A machine with a state besides its memory, such as vCPUs. One without has none to send, and takes none."""

    def save_state(self) -> bytes:
        """The state of all vCPUs of a paused guest, all that is not in its memory."""
        ...

    def load_state(self, state: bytes) -> None:
        """Puts a saved state into a paused guest. Raises `GuestError` where it does not fit this machine."""
        ...


@runtime_checkable
class Rehearsing(Protocol):
    """A machine that can do beforehand what a switchover will do with its vCPUs' state."""

    def rehearse(self) -> None:
        """Saves and loads the state of a vCPU that is no guest's, so that code and memory for that are there when a
        guest stands still. The guest may run, and notices nothing. Raises `PrecopyError` where it cannot."""
        ...


@runtime_checkable
class SelfChecking(Protocol):
    """A machine whose guest has an invariant that its memory can be held against."""

    def self_check(self) -> SelfCheck:
        """Holds a paused guest's memory against its own invariant."""
        ...


@runtime_checkable
class StallMeasuring(Protocol):
    """A machine whose guest measures the gaps in its own progress."""

    def stall_meter(self) -> StallMeter:
        """What reads them from now on. Raises `Unsupported` where this guest does not measure them, and why."""
        ...


def lacks(vm: Pausable, role: str, option: str, remedy: str = "") -> Unsupported:
    """The error where ``vm`` has not got a ``role`` that ``option`` needs, which is as a user writes it. ``remedy``:
    what to do (empty: leave out the option)."""
    return Unsupported(
        f"this machine ({vm.machine}) is not {role}, which {option} needs", remedy or f"leave out {option}"
    )
