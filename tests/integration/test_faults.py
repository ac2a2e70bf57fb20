"""The wire broken in every state of the protocol, and peers that do not keep to it: the guest is never lost."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from precopy.bitmap import Runs
from precopy.errors import (
    Cancelled,
    HelloMismatch,
    LayoutError,
    OutcomeUnknown,
    PeerLost,
    PeerProtocolError,
    PeerRefused,
    PrecopyError,
)
from precopy.machines.workload import Workload
from precopy.memory import GuestMemory, RamLayout
from precopy.memory.captures.machines import machine_layout
from precopy.migration import Destination, HelloReader, MigrationOptions, Source
from precopy.transport import SocketStream
from precopy.wire.default import DEFAULT_FORMAT
from precopy.wire.events import (
    Abort,
    BlockClaim,
    Commit,
    Compare,
    DeviceState,
    Hello,
    Pages,
    Point,
    Prepare,
    Role,
    RoundAck,
    RoundEnd,
    Welcome,
)
from precopy.wire.native import Codec, Frame, PageBatch, State
from precopy.wire.native.states import TRANSITIONS
from support.live_guests import (
    ARRIVES,
    MIB,
    Ending,
    Endings,
    Pair,
    migrate,
    proxied_pair,
    runs_on,
    stands_still,
    stream_pair,
)
from support.patience import IN_TIME_S
from support.wire_proxy import HEADER_BYTES, LOST, PREAMBLE, Fault, Harm, Proxy

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.usefixtures("nothing_left")]

TIMEOUT = 0.5
"""Seconds that a peer may be silent in tests of silence."""
PATIENCE = IN_TIME_S
"""The same where the other side is told, or notices by itself, and so nobody has to wait for it."""
IN_TIME = PATIENCE / 2
"""A bound for the end of both sides: who keeps it has not waited for PATIENCE, and not for ever."""

REPLICATION = {State.POINT_ENDED, State.POINT, State.INCREMENT}
"""States that only a program's memory comes to; test_replication_faults.py breaks the wire in them."""
STEPS = [
    (state, role.value, frame.__name__)
    for state, moves in TRANSITIONS.items()
    for role, frame in moves
    if frame is not Abort and state not in REPLICATION and frame is not Point
]
"""Every step of a guest's migration: the state, and the frame that one side may send in it."""
BEFORE_COMMIT = [step for step in STEPS if step[2] not in ("Commit", "Running")]


def by_name(value: object) -> str:
    return value.value if isinstance(value, Harm) else str(value)


def every_step(steps: list[tuple[State, str, str]]) -> Any:
    names = [f"{state.value}-{frame}" for state, _, frame in steps]
    return pytest.mark.parametrize(("sender", "frame"), [step[1:] for step in steps], ids=names)


def test_the_steps_reach_every_state() -> None:
    assert {state for state, _, _ in STEPS} == set(State) - {State.DONE, State.CLOSED} - REPLICATION


class Broken:
    """A migration of a small guest over a link with a fault, and how both sides ended."""

    def __init__(self, pair: Pair, fault: Fault, timeout: float = PATIENCE) -> None:
        self.pair = pair
        options = ARRIVES
        with pytest.MonkeyPatch.context() as patch, proxied_pair(fault, timeout) as (near, far, proxy):
            if fault.frame == "Alive":  # which goes out in a long sync, as this then counts as one
                patch.setattr("precopy.migration.page_source.ALIVE_S", -1.0)
                options = replace(ARRIVES, clear="per-page")
            self.ended: Endings = migrate(pair.source, pair.destination, (near, far), options)
        self.proxy: Proxy = proxy
        assert proxy.struck.is_set()
        assert self.ended.source.seconds < IN_TIME
        assert self.ended.destination.seconds < IN_TIME
        assert pair.source.watch().both == pair.destination.watch().both == 0
        if pair.destination.ran:
            assert proxy.time_of("Commit") < pair.destination.watch().resumed_at[0]
            assert pair.destination.watch().unequal == []

    @property
    def source(self) -> BaseException | None:
        return self.ended.source.error

    @property
    def destination(self) -> BaseException | None:
        return self.ended.destination.error

    def guest_is_safe_at_the_source(self) -> None:
        assert not self.pair.destination.ran
        assert not self.pair.destination.running
        runs_on(self.pair.source)

    def guest_is_paused_at_the_source(self) -> None:
        assert isinstance(self.source, OutcomeUnknown)
        assert self.source.exit_code == 6
        assert self.source.session in str(self.source)
        stands_still(self.pair.source)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair(Workload("random", 50_000)) as pair:
        yield pair


