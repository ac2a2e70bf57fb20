"""The field's policies, held against the numbers that their projects give."""

from __future__ import annotations

import math

import pytest

from precopy.planning import (
    Action,
    Costs,
    CurveGuest,
    Decision,
    DirtyCurve,
    Estimate,
    Limits,
    Metrics,
    RoundSample,
    TimeoutPolicy,
    simulate,
)
from precopy.planning.policies import FIELD_POLICIES, POLICIES
from precopy.planning.policies.kubevirt import ramped_limit
from precopy.planning.policies.nova import downtime_steps
from precopy.planning.policies.proxmox import doublings
from precopy.planning.policies.qemu import measured_bandwidth

GIB, GB, MB = 1 << 30, 1e9, 1e6
COSTS = Costs(Estimate.exact(GB), 1.0, 0.0, 0.0, 0.0, Estimate.exact(0.0))


def rounds_of(*made: tuple[float, float, float, float, float], start: float = 0.0) -> tuple[RoundSample, ...]:
    """Rounds one after another, each (t, x, sent bytes, dirty bytes, remaining bytes)."""
    rounds, now = [], start
    for number, (t, x, sent, dirty, remaining) in enumerate(made, 1):
        now += t + x
        rounds.append(RoundSample(number, now, t, t, 0.0, 0.0, x, sent, sent, dirty, remaining))
    return tuple(rounds)


def steady(count: int, t: float, sent: float, remaining: float) -> tuple[RoundSample, ...]:
    """So many rounds of ``t`` seconds, syncs for nothing, that all leave the same."""
    return rounds_of(*[(t, 0.0, sent, remaining, remaining)] * count)


def metrics_of(rounds: tuple[RoundSample, ...], throttle: float = 0.0, ram_bytes: int = 4 * GIB) -> Metrics:
    remaining = rounds[-1].remaining_bytes if rounds else float(ram_bytes)
    return Metrics(ram_bytes, rounds, remaining, DirtyCurve(()), 0.0, COSTS, throttle)


def decide(name: str, metrics: Metrics, limits: Limits, now: float | None = None) -> Decision:
    if now is None:
        now = metrics.rounds[-1].ended_s if metrics.rounds else 0.0
    return FIELD_POLICIES[name].decide(metrics, limits, now)


def test_the_names() -> None:
    names = ["qemu", "qemu-auto-converge", "kubevirt-stall", "kubevirt-ramp", "nova", "proxmox", "cloud-hypervisor"]
    assert list(FIELD_POLICIES) == names
    assert list(POLICIES) == ["precopy", *names]
    for policy in FIELD_POLICIES.values():
        assert policy.source
        assert policy.decide.__doc__ is not None
        assert "Source: " in policy.decide.__doc__


# QEMU.


@pytest.mark.parametrize(
    ("dirty_rate", "x", "smallest"),
    [
        (7.5 * GB, 0.25, 0.5),
        (7.5 * GB, 0.01, 0.01111),
        (2.5 * GB, 0.25, 0.3),
        # The letter has 14.46 GB/s here, from its formula for x + t below 100 ms. At 14.5 GB/s x + t is 300 ms, where
        # its own other formula holds.
        (14.5 * GB, 0.01, 0.3),
    ],
)
def test_qemu_switches_over_where_the_cover_letter_says(dirty_rate: float, x: float, smallest: float) -> None:
    """At the critical point, where a round sends as much as is dirtied meanwhile."""
    bandwidth = 15 * GB
    t = dirty_rate * x / (bandwidth - dirty_rate)
    dirty = dirty_rate * (x + t)
    metrics = metrics_of(rounds_of((t, x, bandwidth * t, dirty, dirty)))
    below, above = (decide("qemu", metrics, Limits(downtime_limit_s=smallest * factor)) for factor in (0.99, 1.01))
    assert below.action is Action.GO_ON
    assert above.action is Action.SWITCH_OVER
    assert above.downtime_s.value == pytest.approx(smallest, rel=1e-3)


def test_qemu_measures_over_a_window_that_holds_the_sync() -> None:
    long = (0.3, 0.1, 3 * GB, 0.0, 0.0)
    assert measured_bandwidth(rounds_of(long)) == pytest.approx(7.5 * GB)
    short = (0.02, 0.01, 0.1 * GB, 0.0, 0.0)
    rate = (3 + 0.1) * GB / 0.32
    assert measured_bandwidth(rounds_of(long, short)) == pytest.approx(rate * 0.9)
    assert measured_bandwidth(()) == 0.0
    assert measured_bandwidth(rounds_of((0.0, 0.2, 0.0, 0.0, 0.0))) == 0.0


