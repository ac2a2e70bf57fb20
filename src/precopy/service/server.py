"""The serving end of a control socket.

Law 5: **The peer is not trusted**, and neither is a client: a client may send anything, and cannot hold up
others. One thread reads the requests of all clients, without waiting for any; a request has to be whole within
`REQUEST_S` and `MAX_REQUEST` bytes. Of more than `MAX_CLIENTS` that have not said what they want, the first is sent
away, so that there is always room for one that does. Answers are made by at most `MAX_WORKERS` threads; whole requests
beyond these wait for their turn. A request that waits for nothing, such as the state's, has threads of its own, so that
any number of others that do wait, for a check or for the outcome of a migration, cannot delay it.
"""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from precopy.errors import KernelCallError, PeerError, PrecopyError
from precopy.migration import Note, event_name
from precopy.service.outlet import Outlet
from precopy.service.request import Request
from precopy.service.socket import TIMEOUT_S, Failure
from precopy.transport import Address, Listener, SocketStream

MAX_REQUEST = 64 << 10
"""Bytes: the longest request, with every option and two paths of 4096 bytes, is under 10 KiB."""
MAX_CLIENTS = 200
"""Connections without a whole request, and whole requests that wait: well below the 1024 descriptors of a process."""
MAX_WORKERS = 32
"""Threads that answer requests; an answer may wait as long as a migration takes."""
MAX_PROMPT_WORKERS = 4
"""Threads that answer the requests of `PROMPT`."""
PROMPT = frozenset({"status"})
"""Commands whose answers wait for nothing."""
REQUEST_S = 10.0
_RETRY_S = 0.1
"""Seconds until the next attempt to accept where the process is out of descriptors."""
_CLOSE_S = 2.0
"""Seconds that closing waits for answers under way."""
_CHUNK = 1 << 16
"""Bytes of one read."""


class Emit(Protocol):
    """Tells the client of an event. ``surely``: it has to get it, even where this process ends at once."""

    def __call__(self, kind: str, value: Any, *, surely: bool = False) -> None: ...


Handler = Callable[[Request, Emit], Any]


