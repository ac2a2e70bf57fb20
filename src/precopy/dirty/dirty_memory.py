"""Dirty memory: one bitmap a client over the ram_addr space, which all dirty logs of a guest are harvested into.

Clients (QEMU: ``DIRTY_MEMORY_*``) want to know of writes for reasons of their own: MIGRATION to send pages again, VGA
to draw lines again, CODE to translate code again. A log has one bit a page, and harvesting it may let it be cleared;
so a harvest is made for all clients: each harvested bit reaches every client that logs the page, under one lock. Then
one client's clear (law 1: before it reads) takes nothing from another, which has the bit in a bitmap of its own.

Writes that no log reports, such as those of a device of the VMM, set their bits here with `set_range`.

QEMU: ``physical_memory_*dirty*`` in physmem; docs/patch-series.md maps the functions one by one.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Bitmap
from precopy.dirty.code import CodeBits, Translator
from precopy.dirty.log import ClearsAlways, DirtyLog, LogCounters, MergingLog
from precopy.dirty.merge import Merge, Merged
from precopy.errors import UsageError
from precopy.memory.layout import RamBlock, RamLayout
from precopy.memory.topology.log_mask import ALL_CLIENTS, DirtyClient
from precopy.memory.topology.region import MemoryRegion


@dataclass(frozen=True)
class DirtySnapshot:
    """What a client found dirty in ``block`` when it was taken (and cleared): bit ``i`` is the block's page ``i``.

    Source: QEMU's ``DirtyBitmapSnapshot``, which a display holds while it draws.
    """

    block: RamBlock
    pages: Bitmap
    page_size: int

    def dirty(self, start: int, size: int) -> bool:
        """Whether any page that holds one of ``size`` bytes from byte ``start`` of the block was dirty. Raises
        `BitmapRangeError`."""
        first = start // self.page_size
        end = -(-(start + size) // self.page_size) if size else first
        return self.pages.count(first, end - first) > 0

    def lines(self, stride: int, count: int, offset: int = 0) -> npt.NDArray[np.bool_]:
        """One bool for each of ``count`` lines of ``stride`` bytes from byte ``offset``: whether it may have changed.

        Raises `UsageError` where they do not lie in the block.
        """
        if stride <= 0 or count < 0 or offset < 0 or offset + stride * count > self.block.pages * self.page_size:
            raise UsageError(f"{count} lines of {stride} bytes from {offset} do not lie in {self.block.name!r}")
        bits = np.unpackbits(self.pages.words.view(np.uint8), bitorder="little")
        before = np.concatenate(([0], np.cumsum(bits, dtype=np.int64)))
        starts = offset + stride * np.arange(count, dtype=np.int64)
        changed: npt.NDArray[np.bool_] = (
            before[-(-(starts + stride) // self.page_size)] > before[starts // self.page_size]
        )
        return changed


class DirtyMemory:
    """The dirty memory of one guest: ``logs`` are all dirty logs of writes to the blocks of ``layout``.

    ``regions`` are the guest's memory regions by block name: a client that logs one block has that region's listeners
    told. Without them, every log has to cover all pages.

    Any thread may call any method.
    """

    def __init__(
        self, layout: RamLayout, logs: Sequence[DirtyLog] | DirtyLog, regions: Mapping[str, MemoryRegion] | None = None
    ) -> None:
        self.layout = layout
        self._use((logs,) if isinstance(logs, DirtyLog) else tuple(logs))
        self._regions = regions or {}
        self._bitmaps = {client: Bitmap(layout.end_page) for client in ALL_CLIENTS}
        self._bitmaps[DirtyClient.CODE].set_runs(layout.runs)  # clean means that there is translated code
        self._code = CodeBits(self._bitmaps[DirtyClient.CODE])
        self._migrating = False
        self._displayed: list[RamBlock] = []
        self._lock = threading.RLock()
        self._scratch: Bitmap | None = None
        self._stray = False
        """Whether MIGRATION's bitmap may hold a bit."""

    def _use(self, logs: tuple[DirtyLog, ...]) -> None:
        self.logs = logs
        last = logs[-1] if logs else None
        self._merging = last if isinstance(last, MergingLog) else None

    @property
    def name(self) -> str:
        """The names of all logs."""
        return " and ".join(dict.fromkeys(log.name for log in self.logs))

    @property
    def counters(self) -> LogCounters:
        """What all logs together have done so far."""
        if len(self.logs) == 1:
            return self.logs[0].counters
        return sum((log.counters for log in self.logs), LogCounters())

    def translate_with(self, translator: Translator) -> None:
        """``translator`` makes code of this memory: it is told of CODE bits that are cleared, and has dropped its
        translations of a page before the page's CODE bit is set. There is one; call it before the guest runs."""
        self._code.translator = translator

    # Which client logs which block.

    def attach(self, log: DirtyLog) -> None:
        """Adds a log of writes, such as that of a vhost device that was plugged in. Raises what starting it
        raises."""
        with self._lock:
            if self._migrating:
                log.start()
            self._use((*self.logs, log))

    def detach(self, log: DirtyLog) -> None:
        """Removes a log; the writes that it has logged are taken over first. Raises `ValueError` where it is
        none of these logs."""
        with self._lock:
            logs = list(self.logs)
            logs.remove(log)
            self.sync()
            self._use(tuple(logs))
            log.stop()

    @property
    def logging(self) -> bool:
        """Whether MIGRATION or VGA logs anything."""
        return self._migrating or bool(self._displayed)

    def start(self) -> None:
        """MIGRATION begins to log all memory; every log is told. Raises `Unsupported`, `KernelCallError`."""
        with self._lock:
            if self._displayed:
                self.sync()  # a log that starts may forget writes that VGA has not been told of
            started: list[DirtyLog] = []
            try:
                for log in self.logs:
                    started.append(log)
                    log.start()
            except BaseException:
                for log in started:
                    log.stop()
                raise
            self._bitmaps[DirtyClient.MIGRATION].clear_all()
            self._stray = False
            self._migrating = True
            if self._displayed:
                # What was harvested before for VGA alone may be cleared from now on; so MIGRATION has to have it, too.
                self.sync()

    def stop(self) -> None:
        """MIGRATION logs no more. What VGA logs goes on being logged. May be called twice."""
        with self._lock:
            if self._displayed:
                self.sync()  # a log that stops may forget writes that VGA has not been told of
            self._migrating = False
            for log in self.logs:
                log.stop()

    def start_display(self, block: RamBlock) -> None:
        """VGA begins to log ``block``, all of which counts as dirty at first."""
        with self._lock:
            if block in self._displayed:
                return
            if block.name in self._regions:
                self._regions[block.name].set_log(DirtyClient.VGA, True)
            self._displayed.append(block)
            self._bitmaps[DirtyClient.VGA].set_range(block.first_page, block.pages)

    def stop_display(self, block: RamBlock) -> None:
        """VGA logs ``block`` no more. May be called twice."""
        with self._lock:
            if block not in self._displayed:
                return
            self.sync(block)
            self._displayed.remove(block)
            if block.name in self._regions:
                self._regions[block.name].set_log(DirtyClient.VGA, False)
            self._bitmaps[DirtyClient.VGA].clear_range(block.first_page, block.pages)

    # Bits in.

    def sync(self, block: RamBlock | None = None) -> None:
        """Harvests every log, for all clients (log_sync); of ``block`` only, where one is given."""
        with self._lock:
            self._stray = True
            displayed = [display for display in self._displayed if block in (None, display)]
            if not displayed and self._migrating:
                self._harvest(self._bitmaps[DirtyClient.MIGRATION], block)
                return
            if self._scratch is None:
                self._scratch = Bitmap(self.layout.end_page)
            try:
                self._harvest(self._scratch, block)
            finally:  # also what the logs before one that failed have given away
                self._distribute(self._scratch, displayed, block)

    def sync_and_merge(self, merge: Merge) -> Merged | None:
        """As `sync` and `exchange` for MIGRATION, and merges what was found, in one step; None where that cannot be
        done, because others log as well, or the log knows no such step."""
        with self._lock:
            if self._merging is None or self._displayed or not self._migrating:
                return None
            found = self._bitmaps[DirtyClient.MIGRATION]
            empty, self._stray = not self._stray and len(self.logs) == 1, True
            for log in self.logs[:-1]:
                log.harvest(found)
            merged = self._merging.harvest_into(found, merge, empty=empty)
            self._bitmaps[DirtyClient.MIGRATION] = merge.replace(found)
            self._stray = False
            return merged

    def _harvest(self, dirty: Bitmap, block: RamBlock | None) -> None:
        for log in self.logs:
            log.harvest(dirty, block)

    def _distribute(self, found: Bitmap, displayed: list[RamBlock], block: RamBlock | None) -> None:
        """Gives what was found to each client that logs it, and empties ``found``."""
        vga, migration = self._bitmaps[DirtyClient.VGA], self._bitmaps[DirtyClient.MIGRATION]
        for display in displayed:
            vga.view(display.first_page, display.pages).add(found.view(display.first_page, display.pages))
        if block is not None:
            part = found.view(block.first_page, block.pages)
            if self._migrating:
                migration.view(block.first_page, block.pages).add(part)
            part.clear_all()
            return
        if self._migrating:
            migration.add(found)
        found.clear_all()

    def set_from(self, found: Bitmap, clients: DirtyClient = ALL_CLIENTS, at: int = 0) -> None:
        """Sets the bits of a listener's bitmap, whose bit 0 is ram_addr page ``at``, for each of ``clients`` (QEMU:
        ``physical_memory_set_dirty_lebitmap``). Raises `BitmapRangeError`."""
        with self._lock:
            self._stray = True
            for client in clients & ~DirtyClient.CODE:
                self._bitmaps[client].add(found, at)
        if DirtyClient.CODE in clients:
            self._code.set_from(found, at)

    def set_range(self, start: int, count: int, clients: DirtyClient = ALL_CLIENTS) -> None:
        """Sets ``count`` pages from ram_addr page ``start`` for each of ``clients``: what a device or the VMM itself
        wrote, once it has written it. With CODE, it returns when no code that was translated from what was there before
        can run any more. Raises `BitmapRangeError`, `GuestError`."""
        with self._lock:
            self._stray = True
            for client in clients & ~DirtyClient.CODE:
                self._bitmaps[client].set_range(start, count)
        if DirtyClient.CODE in clients:  # without the lock, which the thread holds that stops the CPU to clear a log
            self._code.set_range(start, count)

    # Bits out.

    def test_and_clear(self, client: DirtyClient, start: int, count: int, dest: Bitmap | None = None) -> int:
        """Takes the client's bits of a range and re-arms it. Returns the number of dirty pages: all of them, or with
        ``dest`` (over the ram_addr space) those that were not yet set there, and sets them.

        What has not been harvested is not taken: `sync` first. As in the patch series' last version, but the range is
        re-armed only where anything was found, also where all of it was pending in ``dest``. CODE protects the range
        whether or not anything was found, waits for no other client, and re-arms no log: none feeds it.
        """
        if client is DirtyClient.CODE:
            return self._code.test_and_clear(start, count, dest)
        with self._lock:
            bitmap = self._bitmaps[client]
            found = bitmap.count(start, count)
            new = bitmap.move_into(dest, start, count) if dest is not None else found
            if found:
                bitmap.clear_range(start, count)
                self.clear(start, count)
            return new

    def snapshot_and_clear(self, client: DirtyClient, block: RamBlock) -> DirtySnapshot:
        """Harvests ``block``, takes the client's bits of it and re-arms it: draw what the snapshot names afterwards
        (QEMU: ``memory_region_snapshot_and_clear_dirty``)."""
        with self._lock:
            self.sync(block)
            taken = self._bitmaps[client].view(block.first_page, block.pages).copy()
            self.test_and_clear(client, block.first_page, block.pages)
            return DirtySnapshot(block, taken, self.layout.page_size)

    def reset(self, client: DirtyClient, block: RamBlock, start: int = 0, count: int | None = None) -> None:
        """The client has no more use for what it was told of ``count`` pages of ``block`` from its page ``start``
        (QEMU: ``memory_region_reset_dirty``). Raises `BitmapRangeError`."""
        count = block.pages - start if count is None else count
        if not 0 <= start <= start + count <= block.pages:
            raise UsageError(f"pages {start} to {start + count} do not lie in {block.name!r}, which has {block.pages}")
        self.test_and_clear(client, block.first_page + start, count)

    def exchange(self, client: DirtyClient, empty: Bitmap) -> Bitmap:
        """Takes all bits of a client at once: hands out its bitmap, and gives it ``empty`` instead, all clear and of
        the same size. Nothing is re-armed: that is the clear policy's business. Raises `ValueError` for CODE, whose
        bits say which pages are protected."""
        if client is DirtyClient.CODE:
            raise ValueError("the CODE client's bits are taken with test_and_clear")
        with self._lock:
            taken = self._bitmaps[client]
            if empty.size != taken.size:
                raise ValueError(f"sizes differ: {empty.size} and {taken.size}")
            self._bitmaps[client] = empty
            if client is DirtyClient.MIGRATION:
                self._stray = False
            return taken

    def count(self, client: DirtyClient, start: int = 0, count: int | None = None) -> int:
        """Dirty pages of a range (default: all) that the client has not yet taken; what is not harvested is not
        counted. Raises `BitmapRangeError`."""
        with self._lock:
            return self._bitmaps[client].count(start, count)

    def clear(self, start: int, count: int) -> None:
        """Re-arms the harvested pages among ``count`` from ``start`` in every log: a block that several listeners see
        is cleared in each (QEMU: ``memory_region_clear_dirty_bitmap``)."""
        with self._lock:
            for log in self.logs:
                log.clear(start, count)

    def clear_always(self, start: int, count: int) -> None:
        """As `clear`, with calls in vain where nothing was harvested, as QEMU makes them."""
        with self._lock:
            for log in self.logs:
                (log.clear_always if isinstance(log, ClearsAlways) else log.clear)(start, count)
