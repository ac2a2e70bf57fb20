"""The destination's side of a migration.

Law 4: **At most one side runs.** The guest is run here only after `Commit`. Until then any failure ends in an error
with the guest never having run here. A failure to run it after `Commit` is answered with `Abort`, which promises that
it did not and will not run; so once it was told to run, no `Abort` is sent, and a `Running` that does not get through
is no error here: the guest runs, and the source knows that it does not know.

Law 5: **The peer is not trusted.** Runs are held against the layout before a byte is written, and content goes only
where a valid run says. What the source claims allocates nothing: the memory is this side's own. A source that is alive
and brings nothing of the guest is given up after `Destination._patience`. A state that cannot be loaded is its fault.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Runs
from precopy.errors import (
    Cancelled,
    HelloMismatch,
    LayoutError,
    PeerError,
    PeerProtocolError,
    PeerRefused,
    PrecopyError,
    VerificationFailed,
)
from precopy.memory.layout import RamLayout
from precopy.migration.channel import Channel, printable
from precopy.migration.session import check_session, reason_of
from precopy.ports import ByteStream, Clock, SystemClock, VmControl
from precopy.wire.events import (
    MAX_DIFFERENT,
    MAX_TORN,
    Abort,
    Alive,
    Commit,
    Compare,
    DeviceState,
    Hello,
    PageBatch,
    Pages,
    Prepare,
    Ready,
    Role,
    RoundAck,
    RoundEnd,
    Running,
    Welcome,
)
from precopy.wire.format import DEFAULT_FORMAT, OpenFormat

_FEW_RUNS = 16
"""Runs below which pages are marked run by run, which then costs less than one whole-array operation."""
_TIME_OUTS = 3
"""The stream's time-outs that a source may take to bring something new, besides the time of its sync."""
_SYNC_S_PER_PAGE = 1e-3
"""Seconds for each page of memory that a source may sync without sending. The slowest way, a call for each page, takes
20 to 50 us on an idle machine."""


@dataclass(frozen=True)
class Received:
    """A guest that arrived and runs. Times in seconds.

    ``received_pages`` came in all rounds, with content or not; ``zero_pages`` of them without, and ``received_bytes``
    are the others' contents. Verification compared ``compared_pages``, whose contents are ``verify_bytes``, and took
    ``verify_s`` of ``total_s``; all 0 where it was not asked for.
    ``answered``: whether the source could be told; where not, it stays paused there with the outcome unknown.
    """

    session: str
    rounds: int
    received_bytes: int
    received_pages: int
    zero_pages: int
    compared_pages: int
    total_s: float
    load_state_s: float
    resume_s: float
    answered: bool = True
    verify_bytes: int = 0
    verify_s: float = 0.0

    @property
    def moving_s(self) -> float:
        """From the source's first word until the guest runs, verification excluded."""
        return self.total_s - self.verify_s


@dataclass(frozen=True)
class Arriving:
    """Progress: what has arrived so far."""

    round: int
    received_bytes: int


class Greeting:
    """Reads a source's first frame from parts of any size; ``hello`` is None until it is complete."""

    def __init__(self, open_format: OpenFormat = DEFAULT_FORMAT) -> None:
        self.format = open_format(Role.DESTINATION)
        self.hello: Hello | None = None

    @property
    def wanted(self) -> int:
        """Bytes to hand to `receive` at most."""
        return self.format.wanted

    def receive(self, data: bytes) -> Hello | None:
        """Raises `PeerProtocolError` and `PeerRefused` where it is no source, or one that does not want to any more."""
        match self.format.receive(data):
            case Hello() as hello:
                self.hello = hello
            case Abort(reason):
                raise PeerRefused(printable(reason))
        return self.hello

    def refuse(self, stream: ByteStream, reason: str) -> None:
        """Tells the other end why it is turned away, if that is possible."""
        Channel(stream, self.format).give_up(reason)