def test_qemu_does_not_switch_at_the_threshold_itself() -> None:
    at = metrics_of(steady(1, 1.0, GB, 0.5 * GB))
    assert decide("qemu", at, Limits(downtime_limit_s=0.5)).action is Action.GO_ON
    just_below = metrics_of(steady(1, 1.0, GB, 0.5 * GB - 4096))
    assert decide("qemu", just_below, Limits(downtime_limit_s=0.5)).action is Action.SWITCH_OVER


def test_qemu_says_why_in_numbers() -> None:
    metrics = metrics_of(steady(1, 1.0, 2 * GB, 412 * (1 << 20)))
    decision = decide("qemu", metrics, Limits(downtime_limit_s=0.3))
    assert decision.reason == "412 MiB pending are below 572 MiB = 2.00 GB/s x 300.0 ms"
    assert decision.downtime_limit_s == 0.3


def test_before_the_first_round_nothing_is_known() -> None:
    for name in FIELD_POLICIES:
        decision = decide(name, metrics_of(()), Limits())
        assert decision.action is Action.GO_ON, name
        assert math.isinf(decision.downtime_s.value), name


# Auto-converge.


def test_auto_converge_throttles_every_second_dirty_period_up_to_99_percent() -> None:
    limits = Limits(downtime_limit_s=0.01, max_rounds=1000, max_throttle=0.99)
    throttle, taken = 0.0, []
    for count in range(1, 31):
        decision = decide("qemu-auto-converge", metrics_of(steady(count, 2.0, GB, 0.6 * GB), throttle), limits)
        assert (decision.action is Action.THROTTLE) == (count % 2 == 0 and throttle < 0.99), count
        throttle = decision.throttle_to
        if decision.action is Action.THROTTLE:
            taken.append(throttle)
    assert taken == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99]
    assert throttle == 0.99


def test_auto_converge_takes_no_more_than_is_allowed() -> None:
    metrics = metrics_of(steady(2, 2.0, GB, 0.6 * GB))
    assert decide("qemu-auto-converge", metrics, Limits(max_throttle=0.15)).throttle_to == 0.15
    assert decide("qemu-auto-converge", metrics, Limits()).action is Action.GO_ON


def test_auto_converge_counts_short_rounds_together_and_does_not_forget() -> None:
    limits = Limits(downtime_limit_s=0.01, max_rounds=1000, max_throttle=0.99)

    def actions(rounds: tuple[RoundSample, ...]) -> list[Action]:
        counts = range(1, len(rounds) + 1)
        return [decide("qemu-auto-converge", metrics_of(rounds[:count]), limits).action for count in counts]

    on, throttle = Action.GO_ON, Action.THROTTLE
    # Three rounds of 0.4 s are one period of more than a second.
    assert actions(steady(7, 0.4, GB, 0.6 * GB)) == [on, on, on, on, on, throttle, on]
    # A calm period between two dirty ones changes nothing.
    dirty, calm = (2.0, 0.0, GB, 0.6 * GB, 0.6 * GB), (2.0, 0.0, GB, 0.4 * GB, 0.4 * GB)
    assert actions(rounds_of(dirty, calm, dirty, dirty, calm)) == [on, on, throttle, on, on]
    # Half of it is not more than half of it.
    assert throttle not in actions(steady(9, 2.0, GB, 0.5 * GB))


# KubeVirt.


def test_the_ramp_is_that_of_vep_291() -> None:
    rounds = steady(2, 35.0, GB, GB)  # the third iteration begins after 70 s
    limits = [ramped_limit(rounds, 1.05, now) for now in (70, 79.9, 80, 90, 100, 110, 120, 130, 1000)]
    assert limits == pytest.approx([0.15, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05, 1.05])
    assert ramped_limit(rounds[:1], 1.05, 1000.0) == 0.15
    assert ramped_limit(rounds, 0.1, 1000.0) == 0.1


