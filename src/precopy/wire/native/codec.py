"""Frames to bytes and back, for one end of a stream: no sockets, no clocks, no threads.

Version policy: the preamble never changes its form. A peer of another major version is refused by name. A higher
minor version only adds fields to control records, which older readers skip, and frames for kinds of machine that an
older reader refuses by the name in `Hello`. 1.2 gave each batch of pages an id. A peer of 1.1 neither sends nor gets
one: its batches are counted here as they come, and the torn ones that it names count from its round's first.

Law 5: **The peer is not trusted.** Everything that it sends is checked before it is used: frame type against the table
of states, payload length against the type's bound before a byte of it is asked for, header and payload against their
checksum, records against their types. What fails is a `PeerProtocolError`; nothing is allocated because a peer claims
it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import xxhash

from precopy.bitmap import Runs
from precopy.errors import LocalProtocolError, PeerProtocolError
from precopy.wire.events import (
    Abort,
    Alive,
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
from precopy.wire.native.frames import MAX_BATCH_BYTES, Frame, PageBatch
from precopy.wire.native.states import State, allowed, next_state

MAGIC = b"PRECOPY\n"
MAJOR, MINOR = 1, 2
_IDS_SINCE = 2
"""The minor version that gave batches ids."""
_PREAMBLE = struct.Struct("<8sHHI")
_HEADER = struct.Struct("<BxxxIQQ")
"""Type, payload length, sequence number of the sender's frames, xxh3_64 of what precedes it and the payload."""
_CHECKSUM_BYTES = 8

_KIB = 1 << 10
_TYPES: dict[int, tuple[type[Any], int]] = {
    1: (Hello, 256 * _KIB),
    2: (Welcome, 4 * _KIB),
    3: (Pages, MAX_BATCH_BYTES),
    4: (RoundEnd, 4 * _KIB),
    5: (RoundAck, 640 * _KIB),
    6: (DeviceState, 1 << 20),
    7: (Compare, MAX_BATCH_BYTES),
    8: (Prepare, 4 * _KIB),
    9: (Ready, 64 * _KIB),
    10: (Commit, 64),
    11: (Running, 4 * _KIB),
    12: (Abort, 64 * _KIB),
    13: (Alive, 64),
    14: (Point, 4 * _KIB),
    15: (PointAck, 4 * _KIB),
}
"""Type number on the wire: the record and the largest payload it may have, in bytes."""
_NUMBERS = {record: number for number, (record, _) in _TYPES.items()}


