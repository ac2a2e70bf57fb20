"""Peers that keep to the form of the protocol and play for time, or send what cannot be used: each is bounded."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from precopy.errors import PeerLost, PeerProtocolError
from precopy.machines.workload import Workload
from precopy.migration import Destination, HelloReader, MigrationOptions
from precopy.transport import SocketStream
from precopy.wire.default import DEFAULT_FORMAT
from precopy.wire.events import (
    Abort,
    Alive,
    DeviceState,
    Hello,
    Prepare,
    Ready,
    Role,
    RoundEnd,
    Welcome,
)
from precopy.wire.native import Codec, Frame
from support.live_guests import MIB, Ending, Pair, migrate, proxied_pair, runs_on
from support.patience import IN_TIME_S
from support.wire_proxy import SLOW_BYTES_PER_S, Fault, Harm

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.usefixtures("nothing_left")]


class ScriptedSource:
    """A source that says what it is told to, to a real destination that runs in a thread."""

    def __init__(self, guest: Any, timeout: float) -> None:
        self.guest = guest
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(IN_TIME_S)
        self._stream = SocketStream(theirs, "the source", timeout)
        self.codec = Codec(Role.SOURCE)
        self._preamble = Codec.preamble()
        self._ending: list[Ending] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="destination", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._ending.append(Ending.of(Destination(self.guest, self._stream, HelloReader(DEFAULT_FORMAT)).run))
        self._ended.set()
        self._stream.close()

    def send(self, frame: Frame) -> None:
        self.sock.sendall(self._preamble + self.codec.send(frame))
        self._preamble = b""

    def receive(self) -> Frame:
        frame = None
        while frame is None:
            data = self.sock.recv(self.codec.wanted)
            assert data, "the destination has closed the connection"
            frame = self.codec.receive(data)
        return frame

    def greet(self) -> None:
        self.send(Hello.of("0" * 32, self.guest.machine, self.guest.memory.layout))
        assert isinstance(self.receive(), Welcome)

    def until_refused(self, step: Callable[[], object], within: float) -> BaseException:
        """Repeats ``step`` until the destination has had enough; what it ends with."""
        end = time.monotonic() + within
        try:
            while not self._ending:
                assert time.monotonic() < end, "it goes on for ever"
                step()
                time.sleep(0.01)
        except (OSError, AssertionError):
            if not self._ending and time.monotonic() > end:
                raise
        return self.error()

    def error(self) -> BaseException:
        """What the destination ended with; its close may linger until this side closes."""
        assert self._ended.wait(IN_TIME_S)
        (ending,) = self._ending
        assert ending.error is not None
        return ending.error

    def close(self) -> None:
        self.sock.close()
        self._thread.join(IN_TIME_S)


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedSource]]:
    made: list[ScriptedSource] = []
    with Pair() as pair:

        def make(timeout: float = IN_TIME_S) -> ScriptedSource:
            made.append(ScriptedSource(pair.another(), timeout))
            return made[-1]

        try:
            yield make
        finally:
            for one in made:
                one.close()
                assert not one.guest.running


class TestDestinationHeldUp:
    """By a source that is never silent."""

    @pytest.fixture(autouse=True)
    def hasty(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("precopy.migration.destination._SYNC_S_PER_PAGE", 1e-4)

    def test_signs_of_life_for_ever(self, scripted: Callable[..., ScriptedSource]) -> None:
        source = scripted(0.5)
        source.greet()
        error = source.until_refused(lambda: source.send(Alive()), IN_TIME_S)
        assert isinstance(error, PeerProtocolError)
        assert "has sent nothing of its guest for" in str(error)

    def test_empty_rounds_for_ever(self, scripted: Callable[..., ScriptedSource]) -> None:
        source = scripted(0.5)
        source.greet()
        number = 0

        def empty_round() -> None:
            nonlocal number
            number += 1
            source.send(RoundEnd(number, 0, 0, False))
            source.receive()

        error = source.until_refused(empty_round, IN_TIME_S)
        assert isinstance(error, PeerProtocolError)
        assert "has sent nothing of its guest for" in str(error)
        assert number > 1


class TestSourceHeldUp:
    def test_a_link_that_is_slow_once_the_guest_is_paused(self) -> None:
        """Never silent, and faster than the slowest that is waited for: what bounds it is the switchover's own."""
        fault = Fault("source", "DeviceState", Harm.SLOW)
        options = MigrationOptions(verify=True, downtime_limit_s=0.3, on_timeout="switch")
        # A busy machine may itself be silent for a second, before there is a fault.
        struck = any(self._slow_once_paused(fault, options, timeout) for timeout in (1.0, 8.0))
        assert struck

    def _slow_once_paused(self, fault: Fault, options: MigrationOptions, timeout: float) -> bool:
        """Whether the fault struck."""
        with Pair(Workload("random", 1000), ram=32 * MIB, fill=1.0) as pair:
            with proxied_pair(fault, timeout) as (near, far, proxy):
                ended = migrate(pair.source, pair.destination, (near, far), options)
            assert isinstance(ended.source.error, PeerLost)
            assert ended.source.error.silent
            # All would take more than a minute. At that rate, bytes tell the time that a busy machine cannot stretch.
            assert proxy.slow_bytes < 40 * SLOW_BYTES_PER_S < 32 * MIB
            assert not pair.destination.ran
            runs_on(pair.source)
        return proxy.struck.is_set()


