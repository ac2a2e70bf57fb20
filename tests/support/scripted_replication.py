"""A replication without a kernel: a program that is a script, a stream in memory, a clock that the test moves.

The primary's engine and the standby are the real ones. The program writes only while the primary asks the clock for the
time, so a failure comes again with the same arguments. Its memory is looked at each time that a point is sealed, and
what the standby shows is held against that before each byte that it receives.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from precopy import Memory, Standby
from precopy.bitmap import Bitmap, Runs
from precopy.errors import OutcomeUnknown, PeerError, PrecopyError
from precopy.memory import GuestMemory, RamBlock, RamLayout
from precopy.migration import HelloReader
from precopy.replication.primary import Primary
from precopy.transport import Accepted, Strangers
from precopy.units import PAGE_SIZE
from precopy.wire.default import DEFAULT_FORMAT
from support.patience import IN_TIME_S
from support.scripted import Fault, ScriptedStream
from support.scripted_log import ScriptedLog

PAGES = 150
"""No multiple of 64; small, so that a replication takes a few milliseconds."""
LAYOUT = RamLayout.of_blocks([("memory", PAGES * PAGE_SIZE)])
_WORDS = PAGE_SIZE // 8

Content = npt.NDArray[np.uint64]
"""Shape (pages, words in a page)."""


class ProgramLog(ScriptedLog):
    """As the log of a program's memory: it also names pages that were written perhaps, of which there are none, and
    those that are not armed. Those are the first 64 in every harvest where it need not be ``exact``, and in the first
    one of those that have to be."""

    def __init__(self, pages: int, *, exact: bool) -> None:
        super().__init__(pages)
        self.perhaps, self.unarmed = Bitmap(pages), Bitmap(pages)
        self._armed, self._exact = exact, exact

    @contextlib.contextmanager
    def exactly(self) -> Iterator[None]:
        before, self._exact = self._exact, True
        try:
            yield
        finally:
            self._exact = before
            self._armed &= self._exact

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        self.unarmed.clear_all()
        if not self._armed:
            self.unarmed.set_range(0, 64)
            self.dirty.add(self.unarmed)
        self._armed = self._exact
        super().harvest(dirty, block)


class ScriptedProgram:
    """Writes its memory step by step while it is not ``quiet``: a page's word, or all of it zero in one of four steps.
    `precopy.replication.primary.TrackedMemory`."""

    def __init__(self, *, hot: int = 60, seed: int = 1, exact: bool = True) -> None:
        self.layout = LAYOUT
        self._memory = GuestMemory(LAYOUT)
        self._log = ProgramLog(PAGES, exact=exact)
        self.pages: Content = self._memory.pages(LAYOUT.blocks[0])
        self.pages[:, 0] = np.arange(PAGES, dtype=np.uint64) + np.uint64(1 << 40)
        self.pages[::5, 0] = 0
        self.hot, self.seed, self.quiet = hot, seed, False
        self.steps = 0

    def contents(self) -> GuestMemory:
        return self._memory

    def consumer(self, _name: str) -> ProgramLog:
        return self._log

    def step(self) -> None:
        page = (self.steps * 7 + self.seed) % self.hot * (PAGES // self.hot)
        self.steps += 1
        if self.steps % 4 == 0:
            self.pages[page] = 0
        else:
            self.pages[page, self.steps % _WORDS] = self.steps
        self._log.wrote(Runs.of((page, 1)))


class ProgramClock:
    """Each look at it is 20 us, and ``program`` makes a step at every ``every``-th."""

    def __init__(self, program: ScriptedProgram, every: int = 3) -> None:
        self._time, self._program, self._every = 1000.0, program, every
        self._looks = 0

    def now(self) -> float:
        self._time += 20e-6
        self._looks += 1
        if not self._program.quiet and self._looks % self._every == 0:
            self._program.step()
        return self._time

    def sleep(self, seconds: float) -> None:
        self._time += seconds


class _Listener:
    """Stands where a socket would: hands out ``stream``, and after that waits for another primary until it is woken.
    ``waits`` is set once it does."""

    def __init__(self, stream: ScriptedStream) -> None:
        self.address = "scripted"
        self._streams = [stream]
        self.waits, self._woken = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def accept(self, _timeout: float) -> ScriptedStream:
        if self._streams:
            return self._streams.pop()
        self.waits.set()
        assert self._woken.wait(IN_TIME_S), "nobody ends the standby"
        raise PeerError("no connection at scripted: it was closed")

    def wake(self) -> None:
        self._woken.set()


def _accept_peer(
    listener: _Listener,
    timeout: float,
    new_reader: Callable[[], HelloReader],
    strangers: Strangers,
) -> Accepted[HelloReader]:
    """As `precopy.transport.accept_peer`, of one after another: these streams cannot be polled."""
    while True:
        stream, reader = listener.accept(timeout), new_reader()
        try:
            while reader.hello is None:
                data = bytearray(reader.wanted)
                stream.receive_into([data])
                reader.receive(data)
        except PeerError as error:
            strangers.turn_away(stream, reader, error)  # type: ignore[arg-type] # as below
            stream.close()
        else:
            return Accepted(stream, reader)  # type: ignore[arg-type] # stands where a socket would


class _WatchedStream(ScriptedStream):
    """``look`` is called before anything is received."""

    look: Callable[[], None] = staticmethod(lambda: None)

    def receive_into(self, *arguments: Any, **options: Any) -> None:
        self.look()
        super().receive_into(*arguments, **options)


@dataclass
class Replicated:
    """A replication that has ended, one way or the other."""

    program: ScriptedProgram
    primary: Primary
    standby: Standby
    streams: tuple[ScriptedStream, ScriptedStream]
    sealed: dict[int, Content] = field(default_factory=dict)
    """What the memory was at each point."""
    half: list[str] = field(default_factory=list)
    """Where the standby showed what is no point."""
    given: bool = False
    error: BaseException | None = None
    memory: Memory | None = None
    """What the standby has at the end, promoted where it was not given; None where it never had a point."""
    waits: bool = False
    """Whether the standby waits for another primary, because none had come."""
    until: float = field(default_factory=lambda: time.monotonic() + IN_TIME_S)
    was_given: bool = False
    """Whether the standby was told that the memory is its own."""

    @property
    def unknown(self) -> bool:
        return isinstance(self.error, OutcomeUnknown)


def content(memory: Memory) -> Content:
    """A copy of all of it, as rows of pages."""
    return np.frombuffer(memory, np.uint64).reshape(-1, _WORDS).copy()


@contextlib.contextmanager
def _standby(stream: ScriptedStream) -> Iterator[Standby]:
    listener = _Listener(stream)
    module = "precopy.replication.standby"
    with patch(f"{module}.Listener", lambda _: listener), patch(f"{module}.accept_peer", _accept_peer):
        standby = Standby("unix:/scripted")
        try:
            yield standby
        finally:
            standby.close()


def replicate(
    *,
    points: int = 3,
    rounds: int = 3,
    source_fault: Fault | None = None,
    standby_fault: Fault | None = None,
    tears: bool = False,
    hot: int = 60,
    seed: int = 1,
    every: int = 3,
    exact: bool = True,
    on_receive: Callable[[Replicated], None] = lambda _: None,
) -> Replicated:
    """One whole replication: ``rounds``, ``points``, and the memory given away. ``tears``: the program writes a page of
    the first rounds' batches while they are sent. ``exact``: see `ProgramLog`."""
    program = ScriptedProgram(hot=hot, seed=seed, exact=exact)
    near, _ = streams = _streams()
    far = streams[1]
    near.fault, far.fault = source_fault, standby_fault
    if tears:
        near.before_pages = lambda: None if program.quiet else program.step()
    with _standby(far) as standby:
        primary = Primary(
            program,
            near,
            open_format=DEFAULT_FORMAT,
            max_bandwidth=None,
            clock=ProgramClock(program, every),
            tick=lambda: None,
        )
        run = Replicated(program, primary, standby, streams)

        def look() -> None:
            shown = standby.memory
            if shown is not None and not np.array_equal(content(shown), run.sealed[standby.point]):
                run.half.append(f"at point {standby.point}")
            on_receive(run)

        far.look = look
        try:
            _run(run, rounds, points)
            run.given = True
        except PrecopyError as error:
            run.error = error
        primary.stop("the script is over")
        _end(run)
    return run


