"""Replays a recorded migration under another policy, link, clear policy or other limits.

The guest's writes stay as recorded (`Timeline`); the times to find and send them change. `simulate` makes the rounds,
and after each the policy sees what it would have measured then.
"""

from __future__ import annotations

from dataclasses import replace

from precopy.errors import UsageError
from precopy.planning.estimation.estimators import estimate_costs, observe
from precopy.planning.forecast.simulate import Outcome, simulate
from precopy.planning.model.decision import Policy
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Costs, Metrics, RoundSample
from precopy.planning.model.trace import Trace
from precopy.planning.replay.clear_calls import with_clear
from precopy.planning.replay.timeline import Timeline


class RecordedGuest:
    """Implements `precopy.planning.GuestModel` for one migration: ``begin_s`` is when its first round began, since its
    start. Moments have to come in order, because throttling delays all later writes."""

    def __init__(self, timeline: Timeline, costs: Costs, begin_s: float) -> None:
        self._timeline, self._costs = timeline, costs
        self._at, self._guest, self._throttled_share = begin_s, 0.0, 0.0

    @property
    def costs(self) -> Costs:
        return self._costs

    def dirtied(self, start_s: float, end_s: float, throttled_share: float) -> float:
        """Raises `ValueError` for an interval that begins before the last one did."""
        if start_s < self._at:
            raise ValueError(f"{start_s} is before {self._at}")
        self._guest += (start_s - self._at) * (1 - self._throttled_share)
        self._at, self._throttled_share = start_s, throttled_share
        return self._timeline.dirtied(self._guest, self._guest + (end_s - start_s) * (1 - throttled_share))


class Replayer:
    """Replays one trace, any number of times. Raises `UsageError` for one without a round."""

    def __init__(self, trace: Trace) -> None:
        if not trace.rounds:
            raise UsageError("the recording has no round that was finished, so there is nothing to replay")
        self.trace = trace
        self._timeline = Timeline(trace)

    def run(
        self, policy: Policy, *, bandwidth: float | None = None, clear: str | None = None, limits: Limits | None = None
    ) -> Outcome:
        """``bandwidth`` in bytes a second of time spent sending. None keeps the recorded value. Raises
        `UsageError` for a clear policy that there is not, or a link that carries nothing."""
        if bandwidth is not None and bandwidth <= 0:
            raise UsageError("a link has a bandwidth above 0")
        trace, limits = self.trace, limits or self.trace.facts.limits
        samples = with_clear(trace, clear or trace.facts.clear)
        costs = _costs(trace, samples, bandwidth)
        begin_s = max(trace.samples[0].ended_s - trace.samples[0].interval_s, 0.0)
        guest = RecordedGuest(self._timeline, costs, begin_s)
        done = _first_round(samples[0], guest, begin_s, trace.ram_bytes)

        def seen(rounds: tuple[RoundSample, ...], remaining_bytes: float, throttled_share: float) -> Metrics:
            return observe(
                trace.ram_bytes, rounds, remaining_bytes, trace.switchover_overhead_s, throttled_share=throttled_share
            )

        start = seen((done,), done.remaining_bytes, 0.0)
        outcome = simulate(start, guest, policy.decide, limits, done.ended_s, observe=seen)
        return replace(outcome, rounds=(done, *outcome.rounds), sent_bytes=outcome.sent_bytes + done.sent_bytes)


def replay(
    trace: Trace,
    policy: Policy,
    *,
    bandwidth: float | None = None,
    clear: str | None = None,
    limits: Limits | None = None,
) -> Outcome:
    """See `Replayer.run`."""
    return Replayer(trace).run(policy, bandwidth=bandwidth, clear=clear, limits=limits)


def _costs(trace: Trace, samples: tuple[RoundSample, ...], bandwidth: float | None) -> Costs:
    """The costs measured over the whole recording, exact rather than estimated for later rounds."""
    costs = estimate_costs(samples, trace.switchover_overhead_s)
    if bandwidth is None:
        sent, send_s = sum(sample.sent_bytes for sample in samples), sum(sample.send_s for sample in samples)
        bandwidth = sent / send_s if sent > 0 and send_s > 0 else costs.bandwidth.value
    return replace(
        costs,
        bandwidth=Estimate.exact(bandwidth),
        switchover_overhead_s=Estimate.exact(costs.switchover_overhead_s.value),
    )


def _first_round(recorded: RoundSample, guest: RecordedGuest, begin_s: float, ram_bytes: int) -> RoundSample:
    """The first round, of all memory: with the zero pages that there were, and scanned and cleared as it was."""
    send_s = recorded.sent_bytes / guest.costs.bandwidth.value
    transfer_s = send_s + max(recorded.transfer_s - recorded.send_s, 0.0)
    sync_s = guest.costs.sync_time_s(guest.dirtied(begin_s, begin_s + transfer_s, 0.0))
    found = min(guest.dirtied(begin_s, begin_s + transfer_s + sync_s, 0.0), ram_bytes)
    return replace(
        recorded,
        ended_s=begin_s + transfer_s + sync_s,
        transfer_s=transfer_s,
        send_s=send_s,
        sync_s=sync_s,
        dirty_bytes=found,
        remaining_bytes=found,
        throttled_share=0.0,
    )
