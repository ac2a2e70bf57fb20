"""What was written since the last snapshot of a memory in a directory, kept from one snapshot to the next."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from precopy.bitmap import Bitmap
from precopy.dirty import DirtyLog
from precopy.errors import KernelCallError, MappingChanged, Unsupported
from precopy.machines.process.memory import Memory
from precopy.snapshot_store.chain import Chain
from precopy.snapshot_store.copied import start_after_restore
from precopy.snapshot_store.directory import Directory
from precopy.snapshot_store.format import Parent
from precopy.snapshot_store.succession import Lineage, check_successor, newest_of, parent_in
from precopy.snapshot_store.writing import Label


@dataclass
class Series:
    """The snapshots of one memory in one directory: its log, and the pages that it has told and that no committed
    snapshot holds yet."""

    log: DirtyLog
    pending: Bitmap
    started: bool = False
    """Whether ``log`` has been started; after `restore` it is started only when it is needed."""
    process: int = field(default_factory=os.getpid)
    lineage: Lineage = field(default_factory=Lineage)

    def start(self, memory: Memory) -> None:
        """Starts the log, where it is not. Raises `Unsupported`, `KernelCallError` where the kernel cannot track the
        memory."""
        if self.process != os.getpid():
            raise Unsupported(
                "the kernel tracks a memory for the process that made it, and this is a child of that one",
                "take snapshots in the parent",
            )
        if self.started:
            return
        if self.lineage.last is None:
            self.log.start()
        else:
            start_after_restore(self.log, memory.address, self.pending)
        self.started = True

    def find(self, *, anew: bool) -> None:
        """Takes over what was written, and arms it again: before any of it is read (law 1). Where the memory is not the
        mapping any more that was tracked, tracking begins ``anew`` (for a full snapshot), or `MappingChanged` is
        raised."""
        try:
            self.log.harvest(self.pending)
        except MappingChanged:
            if not anew:
                raise
            self.pending.set_range(0, self.pending.size)
            self.log.stop()
            self.started = False
            self.log.start()
            self.started = True
        self.log.clear(0, self.pending.size)

    def committed(self, label: Label, *, tracked: bool) -> None:
        """What was pending is in this snapshot."""
        self.pending.clear_all()
        self.lineage.committed(label, exact=tracked)


def series_of(memory: Memory, store: Directory) -> Series:
    """The series of ``memory`` in a directory. Raises `UsageError` where the memory is closed."""
    mine: dict[str, Series] = memory.snapshots
    where = os.path.realpath(store.path)
    if where not in mine:
        mine[where] = _new(memory, store)
    return mine[where]


def parent_of(memory: Memory, store: Directory, series: Series, numbers: Sequence[int], replace: bool) -> Parent | None:
    """The snapshot that the next one can hold the changes to; None where the next has to be full. Raises `UsageError`
    where ``memory`` is not the successor of what is there, and is not to ``replace`` it."""
    newest, lineage = newest_of(store, numbers), series.lineage
    if newest is None:
        return None
    lineage.settle(newest, numbers)
    if not replace:
        others = (other.lineage for other in memory.snapshots.values() if other is not series)
        check_successor(store, newest, lineage, others, memory.size)
    return parent_in(store, newest, lineage, numbers)


def continues(memory: Memory, store: Directory, chain: Chain, *, exact: bool, at_once: bool) -> None:
    """Has ``memory``, which was just made of ``chain`` and has not been written yet, go on from it: with increments
    where what is written from here on will be known (``exact``), or else with a full snapshot.

    Its log is started ``at_once`` where the kernel can do that, or else with the first snapshot.
    """
    series = _new(memory, store)
    series.lineage.restored(chain)
    series.lineage.exact = exact
    if at_once:
        try:
            series.log.start()
            series.started = True
        except (Unsupported, KernelCallError):
            series.lineage.exact = False
    memory.snapshots[os.path.realpath(store.path)] = series


def _new(memory: Memory, store: Directory) -> Series:
    return Series(memory.consumer(f"snapshot in {store.path}"), Bitmap(memory.layout.end_page))
