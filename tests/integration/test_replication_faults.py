"""Replication over a wire that delays, breaks and damages, and with peers that do not keep to the protocol.

The standby never has a wrong copy: what it is promoted to is the state of one of the primary's points, to the byte.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import precopy
from precopy import Memory, Replication, Standby
from precopy.bitmap import Runs
from precopy.errors import (
    HelloMismatch,
    OutcomeUnknown,
    PeerError,
    PeerLost,
    PeerProtocolError,
    PeerRefused,
    PrecopyError,
)
from precopy.memory import RamLayout
from precopy.replication.hello import hello_of
from precopy.replication.progress import Phase
from precopy.transport import NAMED_STRANGERS
from precopy.transport.accept import MAX_CALLERS
from precopy.units import PAGE_SIZE
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
    Role,
    RoundAck,
    RoundEnd,
    Running,
    Welcome,
)
from precopy.wire.native import Codec, Frame, PageBatch
from support.live_guests import until
from support.patience import IN_TIME_S
from support.replicas import MIB, WORDS, Steps, Writers, replicated, same, stepping, words
from support.wire_proxy import HEADER_BYTES, LOST, Fault, Harm, ListeningProxy

pytestmark = [pytest.mark.needs("pagemap"), pytest.mark.usefixtures("nothing_left")]

TIMEOUT = 0.5
PATIENCE = IN_TIME_S
IN_TIME = PATIENCE / 2
PAGES = 200


class Story:
    """A replication of which every frame is known: a round, three points of which two bring pages, and a cutover; over
    a link with ``fault``. ``states`` are the memory at each point, by its number."""

    def __init__(self, folder: Path, fault: Fault | None, timeout: float, delay: float = 0.0) -> None:
        self.memory = Memory(PAGES * PAGE_SIZE)
        words(self.memory)[:] = 1
        self.states: dict[int, np.ndarray] = {}
        self.cut_over = False
        self.primary: BaseException | None = None
        began = time.perf_counter()
        with (
            Standby(f"unix:{folder}/standby", timeout=timeout) as standby,
            ListeningProxy(f"{folder}/proxy", f"{folder}/standby", fault, delay=delay) as listening,
        ):
            self.standby = standby
            with contextlib.suppress(PrecopyError):
                self._tell(f"unix:{folder}/proxy", timeout, lambda: _part(standby, listening))
            assert fault is None or listening.proxy.struck.wait(IN_TIME)
            with contextlib.suppress(PeerError):
                standby.wait(IN_TIME)
            self.error = standby.error
        assert time.perf_counter() - began < IN_TIME
        if standby.point:
            copy = standby.promote()
            assert np.array_equal(words(copy), self.states[standby.point])

    def _tell(self, address: str, timeout: float, part: Callable[[], None]) -> None:
        try:
            with (
                precopy.replicate(self.memory, address, interval=math.inf, timeout=timeout) as handle,
                contextlib.ExitStack() as parting,
            ):
                parting.callback(part)
                handle.wait(IN_TIME)
                for number in range(1, 4):
                    self.states[number] = words(self.memory).copy()
                    handle.checkpoint(wait=True)
                    words(self.memory)[number * 5 * WORDS : number * 9 * WORDS] = number
                    words(self.memory)[number * 100] = 0
                self.states[4] = words(self.memory).copy()
                with handle.cutover():
                    pass
                self.cut_over = True
        except BaseException as error:
            self.primary = error
            raise


def _part(standby: Standby, listening: ListeningProxy) -> None:
    """Once both have ended, so that no close has to wait for a peer that a silent wire hides."""
    with contextlib.suppress(PeerError):
        standby.wait(IN_TIME)
    listening.proxy.cut()


# Sender, frame, and which of them: every step of a replication.
STEPS = [
    ("source", "preamble", 1),
    ("source", "Hello", 1),
    ("destination", "preamble", 1),
    ("destination", "Welcome", 1),
    ("source", "Pages", 1),
    ("source", "RoundEnd", 1),
    ("destination", "RoundAck", 1),
    ("source", "Point", 1),
    ("destination", "PointAck", 1),
    ("source", "Pages", 2),
    ("source", "Point", 2),
    ("destination", "PointAck", 2),
    ("source", "Pages", 3),
    ("source", "Point", 3),
    ("destination", "PointAck", 3),
    ("source", "Point", 4),
    ("destination", "PointAck", 4),
]
GREETED = [step for step in STEPS if step[0] == "destination" or step[1] not in ("preamble", "Hello")]
"""Until its hello has come whole nobody is a primary, and the standby waits for another one: `TestStrangers`."""
FRAMES = [step for step in GREETED if step[1] != "preamble"]


def each(steps: list[tuple[str, str, int]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("sender", "frame", "nth"), steps, ids=["-".join(map(str, one)) for one in steps])


def reached(frame: str, nth: int) -> set[int]:
    """Points that the standby may have where the ``nth`` such frame is harmed."""
    if frame == "Point":
        return {nth - 1}
    if frame == "PointAck":
        return {nth}
    return {max(nth - 1, 0)} if frame == "Pages" else {0}


class TestBrokenWire:
    def test_the_story_itself(self, tmp_path: Path) -> None:
        story = Story(tmp_path, None, PATIENCE)
        assert story.primary is None
        assert story.error is None
        assert story.cut_over
        assert story.standby.point == 4

    @each(GREETED)
    @pytest.mark.parametrize("harm", [Harm.CUT, Harm.TRUNCATE], ids=["cut", "truncated"])
    def test_cut(self, tmp_path: Path, sender: str, frame: str, nth: int, harm: Harm) -> None:
        story = Story(tmp_path, Fault(sender, frame, harm, nth), PATIENCE)
        assert isinstance(story.primary, PeerLost)
        assert isinstance(story.error, PeerLost)
        assert not story.primary.silent
        assert story.standby.point in reached(frame, nth)

    @each(GREETED)
    def test_silence(self, tmp_path: Path, sender: str, frame: str, nth: int) -> None:
        story = Story(tmp_path, Fault(sender, frame, Harm.SILENCE, nth), TIMEOUT)
        assert isinstance(story.primary, PeerLost)
        assert isinstance(story.error, PeerLost)
        assert f"for {TIMEOUT:g} s" in str(story.primary)
        assert story.standby.point in reached(frame, nth)

    @each(FRAMES)
    @pytest.mark.parametrize("at", [0, 8, HEADER_BYTES - 1, HEADER_BYTES, -1], ids=str)
    def test_flipped_byte(self, tmp_path: Path, sender: str, frame: str, nth: int, at: int) -> None:
        story = Story(tmp_path, Fault(sender, frame, Harm.FLIP, nth, at), PATIENCE)
        assert isinstance(story.primary, PeerProtocolError | PeerRefused)
        assert isinstance(story.error, PeerProtocolError | PeerRefused)
        assert type(story.primary) is not type(story.error)  # one of them noticed, and told the other
        assert story.standby.point in reached(frame, nth)
        if frame == "Pages" and at == -1:
            assert "the link damages data" in str(story.primary)
            assert "the link damages data" in str(story.error)

    @each(FRAMES)
    @pytest.mark.parametrize("bit", [0, 3])
    def test_flipped_length(self, tmp_path: Path, sender: str, frame: str, nth: int, bit: int) -> None:
        story = Story(tmp_path, Fault(sender, frame, Harm.FLIP, nth, 4 + bit), TIMEOUT)
        for error in (story.primary, story.error):
            assert isinstance(error, PeerLost | PeerProtocolError | PeerRefused)

    def test_delay(self, tmp_path: Path) -> None:
        story = Story(tmp_path, None, PATIENCE, delay=0.03)
        assert story.cut_over
        assert story.standby.point == 4


class TestAroundTheCommit:
    @pytest.mark.parametrize("harm", [Harm.CUT, Harm.TRUNCATE, Harm.SILENCE])
    def test_lost_commit(self, tmp_path: Path, harm: Harm) -> None:
        story = Story(tmp_path, Fault("source", "Commit", harm), TIMEOUT)
        self.outcome_is_unknown(story)
        assert isinstance(story.error, PeerLost)
        assert story.standby.point == 4  # whoever promotes it has the exact memory

    @pytest.mark.parametrize("harm", LOST)
    def test_lost_answer(self, tmp_path: Path, harm: Harm) -> None:
        story = Story(tmp_path, Fault("destination", "Running", harm), TIMEOUT)
        self.outcome_is_unknown(story)
        assert story.error is None
        assert story.standby.point == 4

    def test_damaged_commit(self, tmp_path: Path) -> None:
        story = Story(tmp_path, Fault("source", "Commit", Harm.FLIP, at=9), PATIENCE)
        assert isinstance(story.error, PeerProtocolError)
        assert isinstance(story.primary, PeerRefused)
        assert not story.cut_over

    @staticmethod
    def outcome_is_unknown(story: Story) -> None:
        assert isinstance(story.primary, OutcomeUnknown)
        assert story.primary.session in str(story.primary)
        assert "the standby has the exact memory and may use it" in str(story.primary)
        assert not story.cut_over


class TestBusyProgramsOverABadWire:
    @pytest.mark.parametrize("seed", range(16))
    def test_any_harm_at_any_frame(self, tmp_path: Path, seed: int) -> None:
        """With a program that never stands still, and some delay."""
        chance = random.Random(seed)
        fault = Fault(
            chance.choice(["source", "source", "destination"]),
            "",
            chance.choice([Harm.CUT, Harm.TRUNCATE, Harm.FLIP]),
            nth=chance.randrange(2, 60),
            at=chance.randrange(-3000, 24),
        )
        fault = replace(fault, frame=chance.choice(["Pages", "Point"] if fault.sender == "source" else ["PointAck"]))
        memory, lock = Memory(chance.randrange(10, 1500) * PAGE_SIZE), threading.Lock()
        with (
            Standby(f"unix:{tmp_path}/standby", timeout=2) as standby,
            ListeningProxy(f"{tmp_path}/proxy", f"{tmp_path}/standby", fault, delay=chance.random() * 1e-3),
            stepping(memory, lock),
            precopy.replicate(memory, f"unix:{tmp_path}/proxy", interval=0.005, lock=lock, timeout=2) as handle,
        ):
            until(lambda: standby.error is not None)
            until(lambda: handle.error is not None)
            assert isinstance(standby.error, PeerError)
            assert isinstance(handle.error, PeerError)
            assert handle.progress.phase is Phase.FAILED
            if standby.point:
                assert Steps(standby.promote()).consistent()
            else:
                with pytest.raises(PeerError):
                    standby.promote()

    @pytest.mark.parametrize("seed", range(4))
    def test_a_cutover_over_a_slow_wire_is_exact(self, tmp_path: Path, seed: int) -> None:
        memory = Memory(4 * MIB)
        with (
            Standby(f"unix:{tmp_path}/standby") as standby,
            ListeningProxy(f"{tmp_path}/proxy", f"{tmp_path}/standby", delay=0.002 * (seed + 1)),
            precopy.replicate(memory, f"unix:{tmp_path}/proxy") as handle,
        ):
            with Writers(memory, 2) as writers:
                handle.wait(IN_TIME)
                time.sleep(0.1)
                writers.stop()
            with handle.cutover():
                assert same(memory, standby.memory)  # type: ignore[arg-type]
            assert same(memory, standby.promote())


class End:
    """A socket's end that is spoken to in frames, by somebody who keeps to their form, but not to their meaning."""

    def __init__(self, sock: socket.socket, role: Role) -> None:
        self.sock, self.codec = sock, Codec(role)
        self._preamble = Codec.preamble()
        self._ids = itertools.count()
        sock.settimeout(IN_TIME)

    def send(self, frame: Frame, content: bytes = b"", id: int | None = None) -> None:
        """``id``: the batch's, where it is not to be the next one."""
        if isinstance(frame, Pages):
            assert isinstance(frame.batch, PageBatch)
            frame = Pages(replace(frame.batch, id=next(self._ids) if id is None else id))
        self.sock.sendall(self._preamble + self.codec.send(frame) + content)
        self._preamble = b""

    def receive(self) -> Frame:
        frame = None
        while frame is None:
            data = self.sock.recv(self.codec.wanted)
            assert data, "the other side has closed the connection"
            frame = self.codec.receive(data)
        return frame