@every_step(BEFORE_COMMIT)
class TestBeforeTheCommit:
    @pytest.mark.parametrize("harm", [Harm.CUT, Harm.TRUNCATE], ids=by_name)
    def test_cut(self, pair: Pair, sender: str, frame: str, harm: Harm) -> None:
        broken = Broken(pair, Fault(sender, frame, harm))
        for error in (broken.source, broken.destination):
            assert isinstance(error, PeerLost)
            assert not error.silent
            assert error.exit_code == 5
        broken.guest_is_safe_at_the_source()

    def test_silence(self, pair: Pair, sender: str, frame: str) -> None:
        broken = Broken(pair, Fault(sender, frame, Harm.SILENCE), TIMEOUT)
        for error in (broken.source, broken.destination):
            assert isinstance(error, PeerLost)
            assert error.silent
            assert f"for {TIMEOUT:g} s" in str(error)
        broken.guest_is_safe_at_the_source()

    def test_a_byte_now_and_then(self, pair: Pair, sender: str, frame: str) -> None:
        """A frame has a deadline from when it is waited for, whatever comes of it meanwhile."""
        broken = Broken(pair, Fault(sender, frame, Harm.DRIP), TIMEOUT)
        for error in (broken.source, broken.destination):
            assert isinstance(error, PeerLost | PeerRefused)
        assert any(isinstance(error, PeerLost) and error.silent for error in (broken.source, broken.destination))
        broken.guest_is_safe_at_the_source()

    @pytest.mark.parametrize(
        "at", [0, 8, HEADER_BYTES - 1, HEADER_BYTES], ids=["type", "number", "checksum", "payload"]
    )
    def test_flipped_byte(self, pair: Pair, sender: str, frame: str, at: int) -> None:
        broken = Broken(pair, Fault(sender, frame, Harm.FLIP, at=at))
        who, other = ("destination", "source") if sender == "source" else ("source", "destination")
        noticed, told = getattr(broken, who), getattr(broken, other)
        assert isinstance(noticed, PeerProtocolError)
        assert isinstance(told, PeerRefused)
        assert str(told) == f"the other side refused: {noticed}"
        broken.guest_is_safe_at_the_source()

    @pytest.mark.parametrize("bit", [0, 3])
    def test_flipped_length(self, pair: Pair, sender: str, frame: str, bit: int) -> None:
        """A wrong length within the bounds makes the reader wait for bytes that do not come, or read others."""
        broken = Broken(pair, Fault(sender, frame, Harm.FLIP, at=4 + bit), TIMEOUT)
        for error in (broken.source, broken.destination):
            assert isinstance(error, PeerLost | PeerProtocolError | PeerRefused)
        broken.guest_is_safe_at_the_source()


def test_paused_guest_does_not_wait_until_a_silent_peer_is_told() -> None:
    """In the last round the guest is paused and the peer stops taking anything: the guest goes on when that is clear
    (a call that sent a part and one that sent nothing, a time-out each), not after the peer could not be told, too."""
    timeout = 1.0
    fault = Fault("source", "Pages", Harm.SILENCE, rounds=1, only=lambda frame: frame.has_content)
    with Pair(Workload("random", None), ram=32 * MIB, fill=1.0) as pair:
        with proxied_pair(fault, timeout) as (near, far, proxy):
            options = MigrationOptions(
                max_bandwidth=400_000_000, downtime_limit_s=PATIENCE
            )  # the second round is the last
            ended = migrate(pair.source, pair.destination, (near, far), options)
        assert isinstance(ended.source.error, PeerLost)
        assert "takes nothing" in str(ended.source.error)
        resumed_at = pair.source.watch().resumed_at[-1]
        assert timeout < resumed_at - proxy.struck_at < IN_TIME
        assert ended.source.ended_at - resumed_at > 0.9 * timeout  # in which the peer could not be told
        runs_on(pair.source)


