"""The source's side of a migration: rounds while the guest runs, then the switchover.

Law 4: **At most one side runs.** The source resumes its guest where `Handover` knows that it is here: after any failure
before `Commit`, and after an `Abort` that answers it. Where the outcome is unknown, the guest stays paused here.

Law 5: **The peer is not trusted**, with the guest's time either; `switchover` says for how long the guest may stand
still.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from precopy.dirty import DirtyMemory, MigrationBitmap, SyncStats, clear_policy
from precopy.errors import (
    Cancelled,
    GuestError,
    KernelCallError,
    NotConverged,
    PeerLost,
    PrecopyError,
)
from precopy.migration.channel import Channel
from precopy.migration.controller import ConvergenceController
from precopy.migration.options import MigrationOptions
from precopy.migration.page_source import PageSource
from precopy.migration.rate_limit import RateLimiter
from precopy.migration.recorder import Recorder
from precopy.migration.rehearsal import Rehearsal
from precopy.migration.reporter import Reporter
from precopy.migration.results import Attempt, Event, Migrated
from precopy.migration.rounds import Rounds
from precopy.migration.session import ALIVE_S, GuestIs, Handover, new_session, open_session, reason_of
from precopy.migration.stall_watch import StallWatch
from precopy.migration.switchover import Switchover, patience
from precopy.migration.throttle_modes import Throttling, throttling_of
from precopy.planning import Action
from precopy.planning.model.trace import RecordedOutcome
from precopy.ports import (
    ByteStream,
    Clock,
    SelfChecking,
    SourceVm,
    SyncWay,
    SyncWayChoosing,
    SystemClock,
    TrackerChoice,
    TrackerChoosing,
    lacks,
)
from precopy.ports.clock import cpu_time
from precopy.progress import CpuTime
from precopy.wire.events import (
    Compare,
    Hello,
    Pages,
    Role,
    RoundEnd,
)
from precopy.wire.format import OpenFormat

_MAP_PARTS = 128
"""Parts of memory whose dirty pages a round's map counts: about as many as fit into a picture."""
_CANCEL_GRACE_S = 1.0
"""Seconds from a request to cancel until the stream is cut, if the migration has not ended by itself."""
_ONLY_WAY = SyncWay("numpy", "what the guest has")
_WAS_CANCELLED = "the migration was cancelled; the guest runs on at the source"


