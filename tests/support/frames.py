"""The stream format written down a second time, without `Codec`, and conversations that use every frame."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import xxhash

from precopy.bitmap import Runs
from precopy.wire.events import (
    Abort,
    Alive,
    BlockClaim,
    Commit,
    Compare,
    DeviceState,
    Hello,
    Pages,
    Point,
    PointAck,
    Prepare,
    Ready,
    Role,
    RoundAck,
    RoundEnd,
    Running,
    Welcome,
)
from precopy.wire.native import Codec, Frame, PageBatch

PAGE = 64
"""Bytes of content for each page of a recorded conversation: the codec does not know the page size."""

NUMBERS: dict[type[Frame], int] = {
    Hello: 1,
    Welcome: 2,
    Pages: 3,
    RoundEnd: 4,
    RoundAck: 5,
    DeviceState: 6,
    Compare: 7,
    Prepare: 8,
    Ready: 9,
    Commit: 10,
    Running: 11,
    Abort: 12,
    Alive: 13,
    Point: 14,
    PointAck: 15,
}

PREAMBLE = b"PRECOPY\n" + bytes([1, 0, 2, 0]) + bytes(4)


def raw_frame(number: int, payload: bytes, sequence: int, length: int | None = None) -> bytes:
    """Type u8, three zero bytes, payload length u32, sequence u64, xxh3_64 of all before it and the payload; payload.

    ``length`` is what the header claims, where that is to be a lie.
    """
    head = struct.pack("<BxxxIQ", number, len(payload) if length is None else length, sequence)
    return head + struct.pack("<Q", xxhash.xxh3_64_intdigest(head + payload)) + payload


def raw_table(
    content: Sequence[tuple[int, int]], zero: Sequence[tuple[int, int]], checksum: int = 0, id: int = 0
) -> bytes:
    """A batch as it is on the wire; negative numbers are taken modulo 2**64."""
    numbers = [number % (1 << 64) for run in [*content, *zero] for number in run]
    return struct.pack(f"<QII{len(numbers) + 1}Q", checksum, len(content), len(zero), *numbers, id)


def content_of(content: Sequence[tuple[int, int]]) -> bytes:
    """Content of some runs, ``PAGE`` bytes for each page."""
    pages = (page for start, length in content for page in range(start, start + length))
    return b"".join(page.to_bytes(8, "little") * (PAGE // 8) for page in pages)


def batch(content: Sequence[tuple[int, int]], zero: Sequence[tuple[int, int]] = (), id: int = 0) -> PageBatch:
    """With the checksum of the content that `content_of` gives it."""
    return PageBatch.of(id, Runs.of(*content), Runs.of(*zero), [memoryview(content_of(content))])


HELLO = Hello("5e55", "kvm x86_64, 1 vCPU", 4096, (BlockClaim("pc.ram", 0, 65536), BlockClaim("flash", 65536, 892)))

SAMPLES: tuple[Frame, ...] = (
    HELLO,
    Welcome("5e55"),
    Pages(batch([(0, 3), (64, 1)], [(100, 4000)])),
    RoundEnd(1, 20, 4003, False),
    RoundAck(1, 4003, (0, 7, 19)),
    DeviceState(bytes(range(256))),
    Compare(batch([(1 << 34, 4096)])),
    Prepare(66428),
    Ready(66428, 0.004, (17, 1 << 40), 2, ("vCPU 0, page 3: its stamp is 4, after 9 steps it must be 7",)),
    Commit(),
    Running(0.00025),
    Alive(),
    Point(7, 20, 4003),
    PointAck(7),
    Abort("the user changed their mind \u2014 \U0001f600"),
)
"""One of each."""


def encoded(frame: Frame) -> Callable[[int], bytes]:
    """The bytes of ``frame`` as the ``sequence``-th one (after the preamble, where it is the first)."""
    if isinstance(frame, Pages | Compare):
        payload = frame.batch.encode()
    elif isinstance(frame, DeviceState):
        payload = frame.state
    else:
        payload = msgspec.msgpack.encode(frame)
    return lambda sequence: raw_frame(NUMBERS[type(frame)], payload, sequence)


@dataclass(frozen=True)
class Said:
    """One step of a conversation: who sends which frame, and the content that follows it on the stream."""

    sender: Role
    frame: Frame
    content: bytes = b""


def _pages(kind: type[Pages | Compare], of: PageBatch) -> Said:
    return Said(Role.SOURCE, kind(of), content_of(list(of.content)))


CONVERSATION: tuple[Said, ...] = (
    Said(Role.SOURCE, HELLO),
    Said(Role.DESTINATION, Welcome("5e55")),
    _pages(Pages, batch([(3, 2), (9, 1)], [(640, 10)])),
    _pages(Pages, batch([], [(700, 4096)], id=1)),
    Said(Role.SOURCE, Alive()),
    Said(Role.SOURCE, RoundEnd(1, 2, 4109, False)),
    Said(Role.DESTINATION, RoundAck(1, 4109, (0,))),
    _pages(Pages, batch([(3, 2)], id=2)),
    Said(Role.SOURCE, RoundEnd(2, 1, 2, True)),
    Said(Role.DESTINATION, RoundAck(2, 2)),
    Said(Role.SOURCE, DeviceState(b"registers and such")),
    _pages(Compare, batch([(3, 2)], id=3)),
    Said(Role.SOURCE, Prepare(2)),
    Said(Role.DESTINATION, Ready(2)),
    Said(Role.SOURCE, Commit()),
    Said(Role.DESTINATION, Running(0.001)),
)


REPLICATION: tuple[Said, ...] = (
    Said(Role.SOURCE, HELLO),
    Said(Role.DESTINATION, Welcome("5e55")),
    _pages(Pages, batch([(3, 2), (9, 1)], [(640, 10)])),
    Said(Role.SOURCE, RoundEnd(1, 1, 13, False)),
    Said(Role.DESTINATION, RoundAck(1, 13, (0,))),
    _pages(Pages, batch([(3, 2)], id=1)),
    Said(Role.SOURCE, Point(1, 1, 2)),
    Said(Role.DESTINATION, PointAck(1)),
    Said(Role.SOURCE, Alive()),
    _pages(Pages, batch([(5, 1)], [(7, 1)], id=2)),
    Said(Role.SOURCE, Alive()),
    _pages(Pages, batch([(640, 3)], id=3)),
    Said(Role.SOURCE, Point(2, 2, 5)),
    Said(Role.DESTINATION, PointAck(2)),
    Said(Role.SOURCE, Point(3, 0, 0)),
    Said(Role.DESTINATION, PointAck(3)),
    Said(Role.SOURCE, Commit()),
    Said(Role.DESTINATION, Running(0.0)),
)

CONVERSATIONS = {"migration": CONVERSATION, "replication": REPLICATION}


def recorded(sender: Role, conversation: tuple[Said, ...] = CONVERSATION) -> bytes:
    """All bytes that ``sender`` sends in the conversation."""
    codec, other = Codec(sender), Codec(sender.other)
    stream = codec.preamble()
    feed(codec, other.preamble())
    feed(other, stream)
    for said in conversation:
        if said.sender is sender:
            data = codec.send(said.frame)
            feed(other, data)
            stream += data + said.content
        else:
            feed(codec, other.send(said.frame))
    return stream


def feed(codec: Codec, data: bytes) -> list[Frame]:
    """Hands ``data`` over in the portions that the codec wants; returns the frames that came of it."""
    frames, at = [], 0
    while at < len(data):
        part = data[at : at + codec.wanted]
        at += len(part)
        frame = codec.receive(part)
        if frame is not None:
            frames.append(frame)
    return frames
