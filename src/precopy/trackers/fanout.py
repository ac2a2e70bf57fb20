"""One dirty log for several consumers: those that would otherwise take each other's pages away, because a harvest (or
a clear) of one arms pages that the other has not been told of yet.

A harvest of any consumer harvests the shared log, gives each found page to every consumer, and then clears the log:
pages are armed again before any consumer can read them (law 1). From there on each consumer has bitmaps of its own, and
a clear of one does not affect the others. A clear drops only what that consumer was told (law 2): a page that a
neighbour's harvest found meanwhile stays new to it.

Writes that the log cannot see reach every consumer in the same way: see unseen.py.

A log that need not be exact (`Relaxable`) is exact while any consumer wants it so: everything is armed by the harvest
with which an exact consumer joins, or with which one begins to be exact for a while (`Consumer.exactly`).

`DirtyMemory` does the same for the clients of one guest; this is for independent consumers, such as
a migration and checkpoints of the same memory.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from precopy.bitmap import BITS_PER_WORD, NO_RUNS, Bitmap, Runs
from precopy.dirty.log import DirtyLog, LogCounters, Relaxable
from precopy.errors import MappingChanged
from precopy.memory.layout import RamBlock
from precopy.trackers.doubtful import Doubtful
from precopy.trackers.unseen import UnseenWrites


def _impossible() -> bool:
    return False


class FanOut:
    """Shares ``log`` over a ram_addr space of ``pages`` pages. No other code may start, harvest, clear or stop it.

    The first consumer that starts starts the log, the last one that stops stops it. Any thread may call any method of
    any consumer. ``unseen`` says whether pages may be written now without the log hearing of it. ``exact``, which may
    be set at any time, is what consumers want that do not say it themselves.
    """

    def __init__(
        self,
        log: DirtyLog,
        pages: int,
        *,
        unseen: Callable[[], bool] = _impossible,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.log, self.pages, self.exact = log, pages, True
        self._unseen = UnseenWrites(pages, unseen, now)
        self._lock = threading.RLock()
        self._started: list[Consumer] = []
        self._found = Bitmap(pages)

    def consumer(self, name: str, *, exact: bool | None = None) -> Consumer:
        """A dirty log of its own over the shared one; it reports writes once it is started. Where ``exact`` is False
        it may be told of pages that were not written; None: as `exact` says."""
        return Consumer(self, name, exact)

    def touched(self, runs: Runs) -> None:
        """``runs`` were written, and the log may have missed it: the next harvest of every consumer has them."""
        with self._lock:
            for consumer in self._started:
                consumer._tell(Bitmap.from_indexes(self.pages, runs.indexes()))

    @contextlib.contextmanager
    def writing(self, runs: Runs) -> Iterator[None]:
        """``runs`` are written meanwhile in a way that the log may miss. Every harvest in between has them, and
        the next one of every consumer afterwards, also where this ends with an exception."""
        with self._lock:
            self._unseen.begin(runs)
        try:
            yield
        finally:
            with self._lock:
                self._unseen.end(runs)
                self.touched(runs)

    def buffer(self, runs: Runs) -> None:
        """``runs`` may be written at any time from now on in a way that the log does not see: every harvest has
        them, of every consumer, also of one that starts later."""
        with self._lock:
            self._unseen.buffer(runs)

    def close(self) -> None:
        """Stops all consumers, and so the log. May be called twice."""
        with self._lock:
            for consumer in tuple(self._started):
                self._stop(consumer)

    @property
    def buffers(self) -> int:
        """How many ranges may be written at any time."""
        with self._lock:
            return len(self._unseen.buffers)

    @property
    def consumers(self) -> tuple[str, ...]:
        """Names of those that are started, in that order."""
        with self._lock:
            return tuple(started.consumer for started in self._started)

    def _start(self, consumer: Consumer) -> None:
        with self._lock:
            self._relax((*self._started, consumer))
            if self._started:
                self._join()
            else:
                self._begin()
            if consumer not in self._started:
                self._started.append(consumer)
            consumer._forget()

    def _begin(self) -> None:
        self.log.start()
        self._unseen.started()

    def _relax(self, consumers: Sequence[Consumer]) -> None:
        """Has the log be as exact as they want it."""
        if isinstance(self.log, Relaxable):
            self.log.exact = any(consumer.wants_exact for consumer in consumers)

    def _join(self) -> None:
        """Distributes what was written before, so that the consumer that starts now is not told of it."""
        try:
            self._distribute(None)
        except MappingChanged:  # tracking starts again, and the present content is unknown
            self.log.stop()
            self._begin()
            everything = Bitmap(self.pages)
            everything.set_range(0, self.pages)
            for consumer in self._started:
                consumer._tell(everything)

    def _stop(self, consumer: Consumer) -> None:
        with self._lock:
            consumer._forget()
            if consumer in self._started:
                self._started.remove(consumer)
                if not self._started:
                    self.log.stop()

    def _distribute(self, block: RamBlock | None) -> LogCounters:
        """Gives every consumer what was written (to ``block`` only, where one is given) and arms it again; returns what
        the log did meanwhile."""
        before, found = self.log.counters, self._found
        try:
            self.log.harvest(found, block)
        finally:
            # Also where that failed half-way: what a log has reported, it may forget.
            perhaps, unarmed = self._unseen.harvested(found), self._unarmed()
            for consumer in self._started:
                consumer._tell(found, perhaps, unarmed)
            dirty = np.flatnonzero(found.words != 0)
            found.clear_all()
        if dirty.size:
            start = int(dirty[0]) * BITS_PER_WORD
            self.log.clear(start, min((int(dirty[-1]) + 1) * BITS_PER_WORD, self.pages) - start)
        return self.log.counters - before

    def _unarmed(self) -> Bitmap | None:
        """What the last harvest has counted because it was not armed; None: nothing."""
        runs = self.log.unarmed if isinstance(self.log, Relaxable) else NO_RUNS
        if not len(runs):
            return None
        unarmed = Bitmap(self.pages)
        unarmed.set_runs(runs)
        return unarmed


class Consumer:
    """Implements `precopy.ports.DirtyLog`: one of those that share a log. `FanOut.consumer` makes it.

    ``consumer`` is its own name. Its counters hold the shared log's calls that its harvests made, clears included; its
    own clears make no call. ``perhaps`` are those pages of its last harvest that the log has not reported and that
    were not announced: they were written perhaps (`precopy.trackers.unseen`). ``unarmed`` are those that count as
    written because the log had not armed them.
    """

    def __init__(self, fan_out: FanOut, name: str, exact: bool | None = None) -> None:
        self.consumer = name
        self._exact, self._exactly = exact, 0
        self.name = fan_out.log.name
        self._fan_out = fan_out
        self._new = Bitmap(fan_out.pages)  # found by any harvest, not told this consumer yet
        self._reported = Bitmap(fan_out.pages)  # told, not cleared
        self._perhaps, self._unarmed = Doubtful(fan_out.pages), Doubtful(fan_out.pages)  # of both
        self._gets = self._clears = 0
        self._get_s = self._clear_s = 0.0

    @property
    def counters(self) -> LogCounters:
        return LogCounters(self._gets, self._get_s, self._clears, self._clear_s)

    @property
    def perhaps(self) -> Bitmap:
        return self._perhaps.told

    @property
    def unarmed(self) -> Bitmap:
        return self._unarmed.told

    @property
    def wants_exact(self) -> bool:
        """Whether it is to be told of no page that was not written."""
        return self._exactly > 0 or (self._fan_out.exact if self._exact is None else self._exact)

    @contextlib.contextmanager
    def exactly(self) -> Iterator[None]:
        """Around a moment that has to be known exactly: the first harvest in here arms what was not armed, and those
        after it report what was written since. Any thread may; it may be nested."""
        with self._fan_out._lock:
            self._exactly += 1
        try:
            yield
        finally:
            with self._fan_out._lock:
                self._exactly -= 1
                if self in self._fan_out._started:
                    self._fan_out._relax(self._fan_out._started)

    def start(self) -> None:
        """What others had written before is not dirty for this consumer, unless starting the log makes all so."""
        self._fan_out._start(self)

    def stop(self) -> None:
        self._fan_out._stop(self)

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        began = time.perf_counter()
        with self._fan_out._lock:
            if self not in self._fan_out._started:
                return
            self._fan_out._relax(self._fan_out._started)
            did = self._fan_out._distribute(block)
            first, pages = (0, self._fan_out.pages) if block is None else (block.first_page, block.pages)
            new, reported = self._new.view(first, pages), self._reported.view(first, pages)
            reported.add(new)
            new.clear_all()
            for doubtful in (self._perhaps, self._unarmed):
                doubtful.tell(self._reported)
            dirty.view(first, pages).add(reported)
            self._gets += did.get_calls + did.clear_calls
            self._get_s += time.perf_counter() - began

    def clear(self, start: int, count: int) -> None:
        began = time.perf_counter()
        with self._fan_out._lock:
            start, end = min(start, self._reported.size), min(start + count, self._reported.size)
            if self._reported.take_count(start, end - start):
                for doubtful in (self._perhaps, self._unarmed):
                    doubtful.keep(self._new.words | self._reported.words)
                self._clears += 1
                self._clear_s += time.perf_counter() - began

    def _tell(self, found: Bitmap, perhaps: Bitmap | None = None, unarmed: Bitmap | None = None) -> None:
        """Has the next harvest report what was ``found``, of which some counts as it was ``unarmed``, and what was
        written ``perhaps``."""
        if perhaps is not None or unarmed is not None:
            known = self._new.words | self._reported.words
            if perhaps is not None:
                self._perhaps.add(perhaps, known)
                self._new.add(perhaps)
            if unarmed is not None:
                self._unarmed.add(unarmed, known)
        self._perhaps.settle(found.words)
        self._unarmed.settle(found.words if unarmed is None else found.words & ~unarmed.words)
        self._new.add(found)

    def _forget(self) -> None:
        self._new.clear_all()
        self._reported.clear_all()
        self._perhaps.forget()
        self._unarmed.forget()