class Source:
    """Migrates ``vm`` over ``stream``, in the format that ``open_format`` opens. ``emit`` is told of each round, of
    each verdict and, ten times a second, of progress; ``recorder`` writes down what a replay needs."""

    def __init__(
        self,
        vm: SourceVm,
        stream: ByteStream,
        options: MigrationOptions | None = None,
        *,
        open_format: OpenFormat,
        emit: Callable[[Event], None] = lambda _: None,
        recorder: Recorder | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.vm, self.stream, self._recorder = vm, stream, recorder
        self.options = options or MigrationOptions()
        self.session = new_session()
        self._clock = clock or SystemClock()
        self._channel = Channel(stream, open_format(Role.SOURCE), self._clock)
        self._cancelled = threading.Event()
        self._handover = Handover(self._channel, self.session)
        self._controller: ConvergenceController | None = None
        self._throttling = Throttling()
        self._watch: StallWatch | None = None
        self._reporter = Reporter(self._channel, self._clock, vm.memory.layout.page_size, emit)

    @property
    def guest_is(self) -> GuestIs:
        """Where the guest may run, as far as is known here."""
        return self._handover.guest_is

    def cancel(self) -> None:
        """Stops the migration from another thread; the guest runs on here. Too late once the commit is out."""
        self._cancelled.set()

        # A peer that takes nothing must not hold up the user.
        timer = threading.Timer(_CANCEL_GRACE_S, self._handover.while_here, [self.stream.abort])
        timer.daemon = True
        timer.start()

    def run(self) -> Migrated:
        """Migrates; afterwards the guest runs at the destination and is paused here.

        Raises `Unsupported`, `NotConverged`, `PeerError`, `VerificationFailed`, `Cancelled`, `GuestError` with the
        guest running on here as it did before, and `OutcomeUnknown` with the guest paused here.
        """
        ran = self.vm.running
        dirty = self.vm.dirty
        try:
            self._ask_for_roles()
            watch = self._watch = StallWatch(self.vm, self._clock)  # changing the tracker takes time from the guest
            choice = self._choose_tracker()
            dirty = self.vm.dirty
            done = self._migrate(dirty, choice, watch)
            self._record_end(done.outcome)
            return done
        except BaseException as error:
            failure = self._failure(error)
            if isinstance(failure, PrecopyError) and self._reporter.bitmap is not None:
                failure.attempt = self._attempt()
            try:
                if self.guest_is is GuestIs.HERE:
                    self._keep_guest(ran, failure)
            finally:
                self._record_end(self._outcome_of(failure))
            if failure is error:
                raise
            raise failure from error
        finally:
            self._release()
            with contextlib.suppress(KernelCallError):  # must not stand in for what became of the guest
                dirty.stop()

    def _release(self) -> None:
        with contextlib.suppress(KernelCallError, GuestError):  # must not stand in for what became of the guest
            self._throttling.release()

    def _record_end(self, outcome: RecordedOutcome) -> None:
        if self._recorder is not None:
            self._recorder.end(outcome)

    def _attempt(self) -> Attempt:
        options, reporter, sent = self.options, self._reporter, self._reporter.moved_bytes
        return Attempt(
            session=self.session,
            guest=self.vm.kind,
            clear=options.clear,
            policy=options.policy,
            rounds=tuple(reporter.rounds),
            verdicts=tuple(reporter.verdicts),
            downtime_limit_s=options.downtime_limit_s,
            total_s=reporter.moved_for_s(),
            sent_bytes=sent,
            other_bytes=sent - sum(done.sent_bytes for done in reporter.rounds),
            remaining_bytes=reporter.remaining_bytes,
            ram_bytes=self.vm.memory.layout.bytes,
        )

    def _outcome_of(self, failure: BaseException) -> RecordedOutcome:
        switchover_overhead_s = self._controller.switchover_overhead_s if self._controller else None
        total_s, sent = self._reporter.moved_for_s(), self._reporter.moved_bytes
        return RecordedOutcome(
            False, total_s, sent, error=reason_of(failure), expected_switchover_overhead_s=switchover_overhead_s
        )

    def _keep_guest(self, ran: bool, failure: BaseException) -> None:
        try:
            self._release()
            if ran and not self.vm.running:
                self.vm.resume()  # before the peer is told, which may take as long as it may be silent
        finally:
            self._channel.give_up(reason_of(failure))

    def _failure(self, error: BaseException) -> BaseException:
        """What to raise for ``error``, by where the guest is. After any failure between the commit and its answer the
        outcome is unknown."""
        if self.guest_is is GuestIs.HERE and self._cancelled.is_set() and isinstance(error, PeerLost):
            return Cancelled(_WAS_CANCELLED)
        return self._handover.outcome(error)

    def _ask_for_roles(self) -> None:
        """Raises `Unsupported` where the machine has not got what an option needs: now, and not after some rounds."""
        vm, options = self.vm, self.options
        self._throttling = throttling_of(vm, options)
        if options.tracker not in ("", "auto") and not isinstance(vm, TrackerChoosing):
            raise lacks(vm, "TrackerChoosing", f"--tracker {options.tracker}")
        if options.verify and not isinstance(vm, SelfChecking):  # the destination's machine is one of this kind
            raise lacks(vm, "SelfChecking", "--verify")

    def _choose_tracker(self) -> TrackerChoice:
        if self.options.tracker and isinstance(self.vm, TrackerChoosing):
            return self.vm.choose_tracker(self.options.tracker)
        return TrackerChoice(self.vm.dirty.name, "what the guest has")

    def _choose_sync_way(self, page_source: PageSource) -> SyncWay:
        """In a thread of its own, while the destination is told that this side is alive: a way may have to be compiled
        first, which takes some seconds, and more on a busy machine."""
        if not isinstance(self.vm, SyncWayChoosing):
            return _ONLY_WAY
        with ThreadPoolExecutor(1, "sync way") as executor:
            chosen = executor.submit(self.vm.choose_sync_way)
            while wait([chosen], ALIVE_S).not_done:
                page_source.alive()
        return chosen.result()

    def _migrate(self, dirty: DirtyMemory, choice: TrackerChoice, watch: StallWatch) -> Migrated:
        clock, layout = self._clock, self.vm.memory.layout
        start, used = self._reporter.restart(), cpu_time()
        open_session(self._channel, Hello.of(self.session, self.vm.machine, layout), "destination")
        opening_s = clock.now() - start
        policy = clear_policy(self.options.clear, layout, self.options.clear_chunk_shift)
        bitmap = MigrationBitmap(dirty, policy, clock.now)
        controller = self._controller = ConvergenceController(
            self.vm,
            bitmap,
            self.options,
            opening_s,
            emit=self._reporter.tell,
            recorder=self._recorder,
            throttling=self._throttling,
        )
        self._reporter.bitmap, self._reporter.verdicts = bitmap, controller.verdicts
        page_source = PageSource(
            self.vm.memory,
            self._channel,
            rate_limiter=RateLimiter(self.options.max_bandwidth, clock),
            clock=clock,
            tick=self._tick,
        )
        dirty.start()
        bitmap.mark_all()
        way = self._choose_sync_way(page_source)
        rounds = Rounds(
            bitmap,
            page_source,
            started=start,
            throttled_share=self._throttling.share_of_round,
            stall=watch.take,
        )
        setup_s = clock.now() - start
        sync = self._converge(bitmap, rounds, controller, choice.tracker)
        switchover = Switchover(
            self.vm,
            rounds,
            self._handover,
            self._reporter,
            session=self.session,
            verify=self.options.verify,
            check_cancelled=self._check_cancelled,
        )
        patience_s = patience(self.stream.timeout, controller.verdicts[-1], self.options, layout.bytes)
        switched = switchover.run(sync, patience_s)
        return Migrated(
            session=self.session,
            guest=self.vm.kind,
            tracker=choice.tracker,
            tracker_why=choice.why,
            tracker_pause_s=choice.pause_s,
            sync_way=way.way,
            sync_way_why=way.why,
            clear=self.options.clear,
            clear_chunk_shift=self.options.clear_chunk_shift,
            policy=self.options.policy,
            rounds=tuple(self._reporter.rounds),
            verdicts=tuple(controller.verdicts),
            downtime=switched.downtime,
            downtime_limit_s=self.options.downtime_limit_s,
            total_s=clock.now() - start,
            verify_s=switched.verify_s,
            setup_s=setup_s,
            sent_bytes=self._reporter.moved_bytes,
            ram_bytes=layout.bytes,
            compared_pages=switched.compared_pages,
            throttled=self._throttling.cost,
            verify_bytes=self._channel.sent_in(Compare),
            setup_bytes=self._channel.sent_in(Hello),
            other_bytes=self._reporter.moved_bytes - self._channel.sent_in(Pages, RoundEnd),
            source_cpu=cpu_time() - used - switched.verify_cpu,
            destination_cpu=CpuTime(switched.running.user_s, switched.running.system_s),
            stall=watch.of(self._reporter.rounds),
        )

    def _converge(
        self, bitmap: MigrationBitmap, rounds: Rounds, controller: ConvergenceController, tracker: str
    ) -> SyncStats:
        """Rounds until the policy says to switch over; returns the sync before that. Raises `NotConverged`."""
        self._reporter.phase = "rounds"
        sync = rounds.sync()
        controller.begin(tracker, sync)
        rehearsal = Rehearsal(self.vm, self._clock)
        while True:
            done = rounds.send(
                sync,
                early_end=controller.early_end(rounds.synced_at - self._reporter.started),
                dirty_map=bitmap.pending.counts(_MAP_PARTS),
            )
            self._reporter.round(done)
            rehearsal.between_rounds()
            sync = rounds.sync()
            decision = controller.after(done, sync, rounds.synced_at - self._reporter.started)
            if decision.action is Action.SWITCH_OVER:
                return sync
            if decision.action is Action.GIVE_UP:
                verdict = controller.verdicts[-1]
                raise NotConverged(
                    rounds.number,
                    verdict.remaining_bytes,
                    decision.downtime_s.value,
                    decision.downtime_limit_s,
                    reason=decision.reason,
                    smallest_limit=verdict.smallest_downtime_limit_s.high,
                )

    def _tick(self) -> None:
        """Between batches: stops where the user asked to, and tells of progress now and then."""
        self._check_cancelled()
        self._reporter.tick()
        if self._watch is not None:
            self._watch.poll()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled(_WAS_CANCELLED)
