"""What is dirty, and what a migration still has to send.

Law 1: **No dirty page is lost.** Every write after a page was last read for sending is found by a later sync.
Therefore a page is re-armed *before* its content is read, never after: `MigrationBitmap.take` calls the clear policy
first and hands out pages to read second.

Law 2: **Clear only what was harvested.** A clear re-arms only pages whose dirty bit this side has taken over into
`pending`. A sync therefore merges what it harvested first and tells the clear policy second, and a tracker masks every
clear by what its own last harvest reported.

tests/property/test_dirty_laws.py is a state machine that tries to break both, with guest writes, syncs and reads in
every order that this module allows, under every clear policy.

How the slow path disappears: one bitmap covers the whole ram_addr space and every block starts on a word, so a sync
is a few whole-array operations whatever the blocks' lengths. A block's bitmap is a view of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from precopy.bitmap import Bitmap, Runs
from precopy.dirty.clear import ClearPolicy
from precopy.dirty.dirty_memory import DirtyMemory
from precopy.dirty.merge import Merge, Merged
from precopy.memory.layout import RamBlock
from precopy.memory.topology.log_mask import DirtyClient


@dataclass(frozen=True)
class SyncStats:
    """One sync: its three parts in seconds, and what it found in pages."""

    log_sync_s: float
    bitmap_sync_s: float
    log_clear_s: float
    dirty_pages: int
    new_dirty_pages: int

    @property
    def sync_s(self) -> float:
        """x: the whole sync."""
        return self.log_sync_s + self.bitmap_sync_s + self.log_clear_s

    def __add__(self, other: SyncStats) -> SyncStats:
        """Two syncs of one round, as one."""
        return SyncStats(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


class MigrationBitmap:
    """The pages that a migration still has to send (``pending``), over the whole ram_addr space of ``memory``, whose
    MIGRATION client it is.

    ``now`` is a monotonic clock in seconds.
    """

    def __init__(self, memory: DirtyMemory, policy: ClearPolicy, now: Callable[[], float] = time.perf_counter) -> None:
        self.memory, self.policy = memory, policy
        self.layout = memory.layout
        self.pending = Bitmap(self.layout.end_page)
        self._merge = Merge(self.pending, policy.marks)
        self._seen = Bitmap(self.layout.end_page)
        self._sampled = False
        self._spare: Bitmap | None = None
        self._now = now

    @property
    def dirty(self) -> Bitmap:
        """What the last sync took over, pending before or not. Lent until the next one."""
        return self._merge.dirty

    def block(self, block: RamBlock) -> Bitmap:
        """The block's part of ``pending``, as a view."""
        return self.pending.view(block.first_page, block.pages)

    def mark_all(self) -> None:
        """Every page of every block is to be sent, as at the start of a migration."""
        self.pending.set_runs(self.layout.runs)

    def mark(self, runs: Runs) -> None:
        """``runs`` are to be sent (again)."""
        self.pending.set_runs(runs)

    def sync(self, tick: Callable[[], None] = lambda: None) -> SyncStats:
        """Takes over what was written (QEMU: ``migration_bitmap_sync``). ``tick`` is called now and then while that
        takes long, and may raise to stop it. Raises what the log raises."""
        start = self._now()
        if self._sampled:
            self.memory.set_from(self._seen, DirtyClient.MIGRATION)
            self._seen.clear_all()
            self._sampled = False
        if self.policy.whole_arrays:
            merged = self.memory.sync_and_merge(self._merge)
            if merged is not None:
                return self._stats(start, merged, tick)
        spare = self._merge.emptied()
        self.memory.sync()
        self._merge.replace_unknown(self.memory.exchange(DirtyClient.MIGRATION, spare))
        harvested = self._now()
        found, new = self.policy.merge(self.dirty, self.pending)
        merged_at = self._now()
        if found or self.policy.unconditional:
            self.policy.harvested(self.dirty, self.memory, tick)
        return SyncStats(harvested - start, merged_at - harvested, self._now() - merged_at, found, new)

    def _stats(self, start: float, merged: Merged, tick: Callable[[], None]) -> SyncStats:
        """Of a sync that was made in one step."""
        done = cleared = self._now()
        if merged.pages and self.policy.marks is None:
            self.policy.harvested(self.dirty, self.memory, tick)
            cleared = self._now()
        merge_s = min(merged.merge_s, done - start)
        return SyncStats(done - start - merge_s, merge_s, cleared - done, merged.pages, merged.new)

    def mid_round(self) -> Bitmap:
        """What was written since the last sync and is not pending, without taking it over: the next sync finds it. Lent
        until then. Pending pages are skipped: they will be read after this sample anyway, so laws 1 and 2 hold. Raises
        what the log raises."""
        empty = Bitmap(self.layout.end_page) if self._spare is None else self._spare
        self.memory.sync()
        found = self._spare = self.memory.exchange(DirtyClient.MIGRATION, empty)
        found.difference(self.pending)
        self._seen.add(found)
        self._sampled = True
        found.clear_all()
        return self._seen

    def windows(self, pages: int) -> Iterator[tuple[int, int]]:
        """(start, count) of each window of at most ``pages`` pages, within one block, that has pending pages now."""
        for block in self.layout.blocks:
            for start, count in self.block(block).windows(pages):
                yield block.first_page + start, count

    def take(self, start: int, count: int) -> Runs:
        """The pending pages of a range, which are armed again and pending no more: read them now (law 1)."""
        self.policy.before_read(start, count, self.memory)
        return self.pending.take(start, count)
