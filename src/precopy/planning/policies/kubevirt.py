"""KubeVirt's two enhancement proposals for migrations that do not converge. Both drive QEMU's downtime limit."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from precopy.names import TimeoutPolicy
from precopy.planning.model.decision import Action, Decision
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics, RoundSample
from precopy.planning.policies.common import GIB, Situation
from precopy.planning.policies.qemu import measured_bandwidth, switch_below_threshold, threshold_decision
from precopy.units import format_duration, format_size

TIMEOUT_S_PER_GIB = 150
"""completionTimeoutPerGiB."""

INITIAL_S, STEPS, FROM_ITERATION, COOLDOWN_S = 0.15, 6, 3, 10.0
"""VEP 291: initialMs; steps (its seven limits are six steps apart); startAfterIteration; cooldownSeconds."""

STALL_WINDOW_S, STALL_MARGIN = 40.0, 0.04
"""VEP 248: stallProgressTimeout, stallMargin."""
QEMU_LIMIT_S = 0.3
"""VEP 248: QEMU's limit before a stall is at most its default."""
EWMA_ALPHA, PATIENCE_DECAY, POSSIBLE_FACTOR = 0.4, 0.5, 1.5
"""VEP 248: ewmaAlpha, patienceWindowDecayFactor, precopyPossibleFactor."""
SWITCHOVER_TIMEOUT_S = 60.0
"""VEP 248: switchoverTimeout."""


def ramped_limit(rounds: Sequence[RoundSample], most_s: float, now: float) -> float:
    """The downtime limit of VEP 291 at ``now``, in seconds: 150 ms (or ``most_s``, if that is less) until the third
    iteration begins, and then every 10 s a sixth of the way to ``most_s`` more."""
    first_s = min(INITIAL_S, most_s)
    begun = FROM_ITERATION - 1
    if len(rounds) < begun:
        return first_s
    steps = max(now - rounds[begun - 1].ended_s, 0.0) // COOLDOWN_S
    return first_s + min(steps / STEPS, 1.0) * (most_s - first_s)


def ramp(metrics: Metrics, limits: Limits, now: float) -> Decision:
    """KubeVirt, VEP 291 (dynamic downtime tuning): QEMU's rule, with a downtime limit that starts at 150 ms and is
    raised in equal steps, one every 10 s from the third iteration on, up to maxDowntimeMs.

    ``limits.downtime_limit_s`` is maxDowntimeMs, at which the ramp ends: with 1050 ms it is the VEP's 150, 300, ...
    1050 ms. Where no timeout is given it is completionTimeoutPerGiB, 150 s for each GiB; then KubeVirt aborts
    (``CANCEL``) or, with allowWorkloadDisruption, pauses the guest (``SWITCH``). Its progressTimeout is left out.

    Source: KubeVirt enhancements, veps/sig-compute/291-dynamic-downtime-tuning. The code that was merged (tuneDowntime
    in virt-launcher) divides by seven instead of six and starts to wait at once, not at the third iteration.
    """
    downtime_limit_s = ramped_limit(metrics.rounds, limits.downtime_limit_s, now)
    return threshold_decision(metrics, limits, now, downtime_limit_s, _timeout_s(metrics))


