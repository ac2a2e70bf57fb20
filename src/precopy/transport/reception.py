"""Waiting for the connection that sends the expected greeting, among others.

Law 5: **The peer is not trusted**, and a connection need not come from a peer: it may be a port scanner, a browser, or
silent. None of them keeps the real peer out. All connections are read at once, a greeting has to be complete within the
time-out, and of too many connections the oldest is closed.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from precopy.errors import PeerError, PeerLost
from precopy.transport.listener import Listener
from precopy.transport.sockets import SocketStream

MAX_GUESTS = 64
"""Connections whose greeting is awaited at once; beyond that the oldest is closed."""
NAMED_STRANGERS = 20
"""Connections that were turned away and are named one by one. Further ones are not, so that no stranger fills a log."""
_UNREAD = 1 << 20
"""Bytes read from a connection before it is closed: unread ones would reset it before it is told why."""


class Opening(Protocol):
    """A reader of a greeting: hand over at most ``wanted`` bytes at a time until `receive` returns the greeting."""

    @property
    def wanted(self) -> int: ...

    def receive(self, data: bytes) -> object | None:
        """The greeting, once it is whole. Raises `PeerError` where it is none."""
        ...


G = TypeVar("G", bound=Opening)


@dataclass(frozen=True)
class Greeted(Generic[G]):
    """A peer that has greeted: the stream, and what has read its greeting from it."""

    stream: SocketStream
    opening: G


class _Caller(Generic[G]):
    """A peer that has connected and not greeted yet."""

    def __init__(self, stream: SocketStream, opening: G) -> None:
        self.stream, self.opening = stream, opening
        self.due = time.monotonic() + stream.timeout

    def listen(self) -> bool:
        """Whether its greeting is whole by now. Raises `PeerError`."""
        while (data := self.stream.receive_now(self.opening.wanted)) is not None:
            if not data:
                raise PeerLost("it left without a greeting")
            if self.opening.receive(data) is not None:
                return True
        if time.monotonic() >= self.due:
            raise PeerLost(f"it has not greeted within {self.stream.timeout:g} s")
        return False


def receive_greeting(
    listener: Listener,
    timeout: float,
    opening: Callable[[], G],
    turn_away: Callable[[SocketStream, G, PeerError], None],
) -> Greeted[G]:
    """The first peer whose greeting is whole. ``turn_away`` is told of each other one, and why; the stream is closed
    after it. Raises `PeerError` where ``listener`` is woken."""
    callers = _Callers(turn_away)
    callers.poll.register(listener, select.POLLIN)
    others = "it has not greeted, and nobody is waited for any more"
    try:
        while True:
            if callers.wait(listener.fileno()):
                stream = listener.accept(timeout)
                callers.add(_Caller(stream, opening()))
            greeted = callers.greeted()
            if greeted is not None:
                others = "it has not greeted, and another has"
                return Greeted(greeted.stream, greeted.opening)
    finally:
        callers.send_away(others)


class _Callers(Generic[G]):
    """All peers that have connected and not greeted yet, the oldest first."""

    def __init__(self, turn_away: Callable[[SocketStream, G, PeerError], None]) -> None:
        self.poll = select.poll()
        self._turn_away = turn_away
        self._all: dict[int, _Caller[G]] = {}

    def wait(self, listener: int) -> bool:
        """Waits until something happens; whether it is a new connection."""
        due = min((caller.due for caller in self._all.values()), default=None)
        ready = self.poll.poll(None if due is None else max(1e3 * (due - time.monotonic()), 1.0))
        return any(descriptor == listener for descriptor, _ in ready)

    def add(self, caller: _Caller[G]) -> None:
        if len(self._all) >= MAX_GUESTS:
            self._part(next(iter(self._all)), PeerLost("it has not greeted, and others wait"))
        self._all[caller.stream.fileno()] = caller
        self.poll.register(caller.stream, select.POLLIN)

    def greeted(self) -> _Caller[G] | None:
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

    def _part(self, descriptor: int, why: PeerError | None = None) -> _Caller[G]:
        self.poll.unregister(descriptor)
        caller = self._all.pop(descriptor)
        if why is not None:
            with contextlib.suppress(PeerError):
                caller.stream.receive_now(_UNREAD)  # left unread, it would reset the connection before it is told why
            self._turn_away(caller.stream, caller.opening, why)
            caller.stream.drop()
        return caller
