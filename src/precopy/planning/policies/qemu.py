"""QEMU's own policies. Nova, Proxmox and KubeVirt drive QEMU, so theirs are `threshold_decision` with another limit."""

from __future__ import annotations

from collections.abc import Sequence

from precopy.planning.model.decision import Action, Decision
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics, RoundSample
from precopy.planning.policies.common import Situation

WINDOW_S = 0.1
"""QEMU measures bandwidth over at least this long (migration.c: BUFFER_DELAY)."""

TRIGGER = 0.5
"""throttle-trigger-threshold: dirty bytes of a period, as a share of those sent in it."""
INITIAL, INCREMENT, MOST = 0.2, 0.1, 0.99
"""cpu-throttle-initial, cpu-throttle-increment, max-cpu-throttle."""
PERIOD_S = 1.0
"""A throttling period is longer than this; shorter rounds are counted together."""


def measured_bandwidth(rounds: Sequence[RoundSample]) -> float:
    """R, bytes a second as QEMU believes them after the last of ``rounds``: the bytes of the last window of at least
    100 ms, *sync included*, by its time. 0 where nothing was measured.

    With B, the bytes by the time of transfer of the last rounds that fill a window: ``R = B t / (x + t)`` where a round
    and its sync are longer than 100 ms, otherwise ``R = B (100 ms - x) / 100 ms``, a window with one sync in it.

    Source: QEMU, migration/migration.c, migration_update_counters; the two cases are those of the
    patch series "migration: merge fragmented clear_dirty ioctls" (docs/patch-series.md).
    """
    sent = transfer_s = filled_s = 0.0
    for sample in reversed(rounds):
        sent, transfer_s, filled_s = (
            sent + sample.sent_bytes,
            transfer_s + sample.transfer_s,
            filled_s + sample.interval_s,
        )
        if filled_s >= WINDOW_S:
            break
    if transfer_s <= 0:
        return 0.0
    window_s = max(rounds[-1].interval_s, WINDOW_S)
    return sent / transfer_s * (window_s - rounds[-1].sync_s) / window_s


def switch_below_threshold(here: Situation) -> Decision | None:
    """QEMU's test after an exact sync: switch over if nothing is pending, or less than the threshold (the threshold
    itself is too much). Source: QEMU, migration/migration.c, migration_iteration_run."""
    if here.metrics.remaining_bytes <= 0:
        return here.decision(Action.SWITCH_OVER, "nothing is pending")
    if here.metrics.remaining_bytes < here.threshold:
        return here.decision(Action.SWITCH_OVER, here.compared("are below"))
    return None


def threshold_decision(
    metrics: Metrics, limits: Limits, now: float, downtime_limit_s: float, own_timeout_s: float | None = None
) -> Decision:
    """What QEMU does with a downtime limit of ``downtime_limit_s``, within the user's time and rounds."""
    here = Situation(metrics, limits, now, measured_bandwidth(metrics.rounds), downtime_limit_s)
    ended = switch_below_threshold(here) or here.guard(own_timeout_s)
    return ended or here.decision(Action.GO_ON, here.compared("are not below"))


def qemu(metrics: Metrics, limits: Limits, now: float) -> Decision:
    """QEMU: switch over when pending bytes are below bandwidth x downtime-limit.

    ``limits.downtime_limit_s`` is downtime-limit (300 ms by default). QEMU has no timeout and counts no rounds.

    Source: QEMU, migration/migration.c, migration_update_counters (the threshold) and migration_iteration_run.
    avail-switchover-bandwidth, which replaces the bandwidth where it is set, is not modelled.
    """
    return threshold_decision(metrics, limits, now, limits.downtime_limit_s)


def auto_converge(metrics: Metrics, limits: Limits, now: float) -> Decision:
    """QEMU with the auto-converge capability: as `qemu`, and the guest is throttled by 20 %, then 10 % more each time,
    up to 99 % (and ``limits.max_throttle``), whenever a period has, for the second time, dirtied more than 50 % of the
    bytes sent in it.

    A period is the time between two syncs that are more than a second apart. The two periods need not follow each
    other: the count starts anew when the throttle is raised, not when a period was calm.

    Source: QEMU, migration/ram.c, migration_bitmap_sync, migration_trigger_throttle and mig_throttle_guest_down;
    defaults in migration/options.c. The syncs between rounds that QEMU 9.2 and later make while throttling are not
    modelled, nor is cpu-throttle-tailslow (off by default).
    """
    here = Situation(metrics, limits, now, measured_bandwidth(metrics.rounds), limits.downtime_limit_s)
    ended = switch_below_threshold(here) or here.guard()
    if ended is not None:
        return ended
    wanted = round(here.throttled_share + INCREMENT, 2) if here.throttled_share > 0 else INITIAL
    throttle_to = min(wanted, MOST, limits.max_throttle)
    if throttle_to > here.throttled_share and _raises_throttle(metrics.rounds):
        reason = f"dirtied more than {TRIGGER:.0%} of what was sent, twice: throttling the guest by {throttle_to:.0%}"
        return here.decision(Action.THROTTLE, reason, throttle_to)
    return here.decision(Action.GO_ON, here.compared("are not below"))


def _raises_throttle(rounds: Sequence[RoundSample]) -> bool:
    """Whether the sync after the last round is one at which QEMU raises the throttle."""
    raised, high = False, 0
    dirty = sent = 0.0
    began_s = rounds[0].ended_s - rounds[0].interval_s if rounds else 0.0
    for sample in rounds:
        raised = False
        dirty, sent = dirty + sample.dirty_bytes, sent + sample.sent_bytes
        if sample.ended_s - began_s <= PERIOD_S:
            continue
        high += dirty > TRIGGER * sent
        if high >= 2:
            raised, high = True, 0
        began_s, dirty, sent = sample.ended_s, 0.0, 0.0
    return raised