class TestAroundTheCommit:
    @pytest.mark.parametrize("harm", [Harm.CUT, Harm.TRUNCATE, Harm.SILENCE], ids=by_name)
    def test_lost_commit(self, pair: Pair, harm: Harm) -> None:
        broken = Broken(pair, Fault("source", "Commit", harm), TIMEOUT if harm is Harm.SILENCE else PATIENCE)
        broken.guest_is_paused_at_the_source()
        assert isinstance(broken.destination, PeerLost)
        assert not pair.destination.ran
        # The user finds that it does not run there, and decides.
        pair.source.resume()
        runs_on(pair.source)

    def test_commit_a_byte_now_and_then(self, pair: Pair) -> None:
        """The destination gives up before it is whole, and says so, or the source before it hears of that."""
        broken = Broken(pair, Fault("source", "Commit", Harm.DRIP), TIMEOUT)
        assert isinstance(broken.destination, PeerLost)
        assert not pair.destination.ran
        if isinstance(broken.source, OutcomeUnknown):
            broken.guest_is_paused_at_the_source()
        else:
            assert isinstance(broken.source, PeerRefused)
            broken.guest_is_safe_at_the_source()

    @pytest.mark.parametrize("at", [0, 8, HEADER_BYTES - 1], ids=["type", "number", "checksum"])
    def test_damaged_commit_is_refused_and_the_source_told(self, pair: Pair, at: int) -> None:
        broken = Broken(pair, Fault("source", "Commit", Harm.FLIP, at=at))
        assert isinstance(broken.destination, PeerProtocolError)
        assert isinstance(broken.source, PeerRefused)
        broken.guest_is_safe_at_the_source()

    @pytest.mark.parametrize("harm", LOST, ids=by_name)
    def test_lost_answer(self, pair: Pair, harm: Harm) -> None:
        waits = harm in (Harm.SILENCE, Harm.DRIP)
        broken = Broken(pair, Fault("destination", "Running", harm), TIMEOUT if waits else PATIENCE)
        broken.guest_is_paused_at_the_source()
        assert broken.destination is None
        assert broken.ended.destination.result.session == broken.source.session  # type: ignore[union-attr]
        runs_on(pair.destination)

    def test_answer_that_cannot_be_sent(self, pair: Pair) -> None:
        """The link is gone by the time at which the destination's guest runs: it runs, all the same."""
        with proxied_pair(None, PATIENCE) as (near, far, proxy):
            resume = pair.destination.resume

            def resume_and_cut() -> None:
                resume()
                proxy.cut()

            pair.destination.resume = resume_and_cut
            ended = migrate(pair.source, pair.destination, (near, far), ARRIVES)
        assert isinstance(ended.source.error, OutcomeUnknown)
        received = ended.destination.result
        assert received.session == ended.source.error.session
        assert not received.answered
        assert not pair.source.running
        runs_on(pair.destination)

    def test_destination_that_cannot_run_the_guest_says_so(self, pair: Pair) -> None:
        def fail() -> None:
            raise PrecopyError("no CPU is left")

        pair.destination.resume = fail
        with stream_pair(timeout=PATIENCE) as streams:
            ended = migrate(pair.source, pair.destination, streams, ARRIVES)
        assert str(ended.destination.error) == "no CPU is left"
        assert isinstance(ended.source.error, PeerRefused)
        assert "no CPU is left" in str(ended.source.error)
        assert not pair.destination.running
        runs_on(pair.source)

    def test_interrupt_after_the_guest_was_told_to_run_promises_nothing(self, pair: Pair) -> None:
        """No Abort may say that it does not run there: the source would run it a second time."""
        resume = pair.destination.resume

        def resume_and_interrupt() -> None:
            resume()
            raise KeyboardInterrupt

        pair.destination.resume = resume_and_interrupt
        with stream_pair(timeout=PATIENCE) as streams:
            ended = migrate(pair.source, pair.destination, streams, ARRIVES)
        assert isinstance(ended.destination.error, KeyboardInterrupt)
        assert isinstance(ended.source.error, OutcomeUnknown)
        assert not pair.source.running


