"""Whatever the clocks and counters of a migration say, nothing that is made of it fails: syncs that took no time,
rounds in which nothing had to be sent, amounts of one page and of a petabyte, times below what a clock resolves."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from precopy.names import TimeoutPolicy
from precopy.planning import OURS, Estimate, Limits, Metrics, Policy, RoundSample, forecast
from precopy.planning.estimation.estimators import observe
from precopy.planning.policies import POLICIES
from precopy.planning.policies.ours import decide

AMOUNTS = st.sampled_from((0.0, 1.0, 4096.0, 1e9, 1e15)) | st.floats(0, 1e15)
TIMES = st.sampled_from((0.0, 5e-324, 1e-160, 1e-9, 1e-3, 1.0, 1e6)) | st.floats(0, 1e6)
SHARES = st.sampled_from((0.0, 0.5, 0.99))


@st.composite
def measured(draw: st.DrawFn) -> tuple[RoundSample, ...]:
    rounds: list[RoundSample] = []
    now = 0.0
    for number in range(1, draw(st.integers(1, 8)) + 1):
        send_s, scan_s, clear_s, sync_s = (draw(TIMES) for _ in range(4))
        transfer_s = send_s + scan_s + clear_s
        now += transfer_s + sync_s
        sent, read, dirty, left = (draw(AMOUNTS) for _ in range(4))
        rounds.append(
            RoundSample(number, now, transfer_s, send_s, scan_s, clear_s, sync_s, sent, read, dirty, left, draw(SHARES))
        )
    return tuple(rounds)


LIMITS = st.builds(
    Limits,
    st.sampled_from((0.0, 1e-9, 0.3, 1e6)),
    st.integers(1, 20),
    st.none() | st.sampled_from((1e-9, 1.0, 1e6)),
    st.sampled_from(TimeoutPolicy),
    SHARES,
)


@st.composite
def observed(draw: st.DrawFn) -> Metrics:
    rounds, ram_bytes = draw(measured()), draw(st.sampled_from((4096, 1 << 30, 1 << 50)))
    overhead = Estimate.exact(draw(st.sampled_from((0.0, 1e-9, 0.005, 1.0))))
    return observe(ram_bytes, rounds, rounds[-1].remaining_bytes, overhead, throttled_share=draw(SHARES))


@given(known=observed(), limits=LIMITS, policy=st.just(OURS) | st.sampled_from(list(POLICIES.values())))
def test_every_policy_decides(known: Metrics, limits: Limits, policy: Policy) -> None:
    decision = policy.decide(known, limits, known.rounds[-1].ended_s)
    assert 0 <= decision.downtime_s.low <= decision.downtime_s.value <= decision.downtime_s.high
    assert 0 <= decision.throttle_to <= max(limits.max_throttle, known.throttled_share)
    assert decision.reason


@given(known=observed(), limits=LIMITS)
def test_every_forecast_ends(known: Metrics, limits: Limits) -> None:
    now = known.rounds[-1].ended_s
    ahead = forecast(known, limits, now, decide(known, limits, now))
    for estimate in (ahead.more_rounds, ahead.downtime_s, ahead.total_s, ahead.smallest_downtime_limit_s):
        assert 0 <= estimate.low <= estimate.value <= estimate.high
        assert not math.isnan(estimate.high)
    assert ahead.largest_dirty_rate_bytes_per_s >= 0
