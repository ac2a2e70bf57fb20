"""The source's side of a migration: rounds while the guest runs, then the switchover.

Law 4: **At most one side runs.** The source resumes its guest where `Handover` knows that it is here: after any failure
before `Commit`, and after an `Abort` that answers it. Where the outcome is unknown, the guest stays paused here.

Law 5: **The peer is not trusted**, with the guest's time either. While the guest is paused all that the destination
does has to be done within `Source._patience`; then the guest runs on here. The answer to `Commit` has to come within
the stream's time-out.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable

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
from precopy.migration.results import Attempt, Committing, Event, Migrated, Progress
from precopy.migration.rounds import Rounds
from precopy.migration.session import GuestIs, Handover, new_session, open_session, reason_of
from precopy.migration.throttling import Throttling, throttling_of
from precopy.migration.verification import check_compared, send_for_comparison
from precopy.planning import Action
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.round import Round
from precopy.planning.model.trace import RecordedOutcome
from precopy.ports import (
    ByteStream,
    Clock,
    DeviceStates,
    SelfChecking,
    SourceVm,
    SystemClock,
    TrackerChoice,
    TrackerChoosing,
    lacks,
)
from precopy.ports.stream import SLOWEST_BYTES_PER_S
from precopy.wire.events import (
    Compare,
    DeviceState,
    Hello,
    Pages,
    Prepare,
    Ready,
    Role,
    RoundEnd,
)
from precopy.wire.format import OpenFormat

_PROGRESS_S = 0.1
"""Seconds between two progress events at least."""
_MAP_PARTS = 128
"""Parts of memory whose dirty pages a round's map counts: about as many as fit into a picture."""
_CANCEL_GRACE_S = 1.0
"""Seconds from a request to cancel until the stream is cut, if the migration has not ended by itself."""
_SLACK = 4.0
"""A switchover is given up after the stream's time-out plus this many times its expected time. The factor allows for a
link that has become slower and for a busy machine; the bound is against a peer that delays."""
_WAS_CANCELLED = "the migration was cancelled; the guest runs on at the source"


