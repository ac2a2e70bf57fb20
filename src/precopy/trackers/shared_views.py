"""The log of a shared file's pages: each process that writes them has page tables of its own, so each is looked at.

Law 1: a page that a process wrote is known to *its* page tables alone, and these go with its mapping. So whenever it is
not certain that a harvest saw everything that a process wrote, all pages count as written: where the process has ended
without handing over, where it executes another program, where it has unmapped the file or mapped it once more. What it
has mapped is looked at after its page tables were: what is still there then was there during the scan. What it maps and
unmaps in between it says itself, as far as it does that through Python (`precopy.abi.mapping_watch`).

No process is asked to do anything. A userfaultfd and an open page map refer to the process that opened them, even in
another process that holds the descriptor; so one process finds, and protects again, what others write (`PagemapLog`
says how).
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from precopy.abi.shared_maps import SharedFile, SharedMapping, read_maps, shared_mappings
from precopy.bitmap import NO_RUNS, Bitmap, Runs
from precopy.dirty.log import DirtyLog, LogCounters, Relaxable
from precopy.errors import KernelCallError, Unsupported
from precopy.memory.layout import RamBlock
from precopy.trackers.write_protection import Mapping, WriteProtection
from precopy.units import PAGE_SIZE, RamPage

_MAPPING_S = 0.2
"""Seconds between a process's saying that it is about to map the file, and its having done so, at most: that is two
system calls later, on a machine that may be busy."""
_LOOKS = 16
"""Looks at a process's mappings until what they show can be tracked: it may unmap one while it is looked at."""
_SHARED_MEMORY = "shared memory"


