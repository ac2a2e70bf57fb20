"""The engine speaks any format: whole migrations in one that shares no byte with precopy's own."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec
import pytest

from precopy.bitmap import NO_RUNS, Runs
from precopy.errors import LocalProtocolError, PeerProtocolError
from precopy.wire import events
from precopy.wire.default import DEFAULT_FORMAT
from precopy.wire.events import Abort, Compare, PageBatch, Pages, Role, WireEvent
from precopy.wire.format import Format
from precopy.wire.native import Codec, State
from support.scripted import OPTIONS, migrate

_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class _Unsummed:
    """A batch of a format that has no checksums, as QEMU's stream has none."""

    id: int
    content: Runs
    zero: Runs

    @property
    def pages(self) -> int:
        return self.content.pages + self.zero.pages

    def matches(self, _buffers: Iterable[memoryview]) -> bool:
        return True


class _Json:
    """Each event is its length and a JSON list of its name and its fields; there is no preamble, no numbering and no
    table of states but that an end is silent after it gave up."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self._over = False
        self._got = bytearray()
        self._length: int | None = None

    @property
    def wanted(self) -> int:
        return (_LENGTH.size if self._length is None else self._length) - len(self._got)

    def preamble(self) -> bytes:
        return b""

    def may_send(self, _kind: type[WireEvent]) -> bool:
        return not self._over

    def batch(self, id: int, content: Runs, zero: Runs, _buffers: Iterable[memoryview]) -> PageBatch:
        return _Unsummed(id, content, zero)

    def send(self, event: WireEvent) -> bytes:
        self._over = self._over or isinstance(event, Abort)
        fields: object = event
        if isinstance(event, Pages | Compare):
            both = (event.batch.content, event.batch.zero)
            fields = event.batch.id, [[(int(first), int(pages)) for first, pages in runs] for runs in both]
        text = msgspec.json.encode([type(event).__name__, fields])
        return _LENGTH.pack(len(text)) + text

    def receive(self, data: bytes | bytearray | memoryview) -> WireEvent | None:
        self._got += data
        if self.wanted:
            return None
        got, self._got = bytes(self._got), bytearray()
        if self._length is None:
            (self._length,) = _LENGTH.unpack(got)
            return None
        self._length = None
        name, fields = msgspec.json.decode(got)
        kind = getattr(events, name)
        if kind in (Pages, Compare):
            id, both = fields
            return kind(_Unsummed(id, *(Runs.of(*runs) for runs in both)))
        return msgspec.json.decode(msgspec.json.encode(fields), type=kind)  # bytes are base64 in JSON


@pytest.mark.parametrize("verify", [False, True])
def test_a_guest_migrates_in_another_format(verify: bool) -> None:
    run = migrate(replace(OPTIONS, verify=verify), open_format=_Json)
    assert run.source_error is None
    assert run.destination_error is None
    assert run.done is not None
    assert len(run.done.rounds) > 1
    assert run.destination.running
    assert not run.source.running
    run.destination.pause()
    assert run.equal
    assert run.world.broken == []


def test_two_formats_do_not_understand_each_other() -> None:
    """The peer is refused and the guest stays, whichever format the source speaks."""
    speaks = iter((_Json, DEFAULT_FORMAT))

    def one_each(role: Role) -> Format:
        return next(speaks)(role)

    run = migrate(open_format=one_each)
    assert isinstance(run.destination_error, PeerProtocolError)
    assert run.source.running
    assert run.world.ran.count("destination") == 0


def test_the_format_makes_the_batches_that_it_sends() -> None:
    codec = Codec(Role.SOURCE)
    codec.state = State.ROUND
    with pytest.raises(LocalProtocolError, match="_Unsummed is no batch of this format"):
        codec.send(Pages(_Unsummed(0, Runs.of((0, 1)), NO_RUNS)))


def test_precopys_own_format_is_the_one_that_is_chosen() -> None:
    assert isinstance(DEFAULT_FORMAT(Role.SOURCE), Codec)
