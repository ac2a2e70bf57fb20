"""The control of a migration: it gives the source's measurements to a policy, and throttles where that says so. To
switch over, to wait and to give up is up to `Source._converge`.

All decisions are made in `precopy.planning`, which is pure.
"""

from __future__ import annotations

from collections.abc import Callable

from precopy.dirty import MigrationBitmap, SyncStats
from precopy.migration.options import MigrationOptions
from precopy.migration.page_source import WINDOW_PAGES
from precopy.migration.recorder import Recorder
from precopy.migration.results import Range, Verdict, finite
from precopy.migration.rounds import LEAST_BATCH_PAGES, EarlyEnd
from precopy.migration.throttle_modes import Throttling
from precopy.planning import Action, Decision, Estimate, Forecast, Metrics, RoundSample, forecast
from precopy.planning.estimation.estimators import observe
from precopy.planning.model.round import NextSync, Round
from precopy.planning.model.switchover import switchover_overhead
from precopy.planning.model.trace import RecordedFacts
from precopy.planning.policies import POLICIES
from precopy.ports import SourceVm

_FAST = 1e9
"""Bytes a second assumed of a link without a limit in the first round."""
_FIRST_SAMPLE_S = 0.01
"""Seconds from a sync to the recording's first mid-round sample of the dirty log; each later one comes after twice the
time. Replays need to know when in a round a page was written."""