def batch(*runs: tuple[int, int], zero: tuple[tuple[int, int], ...] = (), content: bytes = b"") -> PageBatch:
    return PageBatch.of(0, Runs.of(*runs), Runs.of(*zero), [memoryview(content)] if content else [])


LAYOUT = RamLayout.of_blocks([("memory", 10 * PAGE_SIZE)])
SESSION = "0" * 32
FULL = b"\xff" * PAGE_SIZE


class Forger(End):
    """A primary of ten pages."""

    def __init__(self, standby: Standby, sock: socket.socket) -> None:
        super().__init__(sock, Role.SOURCE)
        self.standby = standby

    def hello(self) -> None:
        self.send(hello_of(SESSION, LAYOUT))
        assert self.receive() == Welcome(SESSION)

    def first_point(self) -> None:
        self.hello()
        self.send(Pages(batch((0, 1), zero=((1, 9),), content=FULL)), FULL)
        self.send(Point(1, 1, 10))
        assert self.receive() == PointAck(1)

    def refusal(self) -> str:
        """What the standby ends with, which it also says."""
        until(lambda: self.standby.error is not None)
        frame = self.receive()
        assert isinstance(frame, Abort)
        assert frame.reason == str(self.standby.error)
        assert isinstance(self.standby.error, PeerError)
        return frame.reason


