"""What a hostile or a damaged stream can do to the codec: end it with `PeerProtocolError`, and nothing else."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from precopy.errors import LayoutError, PeerProtocolError
from precopy.memory import RamLayout
from precopy.wire.events import (
    Abort,
    Compare,
    DeviceState,
    Pages,
    Role,
)
from precopy.wire.native import Codec, Frame, PageBatch, State
from precopy.wire.native.frames import MAX_BATCH_PAGES, MAX_BATCH_RUNS
from precopy.wire.native.states import TRANSITIONS
from support.frames import CONVERSATIONS, NUMBERS, PREAMBLE, SAMPLES, raw_frame, raw_table, recorded

Part = tuple[str, Role]
"""A conversation, and who listens in it."""

RECEIVERS: list[Part] = list(product(CONVERSATIONS, Role))
STREAMS = {(name, receiver): recorded(receiver.other, CONVERSATIONS[name]) for name, receiver in RECEIVERS}
EXPECTED = {
    (name, receiver): [said.frame for said in CONVERSATIONS[name] if said.sender is not receiver]
    for name, receiver in RECEIVERS
}


class _Stream:
    """Hands out bytes until there are no more."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes | None:
        if self.at + count > len(self.data):
            return None
        self.at += count
        return self.data[self.at - count : self.at]


def listen(part: Part, data: bytes) -> tuple[list[Frame], bool]:
    """Plays the receiver's part in the conversation while the other side's bytes are ``data``.

    Returns the frames taken, and whether content that was taken matched its batch's checksum throughout. Ends with the
    stream; raises what the codec raises.
    """
    name, receiver = part
    codec, stream = Codec(receiver), _Stream(data)
    frames: list[Frame] = []
    intact = True
    for said in CONVERSATIONS[name]:
        if said.sender is receiver:
            codec.send(said.frame)
            continue
        frame = None
        while frame is None:
            some = stream.take(codec.wanted)
            if some is None:
                return frames, intact
            frame = codec.receive(some)
        frames.append(frame)
        if isinstance(frame, Pages | Compare):
            content = stream.take(len(said.content))
            if content is None:
                return frames, intact
            intact &= frame.batch.matches([memoryview(content)])
    return frames, intact


def never_wrong(receiver: Part, data: bytes) -> bool:
    """Whether all of the conversation arrived; fails where a frame arrived that nobody sent."""
    expected = EXPECTED[receiver]
    try:
        frames, intact = listen(receiver, data)
    except PeerProtocolError:
        return False
    assert frames == expected[: len(frames)]
    return intact and len(frames) == len(expected)


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_the_conversation_itself_is_heard(receiver: Part) -> None:
    assert never_wrong(receiver, STREAMS[receiver])


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_no_flipped_bit_goes_unnoticed(receiver: Part) -> None:
    """All of them. Only the preamble's minor version and its reserved bytes may have any value."""
    stream = STREAMS[receiver]
    unnoticed = set()
    for at in range(len(stream)):
        for bit in range(8):
            damaged = bytearray(stream)
            damaged[at] ^= 1 << bit
            if never_wrong(receiver, bytes(damaged)):
                unnoticed.add(at)
    assert unnoticed == set(range(10, 16))


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_no_truncation_goes_unnoticed(receiver: Part) -> None:
    stream = STREAMS[receiver]
    assert not any(never_wrong(receiver, stream[:length]) for length in range(len(stream)))


@given(st.sampled_from(RECEIVERS), st.data())
def test_any_damage_is_noticed(receiver: Part, data: st.DataObject) -> None:
    stream = STREAMS[receiver]
    damaged = bytearray(stream)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(16, len(damaged) - 1))
        new = data.draw(st.binary(max_size=9))
        damaged[at : at + data.draw(st.integers(0, 9))] = new
    whole = never_wrong(receiver, bytes(damaged))
    assert not whole or damaged.startswith(stream)


@given(st.sampled_from(RECEIVERS), st.data())
def test_parts_that_change_places_are_noticed(receiver: Part, data: st.DataObject) -> None:
    stream = STREAMS[receiver]
    a, b, c = sorted(data.draw(st.lists(st.integers(16, len(stream)), min_size=3, max_size=3)))
    swapped = stream[:a] + stream[b:c] + stream[a:b] + stream[c:]
    assert never_wrong(receiver, swapped) == (swapped == stream)


