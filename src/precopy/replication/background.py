"""The threads of a replication at the primary: one sends rounds, then points when they are due; the other sends signs
of life to the standby and reports progress to the program."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

from precopy.errors import PrecopyError
from precopy.machines.process.locks import Held
from precopy.migration.session import ALIVE_S
from precopy.replication.engine import Engine
from precopy.replication.options import ReplicationOptions
from precopy.replication.primary import FEW_PAGES, TrackedMemory
from precopy.replication.progress import Phase
from precopy.transport import SocketStream
from precopy.wire.format import OpenFormat

LOG = logging.getLogger("precopy")
_PROGRESS_S = 0.1
"""Seconds between two progress reports."""
_ROUND_WAIT_S = 0.1
"""Seconds between rounds that find few pages; little is left to send in the meantime."""
_GRACE_S = 1.0
"""Seconds that `Background.close` waits for a batch that is being sent before it cuts the link."""
_MOST_GAP = 0.125
"""Longest time between two looks for a quiet moment, as a share of the interval."""
_LEAST_GAP_S = 1e-3
"""The shortest, in seconds."""


class Background(Engine):
    """Replicates from `start` on, until it is cut over, closed, or failed."""

    def __init__(
        self, memory: TrackedMemory, stream: SocketStream, options: ReplicationOptions, open_format: OpenFormat
    ) -> None:
        super().__init__(memory, stream, options, open_format)
        # Seconds between points that are made without being asked for, or None.
        self._interval = None if options.interval == math.inf else options.interval
        self._next_point = self.clock.now()
        self._awaits_lock = self._ended = False
        self._threads = [
            threading.Thread(target=self._run, name="replicate", daemon=True),
            threading.Thread(target=self._beat, name="replicate alive", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops replicating. May be called at any time, and twice."""
        with self.changed:
            if not self.over:
                self.phase = Phase.CLOSED
            self.changed.notify_all()
        if not self._engine.acquire(timeout=_GRACE_S):
            self._stream.abort()
            self._engine.acquire()
        self._engine.release()
        self.end()
        with self.changed:
            # A thread that waits for the program's lock, which the caller may hold, ends when it gets it.
            self.changed.wait_for(lambda: self._ended or self._awaits_lock)
            threads = self._threads if self._ended else self._threads[1:]
        for thread in threads:
            if thread is not threading.current_thread():  # which on_progress is called in
                thread.join()

    def _beat(self) -> None:
        try:
            said, over = self.clock.now(), False
            while not over:
                with self.changed:
                    over = self.changed.wait_for(lambda: self.over, _PROGRESS_S)
                if self.clock.now() - said >= ALIVE_S:
                    self._say_alive()
                    said = self.clock.now()
                self._tell()
        except BaseException as error:
            self.fail(error)
        self._report()
        self.end()  # the other thread may be waiting for the program's lock

    def _report(self) -> None:
        """Reports the failure once, to the log and to the program."""
        error = self.error
        if error is None:
            return
        ours = isinstance(error, PrecopyError)
        LOG.error("the replication to %s ended: %s", self.peer, error, exc_info=None if ours else error)
        if self._options.on_error is not None:
            try:
                self._options.on_error(error)
            except Exception:
                LOG.exception("on_error raised")

    def _say_alive(self) -> None:
        """Sends a sign of life, unless another thread uses the engine and so sends something."""
        if self._engine.acquire(blocking=False):
            try:
                if not self.over:
                    self.primary.alive()
            finally:
                self._engine.release()

    def _tell(self) -> None:
        if self._options.on_progress is not None:
            self._options.on_progress(self.progress)

    def _run(self) -> None:
        try:
            while not self.over:
                self._sleep(self._step())
        except BaseException as error:
            self.fail(error)
        self.end()
        with self.changed:
            self._ended = True
            self.changed.notify_all()

    def _sleep(self, seconds: float) -> None:
        """Waits for ``seconds``, or until there is something to do."""
        if seconds > 0:
            with self.changed:
                self.changed.wait_for(
                    lambda: self.over or self.primary.points.due(), min(seconds, threading.TIMEOUT_MAX)
                )

    def _step(self) -> float:
        """The next round or point; returns the seconds until the one after it."""
        primary = self.primary
        if primary.points.due():
            with self.ours():
                self.send_point()
        elif primary.in_rounds and not (primary.converged and self._interval):
            with self.ours():
                return self._round()
        elif self._interval is not None:
            self._next_point = self.clock.now() + self._interval
            with primary.exactly():
                if self._options.lock is not None:
                    self._point_with(self._options.lock)
                else:
                    self._quiet_point(self._interval)
        return math.inf if self._interval is None else self._next_point - self.clock.now()

    def _round(self) -> float:
        primary = self.primary
        if not primary.in_rounds or primary.points.due():  # another thread has made a point meanwhile
            return 0.0
        primary.round()
        if not primary.converged:
            return 0.0
        if self._interval is None:
            self.now_ready()
            return _ROUND_WAIT_S
        return 0.0

    def _point_with(self, lock: AbstractContextManager[object]) -> None:
        points = self.primary.points
        with self.ours():
            # Without the lock at first, so that what is left to copy under it was written just now.
            if not points.due() and points.copy() > FEW_PAGES:
                points.copy()
        with self._waiting(), Held(lock):
            self._awaits(False)
            taken = self.clock.now()
            # Another thread may hold the engine and be sending. Then not now, because the program waits.
            if not self._engine.acquire(blocking=False):
                self._next_point = taken
                return
            try:
                if self.over:
                    return
                if not points.due():
                    points.copy()
                    points.seal()
            finally:
                self._engine.release()
            self._lock_held = self.clock.now() - taken
        with self.ours():
            self.send_point()

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Around waiting for the program's lock."""
        self._awaits(True)
        try:
            yield
        finally:
            self._awaits(False)

    def _awaits(self, waits: bool) -> None:
        with self.changed:
            self._awaits_lock = waits
            self.changed.notify_all()

    def _quiet_point(self, interval: float) -> None:
        points, quiet = self.primary.points, self._options.quiet_s
        until, gap = self.clock.now() + interval, 0.0
        while True:
            with self.ours():
                if points.due():
                    return
                points.copy()
            self._sleep(quiet)
            with self.ours():
                if not points.due() and not points.copy():
                    points.seal()
                if points.due():
                    self.send_point()
                    return
            if self.clock.now() > until:
                self._misses += 1
                return
            gap = min(max(2 * gap, quiet, _LEAST_GAP_S), _MOST_GAP * interval)
            self._sleep(gap)