@pytest.fixture
def forger() -> Iterator[Forger]:
    with (
        Standby("tcp:127.0.0.1:0") as standby,
        socket.create_connection(("127.0.0.1", int(standby.address.rpartition(":")[2]))) as sock,
    ):
        yield Forger(standby, sock)


class TestStrangers:
    """Who does not even say that it speaks the protocol is dropped, and the primary that comes after it is served."""

    @pytest.mark.parametrize("harm", [Harm.CUT, Harm.TRUNCATE, Harm.SILENCE])
    def test_a_hello_that_never_comes(self, tmp_path: Path, harm: Harm) -> None:
        memory = Memory(MIB)
        with Standby(f"unix:{tmp_path}/standby", timeout=PATIENCE) as standby:
            fault = Fault("source", "preamble", harm)
            with ListeningProxy(f"{tmp_path}/proxy", f"{tmp_path}/standby", fault) as wire:
                with pytest.raises(PeerLost):
                    precopy.replicate(memory, f"unix:{tmp_path}/proxy", timeout=TIMEOUT)
                wire.proxy.cut()
            self.serves(standby)

    @pytest.mark.parametrize(
        "fault",
        [
            *(Fault("source", "Hello", harm) for harm in (Harm.CUT, Harm.TRUNCATE, Harm.SILENCE)),
            *(Fault("source", "Hello", Harm.FLIP, 1, at) for at in (0, 4, 7, 8, HEADER_BYTES - 1, HEADER_BYTES, -1)),
        ],
        ids=lambda fault: f"{fault.harm.value}-{fault.at}",
    )
    def test_a_hello_that_does_not_come_whole(self, tmp_path: Path, fault: Fault) -> None:
        with Standby(f"unix:{tmp_path}/standby", timeout=PATIENCE) as standby:
            with ListeningProxy(f"{tmp_path}/proxy", f"{tmp_path}/standby", fault) as wire:
                with pytest.raises(PeerError):
                    precopy.replicate(Memory(MIB), f"unix:{tmp_path}/proxy", timeout=TIMEOUT)
                assert wire.proxy.struck.wait(IN_TIME)
                wire.proxy.cut()
            self.serves(standby)
            assert standby.error is None

    @pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"PRECOPY\n\xff\0\0\0\0\0\0\0"])
    def test_what_speaks_something_else(self, said: bytes) -> None:
        with Standby("tcp:127.0.0.1:0", timeout=PATIENCE) as standby:
            for _ in range(3):
                with socket.create_connection(("127.0.0.1", int(standby.address.rpartition(":")[2]))) as sock:
                    sock.sendall(said)
            self.serves(standby)

    def test_those_who_say_nothing_hold_up_nobody(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """They are more than are listened to at once, their time-out is longer than the whole test, and they stay."""
        with (
            Standby(f"unix:{tmp_path}/standby", timeout=10 * IN_TIME) as standby,
            contextlib.ExitStack() as stack,
        ):
            for number in range(MAX_CALLERS + 10):
                sock = stack.enter_context(socket.socket(socket.AF_UNIX))
                sock.connect(f"{tmp_path}/standby")
                sock.sendall(Codec.preamble()[: number % len(Codec.preamble())])
            began = time.monotonic()
            self.serves(standby)
            assert time.monotonic() - began < 10 * IN_TIME
        said = [record.getMessage() for record in caplog.records]
        assert sum("is no primary" in line for line in said) == NAMED_STRANGERS
        assert sum("without a word" in line for line in said) == 1

    def test_one_who_says_nothing_is_told_why_it_is_dropped(self, tmp_path: Path) -> None:
        """And the primary that comes then has the same time-out."""
        with (
            Standby(f"unix:{tmp_path}/standby", timeout=3.0) as standby,
            socket.socket(socket.AF_UNIX) as sock,
        ):
            sock.connect(f"{tmp_path}/standby")
            frame = End(sock, Role.SOURCE).receive()
            assert frame == Abort("it has not greeted within 3 s")
            assert not sock.recv(1)
            self.serves(standby)

    def test_a_primary_that_begins_and_sends_nonsense_is_dropped_too(self) -> None:
        with (
            Standby("tcp:127.0.0.1:0", timeout=IN_TIME) as standby,
            socket.create_connection(("127.0.0.1", int(standby.address.rpartition(":")[2]))) as sock,
        ):
            sock.settimeout(IN_TIME)
            sock.sendall(Codec.preamble() + b"\xff" * 100)
            assert isinstance(End(sock, Role.SOURCE).receive(), Abort)
            self.serves(standby)

    @staticmethod
    def serves(standby: Standby) -> None:
        memory = Memory(MIB)
        words(memory)[:] = 8
        with precopy.replicate(memory, standby.address) as handle:
            with handle.cutover():
                pass
            assert same(memory, standby.promote())

    def test_closing_while_a_stranger_is_there(self) -> None:
        with Standby("tcp:127.0.0.1:0", timeout=10 * IN_TIME) as standby:
            port = int(standby.address.rpartition(":")[2])
            with (
                socket.create_connection(("127.0.0.1", port)) as first,
                socket.create_connection(("127.0.0.1", port)) as sock,
            ):
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                sock.settimeout(IN_TIME)
                while sock.recv(1 << 16):  # until it is turned away: then the first one is there too
                    pass
                standby.close()
                assert End(first, Role.SOURCE).receive() == Abort(
                    "it has not greeted, and nobody is waited for any more"
                )
        assert standby.error is None


class TestHostilePrimary:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"session": "x"}, "session is not named"),
            ({"machine": "kvm x86_64, 1 vCPU"}, "the source has 'kvm x86_64, 1 vCPU', this side takes 'memory"),
            ({"page_size": 8192}, "pages have 8192 bytes"),
            ({"blocks": ()}, "not one block"),
            ({"blocks": (BlockClaim("memory", 0, 1), BlockClaim("more", 64, 1))}, "not one block"),
            ({"blocks": (BlockClaim("ram", 0, 1),)}, "not one block"),
            ({"blocks": (BlockClaim("memory", 64, 1),)}, "not one block"),
            ({"blocks": (BlockClaim("memory", 0, 0),)}, "not one block"),
            ({"blocks": (BlockClaim("memory", 0, -1),)}, "not one block"),
            ({"blocks": (BlockClaim("memory", 0, 1 << 36),)}, "are available here"),
            ({"blocks": (BlockClaim("memory", 0, (1 << 63) - 1),)}, "are available here"),
        ],
        ids=str,
    )
    def test_hello_that_does_not_fit(self, forger: Forger, change: dict[str, object], says: str) -> None:
        forger.send(replace(hello_of(SESSION, LAYOUT), **change))  # type: ignore[arg-type]
        assert says in forger.refusal()
        assert isinstance(forger.standby.error, HelloMismatch)

    def test_nothing_is_taken_for_a_claim(self, forger: Forger) -> None:
        from precopy.memory.system_memory import available_memory

        before, claim = resident(), (available_memory() or 4 << 30) // 2 // PAGE_SIZE
        forger.send(replace(hello_of(SESSION, LAYOUT), blocks=(BlockClaim("memory", 0, claim),)))
        assert forger.receive() == Welcome(SESSION)
        # Bookkeeping: a byte or two for each page that is claimed, of which none is written yet.
        assert resident() - before < 16 * MIB

    @pytest.mark.parametrize("run", [(10, 1), (9, 2), (0, 11), (1 << 35, 1)], ids=str)
    @pytest.mark.parametrize("zero", [False, True], ids=["content", "zero"])
    @pytest.mark.parametrize("staged", [False, True], ids=["straight", "staged"])
    def test_runs_outside(self, forger: Forger, run: tuple[int, int], zero: bool, staged: bool) -> None:
        (forger.first_point if staged else forger.hello)()
        forger.send(Pages(batch(zero=(run,)) if zero else batch(run)))
        assert "the source sends" in forger.refusal()
        self.has_its_point(forger, staged)

    @pytest.mark.parametrize(
        "point", [Point(1, 1, 1), Point(3, 1, 1), Point(0, 1, 1), Point(2, 2, 1), Point(2, 1, 2), Point(2, 0, 0)]
    )
    def test_point_that_does_not_add_up(self, forger: Forger, point: Point) -> None:
        forger.first_point()
        forger.send(Pages(batch((0, 1), content=bytes(PAGE_SIZE))), bytes(PAGE_SIZE))
        forger.send(point)
        assert f"point {point.number} claims {point.batches} batches" in forger.refusal()
        self.has_its_point(forger, True)

    @pytest.mark.parametrize("id", [0, 2, 1 << 63])
    def test_batch_that_is_not_due(self, forger: Forger, id: int) -> None:
        forger.first_point()
        with contextlib.suppress(OSError):  # it may have been refused already
            forger.send(Pages(batch((0, 1), content=bytes(PAGE_SIZE))), bytes(PAGE_SIZE), id)
        assert f"the source sends batch {id} where batch 1 is due" in forger.refusal()
        self.has_its_point(forger, True)

    def test_first_point_that_is_no_whole_memory(self, forger: Forger) -> None:
        forger.hello()
        forger.send(Pages(batch(zero=((0, 4), (5, 5)))))
        forger.send(Point(1, 1, 9))
        assert "1 pages of it have never come" in forger.refusal()
        self.has_its_point(forger, False)

    def test_first_point_with_a_torn_batch(self, forger: Forger) -> None:
        forger.hello()
        forger.send(Pages(batch((0, 10), content=FULL * 10)), FULL * 9 + bytes(PAGE_SIZE))
        forger.send(Point(1, 1, 10))
        assert "the link damages data" in forger.refusal()
        self.has_its_point(forger, False)

    def test_staged_batch_with_a_wrong_checksum(self, forger: Forger) -> None:
        forger.first_point()
        forger.send(Pages(batch((0, 1), content=FULL)), bytes(PAGE_SIZE))
        assert "the link damages data" in forger.refusal()
        self.has_its_point(forger, True)

    @pytest.mark.parametrize("runs", [((3, 1), (3, 1)), ((3, 2), (4, 1)), ((2, 3), (0, 3))], ids=str)
    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("zero", [False, True])
    def test_page_that_comes_twice(
        self, forger: Forger, runs: tuple[tuple[int, int], ...], apart: bool, zero: bool
    ) -> None:
        forger.first_point()
        for part in [runs[:1], runs[1:]] if apart else [runs]:
            content = b"" if zero else bytes(sum(pages for _, pages in part) * PAGE_SIZE)
            with contextlib.suppress(OSError):  # it may have been refused already
                forger.send(Pages(batch(zero=part) if zero else batch(*part, content=content)), content)
        assert "comes twice" in forger.refusal()
        self.has_its_point(forger, True)

    def test_page_as_content_and_as_zero(self, forger: Forger) -> None:
        forger.first_point()
        forger.send(Pages(batch((3, 1), zero=((3, 1),), content=FULL)))
        assert "comes twice" in forger.refusal()

    @pytest.mark.parametrize(
        "frame", [RoundEnd(1, 0, 0, True), DeviceState(b""), DeviceState(b"registers")], ids=lambda f: type(f).__name__
    )
    def test_frames_of_a_guest(self, forger: Forger, frame: Frame) -> None:
        forger.hello()
        forger.send(frame)
        said = forger.refusal()
        assert "without a point" in said or "no place in the replication" in said

    @pytest.mark.parametrize("frame", [Commit(), Compare(batch(zero=((0, 1),))), PointAck(1), Hello("", "", 1, ())])
    def test_frames_out_of_turn(self, forger: Forger, frame: Frame) -> None:
        from support.frames import NUMBERS, raw_frame

        forger.hello()
        honest = Codec(Role.SOURCE)
        honest.state = next(state for state in type(honest.state) for role in Role if _allows(state, role, type(frame)))
        honest.role = next(role for role in Role if _allows(honest.state, role, type(frame)))
        payload = honest.send(frame)[HEADER_BYTES:]
        forger.sock.sendall(raw_frame(NUMBERS[type(frame)], payload, 1))
        assert f"{type(frame).__name__} came from the source in state 'round'" in forger.refusal()

    def test_commit_with_pages_that_belong_to_no_point(self, forger: Forger) -> None:
        from support.frames import NUMBERS, raw_frame

        forger.first_point()
        forger.send(Pages(batch(zero=((0, 1),))))
        forger.sock.sendall(raw_frame(NUMBERS[Commit], b"\x80", 4))
        assert "Commit came from the source in state 'increment'" in forger.refusal()
        self.has_its_point(forger, True)

    def test_staging_takes_only_what_has_come(self, forger: Forger) -> None:
        forger.first_point()
        tracemalloc.start()
        try:
            for _ in range(50):
                forger.send(Alive())
            forger.sock.sendall(struct.pack("<BxxxIQQ", 3, 80000, 53, 0))  # a table that never comes
            time.sleep(0.1)
            assert tracemalloc.get_traced_memory()[1] < 2 * MIB
        finally:
            tracemalloc.stop()
        forger.sock.shutdown(socket.SHUT_WR)
        until(lambda: forger.standby.error is not None)
        self.has_its_point(forger, True)

    def test_point_that_comes_while_the_standby_is_promoted(self, forger: Forger) -> None:
        """It is whole and was taken from the wire; but whoever promotes was first, and never sees the memory change."""
        forger.first_point()
        with forger.standby._changed:
            forger.send(Pages(batch((0, 1), content=bytes(PAGE_SIZE))), bytes(PAGE_SIZE))
            forger.send(Point(2, 1, 1))
            time.sleep(0.1)  # it waits for what is held here
            forger.standby.promote()
        assert forger.receive() == Abort("the standby was promoted")
        forger.sock.close()
        forger.standby._thread.join(IN_TIME)
        assert forger.standby.error is None
        self.has_its_point(forger, True)

    def test_a_torn_batch_that_does_not_come_again(self, forger: Forger) -> None:
        """It is named in the answer to its round; the primary goes on as if it had not been told."""
        forger.hello()
        forger.send(Pages(batch((0, 4), zero=((4, 6),), content=FULL * 4)), FULL * 3 + bytes(PAGE_SIZE))
        forger.send(RoundEnd(1, 1, 10, False))
        assert forger.receive() == RoundAck(1, 10, (0,))
        forger.send(Pages(batch((0, 3), content=FULL * 3)), FULL * 3)
        forger.send(RoundEnd(2, 1, 3, False))
        assert forger.receive() == RoundAck(2, 3)
        forger.send(Pages(batch(zero=((5, 2),))))
        forger.send(Point(1, 1, 2))
        assert "5 pages of it came in batches that did not match, and not again" in forger.refusal()
        self.has_its_point(forger, False)

    def test_a_torn_batch_that_comes_again(self, forger: Forger) -> None:
        forger.hello()
        forger.send(Pages(batch((0, 1), zero=((1, 9),), content=FULL)), bytes(PAGE_SIZE))
        forger.send(RoundEnd(1, 1, 10, False))
        assert forger.receive() == RoundAck(1, 10, (0,))
        forger.send(Pages(batch((0, 1), zero=((1, 9),), content=FULL)), FULL)
        forger.send(Point(1, 1, 10))
        assert forger.receive() == PointAck(1)
        self.has_its_point(forger, True)

    @pytest.mark.parametrize("what", [Alive(), "rounds", "the same page"], ids=str)
    def test_one_that_says_much_and_brings_nothing(self, what: object) -> None:
        with (
            Standby("tcp:127.0.0.1:0", timeout=TIMEOUT) as standby,
            socket.create_connection(("127.0.0.1", int(standby.address.rpartition(":")[2]))) as sock,
        ):
            forger = Forger(standby, sock)
            forger.hello()
            forger.send(Pages(batch((0, 1), content=FULL)), FULL)
            forger.send(RoundEnd(1, 1, 1, False))
            assert forger.receive() == RoundAck(1, 1)
            number = 2
            with contextlib.suppress(OSError, PeerError):
                while standby.error is None:
                    if what == "rounds":
                        forger.send(RoundEnd(number, 0, 0, False))
                        assert forger.receive() == RoundAck(number, 0)
                        number += 1
                    elif isinstance(what, Alive):
                        forger.send(what)
                    else:
                        forger.send(Pages(batch((0, 1), content=FULL)), FULL)
                    time.sleep(0.01)
            assert isinstance(standby.error, PeerLost)
            assert "brings no new page for 1.5 s, and 9 pages have never come" in str(standby.error)

    def test_it_may_change_its_mind(self, forger: Forger) -> None:
        forger.first_point()
        forger.send(Pages(batch((0, 1), content=bytes(PAGE_SIZE))), bytes(PAGE_SIZE))
        forger.send(Abort("\x1b[31mno"))
        until(lambda: forger.standby.error is not None)
        assert str(forger.standby.error) == "the other side refused: ?[31mno"
        self.has_its_point(forger, True)

    @staticmethod
    def has_its_point(forger: Forger, there: bool) -> None:
        standby = forger.standby
        assert standby.point == int(there)
        if there:
            copy = standby.promote()
            assert bytes(copy.view) == FULL + bytes(9 * PAGE_SIZE)
        else:
            assert standby.memory is None
            with pytest.raises(PeerError):
                standby.promote()


