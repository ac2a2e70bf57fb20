"""A guest that is nothing but memory of this process and a thread that writes it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable

import numpy as np

from precopy.bitmap import Bitmap
from precopy.dirty import DirtyMemory
from precopy.memory import Backing, GuestMemory, RamLayout
from precopy.trackers.fanout import FanOut
from precopy.trackers.pagemap import PagemapLog
from precopy.units import PAGE_SIZE


class PagemapHarness:
    """A `PagemapLog` and the memory that it tracks. Implements `support.dirty_logs.Harness`."""

    def __init__(self, layout: RamLayout, *, one_step: bool = True, backing: Backing = Backing.ANONYMOUS) -> None:
        self.layout, self.memory = layout, GuestMemory(layout, backing)
        self.log = PagemapLog(layout, [host.address for host in self.memory.hosts], one_step=one_step)
        self.stamp = 0

    def write(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.stamp += 1
            store(self.memory, page, self.stamp)

    def close(self) -> None:
        self.log.stop()
        self.memory.close()


class TwoStepPagemapHarness(PagemapHarness):
    """The same in two steps, over memfds."""

    def __init__(self, layout: RamLayout) -> None:
        super().__init__(layout, one_step=False, backing=Backing.MEMFD)


SMALL_CHUNK = 64
"""Pages of a chunk that is small enough for most blocks of a test to have one."""


class RelaxedPagemapHarness(PagemapHarness):
    """A log that need not be exact, of which nothing is hot until the test makes it so. Implements
    `support.dirty_logs.Counting`."""

    def __init__(self, layout: RamLayout) -> None:
        super().__init__(layout)
        self.log = PagemapLog(layout, [host.address for host in self.memory.hosts], exact=False, chunk=SMALL_CHUNK)
        self.counted: set[int] = set()

    def rearmed(self) -> None:
        self.counted = set()

    def note(self) -> None:
        self.counted |= set(self.log.unarmed.indexes().tolist())


class HotPagemapHarness(RelaxedPagemapHarness):
    """The same where all chunks are unarmed when a test begins."""

    def rearmed(self) -> None:
        super().rearmed()
        for _ in range(2):
            for host in self.memory.hosts:
                host.words[:: PAGE_SIZE // 8] += np.uint64(1)
            self.log.harvest(Bitmap(self.layout.end_page))
            self.log.clear(0, self.layout.end_page)
        assert all(finder.chunks.unarmed.all() for finder in self.log._relaxed.values())


class SharedPagemapHarness:
    """One of two consumers of a `PagemapLog`; the other harvests now and then, and so takes pages from the log first.
    Implements `support.dirty_logs.Harness`."""

    def __init__(self, layout: RamLayout) -> None:
        self._inner = PagemapHarness(layout)
        self.layout, self.memory = layout, self._inner.memory
        fan_out = FanOut(self._inner.log, layout.end_page)
        self._other, self.log = fan_out.consumer("other"), fan_out.consumer("this")
        self._other.start()
        self._writes = 0

    def write(self, pages: Iterable[int]) -> None:
        self._inner.write(pages)
        self._writes += 1
        if self._writes % 2:
            self._other.harvest(Bitmap(self.layout.end_page))

    def close(self) -> None:
        self.log.stop()
        self._other.stop()
        self._inner.close()


class RelaxedConsumerHarness:
    """A consumer that need not be exact of a `FanOut` whose log is so, too, with all chunks unarmed when a test begins.
    Implements `support.dirty_logs.Counting`."""

    def __init__(self, layout: RamLayout) -> None:
        self._inner = HotPagemapHarness(layout)
        self.layout, self.memory = layout, self._inner.memory
        self.fan_out = FanOut(self._inner.log, layout.end_page)
        self.log = self.fan_out.consumer("this", exact=False)
        self.counted: set[int] = set()

    def write(self, pages: Iterable[int]) -> None:
        self._inner.write(pages)

    def rearmed(self) -> None:
        self._inner.rearmed()
        self.counted = set()

    def note(self) -> None:
        self.counted |= set(self.log.unarmed.indexes().tolist())

    def close(self) -> None:
        self.log.stop()
        self._inner.close()


class RunningPagemapGuest:
    """A thread that stores into random pages as fast as it can while the guest runs."""

    def __init__(
        self,
        layout: RamLayout,
        *,
        one_step: bool = True,
        backing: Backing = Backing.ANONYMOUS,
        exact: bool = True,
    ) -> None:
        self.layout, self.memory = layout, GuestMemory(layout, backing)
        self._log = PagemapLog(
            layout, [host.address for host in self.memory.hosts], one_step=one_step, exact=exact, chunk=SMALL_CHUNK
        )
        self.dirty = DirtyMemory(layout, self._log)
        self.written = 0
        self._order = random.Random(1)
        self._pages = [page for start, count in layout.runs for page in range(start, start + count)]
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def dirty_log(self) -> PagemapLog:
        return self._log

    def resume(self) -> None:
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        self.pause()
        self._log.stop()
        self.memory.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.written += 1
            store(self.memory, self._order.choice(self._pages), self.written)
            if self.written % 16 == 0:
                time.sleep(0.0005)  # slowly enough for a lost page to stay lost


class StreamingPagemapGuest(RunningPagemapGuest):
    """The same with a log that need not be exact, where the guest also writes whole chunks, some of them again and
    again, and then others."""

    def __init__(self, layout: RamLayout) -> None:
        super().__init__(layout, exact=False)
        self.counted = 0
        """Pages that were counted as written, over all syncs that `looked` was told of."""

    def looked(self) -> None:
        self.counted += self._log.unarmed.pages

    def _run(self) -> None:
        (host,) = self.memory.hosts
        chunks = host.words.size * 8 // PAGE_SIZE // SMALL_CHUNK
        while not self._stop.is_set():
            self.written += 1
            first = self.written // 400 % (chunks - 3)
            part = slice(first * SMALL_CHUNK * PAGE_SIZE // 8, (first + 3) * SMALL_CHUNK * PAGE_SIZE // 8)
            if self.written % 400 < 390:  # the last write to a chunk that cools is the single one below
                host.words[part][:: PAGE_SIZE // 8] += np.uint64(1)
            store(self.memory, self._order.choice(self._pages), self.written)
            time.sleep(0.0005)


def two_step_guest(layout: RamLayout) -> RunningPagemapGuest:
    """The same in two steps, over memfds."""
    return RunningPagemapGuest(layout, one_step=False, backing=Backing.MEMFD)


def store(memory: GuestMemory, page: int, value: int) -> None:
    """Stores a word at the beginning of a ram_addr page."""
    for block, host in zip(memory.layout.blocks, memory.hosts, strict=True):
        if block.first_page <= page < block.end_page:
            host.words[(page - block.first_page) * PAGE_SIZE // 8] = value
            return
    raise AssertionError(f"page {page} lies in no block")