@dataclass(frozen=True)
class SharedPages:
    """``pages`` pages of ``file``, from its byte ``offset`` on; ``anonymous`` as in `SharedMapping`."""

    file: SharedFile
    offset: int
    pages: int
    anonymous: bool = False

    def part(self, start: int, end: int, offset: int) -> Mapping | None:
        """What addresses ``[start, end)``, where the file is mapped from byte ``offset`` on, show of these pages."""
        first, last = max(offset, self.offset), min(offset + end - start, self.offset + self.pages * PAGE_SIZE)
        if first >= last:
            return None
        at = (first - self.offset) // PAGE_SIZE
        block = RamBlock(_SHARED_MEMORY, RamPage(at), (last - first) // PAGE_SIZE)
        return Mapping(block, start + first - offset)


class ProcessView:
    """What one process writes into ``pages``, through all mappings that it has of them (but those that ``skip`` names:
    addresses from and to). ``maps`` is its open list of mappings. Closing it closes ``protection`` and ``maps``.

    Making one begins to track, unless the process has begun that itself (``begun``). Raises `Unsupported`,
    `KernelCallError`.
    """

    def __init__(
        self,
        pages: SharedPages,
        protection: WriteProtection,
        maps: int,
        *,
        skip: tuple[int, int] = (0, 0),
        begun: bool = False,
    ) -> None:
        self._pages, self._protection, self._maps, self._skip = pages, protection, maps, skip
        self._tracked: list[Mapping] = []
        self.gone = False
        """Whether the process has no memory any more; it can write nothing then."""
        if begun:
            # Protecting it once more would hide what was written since. What is not tracked shows at the first harvest.
            self._tracked = self._mapped(shared_mappings(read_maps(maps), pages.file))
            for mapping in self._tracked:
                protection.adopt(mapping)
        else:
            self.refresh()
        self._begun = list(self._tracked)

    @property
    def ioctls(self) -> int:
        return self._protection.ioctls

    @property
    def as_begun(self) -> bool:
        """Whether the mappings are still those with which tracking began."""
        return self._tracked == self._begun

    def refresh(self) -> bool:
        """Tracks what is mapped now; returns whether that is what was tracked before. Raises `KernelCallError` where it
        cannot be tracked and stays mapped, `Unsupported`."""
        refused: list[Mapping] | None = None
        for _ in range(_LOOKS):
            maps = read_maps(self._maps)
            self.gone = not maps
            mapped = self._mapped(shared_mappings(maps, self._pages.file))
            if mapped == self._tracked:
                return refused is None and not self.gone
            try:
                self._track(mapped)
                return False
            except KernelCallError:  # a mapping may go, or the process, between the list and the call
                if mapped == refused:
                    raise
                refused = mapped
        raise Unsupported(
            f"a process maps and unmaps {_SHARED_MEMORY} all the time", "let it keep one mapping while it is tracked"
        )

    def _track(self, mapped: list[Mapping]) -> None:
        """Makes these the mappings that are tracked. What is new is tracked from now on, what it wrote is not known."""
        for mapping in self._tracked:
            if mapping not in mapped:
                self._protection.forget(mapping)
        known, self._tracked = self._tracked, []
        for mapping in mapped:
            if mapping not in known:
                self._protection.forget(mapping)  # an attempt that failed may have registered it
                self._protection.register(mapping)
                self._protection.protect(mapping, 0, mapping.block.pages)
            self._tracked.append(mapping)

    def _mapped(self, mappings: Iterable[SharedMapping]) -> list[Mapping]:
        """What of them can be written, joined where the kernel has split it."""
        joined: list[tuple[int, int, int]] = []
        for mapping in mappings:
            if not mapping.writable:
                continue
            if (
                joined
                and joined[-1][1] == mapping.start
                and joined[-1][2] + joined[-1][1] - joined[-1][0] == mapping.offset
            ):
                joined[-1] = (joined[-1][0], mapping.end, joined[-1][2])
            else:
                joined.append((mapping.start, mapping.end, mapping.offset))
        parts = [part for piece in joined if (part := self._pages.part(*piece)) is not None]
        return [part for part in parts if not self._skip[0] <= part.address < part.end_address <= self._skip[1]]

    def touched(self, into: Bitmap) -> None:
        """Sets what the process has touched so far, written or not; nothing where it is `gone`."""
        with contextlib.suppress(KernelCallError):
            for mapping in self._tracked:
                for runs in self._protection.present(mapping):
                    into.set_runs(runs.shifted(mapping.block.first_page))

    def harvest(self, into: Bitmap) -> bool:
        """Sets what the process wrote since the last harvest, and protects it again; False where that is not certain,
        because its mappings changed or it is `gone`. Raises `Unsupported` where they cannot be tracked any more."""
        try:
            for mapping in self._tracked:
                for runs in self._protection.written(mapping, 0, mapping.block.pages, protect=True):
                    into.set_runs(runs.shifted(mapping.block.first_page))
        except KernelCallError:  # gone, or mapped anew: what is there now is tracked from the start
            for mapping in self._tracked:
                self._protection.forget(mapping)
            self._tracked = []
        return self.refresh()

    def written(self) -> Runs:
        """What the process wrote since the last harvest, through one mapping after the other; protects nothing. Raises
        as `harvest` does."""
        found = [NO_RUNS]
        for mapping in self._tracked:
            written = self._protection.written(mapping, 0, mapping.block.pages, protect=False)
            found += [runs.shifted(mapping.block.first_page) for runs in written]
        return Runs.concatenate(found) if self.refresh() else Runs.of((0, self._pages.pages))

    def close(self) -> None:
        """Tracks no more. May be called twice."""
        if self._maps >= 0:
            self._protection.close()
            os.close(self._maps)
            self._maps = -1


class Writer:
    """A process that writes the pages. ``last_words`` returns what it says that it wrote when it goes, or None where it
    has said nothing (yet); ``mapped`` something that is empty at first, and another whenever it maps the file once
    more."""

    def __init__(
        self,
        view: ProcessView,
        mapped: Callable[[], bytes],
        last_words: Callable[[], Runs | None],
        close: Callable[[], object],
    ) -> None:
        self.view, self._last_words, self._close = view, last_words, close
        self._mapped, self._seen, self._maps_until = mapped, b"", -math.inf
        self.new = True

    def harvest(self, into: Bitmap) -> bool:
        """Returns whether it may still write. Where what it wrote is not known, all pages count as written."""
        if self.new:
            self.new = False
            self.view.touched(into)  # it may have written before it was tracked
        certain = not self._may_map()
        as_begun = self.view.as_begun  # what it says when it goes is of these mappings
        certain &= self.view.harvest(into)
        last = self._last_words()
        if last is not None:
            into.set_runs(last)
            # Also what it wrote after its last words, if the process still runs.
            certain = (self.view.gone or self.view.harvest(into) or self.view.gone) and as_begun
        if not certain:
            into.set_all()
        return last is None and not self.view.gone

    def _may_map(self) -> bool:
        """Whether it may have mapped the file, and unmapped it again, since the harvest before."""
        seen, now = self._mapped(), time.monotonic()
        if seen != self._seen:
            self._seen, self._maps_until = seen, now + _MAPPING_S
            return True
        may, self._maps_until = self._maps_until > -math.inf, self._maps_until if now <= self._maps_until else -math.inf
        return may  # in all that time, and once more after it

    def close(self) -> None:
        self.view.close()
        self._close()


class SharedMemoryLog:
    """Implements `precopy.ports.DirtyLog` for ``pages`` of a shared file, in one block: ``own`` is the log of this
    process's mapping of them, ``others`` begins to track all its other mappings of them, and ``new_writers`` gives the
    other processes that have come since it was called last."""

    def __init__(
        self,
        pages: SharedPages,
        own: DirtyLog,
        others: Callable[[], Writer],
        new_writers: Callable[[], Iterable[Writer]] = tuple,
    ) -> None:
        self.name = own.name
        self._own, self._others, self._new_writers = own, others, new_writers
        self._mine: Writer | None = None
        self._writers: list[Writer] = []
        self._held = Bitmap(pages.pages)  # found with others, and protected again; not cleared
        self._running = False
        self._gets = 0
        self._get_s = 0.0

    @property
    def counters(self) -> LogCounters:
        return self._own.counters + LogCounters(self._gets, self._get_s, 0, 0.0)

    @property
    def exact(self) -> bool:
        return not isinstance(self._own, Relaxable) or self._own.exact

    @exact.setter
    def exact(self, exact: bool) -> None:
        if isinstance(self._own, Relaxable):
            self._own.exact = exact

    @property
    def unarmed(self) -> Runs:
        """Of this process's own mapping; what others write is found exactly."""
        return self._own.unarmed if isinstance(self._own, Relaxable) else NO_RUNS

    def start(self) -> None:
        """Nothing is dirty at first, but what others find out to have written before they were tracked."""
        self._own.start()
        self._running = True
        try:
            if self._mine is None:
                self._mine = self._others()
            self._find(Bitmap(self._held.size))
        except BaseException:
            self.stop()
            raise
        self._held.clear_all()

    def stop(self) -> None:
        """Other processes stay ready to be tracked; a page that is written then costs them one fault, once."""
        self._running = False
        self._own.stop()
        if self._mine is not None:
            self._mine.close()
            self._mine = None
        self._held = Bitmap(self._held.size)

    def close(self) -> None:
        """Is done with all writers. May be called twice."""
        self.stop()
        while self._writers:
            self._writers.pop().close()

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        if not self._running:
            return
        self._own.harvest(dirty, block)
        began = time.perf_counter()
        try:
            self._find(self._held)
        except BaseException:
            self._held.set_all()
            raise
        finally:
            dirty.add(self._held)
            self._get_s += time.perf_counter() - began

    def clear(self, start: int, count: int) -> None:
        self._own.clear(start, count)
        start, end = min(start, self._held.size), min(start + count, self._held.size)
        self._held.take_count(start, end - start)

    def _find(self, into: Bitmap) -> None:
        for new in self._new_writers():  # one by one: those before one that fails stay known
            self._writers.append(new)
        mine = [] if self._mine is None else [self._mine]
        for writer in (*mine, *self._writers):
            before = writer.view.ioctls
            alive = writer.harvest(into)
            self._gets += writer.view.ioctls - before
            if not alive and writer is not self._mine:
                self._writers.remove(writer)
                writer.close()