class TestAfterwards:
    @pytest.mark.parametrize("frame", ["Pages", "RoundEnd", "DeviceState", "Prepare"])
    def test_failed_migration_can_be_tried_again(self, pair: Pair, frame: str) -> None:
        """No write is forgotten because a migration before this one was tracking it."""
        Broken(pair, Fault("source", frame, Harm.CUT)).guest_is_safe_at_the_source()
        pair.replace_destination(pair.another())
        with stream_pair() as streams:
            migrate(pair.source, pair.destination, streams, ARRIVES).migrated()
        assert pair.destination.watch().unequal == []
        stands_still(pair.source)
        runs_on(pair.destination)

    def test_cancelled_while_the_peer_takes_nothing(self, pair: Pair) -> None:
        with proxied_pair(Fault("source", "Pages", Harm.SILENCE), PATIENCE) as (near, far, proxy):
            source, destination = (
                Source(pair.source, near, ARRIVES, open_format=DEFAULT_FORMAT),
                Destination(pair.destination, far, HelloReader(DEFAULT_FORMAT)),
            )
            ending: list[Ending] = []
            threads = [
                threading.Thread(target=lambda: ending.append(Ending.of(source.run))),
                threading.Thread(target=lambda: Ending.of(destination.run)),
            ]
            for thread in threads:
                thread.start()
            assert proxy.struck.wait(IN_TIME_S)
            source.cancel()
            threads[0].join(IN_TIME_S)
            assert isinstance(ending[0].error, Cancelled)
            assert ending[0].error.exit_code == 130
            runs_on(pair.source)
            proxy.close()
            threads[1].join(IN_TIME_S)
        assert not pair.destination.ran


def refused(source_layout: RamLayout, destination_layout: RamLayout, **different: Any) -> str:
    """Why a destination of another layout refuses; checks that both sides say it and that the guest is safe."""
    with Pair(layout=source_layout, **different) as pair, stream_pair(timeout=PATIENCE) as streams:
        pair.replace_destination(pair.another(layout=destination_layout, vcpus=1))
        ended = migrate(pair.source, pair.destination, streams)
        assert isinstance(ended.destination.error, HelloMismatch)
        assert isinstance(ended.source.error, PeerRefused)
        assert ended.source.error.reason == str(ended.destination.error)
        assert not pair.destination.ran
        assert not any(host.words.any() for host in pair.destination.memory.hosts)
        runs_on(pair.source)
        return str(ended.destination.error)


class TestLayoutsThatDiffer:
    def test_size_of_a_block(self) -> None:
        said = refused(machine_layout("q35", 8 * MIB), machine_layout("q35", 12 * MIB))
        assert said == (
            f"RAM block 'pc.ram' has {8 * MIB} bytes at the source and {12 * MIB} here; start both sides with the "
            f"same --ram and --layout"
        )

    def test_size_of_a_small_block(self) -> None:
        """One page less in a block whose length is no multiple of 64 pages, so that all others stay where they are."""
        here = machine_layout("q35", 8 * MIB)
        sizes = [(block.name, block.pages * 4096 - 4096 * (block.name == "system.flash1")) for block in here.blocks]
        sections = [
            (section.block.name, section.offset * 4096, section.pages * 4096, section.gpa)
            for section in here.sections
            if section.block.name != "system.flash1"
        ]
        said = refused(RamLayout.of_blocks(sizes).mapped(sections), here)
        assert f"RAM block 'system.flash1' has {0x83000} bytes at the source and {0x84000} here" in said

    def test_block_that_is_missing_at_the_destination(self) -> None:
        here = machine_layout("flat", 8 * MIB)
        more = RamLayout.of_blocks([("ram", 8 * MIB), ("vga", MIB)]).mapped([("ram", 0, 8 * MIB, 0)])
        assert refused(more, here) == "RAM block 'vga' exists at the source and not here"

    def test_block_that_is_missing_at_the_source(self) -> None:
        here = machine_layout("flat", 8 * MIB)
        more = RamLayout.of_blocks([("ram", 8 * MIB), ("vga", MIB)]).mapped([("ram", 0, 8 * MIB, 0)])
        assert refused(here, more) == "RAM block 'vga' exists here and not at the source"

    def test_order_of_blocks(self) -> None:
        one = RamLayout.of_blocks([("ram", 8 * MIB), ("vga", MIB)]).mapped([("ram", 0, 8 * MIB, 0)])
        other = RamLayout.of_blocks([("vga", MIB), ("ram", 8 * MIB)]).mapped([("ram", 0, 8 * MIB, 0)])
        assert refused(one, other) == "RAM block 'vga' is at ram_addr page 2048 at the source and at 0 here"

    def test_number_of_vcpus(self) -> None:
        layout = machine_layout("flat", 4 * MIB)
        said = refused(layout, layout, vcpus=2)
        assert said == "the source's guest is 'kvm x86_64, 2 vCPUs', this side runs 'kvm x86_64, 1 vCPU'"