class Destination:
    """Receives a guest into ``vm``, which is paused and whose memory is all zero. ``greeting``: of a source that has
    been listened to already."""

    def __init__(
        self,
        vm: VmControl,
        stream: ByteStream,
        *,
        emit: Callable[[Arriving], None] = lambda _: None,
        clock: Clock | None = None,
        greeting: Greeting | None = None,
    ) -> None:
        self._greeting = greeting or Greeting()
        self.vm, self.memory = vm, vm.memory
        self.session: str | None = None
        self._emit = emit
        self._clock = clock or SystemClock()
        self._channel = Channel(stream, self._greeting.format, self._clock)
        # Which pages have content: a zero page that never had any needs no write, and so no memory.
        self._written = np.zeros(vm.memory.layout.end_page, np.bool_)
        self._torn: list[int] = []
        # Pages that came in a torn batch, and not again since; None before the first.
        self._doubtful: npt.NDArray[np.bool_] | None = None
        self._round = self._round_batches = self._round_pages = 0
        self._bytes = self._pages = self._zero = 0
        self._state: bytes | None = None
        self._compared = self._different = 0
        self._different_pages: list[int] = []
        self._load_s = 0.0
        self._verify_bytes, self._verify_s = 0, 0.0
        self._stated_at = 0.0
        self._final = False
        self._came_at = self._clock.now()
        self._lock = threading.Lock()
        self._forbidden = False

    def forbid(self) -> bool:
        """Called from another thread: the guest must not run here, even if the source commits. Returns True, or
        False where the guest runs here already."""
        with self._lock:
            if self.vm.running:
                return False
            self._forbidden = True
        return True

    def abandon(self) -> None:
        """Called from another thread: stops receiving at once."""
        self._channel.stream.abort()

    def run(self) -> Received:
        """Receives the guest and runs it. Raises `PeerError`, `GuestError`, `VerificationFailed`; then it never ran."""
        try:
            return self._receive()
        except BaseException as error:
            if not self.vm.running:
                self._channel.give_up(reason_of(error, "destination"))
            raise

    def _receive(self) -> Received:
        start = self._clock.now()
        hello = self._greeting.hello or self._channel.expect(Hello)
        _check_hello(hello, self.vm.machine, self.memory.layout)
        self.session = hello.session
        self._channel.send(Welcome(hello.session))
        self._came_at = self._clock.now()
        while not isinstance(frame := self._channel.receive(), Commit):
            self._take(frame)
            if self._clock.now() - self._came_at > self._patience:
                raise PeerProtocolError(f"the source has sent nothing of its guest for {self._patience:.3g} s")
        committed = self._clock.now()
        with self._lock:
            if self._forbidden:
                raise Cancelled("the destination was told not to run the guest")
            self.vm.resume()
        resume_s = self._clock.now() - committed
        answered = self._answer(Running(resume_s))
        return Received(
            session=hello.session,
            rounds=self._round,
            received_bytes=self._bytes,
            received_pages=self._pages,
            zero_pages=self._zero,
            compared_pages=self._compared,
            total_s=self._clock.now() - start,
            load_state_s=self._load_s,
            resume_s=resume_s,
            answered=answered,
            verify_bytes=self._verify_bytes,
            verify_s=self._verify_s,
        )

    @property
    def _patience(self) -> float:
        """Seconds in which something of the guest has to come: a few time-outs, and what a sync may take."""
        return _TIME_OUTS * self._channel.stream.timeout + _SYNC_S_PER_PAGE * self.memory.layout.pages

    def _answer(self, running: Running) -> bool:
        try:
            self._channel.send(running)
        except PeerError:
            return False
        return True

    def _take(self, frame: object) -> None:
        """One frame before the commit; the format has already held it against the state."""
        if isinstance(frame, Pages | Compare | DeviceState):
            self._came_at = self._clock.now()
        match frame:
            case Pages(batch):
                self._take_pages(batch)
            case RoundEnd():
                self._end_round(frame)
            case Alive():
                pass
            case DeviceState(state):
                self._end_rounds()
                self._state, self._stated_at = state, self._clock.now()
            case Compare(batch):
                self._compare(batch)
            case Prepare():
                self._prepare(frame)
            case _:
                raise PeerProtocolError(f"{type(frame).__name__} has no place here")

    def _end_rounds(self) -> None:
        if not self._final or self._round_batches:
            raise PeerProtocolError("the source sends the guest's state before it has ended its last round")

    def _take_pages(self, batch: PageBatch) -> None:
        if self._final:
            raise PeerProtocolError("the source sends pages after its last round")
        buffers = self._buffers(batch)
        self._channel.stream.receive_into(buffers)
        torn = not batch.matches(buffers)
        if torn:
            if len(self._torn) >= MAX_TORN:
                raise PeerProtocolError(f"more than {MAX_TORN} batches of round {self._round + 1} do not match")
            self._torn.append(self._round_batches)
            if self._doubtful is None:
                self._doubtful = np.zeros(self.memory.layout.end_page, np.bool_)
        if self._doubtful is not None:
            self._doubtful[batch.content.indexes()] = torn
            self._doubtful[batch.zero.indexes()] = torn
        if len(batch.zero):
            self._zero_out(batch.zero)
        self._mark_written(batch.content)
        pages = batch.content.pages
        self._round_batches += 1
        self._round_pages += batch.pages
        self._pages += batch.pages
        self._zero += batch.pages - pages
        self._bytes += pages * self.memory.layout.page_size
        if self._round_batches % 64 == 0:
            self._emit(Arriving(self._round + 1, self._bytes))

    def _buffers(self, batch: PageBatch) -> list[memoryview]:
        try:
            self.memory.layout.block_of(batch.zero)
            return self.memory.buffers(batch.content)
        except LayoutError as error:
            raise PeerProtocolError(f"the source sends {error}") from error

    def _mark_written(self, content: Runs) -> None:
        if len(content) < _FEW_RUNS:
            for start, length in content:
                self._written[start : start + length] = True
        else:
            self._written[content.indexes()] = True

    def _zero_out(self, zero: Runs) -> None:
        for start, length in zero:
            written = self._written[start : start + length]
            if written.any():
                self.memory.write_zero(Runs.of((start, length)))
                written[:] = False

    def _end_round(self, end: RoundEnd) -> None:
        if (end.number, end.batches, end.pages) != (self._round + 1, self._round_batches, self._round_pages):
            raise PeerProtocolError(
                f"round {end.number} claims {end.batches} batches with {end.pages} pages; round {self._round + 1} had "
                f"{self._round_batches} with {self._round_pages}"
            )
        self._final = end.final
        self._channel.send(RoundAck(end.number, end.pages, tuple(self._torn)))
        self._emit(Arriving(end.number, self._bytes))
        self._round, self._round_batches, self._round_pages, self._torn = end.number, 0, 0, []

    def _compare(self, batch: PageBatch) -> None:
        """Holds what the source has against what is here, byte for byte."""
        here = self._buffers(batch)
        scratch = memoryview(bytearray(sum(map(len, here))))
        sent: list[memoryview] = []
        at = 0
        for view in here:
            sent.append(scratch[at : at + len(view)])
            at += len(view)
        self._channel.stream.receive_into(sent)
        if not batch.matches(sent):
            raise PeerProtocolError(
                "the link damages data, or something writes the source's memory while its guest is paused: a batch "
                "sent for comparison does not match its checksum"
            )
        for (start, _), mine, theirs in zip(batch.content, here, sent, strict=True):
            if not np.array_equal(np.frombuffer(mine, np.uint64), np.frombuffer(theirs, np.uint64)):
                self._differ(start, mine, theirs)
        content, _ = self.memory.split_zero(batch.zero)
        for start, length in content:
            self._note(range(start, start + length))
        self._compared += batch.pages
        self._verify_bytes += batch.content.pages * self.memory.layout.page_size

    def _differ(self, start: int, mine: memoryview, theirs: memoryview) -> None:
        size = self.memory.layout.page_size
        ours, sent = (np.frombuffer(view, np.uint8).reshape(-1, size) for view in (mine, theirs))
        self._note([start + int(row) for row in np.flatnonzero((ours != sent).any(axis=1))])

    def _note(self, pages: range | list[int]) -> None:
        self._different += len(pages)
        self._different_pages.extend(pages[: MAX_DIFFERENT - len(self._different_pages)])

    def _prepare(self, prepare: Prepare) -> None:
        if self._state is None:
            raise PeerProtocolError("the source asks to get ready and has sent no state")
        if prepare.compared != self._compared:
            raise PeerProtocolError(f"{prepare.compared} pages are called compared, {self._compared} came")
        doubtful = 0 if self._doubtful is None else int(np.count_nonzero(self._doubtful))
        if doubtful:  # the source was told of them, and has to send them again
            raise PeerProtocolError(
                f"{doubtful} pages of the guest came in batches that did not match, and have not come again"
            )
        began = self._clock.now()
        try:
            self.vm.load_state(self._state)
        except PrecopyError as error:
            raise PeerProtocolError(f"the source's guest cannot be put into this machine: {error}") from error
        loaded = self._clock.now()
        self._load_s = loaded - began
        broken: tuple[str, ...] = ()
        if prepare.compared:
            broken = self.vm.self_check().broken
            self._verify_s = began - self._stated_at + self._clock.now() - loaded
        self._channel.send(
            Ready(
                compared=self._compared,
                load_s=self._load_s,
                different=tuple(self._different_pages),
                different_pages=self._different,
                broken=broken[:MAX_DIFFERENT],
            )
        )
        if self._different:
            raise VerificationFailed(f"{self._different} of {self._compared} pages differ from the source's")
        if broken:
            raise VerificationFailed(f"the guest's invariant is broken: {broken[0]}")


