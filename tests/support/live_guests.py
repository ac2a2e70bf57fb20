"""Real guests and real sockets for whole migrations inside one process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from precopy.abi.kvm import EXIT_IO
from precopy.machines.emulated import EmulatedGuest
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload, params, params_gpa
from precopy.machines.workload.image import words_at
from precopy.memory import GuestMemory, RamLayout
from precopy.memory.captures.machines import machine_layout
from precopy.migration import Destination, Event, HelloReader, Migrated, MigrationOptions, Received, Recorder, Source
from precopy.ports import DestinationVm, SourceVm
from precopy.transport import Address, Listener, SocketStream, connect
from precopy.units import PAGE_SIZE
from precopy.wire.default import DEFAULT_FORMAT

from .patience import IN_TIME_S
from .wire_proxy import Fault, Proxy

MIB = 1 << 20
ARRIVES = MigrationOptions(verify=True, on_timeout="switch")
"""For tests of what arrives, and how: where a machine is so slow, or so busy, that its guest does not converge, the
migration switches over all the same."""


@dataclass
class Watch:
    """What a `Watched` guest notes. ``twins`` counts comparisons with the paused source at the moment of resuming,
    ``unequal`` names blocks that differed then; ``both`` is how often it was resumed while the other side ran."""

    resumed_at: list[float] = field(default_factory=list)
    states: list[bytes] = field(default_factory=list)
    twins: int = 0
    unequal: list[str] = field(default_factory=list)
    both: int = 0


class Watched:
    """Mixed into a guest: whenever it is resumed it is held against the guest at the other side, ``other``.

    That is the one moment at which both have to be paused with the same memory and the same state.
    """

    memory: GuestMemory
    running: bool
    other: Any = None

    def watch(self) -> Watch:
        if not hasattr(self, "_watch"):
            self._watch = Watch()
        return self._watch

    @property
    def ran(self) -> bool:
        return bool(self.watch().resumed_at)

    def resume(self) -> None:
        watch = self.watch()
        other = self.other
        if other is not None:
            watch.both += other.running
            if not self.ran and other.ran:  # a destination's first breath
                watch.twins += 1
                watch.unequal += different_blocks(self.memory, other.memory)
                watch.states.append(self.save_state())  # type: ignore[attr-defined]
        watch.resumed_at.append(time.perf_counter())
        super().resume()  # type: ignore[misc]


class WatchedKvmGuest(Watched, KvmGuest):
    """A `KvmGuest` that is watched."""


class WatchedEmulatedGuest(Watched, EmulatedGuest):
    """An `EmulatedGuest` that is watched."""


WatchedGuest = WatchedKvmGuest | WatchedEmulatedGuest


def different_blocks(one: GuestMemory, other: GuestMemory) -> list[str]:
    """Names of the blocks whose content differs, byte for byte."""
    return [
        block.name for block in one.layout.blocks if not np.array_equal(one.host(block).words, other.host(block).words)
    ]


class Pair:
    """A booted guest that runs, and a blank one to take its place; both are closed at the end of the ``with`` block."""

    def __init__(
        self,
        workload: Workload | None = None,
        *,
        kind: str = "kvm",
        layout: str | RamLayout = "flat",
        ram: int = 4 * MIB,
        vcpus: int = 1,
        fill: float = 0.5,
    ) -> None:
        self.kind, self.vcpus = kind, vcpus
        self.layout = layout if isinstance(layout, RamLayout) else machine_layout(layout, ram)
        self._closing = contextlib.ExitStack()
        try:
            self.source = self.another()
            self.destination = self.another()
        except BaseException:
            self._closing.close()
            raise
        self.source.boot(workload or Workload(), fill)
        self.pair_up()
        self.source.resume()
        if self.kind == "kvm":
            # Until its program is in memory that the kernel has mapped: KVM counts the first fetch as a write.
            until(lambda: all(vcpu.run.exit_reason == EXIT_IO for vcpu in self.source._vcpus) or steps(self.source) > 0)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def another(self, kind: str | None = None, layout: RamLayout | None = None, vcpus: int | None = None) -> Any:
        """One more blank guest."""
        memory = GuestMemory(layout or self.layout)
        guest: WatchedGuest
        if (kind or self.kind) == "kvm":
            guest = WatchedKvmGuest(memory, vcpus or self.vcpus)
        else:
            guest = WatchedEmulatedGuest(memory)
        return self._closing.enter_context(guest)

    def pair_up(self) -> None:
        self.source.other, self.destination.other = self.destination, self.source

    def replace_destination(self, destination: Any) -> None:
        self.destination = destination
        self.pair_up()

    def turn_round(self) -> None:
        """What was the destination is the source of the next migration; its destination is a blank guest."""
        self.source, self.destination = self.destination, self.another()
        self.pair_up()


@contextlib.contextmanager
def stream_pair(kind: str = "unix", timeout: float = IN_TIME_S) -> Iterator[tuple[SocketStream, SocketStream]]:
    """The source's and the destination's end of one connection: ``unix`` is a socket pair, ``tcp`` goes through the
    loopback interface."""
    if kind == "tcp":
        with Listener(Address(host="127.0.0.1", port=0)) as listener:
            near = connect(listener.address, timeout)
            far = listener.accept(timeout)
    else:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        near, far = SocketStream(one, "the destination", timeout), SocketStream(other, "the source", timeout)
    try:
        yield near, far
    finally:
        for stream in (near, far):
            stream.abort()
            stream.close()


@contextlib.contextmanager
def proxied_pair(fault: Fault | None, timeout: float = IN_TIME_S) -> Iterator[tuple[SocketStream, SocketStream, Proxy]]:
    """As `stream_pair`, with a proxy between the two ends."""
    near, near_proxy = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    far, far_proxy = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    streams = SocketStream(near, "the destination", timeout), SocketStream(far, "the source", timeout)
    try:
        with Proxy(near_proxy, far_proxy, fault) as proxy:
            yield *streams, proxy
    finally:
        for stream in streams:
            stream.abort()
            stream.close()


@dataclass
class Ending:
    """How one side's `run` ended: with a result or an error, after how many seconds, and when (`time.perf_counter`)."""

    result: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    ended_at: float = 0.0

    @classmethod
    def of(cls, run: Callable[[], Any]) -> Ending:
        began = time.perf_counter()
        try:
            result, error = run(), None
        except BaseException as caught:
            result, error = None, caught
        now = time.perf_counter()
        return cls(result, error, now - began, now)


