"""The standby's sink of pages, over `PageSink`: straight into the memory until the first point, staged then.

Law: **A point is applied whole or not at all.** Until the first one, pages go straight into the memory, which is not
handed out yet. From then on they are staged (`StandbyStaging`), and `apply` puts them into the memory when the point
that ends them has come whole. What was in a torn batch and has not come again is in no point (`PageSink.check_whole`).
"""

from __future__ import annotations

from precopy.errors import PeerProtocolError
from precopy.memory import GuestMemory
from precopy.migration.page_sink import PageSink, Straight
from precopy.ports import ByteStream
from precopy.replication.room import Room
from precopy.replication.standby_staging import StandbyStaging
from precopy.wire.events import PageBatch, Point, RoundAck, RoundEnd


class PointSink:
    """Takes pages for ``memory``, which is all zero and has one block, from ``stream``. Every method raises
    `PeerProtocolError` where what comes is not what the protocol allows, and `HelloMismatch` where it is more than
    ``room`` has."""

    def __init__(self, memory: GuestMemory, stream: ByteStream, room: Room) -> None:
        straight = Straight(memory, room.check_system)
        self._staging = StandbyStaging(memory, straight, room)
        self._sink = PageSink(memory.layout, stream, straight)

    @property
    def missing(self) -> int:
        """Pages that have never come."""
        return self._sink.missing

    @property
    def rounds(self) -> int:
        return self._sink.round

    @property
    def point(self) -> int:
        """The last one that was applied; 0 before the first."""
        return self._staging.point

    @property
    def received_bytes(self) -> int:
        """Of content."""
        return self._sink.received_bytes

    @property
    def staged_bytes(self) -> int:
        return self._staging.bytes

    def pages(self, batch: PageBatch) -> None:
        """Takes a batch and its content. Raises `PeerLost`."""
        self._sink.take(batch)

    def end_round(self, end: RoundEnd) -> RoundAck:
        """What to answer to the end of a round."""
        if end.final:
            raise PeerProtocolError("the source ends its last round without a point")
        return self._sink.end_round(end)

    def end_point(self, point: Point) -> None:
        """Checks that all of ``point`` has come; changes nothing in the memory."""
        self._sink.end_point(point, self.point + 1)
        whole = f"point {self.point + 1} is no whole memory"
        self._sink.check_whole(
            missing=f"{whole}: {{}} pages of it have never come",
            doubtful=f"{whole}: {{}} pages of it came in batches that did not match, and not again",
        )

    def apply(self) -> None:
        """Makes the memory that of the point which `end_point` checked. Until this returns it is neither that nor the
        one before, and may not be read."""
        self._staging.apply()
        self._sink.landing = self._staging