class Source:
    """Migrates ``vm`` over ``stream``, in the format that ``open_format`` opens. ``emit`` is told of each round, of each
    verdict and, ten times a second, of progress; ``recorder`` writes down what a replay needs."""

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
        self._emit = emit
        self._clock = clock or SystemClock()
        self._channel = Channel(stream, open_format(Role.SOURCE), self._clock)
        self._cancelled = threading.Event()
        self._handover = Handover(self._channel, self.session)
        self._rounds: list[Round] = []
        self._controller: ConvergenceController | None = None
        self._throttling = Throttling()
        self._next_progress = 0.0
        self._saved_at: float | None = None
        self._bitmap: MigrationBitmap | None = None
        self._started = self._clock.now()
        self._phase = "setup"

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
            choice = self._choose_tracker()
            dirty = self.vm.dirty
            done = self._migrate(dirty, choice)
            self._record_end(done.outcome)
            return done
        except BaseException as error:
            failure = self._failure(error)
            if isinstance(failure, PrecopyError) and self._bitmap is not None:
                failure.attempt = self._attempt(self._bitmap)
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

    def _attempt(self, bitmap: MigrationBitmap) -> Attempt:
        options, sent = self.options, self._moved_bytes()
        return Attempt(
            session=self.session,
            guest=self.vm.kind,
            clear=options.clear,
            policy=options.policy,
            rounds=tuple(self._rounds),
            verdicts=tuple(self._controller.verdicts) if self._controller else (),
            downtime_limit_s=options.downtime_limit_s,
            total_s=self._moved_until(),
            sent_bytes=sent,
            other_bytes=sent - sum(done.sent_bytes for done in self._rounds),
            remaining_bytes=bitmap.pending.count() * self.vm.memory.layout.page_size,
            ram_bytes=self.vm.memory.layout.bytes,
        )

    def _moved_until(self) -> float:
        """Seconds since the start until now, or until verification began."""
        return self._elapsed() if self._saved_at is None else self._saved_at - self._started

    def _outcome_of(self, failure: BaseException) -> RecordedOutcome:
        switchover_overhead_s = self._controller.switchover_overhead_s if self._controller else None
        total_s, sent = self._moved_until(), self._moved_bytes()
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

    def _migrate(self, dirty: DirtyMemory, choice: TrackerChoice) -> Migrated:
        clock, layout = self._clock, self.vm.memory.layout
        start = self._started = clock.now()
        open_session(self._channel, Hello.of(self.session, self.vm.machine, layout), "destination")
        round_trip_s = clock.now() - start
        policy = clear_policy(self.options.clear, layout, self.options.clear_chunk_shift)
        bitmap = MigrationBitmap(dirty, policy, clock.now)
        controller = self._controller = ConvergenceController(
            self.vm,
            bitmap,
            self.options,
            round_trip_s,
            emit=self._emit,
            recorder=self._recorder,
            throttling=self._throttling,
        )
        self._bitmap = bitmap
        pages = PageSource(
            self.vm.memory,
            self._channel,
            rate_limiter=RateLimiter(self.options.max_bandwidth, clock),
            clock=clock,
            tick=self._tick,
        )
        rounds = Rounds(bitmap, pages, started=start, throttled_share=self._throttling.share_of_round)
        dirty.start()
        bitmap.mark_all()
        setup_s = clock.now() - start
        sync = self._converge(bitmap, rounds, controller, choice.tracker)
        downtime, verify_s, compared = self._switch_over(rounds, sync, self._patience(controller))
        return Migrated(
            session=self.session,
            guest=self.vm.kind,
            tracker=choice.tracker,
            tracker_why=choice.why,
            tracker_pause_s=choice.pause_s,
            clear=self.options.clear,
            clear_chunk_shift=self.options.clear_chunk_shift,
            policy=self.options.policy,
            rounds=tuple(self._rounds),
            verdicts=tuple(controller.verdicts),
            downtime=downtime,
            downtime_limit_s=self.options.downtime_limit_s,
            total_s=clock.now() - start,
            verify_s=verify_s,
            setup_s=setup_s,
            sent_bytes=self._moved_bytes(),
            ram_bytes=layout.bytes,
            compared_pages=compared,
            throttled=self._throttling.cost,
            verify_bytes=self._channel.sent_in(Compare),
            setup_bytes=self._channel.sent_in(Hello),
            other_bytes=self._moved_bytes() - self._channel.sent_in(Pages, RoundEnd),
        )

    def _moved_bytes(self) -> int:
        """What went to the stream for moving the guest: neither its hello nor verification."""
        return self._channel.sent_bytes - self._channel.sent_in(Hello, Compare)

    def _converge(
        self, bitmap: MigrationBitmap, rounds: Rounds, controller: ConvergenceController, tracker: str
    ) -> SyncStats:
        """Rounds until the policy says to switch over; returns the sync before that. Raises `NotConverged`."""
        self._phase = "rounds"
        sync = rounds.sync()
        controller.begin(tracker, sync)
        while True:
            done = rounds.send(
                sync,
                early_end=controller.early_end(rounds.synced_at - self._started),
                dirty_map=bitmap.pending.counts(_MAP_PARTS),
            )
            self._record(done)
            sync = rounds.sync()
            decision = controller.after(done, sync, rounds.synced_at - self._started)
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

    def _patience(self, controller: ConvergenceController) -> float:
        """Seconds that the guest may stand still before it is certain whether it is given away."""
        verdict = controller.verdicts[-1]
        expected_s = max(self.options.downtime_limit_s, verdict.downtime_s.value or 0.0, verdict.downtime_s.high or 0.0)
        if self.options.verify:
            bandwidth = verdict.bandwidth_bytes_per_s.low or SLOWEST_BYTES_PER_S
            expected_s += self.vm.memory.layout.bytes / max(bandwidth, SLOWEST_BYTES_PER_S)
        return self.stream.timeout + _SLACK * expected_s

    def _switch_over(self, rounds: Rounds, sync: SyncStats, patience_s: float) -> tuple[Downtime, float, int]:
        """Raises `PeerLost` where it takes longer than ``patience_s``, and what else can go wrong."""
        clock = self._clock
        self._phase = "switchover"
        self._tick(force=True)
        began = clock.now()
        self.vm.pause()
        self.stream.limit(patience_s)
        paused = clock.now()
        final = rounds.sync()
        synced = clock.now()
        last = rounds.send(sync, final=final)
        sent = clock.now()
        self._channel.send(DeviceState(self.vm.save_state() if isinstance(self.vm, DeviceStates) else b""))
        saved = self._saved_at = clock.now()
        compared = self._compare(rounds.source) if self.options.verify else 0
        self._channel.send(Prepare(compared))
        ready = self._channel.expect(Ready)
        check_compared(ready, compared)
        # Verification is everything from the saved state to the answer but what the destination says it took to load
        # that state, which the guest would have waited for in any case.
        spent = clock.now() - saved
        verify_s = spent - min(max(ready.load_s, 0.0), spent) if self.options.verify else 0.0
        committing = clock.now()
        self._commit()
        done = clock.now()
        with contextlib.suppress(Exception):  # the guest is gone: a listener that fails cannot change that
            self._record(last)
        downtime = Downtime(
            pause_s=paused - began,
            final_sync_s=synced - paused,
            final_send_s=sent - synced,
            state_s=committing - sent - verify_s,
            commit_s=done - committing,
        )
        return downtime, verify_s, compared

    def _compare(self, pages: PageSource) -> int:
        self._phase = "verify"
        return send_for_comparison(pages)

    def _commit(self) -> None:
        self._emit(Committing(self.session))  # first, so that no observer takes a commit that was sent for unsent
        self._handover.commit(self._begin_commit)
        self._phase = "done"

    def _begin_commit(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled(_WAS_CANCELLED)
        self._phase = "commit"

    def _record(self, done: Round) -> None:
        self._rounds.append(done)
        self._emit(done)

    def _remaining(self) -> int:
        return self._bitmap.pending.count() * self.vm.memory.layout.page_size if self._bitmap else 0

    def _elapsed(self) -> float:
        return self._clock.now() - self._started

    def _tick(self, *, force: bool = False) -> None:
        """Between batches: stops where the user asked to, and tells of progress now and then."""
        if self._cancelled.is_set():
            raise Cancelled(_WAS_CANCELLED)
        now = self._clock.now()
        if now >= self._next_progress or force:
            self._next_progress = now + _PROGRESS_S
            self._emit(self._progress(now))

    def _progress(self, now: float) -> Progress:
        elapsed = now - self._started
        verdict = self._controller.verdicts[-1] if self._controller and self._controller.verdicts else None
        bandwidth = self._moved_bytes() / max(elapsed, 1e-9)
        eta = None
        if verdict is not None:
            bandwidth = verdict.bandwidth_bytes_per_s.value or 0.0
            if verdict.converges is not None:
                eta = max((verdict.total_s.value or 0.0) - elapsed, 0.0) if verdict.converges else math.inf
        return Progress(
            phase=self._phase,
            round=len(self._rounds) + 1,
            sent_bytes=self._moved_bytes(),
            remaining_bytes=self._remaining(),
            dirty_rate_bytes_per_s=verdict.dirty_rate_bytes_per_s if verdict else 0.0,
            bandwidth_bytes_per_s=bandwidth,
            elapsed_s=elapsed,
            expected_downtime_s=verdict.downtime_s.value if verdict else None,
            eta_s=eta,
            verify_bytes=self._channel.sent_in(Compare),
        )