@dataclass
class Endings:
    """How both sides of a migration ended."""

    source: Ending
    destination: Ending

    def migrated(self) -> Migrated:
        for ending in (self.destination, self.source):
            if ending.error is not None:
                raise ending.error
        assert isinstance(self.source.result, Migrated)
        return self.source.result

    def received(self) -> Received:
        self.migrated()
        assert isinstance(self.destination.result, Received)
        return self.destination.result


def migrate(
    source: SourceVm,
    destination: DestinationVm,
    streams: tuple[SocketStream, SocketStream],
    options: MigrationOptions = ARRIVES,
    emit: Callable[[Event], None] = lambda _: None,
    *,
    recorder: Recorder | None = None,
) -> Endings:
    """Migrates between two guests of this process; each side's stream is closed when that side has ended, as the CLI
    does it, but nobody waits for how long a close may linger."""
    near, far = streams
    endings: list[Ending] = []
    ended = threading.Event()

    def receive() -> None:
        endings.append(Ending.of(Destination(destination, far, HelloReader(DEFAULT_FORMAT)).run))
        ended.set()
        far.close()

    threading.Thread(target=receive, name="destination", daemon=True).start()
    sent = Ending.of(Source(source, near, options, open_format=DEFAULT_FORMAT, emit=emit, recorder=recorder).run)
    threading.Thread(target=near.close, name="source's close", daemon=True).start()
    assert ended.wait(IN_TIME_S), "the destination does not end"
    return Endings(sent, endings[0])


def steps(guest: Any) -> int:
    """How many writes a guest has counted by now; it may be running."""
    vcpus = len(guest._vcpus) if isinstance(guest, KvmGuest) else 1
    return sum(int(words_at(guest.memory, params_gpa(vcpu), PAGE_SIZE)[params.STEP // 8]) for vcpu in range(vcpus))


def until(condition: Callable[[], bool], timeout: float = IN_TIME_S) -> None:
    """Waits for what only looking can tell, such as a guest's progress."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.002)


def runs_on(guest: Any, *, idle: bool = False) -> None:
    """The guest runs, gets on with its work, and has lost no write; afterwards it runs as before."""
    assert guest.running
    if not idle:
        before = steps(guest)
        until(lambda: steps(guest) > before)
    guest.pause()
    found = guest.self_check()
    guest.resume()
    assert found.ok, found.broken


def stands_still(guest: Any) -> None:
    """The guest is paused, and its memory is what its own count of writes says."""
    assert not guest.running
    before = steps(guest)
    found = guest.self_check()
    assert found.ok, found.broken
    assert steps(guest) == before