class _Asking:
    """A client of whose request a part has come."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.due = time.monotonic() + REQUEST_S
        self._got = bytearray()

    def read(self) -> bytes | None:
        """Its request once it is whole, None before. Raises `PeerError` where there will be none, `_TooLong`."""
        while (data := self.stream.receive_now(_CHUNK)) is not None:
            if not data:
                raise PeerError("the client left")
            end = data.find(b"\n")
            self._got += data if end < 0 else data[:end]
            if len(self._got) > MAX_REQUEST:
                raise _TooLong
            if end >= 0:
                return bytes(self._got)
        return None


class _TooLong(PrecopyError):
    exit_code = 2

    def __init__(self) -> None:
        super().__init__(f"the control request is longer than {MAX_REQUEST} bytes")


class _Lane:
    """Threads that call ``answer`` for whole requests, at most ``most`` at once; further requests wait for their
    turn. ``answer`` raises nothing."""

    def __init__(self, most: int, answer: Callable[[SocketStream, Request | Failure], None]) -> None:
        self._most, self._answer = most, answer
        self._lock = threading.Lock()
        self._waiting: deque[tuple[SocketStream, Request | Failure]] = deque()
        self._workers: set[threading.Thread] = set()

    def add(self, stream: SocketStream, request: Request | Failure) -> None:
        """Has ``request`` answered soon. Where more than `MAX_CLIENTS` wait, the first of them is closed."""
        with self._lock:
            self._waiting.append((stream, request))
            if len(self._waiting) > MAX_CLIENTS:
                self._waiting.popleft()[0].drop()
            if len(self._workers) >= self._most:
                return
            thread = threading.Thread(target=self._work, name="control request", daemon=True)
            self._workers.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no more threads: the next request tries again
            with self._lock:
                self._workers.discard(thread)

    def join(self, until: float) -> None:
        """Waits for answers under way, at most ``until`` a time of `time.monotonic`."""
        for thread in list(self._workers):
            if thread is not threading.current_thread():
                thread.join(max(until - time.monotonic(), 0.0))

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._workers.discard(threading.current_thread())
                    return
                stream, request = self._waiting.popleft()
            self._answer(stream, request)


class ControlServer:
    """Serves requests at ``address`` with ``handle``, which is called in threads of their own. Raises `UsageError`."""

    def __init__(self, address: Address, handle: Handler) -> None:
        self._handle = handle
        self._listener = Listener(address)
        self.address = self._listener.address
        self._closing = False
        self._asking: dict[int, _Asking] = {}  # by descriptor, the first to come first
        self._prompt = _Lane(MAX_PROMPT_WORKERS, self._answer)
        self._lane = _Lane(MAX_WORKERS, self._answer)
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no more requests and waits a little for answers under way."""
        self._closing = True
        self._listener.wake()
        self._thread.join(TIMEOUT_S)
        until = time.monotonic() + _CLOSE_S
        self._prompt.join(until)
        self._lane.join(until)
        self._listener.close()

    # One thread: reads requests.

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._closing:
            ready = poll.poll(self._wait_ms())
            for descriptor, _ in ready:
                if descriptor == self._listener.fileno():
                    self._accept(poll)
                elif descriptor in self._asking:
                    self._read(descriptor, poll)
            now = time.monotonic()
            for descriptor in [descriptor for descriptor, client in self._asking.items() if client.due <= now]:
                self._send_away(descriptor, poll)
        for descriptor in list(self._asking):
            self._send_away(descriptor, poll)

    def _wait_ms(self) -> float | None:
        due = min((client.due for client in self._asking.values()), default=None)
        return None if due is None else max(1e3 * (due - time.monotonic()), 1.0)

    def _accept(self, poll: select.poll) -> None:
        try:
            stream = self._listener.accept(TIMEOUT_S)
        except (PeerError, KernelCallError):
            if not self._closing:  # out of descriptors
                self._send_first_away(poll)
                time.sleep(_RETRY_S)
            return
        if len(self._asking) >= MAX_CLIENTS:
            self._send_first_away(poll)
        self._asking[stream.fileno()] = _Asking(stream)
        poll.register(stream, select.POLLIN)

    def _send_first_away(self, poll: select.poll) -> None:
        if self._asking:
            self._send_away(next(iter(self._asking)), poll)

    def _send_away(self, descriptor: int, poll: select.poll) -> None:
        self._forget(descriptor, poll).drop()

    def _forget(self, descriptor: int, poll: select.poll) -> SocketStream:
        poll.unregister(descriptor)
        return self._asking.pop(descriptor).stream

    def _read(self, descriptor: int, poll: select.poll) -> None:
        try:
            line = self._asking[descriptor].read()
        except _TooLong as error:
            stream = self._forget(descriptor, poll)
            with contextlib.suppress(PeerError):
                stream.send_now(_line("error", Failure.of(error, "UsageError")))
            stream.drop()
        except PeerError:
            self._send_away(descriptor, poll)
        else:
            if line is not None:
                self._answer_soon(self._forget(descriptor, poll), line)

    def _answer_soon(self, stream: SocketStream, line: bytes) -> None:
        try:
            request = msgspec.json.decode(line, type=Request)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._prompt.add(stream, Failure("UsageError", f"the control request cannot be read: {error}", 2))
        else:
            (self._prompt if request.command in PROMPT else self._lane).add(stream, request)

    # Several: answer them.

    def _answer(self, stream: SocketStream, request: Request | Failure) -> None:
        outlet = Outlet(stream)

        def emit(kind: str, value: Any, *, surely: bool = False) -> None:
            told = _line("event", {"kind": kind, "value": value})
            outlet.surely(told) if surely else outlet.event(told)

        try:
            answer = (
                _line("error", request)
                if isinstance(request, Failure)
                else _line("result", self._handle(request, emit))
            )
        except PrecopyError as error:
            answer = _line("error", Failure.of(error))
        except Exception as error:
            what = f"internal error: {type(error).__name__}: {error}"
            answer = _line("error", Failure(type(error).__name__, what, 1))
        with contextlib.suppress(PeerError):
            outlet.last(answer, _left_out)
        stream.drop()  # a client on this machine finds what lies in its socket


def _line(kind: str, value: Any) -> bytes:
    return msgspec.json.encode({kind: value}) + b"\n"


def _left_out(count: int) -> bytes:
    note = Note(f"{count} events are left out, which were not read in time")
    return _line("event", {"kind": event_name(note), "value": note})