class Peer:
    """The other end of a connection to one real side, spoken to in bytes."""

    def __init__(self, run: Any, sock: socket.socket, stream: SocketStream) -> None:
        self.sock, self._stream = sock, stream
        self._endings: list[Ending] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True)
        self._thread.start()

    def _run(self, run: Any) -> None:
        self._endings.append(Ending.of(run))
        self._ended.set()
        self._stream.close()

    def ending(self) -> Ending:
        assert self._ended.wait(IN_TIME)
        return self._endings[0]

    def error(self) -> BaseException:
        error = self.ending().error
        assert error is not None
        return error

    def close(self) -> None:
        self.sock.close()
        self._thread.join(IN_TIME)


@contextlib.contextmanager
def waiting(timeout: float, layout: RamLayout | None = None) -> Iterator[tuple[Any, Peer]]:
    """A blank guest that waits for its source, and that source's end of the connection."""
    with Pair(layout=layout or "flat") as pair:
        ours, theirs = socket.socketpair()
        ours.settimeout(IN_TIME)
        stream = SocketStream(theirs, "the source", timeout)
        peer = Peer(Destination(pair.destination, stream, HelloReader(DEFAULT_FORMAT)).run, ours, stream)
        try:
            yield pair.destination, peer
        finally:
            peer.close()
        assert not pair.destination.ran
        assert not pair.destination.running


@pytest.fixture
def destination() -> Iterator[tuple[Any, Peer]]:
    with waiting(PATIENCE) as both:
        yield both


@pytest.fixture
def source() -> Iterator[tuple[Any, Peer]]:
    """A guest that is being migrated, and the end of the connection that its destination would hold."""
    with Pair() as pair:
        ours, theirs = socket.socketpair()
        ours.settimeout(IN_TIME)
        stream = SocketStream(theirs, "the destination", PATIENCE)
        peer = Peer(Source(pair.source, stream, ARRIVES, open_format=DEFAULT_FORMAT).run, ours, stream)
        try:
            yield pair.source, peer
        finally:
            peer.close()
        runs_on(pair.source)


class TestPeerThatSpeaksAnotherProtocol:
    WEB = b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"
    ANSWER = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"

    def test_web_client_at_the_destination(self, destination: tuple[Any, Peer]) -> None:
        _, peer = destination
        peer.sock.sendall(self.WEB)
        error = peer.error()
        assert isinstance(error, PeerProtocolError)
        assert str(error) == "the other side does not speak precopy: its first bytes are b'GET / HT'"

    def test_web_server_at_the_other_end_of_the_source(self, source: tuple[Any, Peer]) -> None:
        _, peer = source
        peer.sock.sendall(self.ANSWER)
        assert str(peer.error()) == "the other side does not speak precopy: its first bytes are b'HTTP/1.1'"

    @pytest.mark.parametrize("beginning", [b"", b"PRECOPY\n"])
    def test_peer_that_says_nothing_more(self, beginning: bytes) -> None:
        with waiting(TIMEOUT) as (_, peer):
            peer.sock.sendall(beginning)
            error = peer.error()
            assert isinstance(error, PeerLost)
            assert error.silent
            assert TIMEOUT <= peer.ending().seconds < IN_TIME

    @pytest.mark.parametrize("beginning", [b"", b"PRECOPY\n", Codec.preamble() + b"\x01"])
    def test_peer_that_leaves_early(self, destination: tuple[Any, Peer], beginning: bytes) -> None:
        _, peer = destination
        peer.sock.sendall(beginning)
        peer.sock.shutdown(socket.SHUT_WR)
        error = peer.error()
        assert isinstance(error, PeerLost)
        assert "closed the connection" in str(error)
        assert peer.ending().seconds < IN_TIME

    @pytest.mark.parametrize("sender", ["source", "destination"])
    def test_another_version_is_named_on_both_sides(self, pair: Pair, sender: str) -> None:
        # Bytes 8 and 9 of the preamble are the major version: 1 becomes 17.
        broken = Broken(pair, Fault(sender, PREAMBLE, Harm.FLIP, at=8))
        noticed, told = broken.destination, broken.source
        if sender == "destination":
            noticed, told = told, noticed
        assert isinstance(noticed, PeerProtocolError)
        assert str(noticed) == (
            "the other side speaks version 17.2 of the protocol, this side 1.2; use the same version of precopy on both"
        )
        assert isinstance(told, PeerRefused)
        assert "version 17.2" in str(told)
        assert noticed.exit_code == told.exit_code == 5
        broken.guest_is_safe_at_the_source()

    def test_newer_minor_version_is_understood(self, pair: Pair) -> None:
        with proxied_pair(Fault("source", PREAMBLE, Harm.FLIP, at=10), PATIENCE) as (near, far, _):
            migrate(pair.source, pair.destination, (near, far), ARRIVES).migrated()
        runs_on(pair.destination)


