"""The control socket of a guest's process: commands in, events and one result out, a line of JSON each.

This is the format and the client's end; `precopy.service.server` is the other. A request is one line, such as
``{"command": "status"}``. The answer is any number of lines ``{"event": ...}``, then one line with either ``result`` or
``error``. One connection carries one request.

`precopy status` and its like need this module alone, and are to answer at once: what a migration needs, numpy above
all, is imported where an answer has something of one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from precopy.errors import PeerLost, PeerProtocolError, PrecopyError
from precopy.transport import Address, SocketStream, connect

if TYPE_CHECKING:
    from precopy.migration.results import Attempt

_MAX_LINE = 4 << 20
"""Bytes: that of a migration is the longest answer, with 1.6 KB for each round."""
TIMEOUT_S = 10.0
"""Seconds that either side may take over its part of a conversation, but for the answers of `_LONG`."""
_LONG = ("migrate", "check")
"""Commands whose answers may take any time: those of a migration, and of a check of all memory."""


@dataclass(frozen=True)
class Command:
    """A request that is told by its name; `precopy.service.request.Request` has more to say."""

    command: str


@dataclass(frozen=True)
class Failure:
    """An error as it crosses the socket; ``attempt`` is what a migration that ended with it had measured: an `Attempt`
    at the side that sends it, what JSON makes of one at the other."""

    kind: str
    message: str
    exit_code: int
    attempt: Any = None

    @classmethod
    def of(cls, error: PrecopyError, kind: str = "") -> Failure:
        """``kind``: another name than that of the error's class."""
        return cls(kind or type(error).__name__, str(error), error.exit_code, error.attempt)


class RemoteFailure(PrecopyError):
    """What went wrong in the guest's process, raised again in the client's: ``kind`` is the class it had there."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.kind, self.exit_code, self.attempt = failure.kind, failure.exit_code, _attempt(failure.attempt)


def _attempt(value: Any) -> Attempt | None:
    """Raises `msgspec.ValidationError`."""
    if value is None:
        return None
    from precopy.migration.results import Attempt  # noqa: PLC0415 - see above

    return msgspec.convert(value, Attempt)


def default_address() -> Address:
    """A control address of this process's own."""
    return Address(
        path=os.path.join(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(), f"precopy-{os.getpid()}")
    )


def ask(address: Address, request: Command, on_event: Callable[[str, Any], None] | None = None) -> Any:
    """Sends ``request`` to a guest's process and returns its result. Raises `PeerLost`, `RemoteFailure`."""
    stream = connect(address, TIMEOUT_S)
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
    """Lines as they come, until the other side closes; each byte of them is looked at once. Raises `PeerError`."""
    pending: list[bytes] = []
    size = 0
    while data := stream.receive_some(1 << 16):
        first, *more = data.split(b"\n")
        pending.append(first)
        size += len(first)
        if more:
            yield b"".join(pending)
            yield from more[:-1]
            pending, size = [more[-1]], len(more[-1])
        if size > _MAX_LINE:
            raise PeerProtocolError(f"a line of more than {_MAX_LINE} bytes came over the control socket")
