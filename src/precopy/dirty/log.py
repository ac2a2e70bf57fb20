"""`DirtyLog`, the Protocol that every tracker implements: what notes first which pages were written, be it the kernel,
a device, or an emulated CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from precopy.bitmap import Bitmap, Runs
from precopy.dirty.merge import Merge, Merged
from precopy.memory.layout import RamBlock


@dataclass(frozen=True)
class LogCounters:
    """What a dirty log has done since it was made: calls into the kernel, by kind, and seconds spent in them.

    A log that needs no system calls counts its own operations.
    """

    get_calls: int = 0
    get_s: float = 0.0
    clear_calls: int = 0
    clear_s: float = 0.0

    def __sub__(self, earlier: LogCounters) -> LogCounters:
        return LogCounters(
            self.get_calls - earlier.get_calls,
            self.get_s - earlier.get_s,
            self.clear_calls - earlier.clear_calls,
            self.clear_s - earlier.clear_s,
        )

    def __add__(self, other: LogCounters) -> LogCounters:
        return LogCounters(
            self.get_calls + other.get_calls,
            self.get_s + other.get_s,
            self.clear_calls + other.clear_calls,
            self.clear_s + other.clear_s,
        )


class LogClear(Protocol):
    """What can re-arm pages: a dirty log, or all dirty logs of a guest together."""

    def clear(self, start: int, count: int) -> None:
        """Re-arms the harvested pages among ``count`` from ram_addr page ``start`` (log_clear)."""
        ...

    def clear_always(self, start: int, count: int) -> None:
        """As `clear`, and calls the kernel also where nothing of the range was harvested: what QEMU does."""
        ...


@runtime_checkable
class DirtyLog(Protocol):
    """A tracker with manual protect: harvesting leaves bits set, and only `clear` re-arms pages.

    tests/contract/test_dirty_log.py holds every implementation to this:

    - A page written after it was last armed is in the next `harvest`, and in every later one until it is cleared.
    - `clear` re-arms exactly those pages of its range that an earlier `harvest` reported (law 2), so that a write
      which no harvest has reported yet is never forgotten. A write that came after that harvest, but before the
      clear, may be forgotten (the caller of `clear` reads the page afterwards) or reported once more.
    - Nothing is asked of the caller's alignment (law 3).
    """

    @property
    def name(self) -> str:
        """The tracker's name in reports, such as ``kvm dirty log``."""
        ...

    @property
    def counters(self) -> LogCounters:
        """What was done so far."""
        ...

    def start(self) -> None:
        """Starts logging of all memory. All pages may count as dirty at first. Raises `Unsupported`,
        `KernelCallError`."""
        ...

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        """Sets in ``dirty`` (over the ram_addr space) every page written since it was last armed (log_sync); of
        ``block`` only, where one is given: no other page then counts as harvested."""
        ...

    def clear(self, start: int, count: int) -> None:
        """Re-arms the harvested pages among ``count`` from ram_addr page ``start`` (log_clear)."""
        ...

    def stop(self) -> None:
        """Stops logging of all memory; the guest runs at full speed again. May be called twice."""
        ...


@runtime_checkable
class ClearsAlways(Protocol):
    """A log that can also call the kernel in vain, as QEMU does."""

    def clear_always(self, start: int, count: int) -> None:
        """See `LogClear.clear_always`."""
        ...


@runtime_checkable
class Relaxable(Protocol):
    """A log that may leave pages unarmed that are written all the time, and then reports more than was written."""

    exact: bool
    """Whether harvests from the next one on report nothing but what was written since the page was armed. The first of
    them still counts what was not armed, and arms it."""

    @property
    def unarmed(self) -> Runs:
        """Pages that the last harvest has counted as written because they were not armed."""
        ...


@runtime_checkable
class MergingLog(DirtyLog, Protocol):
    """A log that can harvest and merge in one step, because it knows where it puts what it fetches."""

    def harvest_into(self, found: Bitmap, merge: Merge, *, empty: bool) -> Merged:
        """As `harvest` into ``found``, which is ``empty`` or may hold bits already; all of it becomes pending in
        ``merge``, whose bitmap of the last sync is emptied. Raises what `harvest` raises: what was fetched until then
        is in ``found``, and may not be pending."""
        ...