def _streams() -> tuple[ScriptedStream, _WatchedStream]:
    near, far = _WatchedStream.pair()
    assert isinstance(far, _WatchedStream)
    return near, far


def _run(run: Replicated, rounds: int, points: int) -> None:
    primary, program = run.primary, run.program
    seal = primary.points.seal

    def sealed() -> None:
        run.sealed[primary.points.number + 1] = program.pages.copy()
        seal()

    primary.points.seal = sealed  # type: ignore[method-assign] # only looks, and then does what it does
    primary.greet()
    for _ in range(rounds):
        primary.round()
        primary.alive()
    for _ in range(points):
        primary.points.copy()
        program.quiet = True
        primary.points.copy()
        primary.points.seal()
        program.quiet = False
        primary.points.send()
        primary.alive()
    program.quiet = True
    primary.last_point()
    primary.commit()


def _end(run: Replicated) -> None:
    standby = run.standby
    while not standby._listener.waits.is_set() and standby._thread.is_alive():  # type: ignore[attr-defined] # `_Listener`
        assert time.monotonic() < run.until, "the standby hangs"
        time.sleep(1e-4)
    run.was_given, run.waits = standby._mine, standby._thread.is_alive()
    with contextlib.suppress(PrecopyError):
        run.memory = standby.promote()
