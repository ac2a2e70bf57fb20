"""The control socket of a guest's process: commands in, events and one result out, a line of JSON each.

A request is one line, such as ``{"command": "status"}``. The answer is any number of lines ``{"event": ...}``, then
one line with either ``result`` or ``error``. One connection carries one request.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from precopy.errors import PeerError, PeerLost, PeerProtocolError, PrecopyError
from precopy.migration.options import MigrationOptions
from precopy.transport import Address, Listener, SocketStream, connect

_MAX_LINE = 4 << 20
_TIMEOUT_S = 10.0
_RETRY_S = 0.1
_LONG = ("migrate", "check")
"""Commands whose answers take as long as they take."""


@dataclass(frozen=True)
class Request:
    """``command`` and, for migrate, where to and how; ``timeout`` is how long the destination may be silent, ``record``
    the absolute path of a recording that is to be made."""

    command: str
    address: str = ""
    timeout: float = 10.0
    options: MigrationOptions = field(default_factory=MigrationOptions)
    record: str = ""


@dataclass(frozen=True)
class Failure:
    """An error as it crosses the socket."""

    kind: str
    message: str
    exit_code: int


class RemoteFailure(PrecopyError):
    """What went wrong in the guest's process, raised again in the client's: ``kind`` is the class it had there."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.kind, self.exit_code = failure.kind, failure.exit_code


Emit = Callable[[str, Any], None]
Handler = Callable[[Request, Emit], Any]


def default_address() -> Address:
    """A control address of this process's own."""
    return Address(
        path=os.path.join(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), f"precopy-{os.getpid()}")
    )


class ControlServer:
    """Serves requests at ``address``, each connection in a thread of its own, with ``handle``."""

    def __init__(self, address: Address, handle: Handler) -> None:
        self._handle = handle
        self._listener = Listener(address)
        self.address = self._listener.address
        self._closing = False
        self._busy: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no more requests and waits a little for answers under way."""
        self._closing = True
        self._listener.wake()
        self._thread.join(_TIMEOUT_S)
        for thread in list(self._busy):
            if thread is not threading.current_thread():
                thread.join(1.0)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                stream = self._listener.accept(_TIMEOUT_S)
            except PeerError:
                if self._closing:
                    return
                time.sleep(_RETRY_S)  # out of descriptors, or a client that left at once
                continue
            thread = threading.Thread(target=self._converse, args=(stream,), name="control request", daemon=True)
            self._busy.add(thread)
            thread.start()

    def _converse(self, stream: SocketStream) -> None:
        def emit(kind: str, value: Any) -> None:
            with contextlib.suppress(PeerError):  # a client that left does not stop what it asked for
                stream.send([msgspec.json.encode({kind: value}) + b"\n"])

        try:
            request = msgspec.json.decode(next(_lines(stream)), type=Request)
            emit("result", self._handle(request, lambda kind, value: emit("event", {"kind": kind, "value": value})))
        except StopIteration:
            pass
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            emit("error", Failure("UsageError", f"the control request cannot be read: {error}", 2))
        except PrecopyError as error:
            emit("error", Failure(type(error).__name__, str(error), error.exit_code))
        except Exception as error:
            emit("error", Failure(type(error).__name__, f"internal error: {type(error).__name__}: {error}", 1))
        finally:
            stream.close()
            self._busy.discard(threading.current_thread())


def ask(address: Address, request: Request, on_event: Callable[[str, Any], None] | None = None) -> Any:
    """Sends ``request`` to a guest's process and returns its result. Raises `PeerLost`, `RemoteFailure`."""
    stream = connect(address, _TIMEOUT_S)
    try:
        if request.command in _LONG:
            stream.wait_forever()
        stream.send([msgspec.json.encode(request) + b"\n"])
        for line in _lines(stream):
            try:
                answer = msgspec.json.decode(line)
                if "event" in answer:
                    if on_event:
                        on_event(answer["event"]["kind"], answer["event"]["value"])
                elif "error" in answer:
                    raise RemoteFailure(msgspec.convert(answer["error"], Failure))
                else:
                    return answer["result"]
            except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError) as error:
                raise PeerProtocolError(f"{address} is no control socket of precopy: {error}") from error
        raise PeerLost(f"the guest's process at {address} ended before it answered")
    finally:
        stream.close()


def _lines(stream: SocketStream) -> Iterator[bytes]:
    """Lines as they come, until the other side closes. Raises `PeerError`."""
    pending = b""
    while data := stream.receive_some(1 << 16):
        *lines, pending = (pending + data).split(b"\n")
        yield from lines
        if len(pending) > _MAX_LINE:
            raise PeerProtocolError(f"a line of more than {_MAX_LINE} bytes came over the control socket")