def _check_hello(hello: Hello, machine: str, layout: RamLayout) -> None:
    """Raises `HelloMismatch` that names the first thing that does not fit."""
    check_session(hello)
    if hello.machine != machine:
        raise HelloMismatch(f"the source's guest is {hello.machine[:200]!r}, this side runs {machine!r}")
    if hello.page_size != layout.page_size:
        raise HelloMismatch(f"the source's pages have {hello.page_size} bytes, this side's {layout.page_size}")
    theirs = {block.name: block for block in hello.blocks}
    for block in layout.blocks:
        claim = theirs.pop(block.name, None)
        if claim is None:
            raise HelloMismatch(f"RAM block {block.name!r} exists here and not at the source")
        if claim.pages != block.pages:
            size = layout.page_size
            raise HelloMismatch(
                f"RAM block {block.name!r} has {claim.pages * size} bytes at the source and {block.pages * size} here; "
                f"start both sides with the same --ram and --layout"
            )
        if claim.first_page != block.first_page:
            raise HelloMismatch(
                f"RAM block {block.name!r} is at ram_addr page {claim.first_page} at the source and at "
                f"{block.first_page} here"
            )
    if theirs:
        raise HelloMismatch(f"RAM block {next(iter(theirs))[:200]!r} exists at the source and not here")
