"""`replicate`: a memory of this program is copied to a standby in the background while the program writes it."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import NoReturn, Self, SupportsIndex

from precopy.defaults import TIMEOUT_S
from precopy.errors import UsageError
from precopy.machines.process.memory import Memory
from precopy.replication.background import Background
from precopy.replication.options import ReplicationOptions, patience_of
from precopy.replication.primary import Primary
from precopy.replication.progress import CutOver, Phase, ReplicationProgress
from precopy.transport import connect, parse_address
from precopy.units import check_flag
from precopy.wire.default import DEFAULT_FORMAT


def replicate(
    memory: Memory,
    address: str,
    *,
    interval: float | None = None,
    lock: AbstractContextManager[object] | None = None,
    quiet: float | None = None,
    max_bandwidth: int | None = None,
    timeout: float = TIMEOUT_S,
    on_progress: Callable[[ReplicationProgress], object] | None = None,
    on_error: Callable[[BaseException], object] | None = None,
) -> Replication:
    """Starts to copy ``memory`` to the standby that listens at ``address`` (``tcp:host:port`` or ``unix:/path``; see
    `precopy.receive_memory`), while the program goes on writing it.

    Without ``interval`` the standby has the memory after `Replication.cutover`. With it, the standby gets a point (the
    memory as it was at one moment) every ``interval`` seconds, and can be promoted to the last one at any time;
    ``math.inf`` makes points only where `Replication.checkpoint` is called.

    A point is taken while the program does not write: with ``lock`` (a `threading.Lock` or any context manager that the
    program holds while it writes) while it is held here, otherwise when nothing was written for ``quiet`` seconds
    (0.01 if not given; refused with a lock). Both are refused where no points are taken every ``interval`` seconds.

    ``max_bandwidth``: bytes a second at most. ``timeout``: seconds that the standby may be silent. ``on_progress`` is
    called ten times a second, and once at the end, in a thread of its own; what it raises ends the replication.
    ``on_error`` is called once, in that thread, with the error that ended the replication, such as a `PeerLost`; the
    logger ``precopy`` has it, too, and every later call of the handle raises it.

    Raises `UsageError`, `Unsupported` where the kernel cannot track memory, and `PeerError` where there is no standby
    or it refuses.
    """
    if not isinstance(memory, Memory):
        raise UsageError(f"precopy.Memory can be replicated, a {type(memory).__name__} cannot; see Memory.adopt")
    options = ReplicationOptions(interval, lock, quiet, max_bandwidth, timeout, on_progress, on_error)
    memory.contents()  # refused here where it is closed, before anything is connected
    if memory.by_content and lock is None and options.interval not in (None, math.inf):
        raise UsageError(
            "of a memory that any process may write, quiet moments cannot be found by comparing contents; use lock= "
            "with a lock that all of them hold while they write, or interval=math.inf and checkpoint()"
        )
    stream = connect(parse_address(address), options.timeout)
    try:
        background = Background(memory, stream, options, DEFAULT_FORMAT)
    except BaseException:
        stream.close()
        raise
    background.start()
    return Replication(background, points=interval is not None)


class Replication:
    """Made by `replicate`; a context manager that closes itself. Any thread of the program may call any method."""

    def __init__(self, background: Background, *, points: bool) -> None:
        self._background, self._points = background, points
        self._one_cutover = threading.Lock()

    def __repr__(self) -> str:
        progress = self.progress
        ended = "" if self.error is None else f": {self.error}"
        return (
            f"<Replication to {self._background.peer}, {progress.phase}{ended}; {progress.rounds} rounds, "
            f"{progress.points} points>"
        )

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UsageError("a replication cannot be pickled or copied, because its threads are this process's")

    @property
    def error(self) -> BaseException | None:
        """Why the replication failed, or None. The standby keeps its last point."""
        return self._background.error

    @property
    def progress(self) -> ReplicationProgress:
        """Where it stands now."""
        return self._background.progress

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the standby has its first point or, where none are made without `checkpoint`, until another round
        would not leave less to send: a good time for `cutover`.

        False where that takes longer than ``timeout`` seconds. Raises the error that ended the replication,
        `UsageError` where it was closed.
        """
        background, patience = self._background, patience_of(timeout)
        with background.changed:
            background.changed.wait_for(lambda: background.ready or background.over, patience)
        if background.phase is not Phase.CUT_OVER:
            background.raise_if_over()
        return background.ready or background.over

    def checkpoint(self, *, wait: bool = False) -> None:
        """Makes a point of the memory as it is now. The program must not write it from any thread during the call.

        Returns when its content is copied, so that the program may write on; with ``wait``, when the standby has it.
        Where a round or an earlier point is being sent, that is waited for. Raises `UsageError` without an interval,
        and the error that ended the replication.
        """
        wait = check_flag("wait", wait)
        if not self._points:
            raise UsageError("without an interval there are no points; use interval=math.inf for these alone")
        with self._background.called() as primary:
            self._background.send_point()
            primary.points.copy()
            primary.points.seal()
            if wait:
                self._background.send_point()

    @contextlib.contextmanager
    def cutover(self) -> Iterator[CutOver]:
        """``with handle.cutover():`` gives the memory to the standby at the end of its block. No other thread of the
        program may write it from before the ``with`` to the end. On entering, the standby has the exact memory; what
        the block itself writes is copied at its end, before the memory is given away.

        Nothing is given away where the block raises: the standby stays a standby, and the replication goes on.

        Raises the error that ended the replication; `OutcomeUnknown` where the standby did not say that it has it;
        `UsageError` where another thread goes on writing, with nothing given away and the replication going on, and
        inside the block of another cutover, which decides alone.
        """
        if not self._one_cutover.acquire(blocking=False):
            raise UsageError(
                "this replication is inside a cutover already, whose block gives the memory away at its end; leave "
                "that block first, or do without the inner one"
            )
        try:
            with self._cutover() as done:
                yield done
        finally:
            self._one_cutover.release()

    @contextlib.contextmanager
    def _cutover(self) -> Iterator[CutOver]:
        background, now = self._background, self._background.clock.now
        began = now()
        with background.waiting(), background.primary.exactly():
            with background.called() as primary:
                mine = now()
                background.last_point()
                copied = now()
                done = CutOver(mine - began, copied - mine, *primary.sums())
            yield done
            ended = now()
            with background.called() as primary:
                background.last_point()
                late = self._give(primary, done)
        done.block_s, done.copy_s = ended - copied, done.copy_s + now() - ended - done.commit_s
        if late:
            raise UsageError(
                f"the memory was given away, and {late} pages of it were written here while that was done, which the "
                f"standby does not have; no thread may write it from cutover() on"
            )

    def _give(self, primary: Primary, done: CutOver) -> int:
        """Commits; returns how many pages were written here since the last sync, too late for the standby."""
        now = self._background.clock.now
        began = now()
        primary.commit()
        self._background.cut_over()
        done.given, done.commit_s = True, now() - began
        done.rounds, done.points, done.sent_bytes = primary.sums()
        return primary.written()

    def close(self) -> None:
        """Stops replicating; the standby keeps its last point. May be called at any time, and twice."""
        self._background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
