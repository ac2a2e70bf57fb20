"""The primary's side of a replication, step by step: hello, rounds, points, commit. One thread at a time calls it.

Law 4: **At most one side has the memory.** It is given away by `Handover`, of whose answer `OutcomeUnknown` says that
there was none.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from precopy.bitmap import Bitmap
from precopy.dirty import DirtyLog, DirtyMemory, LogCounters, MigrationBitmap, clear_policy
from precopy.errors import (
    KernelCallError,
    UsageError,
)
from precopy.memory import GuestMemory, RamBlock, RamLayout
from precopy.migration.channel import Channel
from precopy.migration.page_source import PageSource
from precopy.migration.rate_limit import RateLimiter
from precopy.migration.rounds import Rounds
from precopy.migration.session import Handover, new_session, open_session
from precopy.planning.model.round import Round
from precopy.ports import ByteStream, Clock
from precopy.replication.checkpoints import Points
from precopy.replication.hello import hello_of
from precopy.wire.events import Alive, Commit, Role, RoundEnd
from precopy.wire.format import OpenFormat

FEW_PAGES = 2048
"""Convergence: rounds stop below this many pages (8 MiB, some milliseconds of sending)."""
_SHRINKS = 0.75
"""Convergence: rounds also stop when one shrinks the rest by less than 25 %, which means that they have settled."""
_ENOUGH_ROUNDS = 10
"""Convergence: rounds that are made at most."""
_STAGE_AT_MOST = 16384
"""Pages (64 MiB) that a cutover copies before it sends them; more than these go in a round of their own first."""
_LAST_POINTS = 6
"""Points that a cutover sends at most until one finds that nothing was written meanwhile."""
_SETTLE_S = 0.1
"""Seconds before each further last point, after two that found pages: pages that the log of shared memory reports as
perhaps written settle in this time, while a program that still writes does not."""
_FIND_OUT = (
    "the standby has the exact memory and may use it as its own already: find out there before this program writes on"
)


class TrackedLog(DirtyLog, Protocol):
    """A dirty log that also says what was written perhaps, and can be exact for a while."""

    @property
    def perhaps(self) -> Bitmap:
        """Those pages of the last harvest that were written perhaps (see trackers/unseen.py)."""

    @property
    def unarmed(self) -> Bitmap:
        """Those that count as written because they were not armed (see trackers/hot_chunks.py)."""

    def exactly(self) -> AbstractContextManager[None]:
        """Around a moment of which it has to be known exactly what was written before and after it."""


class TrackedMemory(Protocol):
    """What a primary needs of the memory that it replicates, which has one block."""

    @property
    def layout(self) -> RamLayout: ...

    def contents(self) -> GuestMemory:
        """The memory itself. Raises `UsageError` where the program has closed it."""

    def consumer(self, name: str) -> TrackedLog:
        """A dirty log of it for one user. Raises `UsageError`."""


class Primary:
    """Replicates ``memory`` over ``stream``, in the format that ``open_format`` opens; ``tick`` is called
    between batches and may raise to stop."""

    def __init__(
        self,
        memory: TrackedMemory,
        stream: ByteStream,
        *,
        open_format: OpenFormat,
        max_bandwidth: int | None,
        clock: Clock,
        tick: Callable[[], None],
    ) -> None:
        contents = memory.contents()
        self.session = new_session()
        self.channel = Channel(stream, open_format(Role.SOURCE), clock)
        self._handover = Handover(self.channel, self.session, _FIND_OUT)
        self._memory = memory  # lives as long as this
        self._page_size = contents.layout.page_size
        self._clock = clock
        self._log = log = _OpenLog(memory)
        self._dirty = DirtyMemory(memory.layout, log)
        self._bitmap = MigrationBitmap(self._dirty, clear_policy("merged", memory.layout), clock.now)
        page_source = PageSource(
            contents, self.channel, rate_limiter=RateLimiter(max_bandwidth, clock), clock=clock, tick=tick
        )
        self._rounds = Rounds(self._bitmap, page_source)
        self.points = Points(self._rounds, contents, perhaps=log.perhaps)
        self._last: Round | None = None
        self._left_before = math.inf
        self.converged = False
        """Whether another round would hardly leave less to send than the last did."""

    def greet(self) -> None:
        """Agrees with the standby on the memory, and begins to track it. Raises `PeerError`, `Unsupported`."""
        open_session(self.channel, hello_of(self.session, self._memory.layout), "standby")
        self._dirty.start()
        self._bitmap.mark_all()

    @property
    def in_rounds(self) -> bool:
        """Whether no point was sent yet."""
        return self.channel.may_send(RoundEnd)

    @property
    def rounds(self) -> int:
        return self._rounds.number

    @property
    def remaining_bytes(self) -> int:
        """Known to be written, and neither sent nor staged."""
        return self._bitmap.pending.count() * self._page_size

    @property
    def staged_bytes(self) -> int:
        return self.points.staging.pages * self._page_size

    @property
    def dirty_rate(self) -> float:
        """Bytes a second."""
        return self.points.dirty_rate or self._rounds.dirty_rate

    @property
    def unarmed_bytes(self) -> int:
        """What the last sync has counted as written because it was not armed; part of the dirty rate."""
        return self._log.unarmed_pages * self._page_size

    def exactly(self) -> AbstractContextManager[None]:
        """Around a moment of which it has to be known what was written since: see `TrackedLog.exactly`."""
        return self._log.exactly()

    @property
    def bandwidth(self) -> float:
        """Bytes a second, of the last round or point that sent any pages."""
        return self.points.bandwidth or (self._last.bandwidth_bytes_per_s if self._last is not None else 0.0)

    def round(self) -> Round:
        """Sends what is pending, straight from memory, and looks what was written meanwhile. Raises `PeerError`."""
        done = self._rounds.send(self._rounds.sync())
        if done.sent_pages or self._last is None:
            self._last = done
        self._rounds.sync()
        left = self._bitmap.pending.count()
        if left <= FEW_PAGES or left > _SHRINKS * self._left_before or self.rounds >= _ENOUGH_ROUNDS:
            self.converged = True
        self._left_before = left
        return done

    def last_point(self) -> None:
        """Sends all that the standby does not have yet, as a point. The program may not write the memory meanwhile.

        Raises `PeerError`, and `UsageError` where it goes on writing; then nothing is given away.
        """
        with self.exactly():
            self._last_point()

    def _last_point(self) -> None:
        if self.points.due():
            self.points.send()
        if self.in_rounds and self._bitmap.pending.count() > _STAGE_AT_MOST:
            self.round()
        for before in range(_LAST_POINTS):
            if before >= 2:
                self._clock.sleep(_SETTLE_S)
            self.points.copy()
            if self.channel.may_send(Commit) and not self.points.staging.pages:
                return  # nothing was written since the last point was taken
            self.points.seal()
            self.points.send()
        raise UsageError("the memory is written while it is cut over; no thread may write it from cutover() on")

    def written(self) -> int:
        """How many pages were written since the last sync, which has to be `last_point`'s; for after the commit, when
        nothing may be sent."""
        with self.exactly():
            return self.points.written()

    def sums(self) -> tuple[int, int, int]:
        """Rounds, points and bytes so far."""
        return self.rounds, self.points.number, self.channel.sent_bytes

    def commit(self) -> None:
        """Gives the memory away. Raises `PeerRefused` where the standby does not take it, otherwise
        `OutcomeUnknown`."""
        try:
            self._handover.commit()
        except BaseException as error:
            failure = self._handover.outcome(error)
            if failure is error:
                raise
            raise failure from error

    def alive(self) -> None:
        """Shows the standby that this side is alive, where that is allowed now. Raises `PeerError`."""
        if self.channel.may_send(Alive):
            self.channel.send(Alive())

    def stop(self, reason: str) -> None:
        """Tracks no more, tells the standby why (unless the memory was given away), and closes the stream."""
        self.channel.give_up(reason)  # which sends nothing after `Commit`
        with contextlib.suppress(KernelCallError):
            self._dirty.stop()
        self.channel.stream.close()


class _OpenLog:
    """The memory's dirty log, which does not find nothing where the program has closed the memory, but raises.

    Looking after the harvest is enough: what was closed later was still tracked during it.
    """

    def __init__(self, memory: TrackedMemory) -> None:
        self._memory = memory
        self._log = memory.consumer("replicate")
        self.name = self._log.name
        self.start, self.clear, self.stop = self._log.start, self._log.clear, self._log.stop
        self.exactly = self._log.exactly
        self.unarmed_pages = 0
        """Of the last harvest, those that count as written because they were not armed."""

    @property
    def counters(self) -> LogCounters:
        return self._log.counters

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        self._log.harvest(dirty, block)
        self.unarmed_pages = self._log.unarmed.count()
        self._memory.contents()

    def perhaps(self) -> Bitmap:
        """Those pages of the last harvest that were written perhaps."""
        return self._log.perhaps
