"""Reading the trace that QEMU logs of its syncs.

Facts: the `log` backend of trace events, which Debian's builds have, writes a line with its time for each event under
``-msg timestamp=on``, by one write(2), and takes the time before that write: a sync's time includes that
of one line. ``dirty_pages`` of migration_bitmap_sync_end counts the pages that were newly found since the rate was last
worked out, which is at the end of the first sync that ends more than a second later: it adds up the syncs of such a
period. The slot of kvm_clear_dirty_log is the kernel's, with the address space (1: SMM) in its upper 16 bits. A
migration's first sync lies in its setup and its last one is made with the guest stopped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from precopy.errors import PeerProtocolError, Unsupported

Phase = Literal["setup", "iterate", "complete"]

TRACED = SYNC_START, SYNC_END, CLEAR = "migration_bitmap_sync_start", "migration_bitmap_sync_end", "kvm_clear_dirty_log"
"""Names of the events that are read."""

_EVENT = re.compile(
    r"(?:(?P<thread>\d+)@(?P<seconds>\d+)\.(?P<fraction>\d{6}):"
    r"|(?P<moment>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) )"
    rf"(?P<event>{SYNC_START}|{SYNC_END}|{CLEAR})(?: (?P<rest>.*))?"
)
"""QEMU 7.2 and 10.0: ``thread@seconds.microseconds:event``; 11.1: ``date and time event``, without a thread."""
_DIRTY_PAGES = re.compile(r"dirty_pages (\d+)")
_SLOT = re.compile(r"slot#(\d+) start 0x[0-9a-f]+ size 0x[0-9a-f]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PERIOD = 1_000_000
"""Microseconds after which the next sync's end begins a new period of ``dirty_pages``."""


@dataclass(frozen=True)
class TracedSync:
    """One sync of the migration's dirty bitmap.

    ``sync_s`` is seconds from its start to its end, ``started_s`` its start, in seconds since 1970. ``dirty_pages`` is
    what its end reports, ``new_pages`` how many of them it found itself. ``clear_ioctls`` are CLEAR_DIRTY_LOG calls
    made between the two, ``clears_by_slot`` the same by KVM memory slot; None where clears were not traced. ``phase``
    is the migration's: its setup (all pages are dirty), its rounds, or its completion, with the guest stopped.
    """

    phase: Phase
    sync_s: float
    dirty_pages: int
    clears_by_slot: Mapping[int, int] | None
    started_s: float = 0.0
    new_pages: int = 0

    @property
    def clear_ioctls(self) -> int | None:
        return None if self.clears_by_slot is None else sum(self.clears_by_slot.values())


@dataclass(frozen=True)
class MigrationTrace:
    """The syncs of one migration, in order, and the CLEAR_DIRTY_LOG calls that it made outside of them."""

    syncs: tuple[TracedSync, ...]
    deferred_clear_ioctls: int


def no_trace() -> Unsupported:
    """What is wrong where none of these lines came."""
    return Unsupported("QEMU has logged no trace events", "use a build with the trace backend `log`, as Debian's")


def parse_trace(text: str, *, clears: bool = True, complete: bool = True) -> MigrationTrace:
    """The syncs of one migration, from the lines that QEMU has logged; lines of anything else are passed over.

    ``clears`` says whether CLEAR_DIRTY_LOG calls were traced, ``complete`` whether the migration went to its end: one
    that was cancelled may have a sync that does not end, which is left out. Raises `PeerProtocolError` where a line of
    these events cannot be read, or starts and ends do not fit together.
    """
    reader = _Reader(clears)
    for line in text.splitlines():
        if match := _EVENT.fullmatch(line.rstrip()):
            reader.take(int(match["thread"] or 0), _microseconds(match), match["event"], match["rest"] or "")
        elif any(event in line for event in TRACED):
            raise PeerProtocolError(f"QEMU's trace is not understood: {line.strip()!r}")
    return reader.finish(complete)


def _microseconds(line: re.Match[str]) -> int:
    """Since 1970."""
    if line["moment"] is None:
        return 1_000_000 * int(line["seconds"]) + int(line["fraction"])
    try:
        return (datetime.fromisoformat(line["moment"]) - _EPOCH) // timedelta(microseconds=1)
    except ValueError:
        raise PeerProtocolError(f"QEMU's trace has a time that cannot be: {line['moment']!r}") from None


@dataclass
class _Reader:
    """One migration's events, in order; times in microseconds."""

    clears: bool
    thread: int | None = None
    started: int | None = None
    slots: Counter[int] = field(default_factory=Counter)
    ended: list[tuple[int, int, int, Counter[int]]] = field(default_factory=list)
    deferred: int = 0

    def take(self, thread: int, time: int, event: str, rest: str) -> None:
        if event == SYNC_START:
            if self.started is not None:
                raise PeerProtocolError("QEMU's trace has a sync that starts within another")
            self.thread, self.started, self.slots = thread, time, Counter()
        elif event == SYNC_END:
            if self.started is None or time < self.started:
                raise PeerProtocolError("QEMU's trace has a sync that ends before it starts")
            self.ended.append((self.started, time - self.started, int(_read(_DIRTY_PAGES, event, rest)), self.slots))
            self.started = None
        elif thread == self.thread:  # another thread clears for the display; 11.1 does not say which it was
            slot = int(_read(_SLOT, event, rest))
            if self.started is None:
                self.deferred += 1
            else:
                self.slots[slot] += 1

    def finish(self, complete: bool) -> MigrationTrace:
        if self.started is not None and complete:
            raise PeerProtocolError("QEMU's trace has a sync that does not end")
        syncs = tuple(
            TracedSync(
                self._phase(number, complete),
                1e-6 * took,
                dirty_pages,
                dict(slots) if self.clears else None,
                1e-6 * started,
                new_pages,
            )
            for number, ((started, took, dirty_pages, slots), new_pages) in enumerate(
                zip(self.ended, self._new_pages(), strict=True)
            )
        )
        return MigrationTrace(syncs, self.deferred)

    def _new_pages(self) -> Iterator[int]:
        """Of each sync. QEMU's clock for the periods is another one, of milliseconds: a count that falls shows that a
        period ended, too."""
        began, before = self.ended[0][0] if self.ended else 0, 0
        for started, took, dirty_pages, _ in self.ended:
            yield dirty_pages - before if dirty_pages >= before else dirty_pages
            before = dirty_pages
            if started + took - began > _PERIOD:
                began, before = started + took, 0

    def _phase(self, number: int, complete: bool) -> Phase:
        if number == 0:
            return "setup"
        return "complete" if complete and number == len(self.ended) - 1 else "iterate"


def _read(pattern: re.Pattern[str], event: str, rest: str) -> str:
    match = pattern.fullmatch(rest)
    if match is None:
        raise PeerProtocolError(f"QEMU's trace of {event} is not understood: {rest!r}")
    return match[1]