@given(st.sampled_from(RECEIVERS), st.binary(max_size=300), st.booleans())
def test_random_bytes_give_no_frame(receiver: Part, data: bytes, greeted: bool) -> None:
    never_wrong(receiver, PREAMBLE + data if greeted else data)


def codec_that_waits_for(kind: type[Frame]) -> Codec:
    """In the first state in which ``kind`` may come."""
    state, sender = next((state, role) for state, row in TRANSITIONS.items() for role, frame in row if frame is kind)
    codec = Codec(sender.other)
    codec.receive(PREAMBLE)
    codec.state = state
    return codec


def hear(kind: type[Frame], payload: bytes) -> Frame | None:
    """What a well-formed header with its right checksum makes of ``payload``, or None where it is refused."""
    codec = codec_that_waits_for(kind)
    before = codec.state
    data = raw_frame(NUMBERS[kind], payload, 0)
    try:
        frame = codec.receive(data[:24])
        if frame is None:
            frame = codec.receive(data[24:])
    except PeerProtocolError:
        assert codec.state is before
        return None
    assert type(frame) is kind
    return frame


RECORDS = [kind for kind in NUMBERS if kind not in (Pages, Compare, DeviceState)]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.builds(msgspec.msgpack.Ext, st.integers(-128, 127), st.binary(max_size=8))
)
FIELDS = ["name", "first_page", *sorted({name for kind in RECORDS for name in kind.__dataclass_fields__})]
keys = st.sampled_from(FIELDS) | st.text(max_size=4)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)


@given(st.sampled_from(RECORDS), st.binary(max_size=64))
@example(Abort, b"\x81\xa6reason\xa2\xff\xfe")
def test_any_payload_under_a_right_checksum_is_a_record_or_refused(kind: type[Frame], payload: bytes) -> None:
    hear(kind, payload)


@given(st.sampled_from(RECORDS), values)
def test_any_msgpack_is_a_record_or_refused(kind: type[Frame], value: object) -> None:
    hear(kind, msgspec.msgpack.encode(value))


@given(st.sampled_from(SAMPLES), st.data())
def test_a_record_with_damaged_msgpack_has_its_types_or_is_refused(frame: Frame, data: st.DataObject) -> None:
    if isinstance(frame, Pages | Compare | DeviceState):
        return
    payload = bytearray(msgspec.msgpack.encode(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(payload)))
        payload[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    heard = hear(type(frame), bytes(payload))
    if heard is not None:
        assert msgspec.convert(msgspec.to_builtins(heard), type(frame)) == heard or "nan" in repr(heard)


u64 = st.integers(0, 5) | st.integers(0, 2**64 - 1) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64 - 1])


@given(st.integers(0, 16), st.integers(0, 2**32 - 1), u64, st.sampled_from(list(product(State, Role))))
def test_no_header_makes_the_codec_ask_for_more_than_its_bound(
    number: int, length: int, sequence: int, where: tuple[State, Role]
) -> None:
    codec = Codec(where[1])
    codec.receive(PREAMBLE)
    codec.state = where[0]
    try:
        codec.receive(raw_frame(number, b"", sequence, length=length))
    except PeerProtocolError:
        return
    assert codec.wanted <= 16 << 20


runs = st.lists(st.tuples(u64, u64), max_size=5)


@given(runs, runs, u64)
def test_no_table_reaches_outside_of_a_memory(
    content: list[tuple[int, int]], zero: list[tuple[int, int]], checksum: int
) -> None:
    layout = RamLayout.of_blocks([("a", 5 << 12), ("b", 3 << 12)])
    try:
        batch = PageBatch.decode(raw_table(content, zero, checksum))
    except PeerProtocolError:
        return
    assert 0 < batch.pages <= MAX_BATCH_PAGES
    for part, claimed in ((batch.content, content), (batch.zero, zero)):
        inside = all(page + pages <= 5 or (page >= 64 and page + pages <= 67) for page, pages in claimed)
        try:
            layout.block_of(part)
        except LayoutError:
            assert not inside
        else:
            assert inside


@given(st.binary(max_size=200), st.integers(0, MAX_BATCH_RUNS + 5), st.integers(0, 5))
def test_any_bytes_are_a_table_or_refused(data: bytes, content: int, zero: int) -> None:
    for payload in (data, data[:8] + content.to_bytes(4, "little") + zero.to_bytes(4, "little") + data[8:]):
        try:
            batch = PageBatch.decode(payload)
        except PeerProtocolError:
            continue
        assert batch.encode() == payload