def stall(metrics: Metrics, limits: Limits, now: float) -> Decision:
    """KubeVirt, VEP 248 (stall detection): once a migration makes no progress, switch over at a local minimum.

    1. QEMU's rule, with a limit of maxDowntimeMs, but 300 ms at most.
    2. It has *stalled* when an iteration leaves no less than 96 % of the least that any iteration left more than 40 s
       ago.
    3. From then on it waits for a *local minimum*: within 4 % of the least that was left so far. If none comes within
       40 s, the least since the stall is accepted, after 20 s more the second least, after 10 s more the next, and so
       on. 4. At a local minimum that could be sent within 1.5 maxDowntimeMs, QEMU's limit is raised to maxDowntimeMs,
       and QEMU has 60 s to switch over. Otherwise KubeVirt aborts at once; with allowWorkloadDisruption it switches
       over at the first local minimum, with any downtime.

    ``limits.downtime_limit_s`` is maxDowntimeMs (900 ms by default); ``SWITCH`` stands for allowWorkloadDisruption, the
    other timeout policies do in 4 what they do at a timeout. Bandwidth is smoothed (0.4 of the new, 0.6 of the old)
    over KubeVirt's looks at QEMU's, which here are one a round. Where no timeout is given it is
    completionTimeoutPerGiB, 150 s for each GiB; that a downtime must fit twice that is left out. A larger remainder can
    switch over where a smaller one does not: less is progress, and no stall.

    Source: KubeVirt enhancements, veps/sig-compute/248-migration-convergence; virt-launcher, stallDetector.
    """
    most_s, rounds = limits.downtime_limit_s, metrics.rounds
    left = [*(sample.remaining_bytes for sample in rounds[:-1]), metrics.remaining_bytes] if rounds else []
    stalled = _stalled_at(rounds, left)
    aims = [] if stalled is None else _aims(rounds, left, stalled)
    raised_s = _raised_at(rounds, left, aims, limits)
    downtime_limit_s = min(most_s, QEMU_LIMIT_S) if raised_s is None else most_s
    here = Situation(metrics, limits, now, measured_bandwidth(rounds), downtime_limit_s)
    ended = switch_below_threshold(here) or here.guard(_timeout_s(metrics))
    if ended is not None:
        return ended
    if raised_s is not None and now > raised_s + SWITCHOVER_TIMEOUT_S:
        return here.resort(f"no switchover within {format_duration(SWITCHOVER_TIMEOUT_S)} of a local minimum")
    if not aims:
        return here.decision(Action.GO_ON, here.compared("are not below"))
    if raised_s is None and _is_minimum(left[-1], aims[-1]):
        return here.resort(f"stalled, and even at a local minimum {here.compared('are not below')}")
    return here.decision(
        Action.WAIT, f"stalled: {here.compared('are not below')}; the least was {format_size(aims[-1])}"
    )


def _timeout_s(metrics: Metrics) -> float:
    return TIMEOUT_S_PER_GIB * math.ceil(metrics.ram_bytes / GIB)


def _stalled_at(rounds: Sequence[RoundSample], left: Sequence[float]) -> int | None:
    """Index of the round at which the stall was found."""
    least, aged = math.inf, 0
    for index, sample in enumerate(rounds):
        while rounds[aged].ended_s <= sample.ended_s - STALL_WINDOW_S:
            least = min(least, left[aged])
            aged += 1
        if left[index] >= least * (1 - STALL_MARGIN):
            return index
    return None


def _aims(rounds: Sequence[RoundSample], left: Sequence[float], stalled: int) -> list[float]:
    """For each round from the ``stalled`` one on, the bytes left that count as a local minimum."""
    aims, since = [min(left[: stalled + 1])], list[float]()
    patience_s = STALL_WINDOW_S
    deadline_s = rounds[stalled].ended_s + patience_s
    for sample, bytes_left in zip(rounds[stalled + 1 :], left[stalled + 1 :], strict=True):
        heapq.heappush(since, bytes_left)
        aim = aims[-1]
        if sample.ended_s >= deadline_s:
            aim = heapq.heappop(since)
            patience_s *= PATIENCE_DECAY
            deadline_s = sample.ended_s + patience_s
        aims.append(aim)
    return aims


def _is_minimum(left: float, aim: float) -> bool:
    return left <= aim * (1 + STALL_MARGIN)


def _raised_at(
    rounds: Sequence[RoundSample], left: Sequence[float], aims: Sequence[float], limits: Limits
) -> float | None:
    """When QEMU's limit was raised to maxDowntimeMs."""
    if limits.on_timeout is TimeoutPolicy.SWITCH:
        return None
    bandwidth, stalled = 0.0, len(rounds) - len(aims)
    for index, sample in enumerate(rounds):
        measured = measured_bandwidth(rounds[: index + 1])
        bandwidth = EWMA_ALPHA * measured + (1 - EWMA_ALPHA) * bandwidth if bandwidth > 0 else measured
        possible = left[index] <= POSSIBLE_FACTOR * limits.downtime_limit_s * bandwidth
        if index >= stalled and possible and _is_minimum(left[index], aims[index - stalled]):
            return sample.ended_s
    return None
