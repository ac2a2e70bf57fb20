"""Events over a stream: the format's bytes go out, what the peer sends comes back as events."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from precopy.bitmap import NO_RUNS, Runs
from precopy.errors import PeerError, PeerLost, PeerProtocolError, PeerRefused
from precopy.ports import ByteStream, Clock, IoVec, SystemClock
from precopy.ports.stream import SLOWEST_BYTES_PER_S
from precopy.wire.events import Abort, Compare, PageBatch, Pages, WireEvent
from precopy.wire.format import Format

F = TypeVar("F")

_AT_ONCE = 256 << 10
"""Bytes that one read allocates at most, however many the peer claims to send."""


@dataclass(frozen=True)
class Content:
    """Pages to send: their runs and a view of each. ``addresses`` (address and length in bytes of each) where the
    memory that is viewed stays as it is or is the guest's own until the peer has answered; None where it is used again
    once it is sent."""

    runs: Runs
    views: list[memoryview]
    addresses: IoVec | None

    def __getitem__(self, part: slice) -> Content:
        return Content(self.runs[part], self.views[part], None if self.addresses is None else self.addresses[part])


NO_CONTENT = Content(NO_RUNS, [], np.empty((0, 2), np.uint64))


class Channel:
    """One end of the protocol over ``stream``; ``sent_bytes`` counts all that was given to the stream. ``format`` may
    have received something already."""

    def __init__(self, stream: ByteStream, format: Format, clock: Clock | None = None) -> None:
        self.stream = stream
        self._clock = clock or SystemClock()
        self._format = format
        self.sent_bytes = 0
        self._sent: dict[type[WireEvent], int] = {}
        self._batches = 0
        self._preamble = self._format.preamble()

    def may_send(self, kind: type[WireEvent]) -> bool:
        """Whether an event of this kind may be sent now."""
        return self._format.may_send(kind)

    def sent_in(self, *kinds: type[WireEvent]) -> int:
        """The bytes of these kinds of events, contents included."""
        return sum(self._sent.get(kind, 0) for kind in kinds)

    def _count(self, kind: type[WireEvent], size: int) -> None:
        self.sent_bytes += size
        self._sent[kind] = self._sent.get(kind, 0) + size

    def send(self, frame: WireEvent) -> None:
        """Sends a frame that has no content.

        Raises `PeerRefused` with the peer's reason where it gave one before it went away, otherwise `PeerLost`.
        """
        head = self._encode(frame)
        try:
            self.stream.send([head])
        except PeerLost as lost:
            raise self._last_word(lost) from lost
        self._count(type(frame), len(head))

    def send_pages(self, kind: type[Pages | Compare], content: Content, zero: Runs = NO_RUNS) -> PageBatch:
        """Sends one batch, straight from where it lies, and returns it. Raises as `send` does."""
        batch = self._format.batch(self._batches, content.runs, zero, content.views)
        self._batches += 1
        head = self._encode(kind(batch))
        try:
            if content.addresses is None:
                self.stream.send([head, *content.views])
            else:
                self.stream.send_pages(head, content.views, content.addresses)
        except PeerLost as lost:
            raise self._last_word(lost) from lost
        self._count(kind, len(head) + sum(map(len, content.views)))
        return batch

    def receive(self) -> WireEvent:
        """The next frame, whole: it may take the stream's time-out from when it is waited for, and what its bytes take
        at the slowest. An `Abort` is raised as `PeerRefused`."""
        began, size = self._clock.now(), 0
        frame = None
        while frame is None:
            data = bytearray(min(self._format.wanted, _AT_ONCE))  # what a peer claims allocates nothing
            size += len(data)
            due = began + self.stream.timeout + size / SLOWEST_BYTES_PER_S
            # Before the first byte the stream's own time-out is the bound, and its error says that the peer is silent.
            within = due - self._clock.now() if size > len(data) else math.inf
            self.stream.receive_into([data], within)
            frame = self._format.receive(data)
        if isinstance(frame, Abort):
            raise PeerRefused(printable(frame.reason))
        return frame

    def expect(self, record: type[F]) -> F:
        """The next frame, which has to be a ``record``. Raises `PeerProtocolError` where it is not."""
        frame = self.receive()
        if not isinstance(frame, record):
            raise PeerProtocolError(f"{type(frame).__name__} came where {record.__name__} was due")
        return frame

    def _encode(self, frame: WireEvent) -> bytes:
        data, self._preamble = self._preamble + self._format.send(frame), b""
        return data

    def give_up(self, reason: str) -> None:
        """Tells the peer why this side stops, where that is allowed now and as far as it still works."""
        if not self.may_send(Abort):
            return
        self.stream.limit(None)
        with contextlib.suppress(PeerError):
            self.stream.send([self._preamble + self._format.send(Abort(reason))])

    def _last_word(self, lost: PeerLost) -> PeerError:
        """The peer's reason for leaving, if it sent one: its last frame may still be unread."""
        try:
            if not lost.silent:
                self.receive()
        except PeerRefused as refused:
            return refused
        except PeerError:
            pass
        return lost


def printable(text: str) -> str:
    """What a peer says, fit for a terminal and for one line."""
    return "".join(character if character.isprintable() else "?" for character in text)[:2000]
