"""Waiting for the connection that sends the expected hello, among others.

Law 5: **The peer is not trusted**, and a connection need not come from a peer: it may be a port scanner, a browser, or
silent. None of them keeps the real peer out. All connections are read at once, a hello has to be complete within the
time-out, and of too many connections the oldest is closed.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from precopy.errors import KernelCallError, PeerError, PeerLost
from precopy.transport.listener import Listener
from precopy.transport.sockets import SocketStream

MAX_CALLERS = 64
"""Connections whose hello is awaited at once; beyond that the oldest is closed."""
NAMED_STRANGERS = 20
"""Connections that were turned away and are named one by one. Further ones are not, so that no stranger fills a log."""
_UNREAD = 1 << 20
"""Bytes read from a connection before it is closed: unread ones would reset it before it is told why."""


class ReadsHello(Protocol):
    """A reader of a hello: hand over at most ``wanted`` bytes at a time until `receive` returns the hello."""

    @property
    def wanted(self) -> int: ...

    def receive(self, data: bytes) -> object | None:
        """The hello, once it is whole. Raises `PeerError` where it is none."""
        ...

    def refuse(self, stream: SocketStream, reason: str) -> None:
        """Tells the other end why it is turned away, if that is possible."""
        ...


R = TypeVar("R", bound=ReadsHello)


@dataclass(frozen=True)
class Accepted(Generic[R]):
    """A peer that has greeted: the stream, and what has read its hello from it."""

    stream: SocketStream
    reader: R


class Strangers:
    """Who has connected and is no peer: each is told why, and counted. ``name`` is told who the first ones were, and
    why they are none; ``enough`` is called once when no more are named."""

    def __init__(self, name: Callable[[str, PeerError], None], enough: Callable[[], None]) -> None:
        self._name, self._enough = name, enough
        self.count = 0

    def turn_away(self, stream: SocketStream, reader: ReadsHello, why: PeerError) -> None:
        """One more."""
        self.count += 1
        reader.refuse(stream, str(why))
        if self.count <= NAMED_STRANGERS:
            self._name(stream.peer, why)
        if self.count == NAMED_STRANGERS:
            self._enough()


class _Caller(Generic[R]):
    """A peer that has connected and not greeted yet."""

    def __init__(self, stream: SocketStream, reader: R) -> None:
        self.stream, self.reader = stream, reader
        self.due = time.monotonic() + stream.timeout

    def listen(self) -> bool:
        """Whether its hello is whole by now. Raises `PeerError`."""
        while (data := self.stream.receive_now(self.reader.wanted)) is not None:
            if not data:
                raise PeerLost("it left without a greeting")
            if self.reader.receive(data) is not None:
                return True
        if time.monotonic() >= self.due:
            raise PeerLost(f"it has not greeted within {self.stream.timeout:g} s")
        return False


def accept_peer(
    listener: Listener,
    timeout: float,
    new_reader: Callable[[], R],
    strangers: Strangers,
) -> Accepted[R]:
    """The first peer whose hello is whole. Each other one is turned away as one of ``strangers``, and its stream is
    closed. Raises `PeerError` where ``listener`` is woken, `KernelCallError` where no descriptor is left, none of these
    connections having one."""
    callers: _Callers[R] = _Callers(strangers)
    callers.poll.register(listener, select.POLLIN)
    others = "it has not greeted, and nobody is waited for any more"
    try:
        while True:
            if callers.wait(listener.fileno()):
                try:
                    stream = listener.accept(timeout)
                except KernelCallError:
                    if not callers.send_oldest_away():
                        raise
                else:
                    callers.add(_Caller(stream, new_reader()))
            greeted = callers.greeted()
            if greeted is not None:
                others = "it has not greeted, and another has"
                return Accepted(greeted.stream, greeted.reader)
    finally:
        callers.send_away(others)


class _Callers(Generic[R]):
    """All peers that have connected and not greeted yet, the oldest first."""

    def __init__(self, strangers: Strangers) -> None:
        self.poll = select.poll()
        self._strangers = strangers
        self._all: dict[int, _Caller[R]] = {}

    def wait(self, listener: int) -> bool:
        """Waits until something happens; whether it is a new connection."""
        due = min((caller.due for caller in self._all.values()), default=None)
        ready = self.poll.poll(None if due is None else max(1e3 * (due - time.monotonic()), 1.0))
        return any(descriptor == listener for descriptor, _ in ready)

    def add(self, caller: _Caller[R]) -> None:
        if len(self._all) >= MAX_CALLERS:
            self.send_oldest_away()
        self._all[caller.stream.fileno()] = caller
        self.poll.register(caller.stream, select.POLLIN)

    def send_oldest_away(self) -> bool:
        """Whether there was one."""
        for oldest in self._all:
            self._part(oldest, PeerLost("it has not greeted, and others wait"))
            return True
        return False

    def greeted(self) -> _Caller[R] | None:
        """The first peer that has greeted, taken out of these. Peers that can no longer greet are turned away."""
        for descriptor, caller in list(self._all.items()):
            try:
                whole = caller.listen()
            except PeerError as error:
                self._part(descriptor, error)
            else:
                if whole:
                    return self._part(descriptor)
        return None

    def send_away(self, why: str) -> None:
        """All of them."""
        for descriptor in list(self._all):
            self._part(descriptor, PeerLost(why))

    def _part(self, descriptor: int, why: PeerError | None = None) -> _Caller[R]:
        self.poll.unregister(descriptor)
        caller = self._all.pop(descriptor)
        if why is not None:
            with contextlib.suppress(PeerError):
                caller.stream.receive_now(_UNREAD)  # left unread, it would reset the connection before it is told why
            self._strangers.turn_away(caller.stream, caller.reader, why)
            caller.stream.drop()
        return caller
