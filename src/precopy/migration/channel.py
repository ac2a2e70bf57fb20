"""Frames over a stream: the codec's bytes go out, what the peer sends comes back as frames."""

from __future__ import annotations

import contextlib
from typing import TypeVar

from precopy.bitmap import Runs
from precopy.errors import PeerError, PeerLost, PeerProtocolError, PeerRefused
from precopy.ports import ByteStream, MemoryReader
from precopy.wire import Abort, Codec, Compare, Frame, PageBatch, Pages, Role, State

F = TypeVar("F")


class Channel:
    """One end of the protocol over ``stream``; ``sent_bytes`` counts all that was given to the stream."""

    def __init__(self, stream: ByteStream, role: Role) -> None:
        self.stream = stream
        self.codec = Codec(role)
        self.sent_bytes = 0
        self._preamble = self.codec.preamble()

    @property
    def state(self) -> State:
        return self.codec.state

    def send(self, frame: Frame, content: list[memoryview] | None = None) -> None:
        """Sends a frame, and with it, in the same call, the content that belongs to it.

        Raises `PeerRefused` with the peer's reason where it gave one before it went away, otherwise `PeerLost`.
        """
        parts = [self._preamble + self.codec.send(frame), *(content or ())]
        self._preamble = b""
        try:
            self.stream.send(parts)
        except PeerLost as lost:
            raise self._last_word(lost) from lost
        self.sent_bytes += sum(map(len, parts))

    def send_pages(self, kind: type[Pages | Compare], memory: MemoryReader, content: Runs, zero: Runs) -> None:
        """Sends one batch straight from guest memory."""
        buffers = memory.buffers(content)
        checksum = PageBatch(content, zero).digest(buffers)
        self.send(kind(PageBatch(content, zero, checksum)), buffers)

    def receive(self) -> Frame:
        """The next frame. An `Abort` is raised as `PeerRefused`."""
        if self._preamble:  # whoever answers first has to say who it is
            self.stream.send([self._preamble])
            self._preamble = b""
        frame = None
        while frame is None:
            data = bytearray(self.codec.wanted)
            self.stream.receive_into([data])
            frame = self.codec.receive(data)
        if isinstance(frame, Abort):
            raise PeerRefused(_printable(frame.reason))
        return frame

    def expect(self, record: type[F]) -> F:
        """The next frame, which has to be a ``record``. Raises `PeerProtocolError` where it is not."""
        frame = self.receive()
        if not isinstance(frame, record):
            raise PeerProtocolError(f"{type(frame).__name__} came where {record.__name__} was due")
        return frame

    def give_up(self, reason: str) -> None:
        """Tells the peer why this side stops, as far as that still works."""
        if self.state in (State.DONE, State.CLOSED):
            return
        with contextlib.suppress(PeerError):
            self.stream.send([self._preamble + self.codec.send(Abort(reason))])

    def _last_word(self, lost: PeerLost) -> PeerError:
        """Why the peer left, if it said so: what it sent last may still be there to read."""
        try:
            if not lost.silent:
                self.receive()
        except PeerRefused as refused:
            return refused
        except PeerError:
            pass
        return lost


def _printable(text: str) -> str:
    """What a peer says, fit for a terminal and for one line."""
    return "".join(character if character.isprintable() else "?" for character in text)[:2000]
