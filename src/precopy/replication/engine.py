"""One replication at the primary as several threads use it: its state, which thread may use its engine, and how it
ends.

Order of locks: the program's, then the engine's, never the other way round. A program may hold its own lock when it
calls in here; a thread of ours that waits for the program's lock holds nothing, and one that has it waits for nothing.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator

from precopy.errors import Cancelled, UsageError
from precopy.migration.session import reason_of
from precopy.ports import SystemClock
from precopy.replication.options import ReplicationOptions
from precopy.replication.primary import Primary, TrackedMemory
from precopy.replication.progress import Phase, ReplicationProgress
from precopy.transport import SocketStream
from precopy.wire.format import OpenFormat

_OVER = (Phase.CUT_OVER, Phase.CLOSED, Phase.FAILED)


class Engine:
    """Replicates ``memory`` over ``stream``. Making one agrees with the standby and begins to track. Raises
    `PeerError`, `Unsupported`."""

    def __init__(
        self, memory: TrackedMemory, stream: SocketStream, options: ReplicationOptions, open_format: OpenFormat
    ) -> None:
        self.clock = SystemClock()
        self.phase = Phase.ROUNDS
        self.error: BaseException | None = None
        self.ready = False
        """The standby has a point; where none are made by themselves, another round would not leave less to send."""
        self.changed = threading.Condition()
        self._stream, self._options = stream, options
        self._started = self.clock.now()
        self._engine = threading.Lock()
        self._callers = self._misses = 0
        self._stopped = False
        self._lock_held: float | None = None
        # Without a cycle, so that the memory goes with the last reference: SharedMemory cannot be closed before.
        tick = weakref.WeakMethod(self._tick)
        self.primary = Primary(
            memory,
            stream,
            open_format=open_format,
            max_bandwidth=options.max_bandwidth,
            clock=self.clock,
            tick=lambda: _call(tick),
        )
        try:
            self.primary.greet()
        except BaseException as error:
            self.primary.stop(reason_of(error, "primary"))
            raise

    @property
    def peer(self) -> str:
        """The standby's name, for messages."""
        return self._stream.peer

    @property
    def over(self) -> bool:
        """Whether it is cut over, closed, or failed."""
        return self.phase in _OVER

    @property
    def progress(self) -> ReplicationProgress:
        """Where it stands now."""
        primary, now = self.primary, self.clock.now()
        moment, staged = primary.points.moment, primary.staged_bytes
        return ReplicationProgress(
            phase=self.phase,
            rounds=primary.rounds,
            points=primary.points.number,
            quiet_misses=self._misses,
            sent_bytes=primary.channel.sent_bytes,
            remaining_bytes=primary.remaining_bytes + staged,
            staged_bytes=staged,
            dirty_rate_bytes_per_s=primary.dirty_rate,
            unarmed_bytes=primary.unarmed_bytes,
            bandwidth_bytes_per_s=primary.bandwidth,
            last_point_age_s=None if moment is None else now - moment,
            lock_held_s=self._lock_held,
            elapsed_s=now - self._started,
        )

    @contextlib.contextmanager
    def called(self) -> Iterator[Primary]:
        """The engine for a thread of the program, which has priority over ours. Raises the error that ended the
        replication, `UsageError` where it is over otherwise. What the caller raises ends it, but for `UsageError`."""
        with self.waiting(), self._engine:
            self.raise_if_over()
            try:
                yield self.primary
            except UsageError:
                raise
            except BaseException as error:
                self.fail(error)
                raise

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Keeps our own thread from the engine, which is free for the program's, and for signs of life."""
        with self.changed:
            self._callers += 1
        try:
            yield
        finally:
            with self.changed:
                self._callers -= 1
                self.changed.notify_all()

    @contextlib.contextmanager
    def ours(self) -> Iterator[None]:
        """The engine for our own thread."""
        with self.changed:
            self.changed.wait_for(lambda: self.over or not self._callers)
        with self._engine:
            self._tick()
            yield

    def raise_if_over(self) -> None:
        """Raises the error that ended the replication, `UsageError` where it is over otherwise."""
        if self.error is not None:
            raise self.error
        if self.over:
            state = "closed" if self.phase is Phase.CLOSED else "over, because the memory was given to the standby"
            raise UsageError(f"the replication is {state}; begin another one (precopy.replicate)")

    def cut_over(self) -> None:
        """The standby has the memory."""
        with self.changed:
            self.phase = Phase.CUT_OVER
            self.changed.notify_all()

    def send_point(self) -> None:
        """Sends the point that is sealed, if there is one. The caller holds the engine."""
        if self.primary.points.due():
            self.primary.points.send()
            self._has_point()

    def last_point(self) -> None:
        """Sends all that the standby does not have yet. The caller holds the engine. Raises as `Primary.last_point`."""
        try:
            self.primary.last_point()
        finally:
            if self.primary.points.number:
                self._has_point()

    def _has_point(self) -> None:
        with self.changed:
            if not self.over:
                self.phase = Phase.POINTS
        self.now_ready()

    def now_ready(self) -> None:
        with self.changed:
            self.ready = True
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            if not self.over:
                self.phase, self.error = Phase.FAILED, error
            self.changed.notify_all()

    def end(self) -> None:
        """Once it is over: stops tracking and closes the stream. Any thread may call it; the first call counts."""
        with self._engine:
            if not self._stopped:
                self._stopped = True
                self.primary.stop(
                    "the primary stopped replicating" if self.error is None else reason_of(self.error, "primary")
                )

    def _tick(self) -> None:
        """Between batches: stops where the program asked to."""
        if self.over:
            raise Cancelled("the replication was closed")


def _call(tick: weakref.WeakMethod[Callable[[], None]]) -> None:
    method = tick()
    if method is not None:
        method()
