"""Who remembers, from one snapshot of a memory in a directory to the next, what was written since."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from precopy.bitmap import Bitmap
from precopy.dirty import DirtyLog
from precopy.errors import KernelCallError, SnapshotDamaged, Unsupported, UsageError
from precopy.process.memory import Memory
from precopy.store.chain import Chain
from precopy.store.copied import start_after_restore
from precopy.store.directory import Directory
from precopy.store.format import Parent
from precopy.store.reading import StoredFile
from precopy.store.writing import Label


@dataclass
class Series:
    """The snapshots of one memory in one directory: its log, and the pages that it has told and that no committed
    snapshot holds yet."""

    log: DirtyLog
    pending: Bitmap
    started: bool = False
    """Whether the log is: not yet after `restore`."""
    last: Parent | None = None
    """The newest that was committed, or restored."""
    trying: Label | None = None
    """One whose commit was begun."""
    process: int = field(default_factory=os.getpid)
    chain: frozenset[int] = field(default_factory=frozenset)
    """The numbers of the files that it was made up of."""

    def find(self) -> None:
        """Takes over what was written, and arms it again: before any of it is read (law 1)."""
        self.log.harvest(self.pending)
        self.log.clear(0, self.pending.size)

    def committed(self, label: Label) -> None:
        """What was pending is in this snapshot."""
        self.pending.clear_all()
        self._follow(label)

    def _follow(self, label: Label) -> None:
        self.trying = None
        self.last = Parent(label.number, label.id)
        self.chain = frozenset({label.number}) | (frozenset() if label.parent is None else self.chain)

    def parent(self, store: Directory, numbers: list[int]) -> Parent | None:
        """What the next snapshot can hold the changes to: the last one, if it is the newest there and all that it needs
        is there, too; None where the next has to be full. Raises `UsageError` where others have written here since."""
        if self.trying is not None and self.trying.number in numbers and _id(store, numbers[-1]) == self.trying.id:
            self._follow(self.trying)  # it was committed, and who called did not hear of it; all stays pending
        if self.last is None or self.last.number not in numbers:
            return None
        ours = _id(store, self.last.number)
        if ours is None:
            return None
        if numbers[-1] != self.last.number or ours != self.last.id:
            raise UsageError(
                f"{store.path} has got snapshot {numbers[-1]} of another memory since this one's {self.last.number}; "
                f"use one directory for each memory, or begin anew with full=True"
            )
        if not self.chain <= set(numbers):  # compacted since, or lost
            try:
                with Chain(store, self.last.number) as chain:
                    self.chain = chain.numbers
            except (SnapshotDamaged, FileNotFoundError):
                return None
        return self.last


def series_of(memory: Memory, store: Directory) -> Series:
    """The series of ``memory`` in a directory, whose log is started now where it is not. Raises `Unsupported`,
    `KernelCallError` where the kernel cannot track it, `UsageError` where the memory is closed."""
    mine: dict[str, Series] = memory.snapshots
    where = os.path.realpath(store.path)
    series = mine.get(where) or _new(memory, store)
    if series.process != os.getpid():
        raise Unsupported(
            "the kernel tracks a memory for the process that made it, and this is a child of that one",
            "take snapshots in the parent",
        )
    if not series.started:
        if series.last is None:
            series.log.start()
        else:
            start_after_restore(series.log, memory.address, series.pending)
        series.started = True
    mine[where] = series
    return series


def _id(store: Directory, number: int) -> str | None:
    """None where it cannot be read any more."""
    try:
        with StoredFile(store, number) as file:
            return file.header.id
    except (SnapshotDamaged, Unsupported, FileNotFoundError):
        return None


def continues(memory: Memory, store: Directory, chain: Chain, *, at_once: bool) -> None:
    """Has ``memory``, which was just made of ``chain`` and which nobody has written yet, go on with increments to it.

    Its log is started ``at_once``, where the kernel can do that, or else with the first snapshot.
    """
    series = _new(memory, store)
    if at_once:
        try:
            series.log.start()
        except (Unsupported, KernelCallError):
            return
        series.started = True
    header = chain.newest.header
    series.last, series.chain = Parent(header.number, header.id), chain.numbers
    memory.snapshots[os.path.realpath(store.path)] = series


def _new(memory: Memory, store: Directory) -> Series:
    return Series(memory.consumer(f"snapshot in {store.path}"), Bitmap(memory.layout.end_page))
