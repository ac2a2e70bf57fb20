"""Frames to bytes and back, and who may send what when."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from itertools import product

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Runs
from precopy.errors import LocalProtocolError, PeerProtocolError
from precopy.memory import RamLayout
from precopy.memory.layout import MAX_PAGES
from precopy.wire.events import (
    MAX_TORN,
    Abort,
    Commit,
    Compare,
    DeviceState,
    Hello,
    Pages,
    PointAck,
    Ready,
    Role,
    RoundAck,
    RoundEnd,
    Running,
    Welcome,
)
from precopy.wire.native import Codec, Frame, PageBatch, State
from precopy.wire.native.frames import MAX_BATCH_PAGES, MAX_BATCH_RUNS
from precopy.wire.native.states import TRANSITIONS
from support.frames import (
    CONVERSATIONS,
    HELLO,
    NUMBERS,
    PREAMBLE,
    SAMPLES,
    Said,
    batch,
    feed,
    raw_frame,
    raw_table,
    recorded,
)

U64 = 2**64 - 1
SENDERS = {type(said.frame): said.sender for spoken in CONVERSATIONS.values() for said in spoken}
each_conversation = pytest.mark.parametrize("spoken", CONVERSATIONS.values(), ids=CONVERSATIONS)


def codec_in(state: State, role: Role) -> Codec:
    """Greeted, and as if the conversation had come to ``state``."""
    codec = Codec(role)
    feed(codec, PREAMBLE)
    codec.state = state
    return codec


def state_that_allows(frame: Frame, sender: Role) -> State:
    return next(state for state, moves in TRANSITIONS.items() if (sender, type(frame)) in moves)


def payload_of(frame: Frame) -> bytes:
    sender = SENDERS.get(type(frame), Role.SOURCE)
    return codec_in(state_that_allows(frame, sender), sender).send(frame)[24:]


def ready_for(frame: Frame) -> Codec:
    """A codec to which ``frame`` may come next."""
    sender = SENDERS.get(type(frame), Role.SOURCE)
    return codec_in(state_that_allows(frame, sender), sender.other)


class TestBytes:
    """The format itself, held against a second writing of it."""

    def test_the_preamble(self) -> None:
        assert Codec.preamble() == PREAMBLE == b"PRECOPY\n\x01\x00\x02\x00\x00\x00\x00\x00"

    @pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
    def test_a_frame_is_header_checksum_and_payload(self, frame: Frame) -> None:
        sender = SENDERS.get(type(frame), Role.SOURCE)
        codec = codec_in(state_that_allows(frame, sender), sender)
        assert codec.send(frame) == raw_frame(NUMBERS[type(frame)], payload_of(frame), 0)

    def test_frames_are_counted(self) -> None:
        codec = codec_in(State.ROUND, Role.SOURCE)
        pages = Pages(batch([(1, 1)]))
        sequence = [struct.unpack_from("<Q", codec.send(pages), 8)[0] for _ in range(3)]
        assert sequence == [0, 1, 2]

    def test_control_records_are_msgpack_maps(self) -> None:
        assert msgspec.msgpack.decode(payload_of(RoundAck(3, 70, (1, 2)))) == {"number": 3, "pages": 70, "torn": [1, 2]}
        assert msgspec.msgpack.decode(payload_of(HELLO))["blocks"][1] == {
            "name": "flash",
            "first_page": 65536,
            "pages": 892,
        }

    def test_a_batch_is_a_table_of_runs(self) -> None:
        sent = replace(batch([(5, 1), (70, 2)], [(200, 7)], id=19), checksum=0xC0FFEE)
        assert sent.encode() == raw_table([(5, 1), (70, 2)], [(200, 7)], 0xC0FFEE, id=19)
        assert payload_of(Pages(sent)) == sent.encode()

    def test_device_state_is_the_payload_itself(self) -> None:
        assert payload_of(DeviceState(b"\x00opaque\xff")) == b"\x00opaque\xff"

    def test_hello_describes_the_layout(self) -> None:
        layout = RamLayout.of_blocks([("a", 5 << 12), ("b", 64 << 12)])
        hello = Hello.of("s", "m", layout)
        assert (hello.session, hello.machine, hello.page_size) == ("s", "m", 4096)
        assert [(claim.name, claim.first_page, claim.pages) for claim in hello.blocks] == [("a", 0, 5), ("b", 64, 64)]


class TestRoundTrip:
    @pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
    def test_whole(self, frame: Frame) -> None:
        data = raw_frame(NUMBERS[type(frame)], payload_of(frame), 0)
        assert feed(ready_for(frame), data) == [frame]

    @pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
    def test_byte_by_byte(self, frame: Frame) -> None:
        data = raw_frame(NUMBERS[type(frame)], payload_of(frame), 0)
        codec = ready_for(frame)
        frames = [codec.receive(data[at : at + 1]) for at in range(len(data))]
        assert frames[:-1] == [None] * (len(data) - 1)
        assert frames[-1] == frame

    @each_conversation
    @pytest.mark.parametrize("receiver", Role)
    def test_a_whole_conversation_moves_both_ends_alike(self, receiver: Role, spoken: tuple[Said, ...]) -> None:
        here, there = Codec(receiver), Codec(receiver.other)
        feed(here, there.preamble())
        feed(there, here.preamble())
        for said in spoken:
            sender, taker = (here, there) if said.sender is receiver else (there, here)
            assert feed(taker, sender.send(said.frame)) == [said.frame]
            assert here.state is there.state
        assert here.state is State.DONE

    def test_an_empty_payload_is_a_frame(self) -> None:
        codec = codec_in(State.ROUND, Role.DESTINATION)
        assert feed(codec, raw_frame(NUMBERS[DeviceState], b"", 0)) == [DeviceState(b"")]

    def test_a_higher_minor_version_may_add_fields(self) -> None:
        preamble = PREAMBLE[:10] + b"\x09\x00\x01\x02\x03\x04"
        codec = Codec(Role.SOURCE)
        feed(codec, preamble)
        codec.state = State.GREETED
        payload = msgspec.msgpack.encode({"session": "s", "invented": [1, {"later": None}]})
        assert feed(codec, raw_frame(NUMBERS[Welcome], payload, 0)) == [Welcome("s")]

    @given(
        st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 40)), max_size=40),
        st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 40)), max_size=40),
        st.integers(0, U64),
        st.integers(0, U64),
    )
    def test_batches(self, content: list[tuple[int, int]], zero: list[tuple[int, int]], checksum: int, id: int) -> None:
        if not content and not zero:
            return
        sent = replace(PageBatch.of(id, Runs.of(*content), Runs.of(*zero), []), checksum=checksum)
        assert sent.encode() == raw_table(content, zero, checksum, id)
        taken = PageBatch.decode(sent.encode())
        assert taken == sent
        assert (list(taken.content), list(taken.zero)) == (content, zero)

    def test_more_bytes_than_wanted_are_our_own_mistake(self) -> None:
        codec = Codec(Role.SOURCE)
        with pytest.raises(LocalProtocolError):
            codec.receive(bytes(codec.wanted + 1))


MOVES = list(product(State, Role, SAMPLES))


class TestStates:
    def test_the_table_is_that_of_the_protocol(self) -> None:
        """Every move, once more as a list."""
        source, destination = Role.SOURCE, Role.DESTINATION
        moves = {
            (state, sender, frame.__name__): after
            for state, row in TRANSITIONS.items()
            for (sender, frame), after in row.items()
            if frame is not Abort
        }
        assert moves == {
            (State.OPENING, source, "Hello"): State.GREETED,
            (State.GREETED, destination, "Welcome"): State.ROUND,
            (State.ROUND, source, "Alive"): State.ROUND,
            (State.ROUND, source, "Pages"): State.ROUND,
            (State.ROUND, source, "RoundEnd"): State.ROUND_ENDED,
            (State.ROUND_ENDED, destination, "RoundAck"): State.ROUND,
            (State.ROUND, source, "DeviceState"): State.SWITCHOVER,
            (State.ROUND, source, "Point"): State.POINT_ENDED,
            (State.POINT_ENDED, destination, "PointAck"): State.POINT,
            (State.POINT, source, "Alive"): State.POINT,
            (State.POINT, source, "Pages"): State.INCREMENT,
            (State.POINT, source, "Point"): State.POINT_ENDED,
            (State.POINT, source, "Commit"): State.COMMITTING,
            (State.INCREMENT, source, "Alive"): State.INCREMENT,
            (State.INCREMENT, source, "Pages"): State.INCREMENT,
            (State.INCREMENT, source, "Point"): State.POINT_ENDED,
            (State.SWITCHOVER, source, "Compare"): State.SWITCHOVER,
            (State.SWITCHOVER, source, "Prepare"): State.PREPARING,
            (State.PREPARING, destination, "Ready"): State.READY,
            (State.READY, source, "Commit"): State.COMMITTING,
            (State.COMMITTING, destination, "Running"): State.DONE,
        }
        aborts = {role: {state for state, row in TRANSITIONS.items() if (role, Abort) in row} for role in Role}
        assert aborts[destination] == set(State) - {State.DONE, State.CLOSED}
        assert aborts[source] == aborts[destination] - {State.COMMITTING}
        assert {row[role, Abort] for row in TRANSITIONS.values() for role in Role if (role, Abort) in row} == {
            State.CLOSED
        }

    def test_what_came_after_a_point_cannot_be_given_away(self) -> None:
        """A commit is of a whole point: the table has none from a state in which pages wait for theirs."""
        source = codec_in(State.POINT_ENDED, Role.SOURCE)
        feed(source, raw_frame(NUMBERS[PointAck], msgspec.msgpack.encode(PointAck(1)), 0))
        source.send(Pages(batch([(1, 1)])))
        with pytest.raises(LocalProtocolError, match="cannot send Commit in state 'increment'"):
            source.send(Commit())
        assert [state for state, row in TRANSITIONS.items() if (Role.SOURCE, Commit) in row] == [
            State.POINT,
            State.READY,
        ]

    @pytest.mark.parametrize(("state", "sender", "frame"), MOVES)
    def test_a_sender_does_what_the_table_allows_and_nothing_else(
        self, state: State, sender: Role, frame: Frame
    ) -> None:
        codec, after = codec_in(state, sender), TRANSITIONS[state].get((sender, type(frame)))
        if after is None:
            with pytest.raises(LocalProtocolError, match=rf"{sender.value} cannot send {type(frame).__name__}"):
                codec.send(frame)
            assert codec.state is state
            return
        codec.send(frame)
        assert codec.state is after

    @pytest.mark.parametrize(("state", "sender", "frame"), MOVES)
    def test_a_receiver_takes_what_the_table_allows_and_nothing_else(
        self, state: State, sender: Role, frame: Frame
    ) -> None:
        codec, after = codec_in(state, sender.other), TRANSITIONS[state].get((sender, type(frame)))
        data = raw_frame(NUMBERS[type(frame)], payload_of(frame), 0)
        if after is None:
            with pytest.raises(PeerProtocolError, match=rf"{type(frame).__name__} came from the {sender.value}"):
                feed(codec, data)
            assert codec.state is state
            return
        assert feed(codec, data) == [frame]
        assert codec.state is after

    def test_a_refused_send_uses_up_no_sequence_number(self) -> None:
        codec = codec_in(State.ROUND, Role.SOURCE)
        with pytest.raises(LocalProtocolError):
            codec.send(Commit())
        assert struct.unpack_from("<Q", codec.send(RoundEnd(1, 0, 0, False)), 8) == (0,)


def refused(codec: Codec, data: bytes, says: str | None = None) -> None:
    with pytest.raises(PeerProtocolError, match=says):
        feed(codec, data)


class TestRefusals:
    @pytest.mark.parametrize("magic", [b"PRECOPY\r", b"\x00" * 8, b"QEVM\x00\x00\x00\x03", b"GET / HT"])
    def test_another_magic(self, magic: bytes) -> None:
        refused(Codec(Role.SOURCE), magic + PREAMBLE[8:], "does not speak precopy")

    @pytest.mark.parametrize("major", [0, 2, 3, 65535])
    def test_another_major_version(self, major: int) -> None:
        preamble = PREAMBLE[:8] + struct.pack("<HHI", major, 3, 0)
        refused(Codec(Role.SOURCE), preamble, rf"version {major}\.3 of the protocol, this side 1\.2")

    @pytest.mark.parametrize("number", [0, 16, 200, 255])
    def test_an_unknown_type(self, number: int) -> None:
        refused(codec_in(State.ROUND, Role.DESTINATION), raw_frame(number, b"", 0), f"unknown type {number}")

    @pytest.mark.parametrize("sequence", [1, U64])
    def test_a_first_frame_that_is_not_number_0(self, sequence: int) -> None:
        refused(
            codec_in(State.ROUND, Role.DESTINATION),
            raw_frame(6, b"", sequence),
            f"frame 0 calls itself number {sequence}",
        )

    def test_a_frame_that_comes_again(self) -> None:
        codec = codec_in(State.ROUND, Role.DESTINATION)
        data = raw_frame(NUMBERS[Pages], raw_table([(1, 1)], []), 0)
        feed(codec, data)
        refused(codec, data, "frame 1 calls itself number 0")

    @pytest.mark.parametrize("byte", range(24 + 7))
    def test_a_changed_byte_anywhere_in_a_frame(self, byte: int) -> None:
        data = bytearray(raw_frame(NUMBERS[DeviceState], b"payload", 0))
        data[byte] ^= 0x55
        codec = codec_in(State.ROUND, Role.DESTINATION)
        if 4 <= byte < 8:  # a changed length: the codec waits for more, or finds the checksum wrong
            data += bytes(1 << 25)
        refused(codec, bytes(data))

    @pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
    def test_a_length_over_the_bound_is_refused_before_it_is_waited_for(self, frame: Frame) -> None:
        codec = ready_for(frame)
        header = raw_frame(NUMBERS[type(frame)], b"", 0, length=2**32 - 1)
        tracemalloc.start()
        try:
            refused(codec, header, r"claims a \w+ of 4294967295 bytes; the bound is \d+")
            assert tracemalloc.get_traced_memory()[1] < 1 << 16
        finally:
            tracemalloc.stop()

    def test_nothing_is_allocated_for_a_length_within_the_bound(self) -> None:
        codec = codec_in(State.ROUND, Role.DESTINATION)
        tracemalloc.start()
        try:
            feed(codec, raw_frame(NUMBERS[DeviceState], b"", 0, length=1 << 20))
            assert codec.wanted == 1 << 20
            assert tracemalloc.get_traced_memory()[1] < 1 << 16
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\xc1",
            b"\x00",
            b"\xc0",
            b"\x90",
            b"\x80",
            b"\x81\xa7session\x01",
            b"\x81\xa7session\xa5shor",
            b"\x82\xa7session\xa1s",
            b"\x81\xa7session\xa1s\x00",
            b"\x81\xa7session\xdb\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xdd\xff\xff\xff\xff",
            b"\x91" * 3000,
            b"\x81\xa7session\xa2\xff\xfe",
            b"\x81\xa2\xff\xfe\xa1s",
        ],
        ids=lambda payload: payload[:12].hex() or "empty",
    )
    def test_a_record_that_is_none(self, payload: bytes) -> None:
        refused(
            codec_in(State.GREETED, Role.SOURCE),
            raw_frame(NUMBERS[Welcome], payload, 0),
            "Welcome frame cannot be read",
        )

    @pytest.mark.parametrize(
        "fields",
        [
            {"number": "1", "pages": 0},
            {"number": 1.5, "pages": 0},
            {"number": 1, "pages": None},
            {"number": 1, "pages": 0, "torn": 3},
            {"number": 1, "pages": 0, "torn": ["0"]},
            {"number": 1},
        ],
    )
    def test_fields_of_another_type(self, fields: dict[str, object]) -> None:
        payload = msgspec.msgpack.encode(fields)
        refused(codec_in(State.ROUND_ENDED, Role.SOURCE), raw_frame(NUMBERS[RoundAck], payload, 0), "RoundAck frame")

    @pytest.mark.parametrize("cut", [1, 15, 16, 20, 24, 30])
    def test_a_cut_stream_gives_no_frame(self, cut: int) -> None:
        data = PREAMBLE + raw_frame(NUMBERS[Hello], payload_of(HELLO), 0)
        codec = Codec(Role.DESTINATION)
        assert feed(codec, data[:cut]) == []
        assert codec.state is State.OPENING
        assert codec.wanted > 0


class TestBounds:
    """What this side would send over a bound is this side's bug."""

    @pytest.mark.parametrize(
        ("frame", "sender", "state"),
        [
            (DeviceState(bytes((1 << 20) + 1)), Role.SOURCE, State.ROUND),
            (Abort("x" * (64 << 10)), Role.SOURCE, State.ROUND),
            (Welcome("x" * 5000), Role.DESTINATION, State.GREETED),
            (Ready(0, 0.0, (), 0, ("x" * (64 << 10),)), Role.DESTINATION, State.PREPARING),
            (Pages(batch([(2 * n, 1) for n in range(5200)])), Role.SOURCE, State.ROUND),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_too_large_a_frame_is_not_sent(self, frame: Frame, sender: Role, state: State) -> None:
        codec = codec_in(state, sender)
        with pytest.raises(LocalProtocolError, match="over its bound"):
            codec.send(frame)
        assert codec.state is state

    def test_the_largest_of_each_list_fits(self) -> None:
        torn = RoundAck(2**40, 2**40, tuple(range(U64 - MAX_TORN, U64)))
        data = codec_in(State.ROUND_ENDED, Role.DESTINATION).send(torn)
        assert feed(codec_in(State.ROUND_ENDED, Role.SOURCE), data) == [torn]
        content = [(2 * n, 1) for n in range(MAX_BATCH_RUNS)]
        zero = [(10**6 + 2 * n, 1) for n in range(MAX_BATCH_PAGES - MAX_BATCH_RUNS)]
        pages = Pages(batch(content, zero))
        data = codec_in(State.ROUND, Role.SOURCE).send(pages)
        assert feed(codec_in(State.ROUND, Role.DESTINATION), data) == [pages]


class TestWithoutIds:
    """A peer of version 1.1, whose batches have no ids and whose torn ones count from the round's first."""

    PREAMBLE_1_1 = struct.pack("<8sHHI", b"PRECOPY\n", 1, 1, 0)

    def opened(self, role: Role) -> Codec:
        codec = Codec(role)
        feed(codec, self.PREAMBLE_1_1)
        codec.state = State.ROUND
        return codec

    def test_a_source_sends_it_none_and_understands_its_torn_ones(self) -> None:
        codec = self.opened(Role.SOURCE)
        for number, (batches, torn) in enumerate(((3, (0, 2)), (2, (1,)), (1, ())), 1):
            first = sum((3, 2, 1)[: number - 1])
            for id in range(first, first + batches):
                payload = codec.send(Pages(batch([(3, 2)], id=id)))[24:]
                assert payload == batch([(3, 2)]).encode()[:-8]
            codec.send(RoundEnd(number, batches, 2 * batches, False))
            answer = raw_frame(NUMBERS[RoundAck], msgspec.msgpack.encode(RoundAck(number, 2, torn)), number - 1)
            assert feed(codec, answer) == [RoundAck(number, 2, tuple(first + index for index in torn))]

    def test_a_destination_counts_its_batches_and_names_torn_ones_as_it_does(self) -> None:
        codec = self.opened(Role.DESTINATION)
        sequence = due = 0
        for number in (1, 2):
            for _ in range(2):
                (came,) = feed(codec, raw_frame(NUMBERS[Pages], batch([(3, 2)], id=99).encode()[:-8], sequence))
                assert isinstance(came, Pages)
                assert came.batch.id == due
                sequence, due = sequence + 1, due + 1
            end = RoundEnd(number, 2, 4, False)
            assert feed(codec, raw_frame(NUMBERS[RoundEnd], msgspec.msgpack.encode(end), sequence)) == [end]
            sequence += 1
            sent = msgspec.msgpack.decode(codec.send(RoundAck(number, 4, (due - 1,)))[24:])
            assert sent["torn"] == [1]


class TestHostileTables:
    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            bytes(15),
            bytes(16),
            raw_table([], []),
            raw_table([(0, 1)], [])[:-1],
            raw_table([(0, 1)], []) + b"\x00",
            struct.pack("<QII", 0, 1, 0),
            struct.pack("<QII", 0, MAX_BATCH_RUNS + 1, 0),
            struct.pack("<QII", 0, 0, MAX_BATCH_PAGES + 1),
            struct.pack("<QII", 0, 2**32 - 1, 2**32 - 1),
            raw_table([(0, 1)] * (MAX_BATCH_RUNS + 1), []),
            raw_table([(0, 0)], []),
            raw_table([], [(0, 0)]),
            raw_table([(0, 1), (5, 0)], []),
            raw_table([(0, MAX_BATCH_PAGES + 1)], []),
            raw_table([(0, MAX_BATCH_PAGES)], [(9999, 1)]),
            raw_table([(0, MAX_BATCH_PAGES)] * 2, []),
            raw_table([(0, -1)], []),
            raw_table([(0, 1)], [(0, -1)]),
            raw_table([(0, 2**63)], []),
            raw_table([(0, 2**63 + 1), (0, 2**63)], []),
            raw_table([(-1, 1)], []),
            raw_table([(MAX_PAGES, 1)], []),
            raw_table([(2**62, 1)], []),
            raw_table([(2**63, 1)], []),
            raw_table([(2**63 - 1, 4096)], []),
            raw_table([(U64 - 4095, 4096)], []),
        ],
        ids=lambda payload: payload[:48].hex() or "empty",
    )
    def test_are_refused(self, payload: bytes) -> None:
        with pytest.raises(PeerProtocolError):
            PageBatch.decode(payload)
        for kind in (Pages, Compare):
            state = State.ROUND if kind is Pages else State.SWITCHOVER
            refused(codec_in(state, Role.DESTINATION), raw_frame(NUMBERS[kind], payload, 0))

    def test_the_largest_that_may_be(self) -> None:
        taken = PageBatch.decode(raw_table([(MAX_PAGES - 1, MAX_BATCH_PAGES)], []))
        assert list(taken.content) == [(MAX_PAGES - 1, MAX_BATCH_PAGES)]
        assert taken.pages == MAX_BATCH_PAGES

    def test_a_claim_is_not_allocated(self) -> None:
        payload = struct.pack("<QII", 0, MAX_BATCH_RUNS, MAX_BATCH_PAGES)
        tracemalloc.start()
        try:
            with pytest.raises(PeerProtocolError):
                PageBatch.decode(payload)
            assert tracemalloc.get_traced_memory()[1] < 1 << 14
        finally:
            tracemalloc.stop()

    @given(st.lists(st.tuples(st.integers(0, U64), st.integers(0, U64)), max_size=6), st.integers(0, 6))
    def test_whatever_is_taken_is_small_and_positive(self, runs: list[tuple[int, int]], content: int) -> None:
        try:
            taken = PageBatch.decode(raw_table(runs[:content], runs[content:]))
        except PeerProtocolError:
            return
        assert [*taken.content, *taken.zero] == runs
        assert 0 < sum(pages for _, pages in runs) == taken.pages <= MAX_BATCH_PAGES
        assert all(pages > 0 for _, pages in runs)


