"""A migration without a kernel: a guest that is a script, a stream in memory, a clock that the test moves.

All of it happens in the order that the script and the engine give: the guest writes only while the source's thread
asks the clock for the time or sends pages, so a failure comes again with the same arguments. The engine is the real
one.
"""

from __future__ import annotations

import contextlib
import enum
import math
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from precopy.bitmap import Runs
from precopy.dirty import DirtyMemory
from precopy.errors import GuestError, OutcomeUnknown, PeerLost, PrecopyError, UsageError
from precopy.memory import GuestMemory, RamLayout
from precopy.migration import Destination, HelloReader, Migrated, MigrationOptions, Received, Source
from precopy.migration.results import Event
from precopy.ports import ByteStream, DestinationVm, SelfCheck, SourceVm, Throttled, TrackerChoice
from precopy.ports.stream import Buffer, IoVec
from precopy.ports.vm import MAX_THROTTLE
from precopy.units import PAGE_SIZE
from precopy.wire.default import DEFAULT_FORMAT
from precopy.wire.format import OpenFormat
from support.patience import IN_TIME_S
from support.scripted_log import ScriptedLog

LAYOUT = RamLayout.of_blocks([("ram", 160 * PAGE_SIZE), ("flash", 37 * PAGE_SIZE), ("rom", 5 * PAGE_SIZE)])
"""Two blocks whose lengths are no multiple of 64 pages; small, so that a migration takes a few milliseconds."""


class Clock:
    """Each look at it takes ``step_s``; the guest that it drives writes in that time."""

    def __init__(self, step_s: float = 20e-6) -> None:
        self.time, self.step_s = 1000.0, step_s
        self.guest: ScriptedGuest | None = None

    def now(self) -> float:
        self.sleep(self.step_s)
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.guest is not None:
            self.guest.live(seconds)


