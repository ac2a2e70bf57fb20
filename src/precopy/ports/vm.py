"""A guest that can be migrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from precopy.dirty.memory import DirtyMemory
from precopy.ports.memory import MemoryWriter


@dataclass(frozen=True)
class Witness:
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


class VmControl(Protocol):
    """One guest: its memory, its tracker, and its vCPUs to pause, resume, save and restore.

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

    def save_state(self) -> bytes:
        """The state of all vCPUs of a paused guest, all that is not in its memory."""
        ...

    def load_state(self, state: bytes) -> None:
        """Puts a saved state into a paused guest. Raises `GuestError` where it does not fit this machine."""
        ...

    def check(self) -> Witness:
        """Holds a paused guest's memory against its own invariant."""
        ...