def _allows(state: object, role: Role, frame: type[Frame]) -> bool:
    from precopy.wire.native.states import TRANSITIONS

    return (role, frame) in TRANSITIONS[state]  # type: ignore[index]


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * PAGE_SIZE


@contextlib.contextmanager
def forged_standby(greet: bool = True) -> Iterator[tuple[Callable[[], Replication], End]]:
    """Something that listens like a standby; call the first to have a memory of ten pages replicated to it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ends: list[End] = []
        there = threading.Event()

        def accept() -> None:
            sock, _ = server.accept()
            end = End(sock, Role.DESTINATION)
            ends.append(end)
            hello = end.receive()
            assert isinstance(hello, Hello)
            end.send(Welcome(hello.session if greet else SESSION))
            there.set()

        thread = threading.Thread(target=accept)
        thread.start()

        class Later(End):
            def __init__(self) -> None:
                pass

            def __getattr__(self, name: str) -> object:
                assert there.wait(IN_TIME)
                return getattr(ends[0], name)

            def send(self, frame: Frame, content: bytes = b"") -> None:
                assert there.wait(IN_TIME)
                ends[0].send(frame, content)

            def receive(self) -> Frame:
                assert there.wait(IN_TIME)
                return ends[0].receive()

        def go(**options: float) -> Replication:
            memory = Memory(10 * PAGE_SIZE)
            return precopy.replicate(memory, f"tcp:127.0.0.1:{server.getsockname()[1]}", **options)  # type: ignore[arg-type]

        try:
            yield go, Later()
        finally:
            thread.join(IN_TIME)
            for end in ends:
                end.sock.close()


class TestHostileStandby:
    def test_welcome_to_another_session(self) -> None:
        with (
            forged_standby(greet=False) as (go, _),
            pytest.raises(PeerProtocolError, match="welcomes another session"),
        ):
            go()

    @pytest.mark.parametrize(
        "answer",
        [RoundAck(1, 9), RoundAck(2, 10), RoundAck(1, 10, (1,)), RoundAck(1, 10, (-1,)), RoundAck(1, 10, (0, 0))],
    )
    def test_wrong_answer_to_a_round(self, answer: RoundAck) -> None:
        with forged_standby() as (go, end), go() as handle:
            until_frame(end, RoundEnd)
            end.send(answer)
            fails(handle, end, PeerProtocolError)

    def test_calls_torn_what_nobody_wrote(self) -> None:
        with forged_standby() as (go, end), go() as handle:
            until_frame(end, RoundEnd)
            end.send(RoundAck(1, 10, (0,)))
            fails(handle, end, PeerProtocolError)
            assert "the link damages data" in str(handle.error)

    @pytest.mark.parametrize("number", [0, 2, -1, 1 << 62])
    def test_wrong_answer_to_a_point(self, number: int) -> None:
        with forged_standby() as (go, end), go(interval=0.01, quiet=0) as handle:
            until_frame(end, RoundEnd)
            end.send(RoundAck(1, 10))
            until_frame(end, Point)
            end.send(PointAck(number))
            fails(handle, end, PeerProtocolError)

    def test_says_that_it_has_the_memory_before_the_commit(self) -> None:
        with forged_standby() as (go, end), go(interval=0.01, quiet=0) as handle:
            until_frame(end, RoundEnd)
            data = Codec(Role.DESTINATION)
            data.state = type(data.state).COMMITTING
            data._sent = 1
            end.sock.sendall(data.send(Running(0.0)))
            fails(handle, end, PeerProtocolError)
            assert "Running came from the destination in state 'round ended'" in str(handle.error)

    def test_never_answers(self) -> None:
        with forged_standby() as (go, end), go(timeout=1.0) as handle:
            until_frame(end, RoundEnd)
            fails(handle, end, PeerLost)

    def test_takes_nothing_while_it_is_closed(self) -> None:
        with forged_standby() as (go, end), go(timeout=PATIENCE) as handle:
            until_frame(end, RoundEnd)
            began = time.perf_counter()
            handle.close()
            assert time.perf_counter() - began < IN_TIME
            assert handle.error is None


def until_frame(end: End, kind: type[Frame]) -> Frame:
    """The next frame of ``kind``; takes what comes before it."""
    for _ in itertools.count():
        frame = end.receive()
        if isinstance(frame, kind):
            return frame
        if isinstance(frame, Pages):
            left = frame.batch.content.pages * PAGE_SIZE
            while left:
                left -= len(end.sock.recv(left))
    raise AssertionError


def fails(handle: Replication, end: End, kind: type[PeerError]) -> None:
    """The replication ends with an error of ``kind``, which every call raises."""
    until(lambda: handle.error is not None)
    end.sock.shutdown(socket.SHUT_RDWR)  # so that no close waits for it to read
    assert isinstance(handle.error, kind)
    with pytest.raises(kind):
        handle.wait()
    with pytest.raises(kind), handle.cutover():
        pass


def test_the_copy_of_a_failed_replication_can_be_made_anew(tmp_path: Path) -> None:
    memory = Memory(MIB)
    words(memory)[:] = 3
    with (
        Standby(f"unix:{tmp_path}/a") as standby,
        ListeningProxy(f"{tmp_path}/p", f"{tmp_path}/a", Fault("source", "Point", Harm.CUT)),
        precopy.replicate(memory, f"unix:{tmp_path}/p", interval=0.01) as handle,
    ):
        until(lambda: handle.error is not None and standby.error is not None)
    words(memory)[7] = 9
    with replicated(memory) as (standby, handle):
        with handle.cutover():
            pass
        assert same(memory, standby.promote())
