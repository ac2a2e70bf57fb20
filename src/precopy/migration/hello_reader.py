"""Listening to a connection until its other end has said that it is a source."""

from __future__ import annotations

from precopy.errors import PeerRefused
from precopy.migration.channel import Channel, printable
from precopy.ports import ByteStream
from precopy.wire.events import Abort, Hello, Role
from precopy.wire.format import OpenFormat


class HelloReader:
    """Reads a source's first frame from parts of any size; ``hello`` is None until it is complete."""

    def __init__(self, open_format: OpenFormat) -> None:
        self.format = open_format(Role.DESTINATION)
        self.hello: Hello | None = None

    @property
    def wanted(self) -> int:
        """Bytes to hand to `receive` at most."""
        return self.format.wanted

    def receive(self, data: bytes) -> Hello | None:
        """Raises `PeerProtocolError` and `PeerRefused` where it is no source, or one that does not want to any more."""
        match self.format.receive(data):
            case Hello() as hello:
                self.hello = hello
            case Abort(reason):
                raise PeerRefused(printable(reason))
        return self.hello

    def refuse(self, stream: ByteStream, reason: str) -> None:
        """Tells the other end why it is turned away, if that is possible."""
        Channel(stream, self.format).give_up(reason)