class Forger:
    """A source that keeps to the protocol's form, but not to its meaning."""

    def __init__(self, peer: Peer, guest: Any) -> None:
        self.peer, self.guest = peer, guest
        self.codec = Codec(Role.SOURCE)
        self._preamble = Codec.preamble()
        self._ids = itertools.count()

    def send(self, frame: Frame, content: bytes = b"", id: int | None = None) -> None:
        """``id``: the batch's, where it is not to be the next one."""
        if isinstance(frame, Pages | Compare):
            id = next(self._ids) if id is None else id
            frame = type(frame)(replace(frame.batch, id=id))
        self.peer.sock.sendall(self._preamble + self.codec.send(frame) + content)
        self._preamble = b""

    def send_raw(self, data: bytes) -> None:
        self.peer.sock.sendall(self._preamble + data)
        self._preamble = b""

    def hello(self) -> None:
        self.send(Hello.of("0" * 32, self.guest.machine, self.guest.memory.layout))
        assert isinstance(self.receive(), Welcome)

    def receive(self) -> Frame:
        frame = None
        while frame is None:
            data = self.peer.sock.recv(self.codec.wanted)
            assert data, "the destination has closed the connection"
            frame = self.codec.receive(data)
        return frame

    def refusal(self) -> str:
        """The sentence that the destination ends with, which it has also told the source."""
        error = self.peer.error()
        frame = self.receive()
        assert isinstance(frame, Abort)
        assert frame.reason == str(error)
        assert not any(host.words.any() for host in self.guest.memory.hosts)
        return frame.reason


def batch(*runs: tuple[int, int], zero: tuple[tuple[int, int], ...] = ()) -> PageBatch:
    return PageBatch.of(0, Runs.of(*runs), Runs.of(*zero), [])


@pytest.fixture
def gaps() -> Iterator[tuple[Any, Peer]]:
    """As `destination`, with three blocks: pages 0 to 1023, 1024 to 1026 and 1088 to 1097."""
    layout = RamLayout.of_blocks([("ram", 4 * MIB), ("odd", 3 * 4096), ("more", 10 * 4096)])
    with waiting(PATIENCE, layout.mapped([("ram", 0, 4 * MIB, 0)])) as both:
        yield both