def test_the_ramp_lets_qemu_switch_over_later() -> None:
    rounds = steady(8, 10.0, 10 * GB, 0.5 * GB)  # 0.5 s of downtime; the ramp starts at 20 s
    limits = Limits(downtime_limit_s=1.05)
    actions = [decide("kubevirt-ramp", metrics_of(rounds[:count]), limits).action for count in range(1, 9)]
    assert actions == [Action.GO_ON] * 4 + [Action.SWITCH_OVER] * 4
    assert decide("kubevirt-ramp", metrics_of(rounds[:5]), limits).downtime_limit_s == pytest.approx(0.6)


def remaining(*left: float, every: float = 10.0) -> tuple[RoundSample, ...]:
    """Rounds of 10 s at 1 GB/s that leave so many bytes."""
    return rounds_of(*[(every, 0.0, every * GB, one, one) for one in left])


def test_a_stall_is_found_when_forty_seconds_bring_less_than_four_percent() -> None:
    limits = Limits(downtime_limit_s=0.1, max_rounds=1000)
    getting_ahead = remaining(10 * GB, 9.8 * GB, 9.7 * GB, 9.65 * GB, 9.59 * GB)
    assert decide("kubevirt-stall", metrics_of(getting_ahead), limits).action is Action.GO_ON
    stalled = remaining(10 * GB, 9.8 * GB, 9.7 * GB, 9.65 * GB, 9.61 * GB)
    assert decide("kubevirt-stall", metrics_of(stalled), limits).action is Action.GIVE_UP
    too_soon = remaining(10 * GB, 9.8 * GB, 9.7 * GB, 10 * GB)
    assert decide("kubevirt-stall", metrics_of(too_soon), limits).action is Action.GO_ON


def test_a_stalled_migration_waits_for_a_local_minimum() -> None:
    limits = Limits(downtime_limit_s=0.9, max_rounds=1000)
    high = remaining(0.8 * GB, 0.8 * GB, 0.6 * GB, 0.8 * GB, 0.8 * GB)
    waiting = decide("kubevirt-stall", metrics_of(high), limits)
    assert waiting.action is Action.WAIT
    assert waiting.downtime_limit_s == 0.3
    low = remaining(0.8 * GB, 0.8 * GB, 0.6 * GB, 0.8 * GB, 0.8 * GB, 0.62 * GB)
    switching = decide("kubevirt-stall", metrics_of(low), limits)
    assert switching.action is Action.SWITCH_OVER
    assert switching.downtime_limit_s == 0.9


def test_a_stalled_migration_asks_less_of_its_minimum_with_time() -> None:
    """0.6 GB never comes again: after 40 s the least since the stall is aimed at, 20 s later the next."""
    limits = Limits(downtime_limit_s=0.9, max_rounds=1000)
    left = [0.8 * GB, 0.8 * GB, 0.6 * GB, 0.8 * GB, 0.8 * GB, 0.8 * GB, 0.75 * GB, 0.8 * GB]
    assert decide("kubevirt-stall", metrics_of(remaining(*left)), limits).action is Action.WAIT
    again = decide("kubevirt-stall", metrics_of(remaining(*left, 0.8 * GB)), limits)
    assert again.action is Action.WAIT
    assert again.reason.endswith("the least was 715 MiB")
    assert decide("kubevirt-stall", metrics_of(remaining(*left, 0.8 * GB, 0.8 * GB)), limits).action is Action.WAIT
    later = decide("kubevirt-stall", metrics_of(remaining(*left, 0.8 * GB, 0.8 * GB, 0.8 * GB)), limits)
    assert later.action is Action.SWITCH_OVER


def test_a_minimum_that_might_fit_gets_a_minute_and_one_that_cannot_none() -> None:
    limits = Limits(downtime_limit_s=0.5, max_rounds=1000)
    stalled = [0.7 * GB] * 5  # 1.4 times what fits
    near = decide("kubevirt-stall", metrics_of(remaining(*stalled)), limits)
    assert near.action is Action.WAIT
    assert near.downtime_limit_s == 0.5
    assert decide("kubevirt-stall", metrics_of(remaining(*stalled, *[0.7 * GB] * 6)), limits).action is Action.WAIT
    assert decide("kubevirt-stall", metrics_of(remaining(*stalled, *[0.7 * GB] * 7)), limits).action is Action.GIVE_UP
    far = metrics_of(remaining(*[0.8 * GB] * 5))  # 1.6 times
    assert decide("kubevirt-stall", far, limits).action is Action.GIVE_UP
    disrupting = Limits(downtime_limit_s=0.5, max_rounds=1000, on_timeout=TimeoutPolicy.SWITCH)
    assert decide("kubevirt-stall", far, disrupting).action is Action.SWITCH_OVER
    assert decide("kubevirt-stall", metrics_of(remaining(*stalled)), disrupting).action is Action.SWITCH_OVER


