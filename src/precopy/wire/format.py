"""What every format of the stream can do.

The engine (`migration`, `replication`) knows events and this module, and no format by its name: it is given one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from precopy.bitmap import Runs
from precopy.wire.events import PageBatch, Role, WireEvent


class Format(Protocol):
    """One end of a stream, without I/O: bytes to events and events to bytes, and which event may be sent when.

    Ask `wanted` for how many bytes to read next, hand them to `receive`, which returns an event when one is whole.
    """

    @property
    def wanted(self) -> int:
        """Bytes to hand to `receive` before it can do anything with them."""

    def preamble(self) -> bytes:
        """What this side sends before its first event."""

    def may_send(self, kind: type[WireEvent]) -> bool:
        """Whether `send` would take an event of this kind now."""

    def batch(self, id: int, content: Runs, zero: Runs, buffers: Iterable[memoryview]) -> PageBatch:
        """The batch of these runs, for `Pages` and `Compare`; ``buffers`` hold what ``content`` names, one each."""

    def send(self, event: WireEvent, /) -> bytes:
        """The event's bytes, without the content of pages. Raises `LocalProtocolError` where it is not allowed now."""

    def receive(self, data: bytes | bytearray | memoryview, /) -> WireEvent | None:
        """Takes at most `wanted` bytes; returns the event that they complete, if any. Raises `PeerProtocolError`."""


OpenFormat = Callable[[Role], Format]
"""Opens one end of a stream."""