class TestMaliciousSource:
    @pytest.mark.parametrize("zero", [False, True], ids=["content", "zero"])
    @pytest.mark.parametrize(
        "run",
        [(1027, 1), (1087, 1), (1024, 4), (1023, 2), (1026, 63), (1097, 2), (1098, 1), (1 << 35, 1)],
        ids=str,
    )
    def test_runs_outside_every_block(self, gaps: tuple[Any, Peer], run: tuple[int, int], zero: bool) -> None:
        forger = Forger(gaps[1], gaps[0])
        forger.hello()
        forger.send(Pages(batch(zero=(run,)) if zero else batch((0, 1), run)), b"\xff" * 4096)
        assert isinstance(gaps[1].error(), PeerProtocolError)
        assert "the source sends" in forger.refusal()

    @pytest.mark.parametrize(
        ("page", "pages"),
        [(1 << 62, 1), ((1 << 64) - 1, 1), (0, 1 << 63), (0, (1 << 64) - 1), (0, 4097), (0, 0)],
    )
    def test_runs_that_nobody_can_have(self, gaps: tuple[Any, Peer], page: int, pages: int) -> None:
        forger = Forger(gaps[1], gaps[0])
        forger.hello()
        honest = forger.codec.send(Pages(batch((0, 1))))
        forger.send_raw(reseal(honest, struct.pack("<QIIQQ", 0, 1, 0, page, pages)))
        assert isinstance(gaps[1].error(), PeerProtocolError)
        assert "a batch" in forger.refusal()

    @pytest.mark.parametrize(("content", "zero"), [(1001, 0), (0, 4097), (0xFFFFFFFF, 0xFFFFFFFF), (2, 0), (0, 0)])
    def test_batches_that_hold_fewer_runs_than_they_claim(
        self, gaps: tuple[Any, Peer], content: int, zero: int
    ) -> None:
        forger = Forger(gaps[1], gaps[0])
        forger.hello()
        honest = forger.codec.send(Pages(batch((0, 1))))
        forger.send_raw(reseal(honest, struct.pack("<QIIQQ", 0, content, zero, 0, 1)))
        assert "a batch" in forger.refusal()

    @pytest.mark.parametrize("number", range(1, 16))
    def test_huge_lengths_are_refused_unread(self, destination: tuple[Any, Peer], number: int) -> None:
        guest, peer = destination
        forger = Forger(peer, guest)
        tracemalloc.start()
        try:
            forger.send_raw(struct.pack("<BxxxIQQ", number, (1 << 32) - 1, 0, 0))
            assert "claims a" in forger.refusal()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 * MIB
        assert peer.ending().seconds < IN_TIME

    def test_length_within_its_bound_allocates_nothing_before_it_has_come(self, destination: tuple[Any, Peer]) -> None:
        guest, peer = destination
        forger = Forger(peer, guest)
        tracemalloc.start()
        try:
            forger.send_raw(struct.pack("<BxxxIQQ", 6, MIB, 0, 0))
            peer.sock.shutdown(socket.SHUT_WR)
            assert isinstance(peer.error(), PeerLost | PeerProtocolError)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2 * MIB

    def test_frame_out_of_turn(self, destination: tuple[Any, Peer]) -> None:
        guest, peer = destination
        forger = Forger(peer, guest)
        forger.codec.state = State.READY
        forger.send(Commit())
        assert forger.peer.error().args == (
            "Commit came from the source in state 'opening', where only Hello, Abort may come",
        )

    @pytest.mark.parametrize(
        ("number", "batches", "pages"), [(2, 1, 1), (0, 1, 1), (1, 2, 1), (1, 0, 1), (1, 1, 2), (1, 1, 0)]
    )
    def test_round_that_does_not_add_up(
        self, destination: tuple[Any, Peer], number: int, batches: int, pages: int
    ) -> None:
        guest, peer = destination
        forger = Forger(peer, guest)
        forger.hello()
        forger.send(Pages(batch(zero=((5, 1),))))
        forger.send(RoundEnd(number, batches, pages, False))
        assert "claims" in forger.refusal()

    @pytest.mark.parametrize("kind", [Pages, Compare])
    @pytest.mark.parametrize("id", [0, 2, (1 << 64) - 1])
    def test_batch_that_is_not_due(self, destination: tuple[Any, Peer], kind: type[Pages | Compare], id: int) -> None:
        guest, peer = destination
        forger = Forger(peer, guest)
        forger.hello()
        forger.send(Pages(batch(zero=((5, 1),))))
        if kind is Compare:
            forger.send(RoundEnd(1, 1, 1, True))
            forger.receive()
            forger.send(DeviceState(b""))
        forger.send(kind(batch(zero=((5, 1),))), id=id)
        assert forger.refusal() == f"the source sends batch {id} where batch 1 is due"

    @pytest.mark.parametrize("again", [None, 8, "zero", "whole"])
    def test_torn_batch_that_does_not_come_again(self, destination: tuple[Any, Peer], again: int | str | None) -> None:
        """It is named in the answer to its round; the source goes on as if it had not been told."""
        guest, peer = destination
        forger = Forger(peer, guest)
        forger.hello()
        content = b"\1" * 4096
        forger.send(Pages(batch((7, 1))), content)  # whose checksum is of no content
        forger.send(RoundEnd(1, 1, 1, False))
        ack = forger.receive()
        assert isinstance(ack, RoundAck)
        assert ack.torn == (0,)
        if isinstance(again, int):
            forger.send(Pages(PageBatch.of(0, Runs.of((again, 1)), Runs.of(), [memoryview(content)])), content)
        elif again == "zero":
            forger.send(Pages(batch(zero=((7, 1),))))
        elif again == "whole":
            forger.send(Pages(PageBatch.of(0, Runs.of((7, 1)), Runs.of(), [memoryview(content)])), content)
        forger.send(RoundEnd(2, int(again is not None), int(again is not None), True))
        forger.receive()
        forger.send(DeviceState(b""))
        forger.send(Prepare(0))
        torn = "1 pages of the guest came in batches that did not match, and have not come again"
        assert (torn in str(peer.error())) == (again not in ("zero", "whole"))
        assert forger.receive() == Abort(str(peer.error()))

    @pytest.mark.parametrize("page", [None, 5])
    def test_point_has_no_place_in_a_guests_migration(self, destination: tuple[Any, Peer], page: int | None) -> None:
        guest, peer = destination
        forger = Forger(peer, guest)
        forger.hello()
        if page is not None:
            forger.send(Pages(batch(zero=((page, 1),))))
        forger.send(Point(1, int(page is not None), int(page is not None)))
        assert isinstance(peer.error(), PeerProtocolError)
        assert forger.refusal() == "Point has no place here"

    @pytest.mark.parametrize("state", [b"", b"\x93", b"\xff" * 1000, b"\x90", b"\x91\x80"])
    def test_state_that_is_none(self, destination: tuple[Any, Peer], state: bytes) -> None:
        guest, peer = destination
        forger = Forger(peer, guest)
        forger.hello()
        forger.send(RoundEnd(1, 0, 0, True))
        forger.receive()
        forger.send(DeviceState(state))
        forger.send(Prepare(0))
        forger.refusal()

    def test_hello_with_other_blocks_is_refused_in_one_printable_line(self, destination: tuple[Any, Peer]) -> None:
        guest, peer = destination
        forger = Forger(peer, guest)
        hello = Hello.of("0" * 32, guest.machine, guest.memory.layout)
        claim = BlockClaim("\x1b[2Jevil\n" * 50, 1 << 20, 1)
        forger.send(replace(hello, blocks=(*hello.blocks, claim)))
        said = forger.refusal()
        assert said.isprintable()
        assert len(said) < 500

    def test_reason_of_a_peer_is_printable(self, source: tuple[Any, Peer]) -> None:
        _, peer = source
        codec = Codec(Role.DESTINATION)
        codec.state = State.GREETED
        peer.sock.sendall(Codec.preamble() + codec.send(Abort("\x1b[31mno\nway " + "x" * 10_000)))
        said = str(peer.error())
        assert said.isprintable()
        assert len(said) < 2100