class TestChecksum:
    content = bytes(range(256)) * 32
    sent = PageBatch.of(3, Runs.of((5, 2)), Runs.of((9, 1)), [memoryview(content)])

    def test_is_of_the_table_and_the_content(self) -> None:
        assert self.sent.checksum == xxhash.xxh3_64_intdigest(raw_table([(5, 2)], [(9, 1)])[16:-8] + self.content)

    def test_does_not_depend_on_how_the_content_is_cut(self) -> None:
        assert self.sent.matches([memoryview(self.content[:4096]), memoryview(self.content[4096:])])

    @pytest.mark.parametrize("at", [0, 4095, 8191])
    def test_finds_a_changed_byte(self, at: int) -> None:
        changed = bytearray(self.content)
        changed[at] ^= 1
        assert not self.sent.matches([memoryview(changed)])

    @pytest.mark.parametrize(
        ("content", "zero"), [([(6, 2)], [(9, 1)]), ([(5, 2)], [(9, 2)]), ([(5, 2)], []), ([(5, 1), (6, 1)], [(9, 1)])]
    )
    def test_finds_a_changed_table(self, content: list[tuple[int, int]], zero: list[tuple[int, int]]) -> None:
        taken = PageBatch.decode(raw_table(content, zero, self.sent.checksum))
        assert not taken.matches([memoryview(self.content)])

    def test_survives_the_wire(self) -> None:
        assert PageBatch.decode(self.sent.encode()).matches([memoryview(self.content)])


@each_conversation
def test_the_recorded_conversation_is_the_format(spoken: tuple[Said, ...]) -> None:
    sequence, expected = 0, PREAMBLE
    for said in spoken:
        if said.sender is Role.SOURCE:
            expected += raw_frame(NUMBERS[type(said.frame)], payload_of(said.frame), sequence) + said.content
            sequence += 1
    assert recorded(Role.SOURCE, spoken) == expected


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize(("record", "field"), [(Ready, "load_s"), (Running, "resume_s")])
def test_a_time_that_is_none_is_refused(record: type[Ready | Running], field: str, seconds: float) -> None:
    state = State.PREPARING if record is Ready else State.COMMITTING
    payload = msgspec.msgpack.encode({"compared": 1, field: seconds})
    refused(codec_in(state, Role.SOURCE), raw_frame(NUMBERS[record], payload, 0), "is said to have taken")