class World:
    """Where guests run. ``ran`` names them in the order in which they began to; law 4 is held at each."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.ran: list[str] = []
        self.broken: list[str] = []

    def begins(self, name: str) -> None:
        if self.running:
            self.broken.append(f"{name} began to run while {', '.join(self.running)} did")
        self.running.add(name)
        self.ran.append(name)


class ScriptedGuest:
    """Step ``k`` writes ``k`` into the page that its script names: ``hot`` pages, ``per_s`` steps a second.

    ``fails`` names methods that raise `GuestError` when they are called for the nth time (from 1); ``damages`` has one
    bit of its memory flip when its state is loaded.
    """

    kind = "scripted"
    machine = "scripted, 1 vCPU"

    def __init__(self, world: World, name: str, *, hot: int = 40, per_s: float = 9000.0, seed: int = 1) -> None:
        self.world, self.name = world, name
        self.memory = GuestMemory(LAYOUT)
        self.log = ScriptedLog(LAYOUT.end_page)
        self.dirty = DirtyMemory(LAYOUT, self.log)
        self.running = False
        self.steps = 0
        self.hot, self.per_s, self.seed = hot, per_s, seed
        self.fails: dict[str, int] = {}
        self.damages = False
        self._due = 0.0
        self._share = self._throttled_s = self._active_s = 0.0
        self._rows = np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(b.first_page, b.first_page + b.pages) for b in LAYOUT.blocks)]
        )
        self._called: dict[str, int] = {}

    # What it does.

    def boot(self) -> None:
        """Puts something into each page but every fifth, which stays all zero."""
        for block in LAYOUT.blocks:
            pages = self.memory.pages(block)
            pages[:, 0] = np.arange(block.first_page, block.first_page + block.pages, dtype=np.uint64) + np.uint64(
                1 << 40
            )
            pages[::5, 0] = 0

    def target(self, step: int) -> int:
        """The ram_addr page that a step writes: the hot ones are spread over all blocks."""
        place = (step * 7 + self.seed) % self.hot
        return int(self._rows[place * (self._rows.size // self.hot)])

    def step(self) -> None:
        page = self.target(self.steps)
        self.steps += 1
        for block in LAYOUT.blocks:
            if block.first_page <= page < block.first_page + block.pages:
                self.memory.pages(block)[page - block.first_page, 1 + self.steps % 511] = self.steps
        self.log.wrote(Runs.of((page, 1)))

    def live(self, seconds: float) -> None:
        """Runs for so long, less what its throttle takes, unless it is paused."""
        if self.running:
            self._throttled_s += seconds * self._share
            self._active_s += seconds if self._share else 0.0
            self._due += seconds * (1 - self._share) * self.per_s
            while self._due >= 1:
                self._due -= 1
                self.step()

    def _need_paused(self, what: str) -> None:
        if self.running:
            raise GuestError(f"cannot {what} a guest that runs")

    def _call(self, method: str) -> None:
        self._called[method] = self._called.get(method, 0) + 1
        if self.fails.get(method) == self._called[method]:
            raise GuestError(f"the script has {method} fail")

    # The roles of `precopy.ports.vm`.

    def choose_tracker(self, wanted: str) -> TrackerChoice:
        self._call("choose_tracker")
        return TrackerChoice(self.log.name, f"{wanted} was asked for")

    def pause(self) -> float:
        self._call("pause")
        self.running = False
        self.world.running.discard(self.name)
        return 0.0

    def resume(self) -> None:
        self._call("resume")
        if not self.running:
            self.world.begins(self.name)
        self.running = True

    def throttle(self, share: float) -> None:
        self._call("throttle")
        if not 0 <= share <= MAX_THROTTLE:
            raise UsageError(f"the share that is taken of a vCPU's time has to be 0 to {MAX_THROTTLE}, not {share}")
        self._share = share

    def throttled(self) -> Throttled:
        return Throttled((self._throttled_s,), self._active_s)

    def save_state(self) -> bytes:
        self._call("save_state")
        self._need_paused("save")
        return struct.pack("<QQQ", self.steps, self.seed, self.hot)

    def load_state(self, state: bytes) -> None:
        self._call("load_state")
        self._need_paused("load")
        if self.damages:
            self.memory.pages(LAYOUT.blocks[1])[36, 9] ^= np.uint64(1)
        if len(state) != 24:
            raise GuestError(f"a state of {len(state)} bytes does not fit this machine")
        self.steps, self.seed, self.hot = struct.unpack("<QQQ", state)

    def rehearse(self) -> None:
        self._call("rehearse")

    def self_check(self) -> SelfCheck:
        """Makes all steps again in a memory of its own, and compares."""
        self._call("check")
        self._need_paused("check")
        model = ScriptedGuest(World(), "model", hot=self.hot, seed=self.seed)
        model.boot()
        while model.steps < self.steps:
            model.step()
        wrong = [
            f"{block.name} page {int(row)}"
            for block in LAYOUT.blocks
            for row in np.flatnonzero((self.memory.pages(block) != model.memory.pages(block)).any(axis=1))
        ]
        return SelfCheck(self.steps, LAYOUT.pages, tuple(wrong))


class _Bare:
    """A scripted guest that is paused, run and tracked, and whose script goes on."""

    kind = "bare"
    machine = "bare"

    def __init__(self, inner: ScriptedGuest) -> None:
        self._inner = inner
        self.dirty = inner.dirty

    @property
    def running(self) -> bool:
        return self._inner.running

    def pause(self) -> float:
        return self._inner.pause()

    def resume(self) -> None:
        self._inner.resume()


class BareGuest(_Bare):
    """One of which only what every machine can do is seen: it is also read and written. It has no state, throttle,
    choice of a tracker or check of its own."""

    def __init__(self, inner: ScriptedGuest) -> None:
        super().__init__(inner)
        self.memory = inner.memory


class CopiedMemory:
    """Memory that is not mapped here, as far as its reader knows (`precopy.ports.MemoryCopier`). ``before_copy`` is
    called before each run is copied."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory, self.layout = memory, memory.layout
        self.before_copy: Callable[[], None] = lambda: None

    def copy_into(self, runs: Runs, buffer: memoryview) -> None:
        assert len(buffer) == runs.pages * PAGE_SIZE
        at = 0
        for view in self._memory.buffers(runs):
            self.before_copy()
            buffer[at : at + len(view)] = view
            at += len(view)


class CopiedGuest(_Bare):
    """A bare guest whose memory is read by copies. ``tears``: it writes while it is copied."""

    def __init__(self, inner: ScriptedGuest, *, tears: bool = False) -> None:
        super().__init__(inner)
        self.memory = CopiedMemory(inner.memory)
        if tears:
            self.memory.before_copy = lambda: inner.step() if inner.running else None


class CheckedCopiedGuest(CopiedGuest):
    """One that also has a state and a check of its own."""

    machine = ScriptedGuest.machine

    def save_state(self) -> bytes:
        return self._inner.save_state()

    def load_state(self, state: bytes) -> None:
        self._inner.load_state(state)

    def self_check(self) -> SelfCheck:
        return self._inner.self_check()