# Nova.


def test_nova_steps() -> None:
    """Nova's own example, 3 GiB and 400 ms in ten steps, with the default delay of 75 s for each GiB."""
    seconds, limits = zip(*downtime_steps(0.4, 3 * GIB), strict=True)
    assert seconds == tuple(225.0 * step for step in range(11))
    milliseconds = [1000 * limit for limit in limits]
    assert milliseconds == pytest.approx([40, 76, 112, 148, 184, 220, 256, 292, 328, 364, 400])


def test_nova_takes_a_small_guest_for_two_gib() -> None:
    steps = downtime_steps(0.5, 256 << 20)
    assert steps[0] == pytest.approx((0.0, 0.05))
    assert steps[1] == pytest.approx((150.0, 0.095))
    assert steps[-1] == pytest.approx((1500.0, 0.5))


def test_nova_goes_by_the_clock_and_ends_by_it() -> None:
    metrics = metrics_of(steady(3, 1.0, GB, 0.3 * GB), ram_bytes=2 * GIB)
    limits = Limits(downtime_limit_s=0.5, max_rounds=1000)
    applied = [decide("nova", metrics, limits, now).downtime_limit_s for now in (0.0, 150.0, 150.5, 900.5, 1500.5)]
    assert applied == pytest.approx([0.05, 0.05, 0.095, 0.32, 0.5])
    assert decide("nova", metrics, limits, 899.0).action is Action.GO_ON
    assert decide("nova", metrics, limits, 901.0).action is Action.SWITCH_OVER
    hopeless = metrics_of(steady(3, 1.0, GB, GB), ram_bytes=2 * GIB)
    assert decide("nova", hopeless, limits, 1599.0).action is Action.GO_ON
    assert decide("nova", hopeless, limits, 1600.0).action is Action.GIVE_UP
    forced = Limits(downtime_limit_s=0.5, max_rounds=1000, on_timeout=TimeoutPolicy.SWITCH)
    assert decide("nova", hopeless, forced, 1600.0).action is Action.SWITCH_OVER


# Proxmox.


