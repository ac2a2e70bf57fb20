"""The standby's side of a replication: `receive_memory`, and `Standby`, which does the same in the background.

Law: **Half a point is never given away.** A point is applied, and its memory given away, under one lock. After
`promote` nothing is applied any more.

Law 4: **At most one side has the memory.** Here it is the program's own after the primary's `Commit`, or after
`promote`, which the program calls when it knows that the primary is gone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Literal, NoReturn, Self, SupportsIndex

from precopy.defaults import TIMEOUT_S
from precopy.errors import Cancelled, PeerError, PeerLost, PeerProtocolError, PrecopyError, UsageError
from precopy.machines.process.memory import Memory
from precopy.migration.channel import Channel
from precopy.migration.hello_reader import HelloReader
from precopy.migration.session import reason_of
from precopy.replication.hello import memory_for
from precopy.replication.options import patience_of
from precopy.replication.point_sink import PointSink
from precopy.replication.progress import StandbyProgress
from precopy.replication.room import Room
from precopy.transport import Listener, SocketStream, Strangers, accept_peer, parse_address
from precopy.units import check_callback, check_choice, check_count, check_seconds
from precopy.wire.default import DEFAULT_FORMAT
from precopy.wire.events import Alive, Commit, Hello, Pages, Point, PointAck, RoundAck, RoundEnd, Running, Welcome

LOG = logging.getLogger("precopy")
_GRACE_S = 1.0
"""Seconds that `Standby.close` waits for the primary to end the replication after it was told to."""
_TELL_BATCHES = 64
"""Batches between two progress reports."""
_STALLED = 3
"""Timeouts within which a missing page has to come, until all of the memory has come once. Other frames do not count: a
primary that sends only those would keep the standby from ever having the memory."""


def receive_memory(
    address: str,
    *,
    timeout: float = TIMEOUT_S,
    on_loss: Literal["raise", "promote"] = "raise",
    max_size: int | None = None,
    max_staging: int | None = None,
    on_progress: Callable[[StandbyProgress], object] | None = None,
) -> Memory:
    """Waits at ``address`` (``tcp:host:port`` or ``unix:/path``) for a `precopy.replicate`, and returns the exact
    memory once that is cut over.

    With ``on_loss="promote"``, where the primary is lost after its first point, the memory as of its last point is
    returned. ``timeout``: seconds that the primary may be silent once it has come, which is waited for without limit.
    ``max_size``: bytes that the memory may have at most; ``max_staging``: bytes of a point that may be held at most
    while it comes, beside the memory; without it what ``max_size`` leaves, and a quarter of ``max_size`` in any case.
    What the system no longer has is never taken. ``on_progress`` is called in a thread of its own.

    Raises `UsageError` where it cannot listen there, `HelloMismatch` where the memory does not fit, and
    `PeerError` where the primary is lost.
    """
    check_choice("on_loss", on_loss, ("raise", "promote"))
    with Standby(
        address, timeout=timeout, max_size=max_size, max_staging=max_staging, on_progress=on_progress
    ) as standby:
        try:
            standby.wait()
        except PeerError:
            if on_loss == "raise" or not standby.point:
                raise
        return standby.promote()


class Standby:
    """Takes one replication at ``address`` in a thread of its own; see `receive_memory` for what can be set.

    A context manager that closes itself. Raises `UsageError` where it cannot listen there.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout: float = TIMEOUT_S,
        max_size: int | None = None,
        max_staging: int | None = None,
        on_progress: Callable[[StandbyProgress], object] | None = None,
    ) -> None:
        self._timeout, self._room = check_seconds("the timeout", timeout), Room(max_size, max_staging)
        check_callback("on_progress", on_progress)
        self._on_progress = on_progress
        self._listener = Listener(parse_address(address))
        self.address = str(self._listener.address)
        """Where the primary is to go, with the port that the system chose for ``tcp:host:0``."""
        self._changed = threading.Condition()  # its lock is the law's
        self._memory: Memory | None = None
        self._channel: Channel | None = None
        self._point = 0
        self._error: BaseException | None = None
        self._mine = self._ended = self._closed = False
        self._thread = threading.Thread(target=self._run, name="standby", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        if self._mine:
            state = "the memory is its own"
        elif self._error is not None:
            state = f"ended: {self._error}"
        else:
            state = "closed" if self._closed else "receiving" if self._channel is not None else "waiting for a primary"
        return f"<Standby at {self.address}, point {self._point}, {state}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UsageError("a standby cannot be pickled or copied, because its thread is this process's")

    @property
    def point(self) -> int:
        """The last point that was applied; 0 before the first."""
        return self._point

    @property
    def memory(self) -> Memory | None:
        """The memory, or None before the first point. Until it is cut over or promoted it is not to be written, and a
        reader may see a point while it is applied."""
        with self._changed:
            return self._memory

    @property
    def error(self) -> BaseException | None:
        """Why the replication ended before the memory was this side's, or None."""
        return self._error

    def wait(self, timeout: float | None = None, *, point: int | None = None) -> bool:
        """Waits until the memory was cut over or promoted, or with ``point`` until that point was applied. False where
        that takes longer than ``timeout`` seconds. Raises the error that ended the replication before."""
        if point is not None:
            point = check_count("the number of a point", point, 0)
        patience = patience_of(timeout)
        with self._changed:

            def there() -> bool:
                return self._mine or (point is not None and self._point >= point)

            self._changed.wait_for(lambda: there() or self._ended, patience)
            if there():
                return True
            if self._error is not None:
                raise self._error
            if self._ended:
                raise self._is_closed()
            return False

    def promote(self) -> Memory:
        """Stops receiving, and returns the memory as of the last point, to be written from now on. The primary is told,
        where it can be. May be called again.

        Raises the error that ended the replication where there was no point, or `UsageError` where it goes on.
        """
        with self._changed:
            if self._memory is None:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise self._is_closed()
                raise UsageError("there is no point yet that could be promoted; wait for one (standby.wait(point=1))")
            if not self._mine:
                self._mine = True
                self._changed.notify_all()
                if self._channel is not None and not self._ended:
                    self._channel.give_up("the standby was promoted")
            return self._memory

    def close(self) -> None:
        """Stops receiving; the memory stays as of the last point, and `promote` still gives it. May be called twice."""
        with self._changed:
            self._closed = True
            self._listener.wake()
            if self._channel is not None and not self._ended and not self._mine:
                self._channel.give_up("the standby was closed")
        if threading.current_thread() is self._thread:
            return
        self._thread.join(_GRACE_S)
        if self._thread.is_alive():
            assert self._channel is not None  # it waits for the primary
            self._channel.stream.abort()
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_closed(self) -> UsageError:
        there = "promote() gives its last point" if self._memory is not None else "it has no point"
        return UsageError(f"the standby is closed; {there}, and another Standby waits for another primary")

    # The thread.

    def _run(self) -> None:
        stream: SocketStream | None = None
        try:
            with self._listener:
                strangers = Strangers(self._name_stranger, self._name_no_more)
                primary = accept_peer(self._listener, self._timeout, self._hello_reader, strangers)
            stream, hello = primary.stream, primary.reader.hello
            assert hello is not None  # it has greeted
            with self._changed:
                self._need_open()
                self._channel = channel = Channel(stream, primary.reader.format)
            self._serve(channel, hello)
        except BaseException as error:
            self._fail(error)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if stream is not None:
            stream.close()

    @staticmethod
    def _hello_reader() -> HelloReader:
        return HelloReader(DEFAULT_FORMAT)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._mine or self._closed:
                return
            self._error = error
            if self._channel is not None:
                self._channel.give_up(reason_of(error, "standby"))
        ours = isinstance(error, PrecopyError)
        LOG.warning("the replication at %s ended: %s", self.address, error, exc_info=None if ours else error)

    def _name_stranger(self, _peer: str, why: PeerError) -> None:
        if not self._closed:
            LOG.warning("dropped who came to %s and is no primary: %s", self.address, why)

    def _name_no_more(self) -> None:
        if not self._closed:
            LOG.warning("further ones who come to %s and are no primary are dropped without a word", self.address)

    def _serve(self, channel: Channel, hello: Hello) -> None:
        memory = memory_for(hello, self._room)
        sink = PointSink(memory.contents(), channel.stream, self._room)
        self._answer(channel, Welcome(hello.session))
        batches, stall = 0, _Stall(sink, channel.stream.peer, _STALLED * self._timeout)
        while True:
            stall.check()
            match channel.receive():
                case Pages(batch):
                    sink.pages(batch)
                    batches += 1
                    if batches % _TELL_BATCHES:
                        continue
                case Alive():
                    continue
                case RoundEnd() as end:
                    self._answer(channel, sink.end_round(end))
                case Point() as point:
                    self._take_point(channel, sink, point, memory)
                case Commit():
                    self._take_over(channel)
                    return
                case frame:
                    raise PeerProtocolError(f"{type(frame).__name__} has no place in the replication of a memory")
            if self._on_progress is not None:
                self._on_progress(
                    StandbyProgress(memory.size, sink.rounds, sink.point, sink.received_bytes, sink.staged_bytes)
                )

    def _answer(self, channel: Channel, frame: Welcome | RoundAck) -> None:
        with self._changed:
            self._need_open()
            channel.send(frame)

    def _take_point(self, channel: Channel, sink: PointSink, point: Point, memory: Memory) -> None:
        with self._changed:
            self._need_open()
            sink.end_point(point)
            self._memory = None  # first, so that after any failure half of it is not handed out
            sink.apply()
            self._memory, self._point = memory, point.number
            self._changed.notify_all()
            channel.send(PointAck(point.number))

    def _take_over(self, channel: Channel) -> None:
        with self._changed:
            self._need_open()
            self._mine = True
            self._changed.notify_all()
            with contextlib.suppress(PeerError):  # then the primary knows that it does not know
                channel.send(Running(0.0))

    def _need_open(self) -> None:
        if self._mine or self._closed:
            raise Cancelled("the standby receives no more")


class _Stall:
    """Raises `PeerLost` from `check` where ``sink`` is not whole and gets no new page for ``seconds``."""

    def __init__(self, sink: PointSink, peer: str, seconds: float) -> None:
        self._sink, self._peer, self._seconds = sink, peer, seconds
        self._missing, self._moved = sink.missing, time.monotonic()

    def check(self) -> None:
        now, missing = time.monotonic(), self._sink.missing
        if missing < self._missing:
            self._missing, self._moved = missing, now
        elif missing and now - self._moved > self._seconds:
            raise PeerLost(
                f"{self._peer} brings no new page for {self._seconds:g} s, and {missing} pages have never come",
                silent=True,
            )