def _state_of(guest: Any) -> Any:
    return msgspec.msgpack.decode(guest.save_state())


def _tampered(state: Any) -> dict[str, bytes]:
    """States that no source sends, each by what is wrong with it."""
    pack = msgspec.msgpack.encode

    def with_vcpu(**changes: Any) -> bytes:
        return pack([{**state[0], **changes}])

    parts = state[0]["parts"]
    return {
        "none": b"",
        "garbage": b"\xc1" * 100,
        "deep": b"\x91" * 10_000,
        "no vCPU": pack([]),
        "two vCPUs": pack(state * 2),
        "many vCPUs": pack(state * 40),
        "version": with_vcpu(version=99),
        "version too large": with_vcpu(version=1 << 63),
        "no parts": with_vcpu(parts={}),
        "short part": with_vcpu(parts={**parts, "regs": parts["regs"][:-1]}),
        "long part": with_vcpu(parts={**parts, "xsave": parts["xsave"] + b"\0"}),
        "control registers": with_vcpu(parts={**parts, "sregs": b"\xff" * len(parts["sregs"])}),
        "extended control registers": with_vcpu(parts={**parts, "xcrs": b"\xff" * len(parts["xcrs"])}),
        "extended state": with_vcpu(parts={**parts, "xsave": b"\xff" * len(parts["xsave"])}),
        "debug registers": with_vcpu(parts={**parts, "debugregs": b"\xff" * len(parts["debugregs"])}),
        "events": with_vcpu(parts={**parts, "events": b"\xff" * len(parts["events"])}),
        "mp state": with_vcpu(parts={**parts, "mp_state": b"\xff" * len(parts["mp_state"])}),
        "odd CPUID": with_vcpu(cpuid=state[0]["cpuid"][:-1]),
        "much CPUID": with_vcpu(cpuid=bytes(40 * 257)),
        "an MSR that is none": with_vcpu(msrs=[[0xDEADBEEF, 1]]),
        "an MSR of more than 32 bits": with_vcpu(msrs=[[1 << 40, 1]]),
        "an MSR below 0": with_vcpu(msrs=[[-1, -1]]),
        "an EFER that cannot be": with_vcpu(msrs=[[0xC0000080, (1 << 64) - 1]]),
    }


TAMPERED = [
    "none", "garbage", "deep", "no vCPU", "two vCPUs", "many vCPUs", "version", "version too large", "no parts",
    "short part", "long part", "control registers", "extended control registers", "extended state", "debug registers",
    "events", "mp state", "odd CPUID", "much CPUID", "an MSR that is none", "an MSR of more than 32 bits",
    "an MSR below 0", "an EFER that cannot be",
]  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_a_state_that_was_tampered_with_is_the_peers_fault(what: str, scripted: Callable[..., ScriptedSource]) -> None:
    source = scripted()
    states = _tampered(_state_of(source.guest))
    assert sorted(states) == sorted(TAMPERED)
    source.greet()
    source.send(RoundEnd(1, 0, 0, True))
    source.receive()
    source.send(DeviceState(states[what]))
    source.send(Prepare(0))
    answer = source.receive()
    if isinstance(answer, Ready):  # this kernel takes it: then it does no harm before it runs
        assert what in ("extended state", "events", "debug registers", "extended control registers", "an MSR below 0")
        return
    assert isinstance(answer, Abort)
    error = source.error()
    assert isinstance(error, PeerProtocolError), error
    assert error.exit_code == 5
    assert "cannot be put into this machine" in str(error)
    assert answer.reason == str(error)