def test_proxmox_doubles_after_six_looks_that_found_more() -> None:
    """Rounds of 2.5 s, so that each sync is seen as a rise; a tenth of the memory is left each time."""
    limits = Limits(downtime_limit_s=0.1, max_rounds=1000)
    rounds = steady(40, 2.5, 10 * GB, 8 * GB)
    counts = [doublings(rounds[:count], 4 * GIB) for count in range(1, 41)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    # The first round is no rise: a rise each for the six syncs after it are seen in the seventh round.
    assert [counts.index(times) + 1 for times in (1, 2, 3)] == [7, 13, 19]
    decision = decide("proxmox", metrics_of(rounds[:13]), limits)
    assert decision.downtime_limit_s == pytest.approx(0.4)


def test_proxmox_looks_more_often_once_little_remains() -> None:
    often = steady(60, 0.25, 0.25 * GB, 0.2 * GB)
    assert doublings(often[:8], 4 * GIB) <= 1
    assert doublings(often, 4 * GIB) >= 5
    # What the last sync found has not been looked at yet.
    assert doublings((*often[:-1], often[-1]), 4 * GIB) == doublings(
        (*often[:-1], rounds_of((0.25, 0.0, 0.25 * GB, GB, GB), start=14.75)[0]), 4 * GIB
    )


def test_proxmox_leaves_the_limit_alone_while_it_gets_ahead_in_one_long_round() -> None:
    assert doublings(steady(1, 60.0, 60 * GB, GB), 64 * GIB) == 0


# Cloud Hypervisor.


def test_cloud_hypervisor_does_not_count_the_sync() -> None:
    metrics = metrics_of(rounds_of((1.0, 1.0, GB, 0.29 * GB, 0.29 * GB)))
    assert decide("cloud-hypervisor", metrics, Limits()).action is Action.SWITCH_OVER
    assert decide("qemu", metrics, Limits()).action is Action.GO_ON
    assert decide("cloud-hypervisor", metrics, Limits(downtime_limit_s=0.28)).action is Action.GO_ON
    at_goal = metrics_of(rounds_of((1.0, 1.0, GB, 0.5 * GB, 0.5 * GB)))
    assert decide("cloud-hypervisor", at_goal, Limits(downtime_limit_s=0.5)).action is Action.SWITCH_OVER


def test_cloud_hypervisor_waits_an_hour() -> None:
    metrics = metrics_of(steady(1, 1.0, GB, 0.4 * GB))
    assert decide("cloud-hypervisor", metrics, Limits(), 3599.0).action is Action.GO_ON
    assert decide("cloud-hypervisor", metrics, Limits(), 3600.0).action is Action.GIVE_UP
    ignoring = Limits(on_timeout=TimeoutPolicy.SWITCH)
    assert decide("cloud-hypervisor", metrics, ignoring, 3600.0).action is Action.SWITCH_OVER


# What the user allows.


@pytest.mark.parametrize("name", FIELD_POLICIES)
@pytest.mark.parametrize("limits", [{"timeout_s": 5.0}, {"max_rounds": 5}], ids=["time", "rounds"])
def test_out_of_time_or_rounds(name: str, limits: dict[str, float]) -> None:
    metrics = metrics_of(steady(5, 1.0, GB, 3 * GB))
    wanted = {
        TimeoutPolicy.CANCEL: Action.GIVE_UP,
        TimeoutPolicy.SWITCH: Action.SWITCH_OVER,
        TimeoutPolicy.THROTTLE: Action.THROTTLE,
        TimeoutPolicy.IGNORE: Action.GO_ON,
    }
    for on_timeout, action in wanted.items():
        allowed = 0.8 if on_timeout is TimeoutPolicy.THROTTLE else 0.0
        asked = Limits(downtime_limit_s=0.1, on_timeout=on_timeout, max_throttle=allowed, **limits)  # type: ignore[arg-type]
        decision = decide(name, metrics, asked)
        assert decision.action is action
        assert decision.throttle_to == allowed
    before = metrics_of(metrics.rounds[:4])
    cancelling = Limits(downtime_limit_s=0.1, **limits)  # type: ignore[arg-type]
    assert decide(name, before, cancelling).action is Action.GO_ON


@pytest.mark.parametrize("name", FIELD_POLICIES)
def test_throttling_at_a_timeout_needs_leave_and_stays(name: str) -> None:
    rounds = steady(5, 1.0, GB, 3 * GB)
    forbidden = Limits(downtime_limit_s=0.1, timeout_s=5.0, on_timeout=TimeoutPolicy.THROTTLE)
    assert decide(name, metrics_of(rounds), forbidden).action is Action.GIVE_UP
    allowed = Limits(downtime_limit_s=0.1, timeout_s=5.0, on_timeout=TimeoutPolicy.THROTTLE, max_throttle=0.8)
    throttled = decide(name, metrics_of(rounds, throttle=0.8), allowed)
    assert throttled.action is Action.GO_ON
    assert throttled.throttle_to == 0.8


@pytest.mark.parametrize("name", FIELD_POLICIES)
@pytest.mark.parametrize("rate", [0.1 * GB, 3 * GB], ids=["converges", "does not"])
def test_a_whole_migration(name: str, rate: float) -> None:
    """4 GiB at 1 GB/s, with 2 ms of sync: one guest leaves almost nothing after a few rounds, the other rewrites 2 GiB
    faster than they are sent."""
    costs = Costs(Estimate.exact(GB), 1.0, 0.0, 2e-3, 0.0, Estimate.exact(0.01))
    curve = DirtyCurve.of(rate, 2 * GIB)
    start = Metrics(4 * GIB, (), 4 * GIB, curve, 0.0, costs)
    outcome = simulate(start, CurveGuest(costs, curve), FIELD_POLICIES[name].decide, Limits(), 0.0)
    if rate < GB:
        assert outcome.completed
        assert outcome.downtime_s < 0.35
    elif name == "proxmox":  # knows no highest limit
        assert outcome.completed
        assert outcome.decision.downtime_limit_s == pytest.approx(0.3 * 8)
    else:
        assert outcome.decision.action is Action.GIVE_UP
        stalled = name == "kubevirt-stall"  # which is known after 43 s
        assert len(outcome.rounds) == (20 if stalled else Limits().max_rounds)
