"""The destination's side of a migration.

Law 4: **At most one side runs.** The guest is run here only after `Commit`. Until then any failure ends in an error
with the guest never having run here. A failure to run it after `Commit` is answered with `Abort`, which promises that
it did not and will not run; so once it was told to run, no `Abort` is sent, and a `Running` that does not get through
is no error here: the guest runs, and the source knows that it does not know.

Law 5: **The peer is not trusted.** Its pages are taken by `PageSink`. What the source claims allocates nothing: the
memory is this side's own. A source that is alive and brings nothing of the guest is given up after
`Destination._patience`. A state that cannot be loaded is its fault.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from precopy.errors import (
    Cancelled,
    GuestError,
    PeerError,
    PeerProtocolError,
    PrecopyError,
    VerificationFailed,
)
from precopy.migration.channel import Channel
from precopy.migration.hello_reader import HelloReader
from precopy.migration.page_sink import PageSink, Straight
from precopy.migration.rehearsal import Rehearsal
from precopy.migration.session import check_hello, reason_of
from precopy.migration.stall_watch import SwitchoverGap
from precopy.migration.verification import Comparison
from precopy.ports import ByteStream, Clock, DestinationVm, DeviceStates, SelfChecking, SystemClock, lacks
from precopy.ports.clock import cpu_time
from precopy.progress import NO_CPU_TIME, Arriving, Received
from precopy.wire.events import (
    Alive,
    Commit,
    Compare,
    DeviceState,
    Hello,
    PageBatch,
    Pages,
    Prepare,
    RoundEnd,
    Running,
    Welcome,
)

_TIME_OUTS = 3
"""The stream's time-outs that a source may take to bring something new, besides the time of its sync."""
_SYNC_S_PER_PAGE = 1e-3
"""Seconds for each page of memory that a source may sync without sending. The slowest way, a call for each page, takes
20 to 50 us on an idle machine."""


class Destination:
    """Receives a guest into ``vm``, which is paused and whose memory is all zero. ``hello_reader`` may
    have read the source's hello already."""

    def __init__(
        self,
        vm: DestinationVm,
        stream: ByteStream,
        hello_reader: HelloReader,
        *,
        emit: Callable[[Arriving], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self._hello_reader = hello_reader
        self.vm, self.memory = vm, vm.memory
        self.session: str | None = None
        self._emit = emit
        self._clock = clock or SystemClock()
        self._channel = Channel(stream, hello_reader.format, self._clock)
        self._sink = PageSink(vm.memory.layout, stream, Straight(vm.memory))
        self._comparison = Comparison(vm.memory, stream)
        self._state: bytes | None = None
        self._load_s = 0.0
        self._verify_s, self._verify_cpu = 0.0, NO_CPU_TIME
        self._stated_at = 0.0
        self._final = False
        self._rehearsal = Rehearsal(vm, self._clock)
        self._gap: SwitchoverGap | None = None
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
        start, used = self._clock.now(), cpu_time()
        hello = self._hello_reader.hello or self._channel.expect(Hello)
        check_hello(hello, self.vm.machine, self.memory.layout)
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
        cpu = cpu_time() - used - self._verify_cpu
        answered = self._answer(Running(resume_s, cpu.user_s, cpu.system_s))
        total_s = self._clock.now() - start
        return Received(
            session=hello.session,
            rounds=self._sink.round,
            received_bytes=self._sink.received_bytes,
            received_pages=self._sink.received_pages,
            zero_pages=self._sink.zero_pages,
            compared_pages=self._comparison.pages,
            total_s=total_s,
            load_state_s=self._load_s,
            resume_s=resume_s,
            answered=answered,
            verify_bytes=self._comparison.bytes,
            verify_s=self._verify_s,
            cpu=cpu,
            switchover_gap_s=self._gap.wait() if self._gap else None,
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
                began = cpu_time()
                self._sink.check(batch)
                self._comparison.take(batch)
                self._verify_cpu += cpu_time() - began
            case Prepare():
                self._prepare(frame)
            case _:
                raise PeerProtocolError(f"{type(frame).__name__} has no place here")

    def _take_pages(self, batch: PageBatch) -> None:
        if self._final:
            raise PeerProtocolError("the source sends pages after its last round")
        self._sink.take(batch)
        if self._sink.batches % 64 == 0:
            self._emit(Arriving(self._sink.round + 1, self._sink.received_bytes))

    def _end_round(self, end: RoundEnd) -> None:
        ack = self._sink.end_round(end)
        self._final = end.final
        self._channel.send(ack)
        self._emit(Arriving(end.number, self._sink.received_bytes))
        if not end.final:
            self._rehearsal.between_rounds()

    def _end_rounds(self) -> None:
        if not self._final or self._sink.batches:
            raise PeerProtocolError("the source sends the guest's state before it has ended its last round")

    def _load_state(self, state: bytes) -> None:
        if isinstance(self.vm, DeviceStates):
            self.vm.load_state(state)
        elif state:
            raise GuestError(f"it takes no state, and the source sends {len(state)} bytes of one")

    def _prepare(self, prepare: Prepare) -> None:
        if self._state is None:
            raise PeerProtocolError("the source asks to get ready and has sent no state")
        if prepare.compared != self._comparison.pages:
            raise PeerProtocolError(f"{prepare.compared} pages are called compared, {self._comparison.pages} came")
        self._sink.check_whole(
            doubtful="{} pages of the guest came in batches that did not match, and have not come again"
        )
        began = self._clock.now()
        try:
            self._load_state(self._state)
        except PrecopyError as error:
            raise PeerProtocolError(f"the source's guest cannot be put into this machine: {error}") from error
        loaded = self._clock.now()
        self._load_s = loaded - began
        broken: tuple[str, ...] = ()
        if prepare.compared:
            if not isinstance(self.vm, SelfChecking):
                raise lacks(self.vm, "SelfChecking", "--verify")
            checking = cpu_time()
            broken = self.vm.self_check().broken
            self._verify_cpu += cpu_time() - checking
            self._verify_s = began - self._stated_at + self._clock.now() - loaded
        self._channel.send(self._comparison.answer(self._load_s, broken))
        self._comparison.check()
        if broken:
            raise VerificationFailed(f"the guest's invariant is broken: {broken[0]}")
        self._gap = SwitchoverGap(self.vm, self._clock)  # while the source commits