class Codec:
    """One end's encoder and decoder, which keep the state that both ends share.

    Ask `wanted` for how many bytes to read next, hand them (all at once or in parts) to `receive`, which returns a
    frame when one is whole. After a `Pages` or `Compare` frame the content of its content runs follows on the stream;
    the caller reads that itself, straight into memory, and only then comes back here.
    """

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.OPENING
        self._sent = self._received = 0
        self._got = bytearray()
        self._header: tuple[type[Any], int, bytes] | None = None
        self._recognised = False
        self._peer_has_ids = True
        # The id after the last batch's, and the first of the round: what a peer without ids calls 0.
        self._next_id = self._round_began = 0

    @staticmethod
    def preamble() -> bytes:
        """What each side sends first."""
        return _PREAMBLE.pack(MAGIC, MAJOR, MINOR, 0)

    @staticmethod
    def batch(id: int, content: Runs, zero: Runs, buffers: Iterable[memoryview]) -> PageBatch:
        """The batch of these runs; ``buffers`` are what `content` holds, one for each run."""
        return PageBatch.of(id, content, zero, buffers)

    def may_send(self, kind: type[Frame]) -> bool:
        """Whether `send` would take a frame of this kind now."""
        return next_state(self.state, self.role, kind) is not None

    def send(self, frame: Frame) -> bytes:
        """The frame's bytes, header and payload. Raises `LocalProtocolError` where it is not allowed now."""
        after = next_state(self.state, self.role, type(frame))
        if after is None:
            raise LocalProtocolError(
                f"the {self.role.value} cannot send {type(frame).__name__} in state {self.state.value!r}, only "
                f"{', '.join(allowed(self.state, self.role)) or 'nothing'}"
            )
        payload = self._encode(frame)
        number, bound = _NUMBERS[type(frame)], _TYPES[_NUMBERS[type(frame)]][1]
        if len(payload) > bound:
            raise LocalProtocolError(f"{type(frame).__name__} of {len(payload)} bytes is over its bound of {bound}")
        head = _HEADER.pack(number, len(payload), self._sent, 0)[:-_CHECKSUM_BYTES]
        checksum = _checksum(head, payload)
        self._sent += 1
        self.state = after
        self._count(frame)
        return b"".join((head, checksum, payload))

    @property
    def wanted(self) -> int:
        """Bytes to hand to `receive` before it can do anything with them."""
        return self._size() - len(self._got)

    def receive(self, data: bytes | bytearray | memoryview) -> Frame | None:
        """Takes at most `wanted` bytes; returns the frame that they complete, if any. Raises `PeerProtocolError`."""
        if len(data) > self.wanted:
            raise LocalProtocolError(f"{len(data)} bytes were handed over, {self.wanted} are wanted")
        self._got += data
        if len(self._got) < self._size():
            return None
        got, self._got = bytes(self._got), bytearray()
        if not self._recognised:
            self._check_preamble(got)
            self._recognised = True
            return None
        if self._header is None:
            self._header = self._parse_header(got)
            # A payload of no bytes completes its frame here and now.
            return None if self._header[1] else self._frame(b"")
        return self._frame(got)

    def _size(self) -> int:
        if not self._recognised:
            return _PREAMBLE.size
        return _HEADER.size if self._header is None else self._header[1]

    def _check_preamble(self, got: bytes) -> None:
        magic, major, minor, _ = _PREAMBLE.unpack(got)
        if magic != MAGIC:
            raise PeerProtocolError(f"the other side does not speak precopy: its first bytes are {magic!r}")
        if major != MAJOR:
            raise PeerProtocolError(
                f"the other side speaks version {major}.{minor} of the protocol, this side {MAJOR}.{MINOR}; "
                f"use the same version of precopy on both"
            )
        self._peer_has_ids = minor >= _IDS_SINCE

    def _parse_header(self, got: bytes) -> tuple[type[Any], int, bytes]:
        number, length, sequence, _ = _HEADER.unpack(got)
        if number not in _TYPES:
            raise PeerProtocolError(f"frame {self._received} has the unknown type {number}")
        record, bound = _TYPES[number]
        if length > bound:
            raise PeerProtocolError(
                f"frame {self._received} claims a {record.__name__} of {length} bytes; the bound is {bound}"
            )
        if sequence != self._received:
            raise PeerProtocolError(f"frame {self._received} calls itself number {sequence}")
        return record, length, got

    def _frame(self, payload: bytes) -> Frame:
        assert self._header is not None
        record, _, header = self._header
        self._header = None
        if _checksum(header[:-_CHECKSUM_BYTES], payload) != header[-_CHECKSUM_BYTES:]:
            raise PeerProtocolError(f"frame {self._received} ({record.__name__}) does not match its checksum")
        after = next_state(self.state, self.role.other, record)
        if after is None:
            raise PeerProtocolError(
                f"{record.__name__} came from the {self.role.other.value} in state {self.state.value!r}, where only "
                f"{', '.join(allowed(self.state, self.role.other)) or 'nothing'} may come"
            )
        frame = self._decode(record, payload)
        self._received += 1
        self.state = after
        self._count(frame)
        return frame

    def _count(self, frame: Frame) -> None:
        if isinstance(frame, Pages | Compare):
            self._next_id = frame.batch.id + 1
        elif isinstance(frame, RoundAck | PointAck):
            self._round_began = self._next_id

    def _encode(self, frame: Frame) -> bytes:
        if isinstance(frame, Pages | Compare):
            if not isinstance(frame.batch, PageBatch):
                raise LocalProtocolError(
                    f"{type(frame.batch).__name__} is no batch of this format; `batch` makes those"
                )
            return frame.batch.encode(with_id=self._peer_has_ids)
        if isinstance(frame, DeviceState):
            return frame.state
        if isinstance(frame, RoundAck) and not self._peer_has_ids:
            frame = replace(frame, torn=tuple(id - self._round_began for id in frame.torn))
        return msgspec.msgpack.encode(frame)

    def _decode(self, record: type[Any], payload: bytes) -> Frame:
        if record is Pages or record is Compare:
            frame: Frame = record(PageBatch.decode(payload, self._next_id))
            return frame
        if record is DeviceState:
            return DeviceState(payload)
        try:
            frame = msgspec.msgpack.decode(payload, type=record)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise PeerProtocolError(f"a {record.__name__} frame cannot be read: {error}") from error
        if isinstance(frame, RoundAck) and not self._peer_has_ids:
            frame = replace(frame, torn=tuple(self._round_began + number for number in frame.torn))
        return frame


def _checksum(head: bytes, payload: bytes) -> bytes:
    state = xxhash.xxh3_64(head)
    state.update(payload)
    return state.intdigest().to_bytes(_CHECKSUM_BYTES, "little")