class ConvergenceController:
    """Decides after each round of ``vm``; ``bitmap`` has the pages to be sent. ``emit`` gets each verdict, ``recorder``
    the measurements. ``throttling`` slows it down."""

    def __init__(
        self,
        vm: SourceVm,
        bitmap: MigrationBitmap,
        options: MigrationOptions,
        opening_s: float,
        *,
        emit: Callable[[Verdict], None],
        recorder: Recorder | None,
        throttling: Throttling,
    ) -> None:
        self.vm, self.bitmap, self.options, self.limits = vm, bitmap, options, options.limits
        self._recorder, self._counters = recorder, bitmap.memory.counters
        self.policy = POLICIES[options.policy]
        self.verdicts: list[Verdict] = []
        self.samples: list[RoundSample] = []
        self._emit = emit
        self._opening_s = self._round_trip_s = opening_s
        self._page_size = vm.memory.layout.page_size
        self._next_sample_s = _FIRST_SAMPLE_S
        self._began_s = 0.0
        self._metrics: Metrics | None = None
        self._throttling = throttling

    def early_end(self, now: float) -> EarlyEnd:
        """How the round that begins ``now`` may end early: where the policy would end the migration in its middle."""
        metrics, limits = self._metrics, self.limits
        self._began_s = now

        def ends(unsent_bytes: int, interval_s: float) -> bool:
            self._sample_mid_round(interval_s)
            then = now + interval_s
            if metrics is None:  # the first round is cut short only for the time
                return limits.timed_out(then)
            return self._decide(metrics.in_round(unsent_bytes, interval_s), then).ends_round_early(limits, then)

        bandwidth = float(self.options.max_bandwidth or _FAST)
        if metrics is not None:
            bandwidth = metrics.costs.bandwidth.value
        # The policy is asked about ten times in the bytes of a downtime limit, or of a second if that is less.
        allowed = int(bandwidth * min(limits.downtime_limit_s, 1.0) / 10) // self._page_size
        return EarlyEnd(min(max(allowed, LEAST_BATCH_PAGES), WINDOW_PAGES), ends)

    def _sample_mid_round(self, interval_s: float) -> None:
        if self._recorder is not None and interval_s >= self._next_sample_s:
            self._recorder.mid_round(interval_s, self.bitmap.mid_round())
            self._next_sample_s = 2 * interval_s

    def begin(self, tracker: str, first: SyncStats) -> None:
        """The ``first`` sync is done, and nothing was sent yet. Raises `Unsupported` where the guest cannot be slowed
        down as wanted."""
        self._throttling.check()  # raises now, and not after some rounds
        if self._recorder is not None:
            facts = RecordedFacts(
                machine=self.vm.machine,
                guest=self.vm.kind,
                tracker=tracker,
                clear=self.options.clear,
                clear_chunk_shift=self.options.clear_chunk_shift,
                policy=self.options.policy,
                limits=self.limits,
                max_bandwidth=self.options.max_bandwidth,
                switchover_overhead_s=self.switchover_overhead_s,
                first_sync_s=first.sync_s,
            )
            self._recorder.begin(self.vm.memory.layout, facts)

    def after(self, done: Round, sync: SyncStats, now: float) -> Decision:
        """What to do after a round and the ``sync`` of the next one, ``now`` seconds since the migration's start; the
        guest is throttled as it says. Raises `Unsupported`, `GuestError`."""
        remaining_bytes = self.bitmap.pending.count() * self._page_size
        throttled_share = self._throttling.share_between_syncs()
        after = NextSync(
            ended_s=now,
            since_s=now - self._began_s - sync.sync_s,
            sync_s=sync.sync_s,
            dirty_bytes=sync.new_dirty_pages * self._page_size,
            remaining_bytes=remaining_bytes,
            throttled_share=throttled_share,
        )
        limited = self.options.max_bandwidth is not None
        self.samples.append(RoundSample.of(done, after, page_size=self._page_size, limited=limited))
        self._record(done, after)
        self._round_trip_s = min(self._round_trip_s, done.ack_s)
        metrics = observe(
            self.vm.memory.layout.bytes,
            tuple(self.samples),
            remaining_bytes,
            self.switchover_overhead_s,
            throttled_share=throttled_share,
            asked_share=self._throttling.asked_share,
        )
        self._metrics = metrics
        decision = self._decide(metrics, now)
        ahead = forecast(metrics, self.limits, now, decision, self.policy.decide)
        verdict = self._verdict(metrics, ahead, now)
        self.verdicts.append(verdict)
        self._emit(verdict)
        if decision.action is Action.THROTTLE:
            self._throttling.slow_down(decision.throttle_to, metrics)
        return decision

    def _decide(self, metrics: Metrics, now: float) -> Decision:
        """What to do ``now``: go on, wait, throttle, switch over or give up. Nothing else asks the policy; the forecast
        and what shows the decision are given it."""
        return self.policy.decide(metrics, self.limits, now)

    def _record(self, done: Round, after: NextSync) -> None:
        self._next_sample_s = _FIRST_SAMPLE_S
        if self._recorder is not None:
            before, self._counters = self._counters, self.bitmap.memory.counters
            self._recorder.round(done, after, self.bitmap.dirty, self._counters - before)

    @property
    def switchover_overhead_s(self) -> Estimate:
        """Seconds expected in a downtime besides its last sync and sending."""
        return switchover_overhead(self._round_trip_s, self._opening_s)

    @staticmethod
    def _verdict(metrics: Metrics, ahead: Forecast, now: float) -> Verdict:
        decision = ahead.decision
        return Verdict(
            round=len(metrics.rounds),
            elapsed_s=now,
            action=decision.action.value,
            reason=decision.reason,
            downtime_limit_s=decision.downtime_limit_s,
            converges=ahead.converges,
            more_rounds=Range.of(ahead.more_rounds),
            downtime_s=Range.of(ahead.downtime_s),
            total_s=Range.of(ahead.total_s),
            smallest_downtime_limit_s=Range.of(ahead.smallest_downtime_limit_s),
            largest_dirty_rate_bytes_per_s=finite(ahead.largest_dirty_rate_bytes_per_s),
            dirty_rate_bytes_per_s=ahead.dirty_rate_bytes_per_s,
            bandwidth_bytes_per_s=Range.of(ahead.bandwidth_bytes_per_s),
            remaining_bytes=int(metrics.remaining_bytes),
            throttle_to=decision.throttle_to,
        )