def reseal(frame: bytes, payload: bytes) -> bytes:
    """The frame with another payload, and a checksum that is right for it."""
    import xxhash

    number, _, sequence, _ = struct.unpack_from("<BxxxIQQ", frame)
    head = struct.pack("<BxxxIQ", number, len(payload), sequence)
    return head + struct.pack("<Q", xxhash.xxh3_64(head + payload).intdigest()) + payload


class TestMaliciousDestination:
    """The source's guest is its own, whatever it hears."""

    def greet(self, peer: Peer) -> Codec:
        """A destination that has welcomed the source."""
        codec = Codec(Role.DESTINATION)
        frame = None
        while frame is None:
            frame = codec.receive(peer.sock.recv(codec.wanted))
        assert isinstance(frame, Hello)
        peer.sock.sendall(Codec.preamble() + codec.send(Welcome(frame.session)))
        return codec

    def test_welcome_to_another_session(self, source: tuple[Any, Peer]) -> None:
        _, peer = source
        codec = Codec(Role.DESTINATION)
        codec.state = State.GREETED
        peer.sock.sendall(Codec.preamble() + codec.send(Welcome("another")))
        assert str(peer.error()) == "the destination welcomes another session"

    @pytest.mark.parametrize("torn", [(0,), (99_999,), (-1,)])
    def test_acknowledges_what_was_not_sent(self, source: tuple[Any, Peer], torn: tuple[int, ...]) -> None:
        _, peer = source
        codec = self.greet(peer)
        codec.state = State.ROUND_ENDED
        from precopy.wire.events import RoundAck

        peer.sock.sendall(codec.send(RoundAck(1, 77, torn)))
        drain(peer.sock)
        assert isinstance(peer.error(), PeerProtocolError)

    def test_says_that_it_runs_before_the_commit(self, source: tuple[Any, Peer]) -> None:
        _, peer = source
        codec = self.greet(peer)
        codec.state = State.COMMITTING
        from precopy.wire.events import Running

        peer.sock.sendall(codec.send(Running(0.0)))
        drain(peer.sock)
        error = peer.error()
        assert isinstance(error, PeerProtocolError)
        assert "Running came from the destination in state" in str(error)


def drain(sock: socket.socket) -> None:
    """Takes all that comes, so that the other side is not held up."""
    while sock.recv(1 << 20):
        pass


def test_memory_of_a_failed_destination_is_given_back() -> None:
    """What a destination held is freed when its guest is closed, even where views of it are still about."""
    memory = GuestMemory(machine_layout("flat", 64 * MIB))
    memory.touch()
    held = memory.buffers(Runs.of((0, 16)))
    before = resident()
    memory.close()
    assert before - resident() > 60 * MIB
    assert len(held) == 1
    with pytest.raises(LayoutError):
        GuestMemory(machine_layout("flat", 64 * MIB + 1))


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * 4096