class Harm(enum.Enum):
    """What becomes of one call of a stream's `send` or `send_pages`, which is one frame.

    After `CUT`, `TRUNCATE` and `LAST` the connection is gone for both; after `SILENCE` it stays and nothing passes.
    """

    CUT = "cut before it"
    TRUNCATE = "cut in its middle"
    LAST = "cut after it"
    SILENCE = "silence from it on"
    FLIP = "one byte of it flipped"
    INSERT = "another frame before it"


@dataclass(frozen=True)
class Fault:
    """``harm`` at the ``nth`` frame (from 0) of one side. ``at``: which byte is flipped, as a share of the frame.
    ``frame``: the bytes to insert."""

    harm: Harm
    nth: int
    at: float = 0.5
    frame: Callable[[int], bytes] = field(default=lambda _: b"")
    """The frame to insert, made for its sequence number."""


class _Way:
    """Bytes in one direction."""

    def __init__(self) -> None:
        self.data, self.closed, self.silent = bytearray(), False, False


class ScriptedStream:
    """`precopy.ports.ByteStream` in memory. ``sent`` counts frames; ``before_pages`` is called before pages are
    read."""

    def __init__(self, peer: str, out: _Way, into: _Way, changed: threading.Condition) -> None:
        self.peer, self._out, self._in, self._changed = peer, out, into, changed
        self.fault: Fault | None = None
        self.struck = False
        self.sent = 0
        self.before_pages: Callable[[], None] = lambda: None

    @classmethod
    def pair(cls) -> tuple[ScriptedStream, ScriptedStream]:
        one, other, changed = _Way(), _Way(), threading.Condition()
        return cls("the destination", one, other, changed), cls("the source", other, one, changed)

    def send(self, buffers: Sequence[Buffer]) -> None:
        self._put(b"".join(bytes(buffer) for buffer in buffers))

    def send_pages(self, head: Buffer, views: Sequence[memoryview], addresses: IoVec) -> None:
        assert [len(view) for view in views] == addresses[:, 1].tolist()
        self.before_pages()
        self._put(b"".join([bytes(head), *(bytes(view) for view in views)]))

    def _put(self, data: bytes) -> None:
        with self._changed:
            if self._out.closed:
                raise PeerLost(f"the connection to {self.peer} broke: Broken pipe")
            number, self.sent = self.sent, self.sent + 1
            fault = self.fault if self.fault is not None and self.fault.nth == number else None
            if fault is not None:
                self.struck = True
                data = self._harm(fault, data, number)
            if not self._out.silent:
                self._out.data += data
            if fault is not None and fault.harm in (Harm.CUT, Harm.TRUNCATE, Harm.LAST):
                self._out.closed = self._in.closed = True
            self._changed.notify_all()
            if fault is not None and fault.harm in (Harm.CUT, Harm.TRUNCATE):
                raise PeerLost(f"the connection to {self.peer} broke: Connection reset by peer")

    def _harm(self, fault: Fault, data: bytes, number: int) -> bytes:
        match fault.harm:
            case Harm.CUT:
                return b""
            case Harm.TRUNCATE:
                return data[: len(data) // 2]
            case Harm.SILENCE:
                self._out.silent = True
                return b""
            case Harm.FLIP:
                at = min(int(fault.at * len(data)), len(data) - 1)
                return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
            case Harm.INSERT:
                return fault.frame(number) + data
        return data

    timeout = IN_TIME_S

    def limit(self, seconds: float | None) -> None:
        """Nothing here takes long."""

    def receive_into(self, buffers: Sequence[Buffer], within: float = math.inf) -> None:  # noqa: ARG002
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            view[:] = self._take(len(view))

    def _take(self, size: int) -> bytes:
        with self._changed:
            there = self._changed.wait_for(
                lambda: len(self._in.data) >= size or self._in.closed or self._in.silent or self._out.silent,
                IN_TIME_S,
            )
            assert there, f"nothing came from {self.peer}: the engine hangs"
            if len(self._in.data) < size:
                if self._in.closed:
                    raise PeerLost(f"{self.peer} closed the connection")
                raise PeerLost(f"{self.peer} is silent for 10 s", silent=True)
            data = bytes(self._in.data[:size])
            del self._in.data[:size]
            return data

    def abort(self) -> None:
        with self._changed:
            self._out.closed = self._in.closed = True
            self._changed.notify_all()

    close = abort


class LateStream(ScriptedStream):
    """Nothing arrives before the sender waits for an answer, and pages are read only then, as late as
    `ByteStream.send_pages` allows."""

    def __init__(self, peer: str, out: _Way, into: _Way, changed: threading.Condition) -> None:
        super().__init__(peer, out, into, changed)
        self._held: list[Buffer] = []

    @classmethod
    def pair(cls) -> tuple[ScriptedStream, ScriptedStream]:
        """One of these, to an end that holds nothing back."""
        one, other, changed = _Way(), _Way(), threading.Condition()
        return cls("the destination", one, other, changed), ScriptedStream("the source", other, one, changed)

    def send(self, buffers: Sequence[Buffer]) -> None:
        self._held.extend(bytes(buffer) for buffer in buffers)

    def send_pages(self, head: Buffer, views: Sequence[memoryview], addresses: IoVec) -> None:
        assert [len(view) for view in views] == addresses[:, 1].tolist()
        self._held.extend([bytes(head), *views])

    def receive_into(self, buffers: Sequence[Buffer], within: float = math.inf) -> None:
        self._flush()
        super().receive_into(buffers, within)

    def abort(self) -> None:
        with contextlib.suppress(PeerLost):
            self._flush()
        super().abort()

    close = abort

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._put(b"".join(held))


@dataclass
class Run:
    """A migration that has ended, one way or the other, and where its guest is."""

    world: World
    source: ScriptedGuest
    destination: ScriptedGuest
    engine: Source
    streams: tuple[ByteStream, ByteStream]
    events: list[Event]
    done: Migrated | None = None
    received: Received | None = None
    source_error: BaseException | None = None
    destination_error: BaseException | None = None

    @property
    def given(self) -> bool:
        """Whether the source knows that the guest runs at the destination."""
        return self.done is not None

    @property
    def unknown(self) -> bool:
        """Whether the source said that it does not know where the guest runs."""
        return isinstance(self.source_error, OutcomeUnknown)

    @property
    def was_given(self) -> bool:
        """Whether the guest has run at the destination."""
        return "destination" in self.world.ran

    @property
    def equal(self) -> bool:
        """Whether both memories are the same, byte for byte."""
        return all(
            bool((self.source.memory.pages(block) == self.destination.memory.pages(block)).all())
            for block in LAYOUT.blocks
        )


OPTIONS = MigrationOptions(downtime_limit_s=0.006, max_bandwidth=200_000_000, max_rounds=12)
"""A link and a limit with which the scripted guest takes a few rounds."""


def migrate(
    options: MigrationOptions = OPTIONS,
    *,
    source_fault: Fault | None = None,
    destination_fault: Fault | None = None,
    prepare: Callable[[ScriptedGuest, ScriptedGuest], None] = lambda _source, _destination: None,
    tears: bool = False,
    on_event: Callable[[Source, Event], None] = lambda _source, _event: None,
    open_format: OpenFormat = DEFAULT_FORMAT,
    source_as: Callable[[ScriptedGuest], SourceVm] = lambda guest: guest,
    destination_as: Callable[[ScriptedGuest], DestinationVm] = lambda guest: guest,
    pair: Callable[[], tuple[ByteStream, ByteStream]] = ScriptedStream.pair,
) -> Run:
    """One whole migration of a scripted guest. ``tears``: it writes a page of each batch while that is sent.
    ``source_as``, ``destination_as``: what each engine sees of its guest. ``pair`` makes the streams; faults and tears
    are for scripted ones."""
    world, clock = World(), Clock()
    source, destination = ScriptedGuest(world, "source"), ScriptedGuest(world, "destination")
    source.boot()
    near, far = pair()
    if isinstance(near, ScriptedStream) and isinstance(far, ScriptedStream):
        near.fault, far.fault = source_fault, destination_fault
        if tears:
            near.before_pages = lambda: source.step() if source.running else None
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        on_event(engine, event)

    engine = Source(source_as(source), near, options, emit=emit, clock=clock, open_format=open_format)
    run = Run(world, source, destination, engine, (near, far), events)
    source.resume()
    prepare(source, destination)
    clock.guest = source

    def receive() -> None:
        try:
            run.received = Destination(destination_as(destination), far, HelloReader(open_format), clock=Clock()).run()
        except BaseException as error:
            run.destination_error = error
        finally:
            if not destination.running or not isinstance(far, ScriptedStream):  # a socket's peer reads what was sent
                far.close()

    there = threading.Thread(target=receive, name="scripted destination", daemon=True)
    there.start()
    try:
        run.done = engine.run()
    except (PrecopyError, KeyboardInterrupt, MemoryError) as error:
        run.source_error = error
    finally:
        near.close()
        there.join(IN_TIME_S)
    assert not there.is_alive()
    return run
