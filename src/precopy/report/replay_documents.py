"""Replays as JSON documents hold them. Seconds, bytes and bytes a second; what is infinite is null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from precopy.planning import Limits, Outcome, RoundSample
from precopy.planning.model.trace import Trace

_FASTER = 1.3


@dataclass(frozen=True)
class Replayed:
    """Under which terms ``trace`` was replayed (``bandwidth`` None: over the recorded link), and what came of it."""

    trace: Trace
    policy: str
    clear: str
    bandwidth: float | None
    limits: Limits
    outcome: Outcome


@dataclass(frozen=True)
class ReplayRound:
    """A round of a recorded or a replayed migration: one sync and the sending after it.

    - ``sync_s``: of the sync that begins it (the first one's is None where the recording does not have it), and
      ``dirty_bytes``: what that found newly dirty, which is all memory in the first round;
    - ``pending_bytes``: to be sent when it began; ``transfer_s``, ``send_s``, ``scan_s``, ``clear_s``, ``sent_bytes``,
      ``read_bytes``, ``throttled_share``: of its sending.
    """

    number: int
    sync_s: float | None
    dirty_bytes: float
    pending_bytes: float
    transfer_s: float
    send_s: float
    scan_s: float
    clear_s: float
    sent_bytes: float
    read_bytes: float
    throttled_share: float


def replay_rounds(
    samples: Sequence[RoundSample], first_sync_s: float | None, ram_bytes: int
) -> tuple[ReplayRound, ...]:
    """The rounds of these samples, each of which is a round's sending and the sync of the next round."""
    syncs = [(first_sync_s, float(ram_bytes), float(ram_bytes))]
    syncs += [(one.sync_s, one.dirty_bytes, one.remaining_bytes) for one in samples]
    return tuple(
        ReplayRound(
            number=one.number,
            sync_s=sync_s,
            dirty_bytes=dirty_bytes,
            pending_bytes=pending_bytes,
            transfer_s=one.transfer_s,
            send_s=one.send_s,
            scan_s=one.scan_s,
            clear_s=one.clear_s,
            sent_bytes=one.sent_bytes,
            read_bytes=one.read_bytes,
            throttled_share=one.throttled_share,
        )
        for one, (sync_s, dirty_bytes, pending_bytes) in zip(samples, syncs, strict=False)
    )


def _course(samples: Sequence[RoundSample], trace: Trace) -> dict[str, Any]:
    """The rounds, and the sync after them, after which it was decided to switch over or to give up."""
    last = samples[-1] if samples else None
    sync = last and {"sync_s": last.sync_s, "dirty_bytes": last.dirty_bytes, "pending_bytes": last.remaining_bytes}
    rounds = replay_rounds(samples, trace.facts.first_sync_s, trace.ram_bytes)
    return {"rounds": [msgspec.to_builtins(one) for one in rounds], "last_sync": sync}


def caution(done: Replayed) -> str:
    """Why the replay may be far off, where it may be."""
    sent_s = sum(one.send_s for one in done.trace.samples)
    recorded = sum(one.sent_bytes for one in done.trace.samples) / sent_s if sent_s else 0.0
    if done.bandwidth is None or done.bandwidth < _FASTER * recorded:
        return ""
    return (
        f"the link is {done.bandwidth / recorded:.1f} times as fast as the recorded one: what the guest dirties in "
        f"rounds shorter than those recorded is reckoned, and may be more"
    )


def time_lost_s(rounds: Sequence[RoundSample], downtime_s: float) -> float:
    """What a migration took from each vCPU: by throttling, and the downtime."""
    return sum(one.throttled_share * one.interval_s for one in rounds) + downtime_s


def replay_body(file: str, trace: Trace, done: Replayed) -> dict[str, Any]:
    """Body of ``precopy.replay/2``: the terms and the course of both, ``recorded`` and ``replayed``."""
    return {
        "file": file,
        "machine": trace.facts.machine,
        "guest": trace.facts.guest,
        "tracker": trace.facts.tracker,
        "ram_bytes": trace.ram_bytes,
        "note": trace.note,
        "caution": caution(done),
        "recorded": _recorded(trace),
        "replayed": _replayed(done),
    }


def _recorded(trace: Trace) -> dict[str, Any]:
    facts, end = trace.facts, trace.outcome
    completed = end is not None and end.completed
    return {
        "policy": facts.policy,
        "clear": facts.clear,
        "bandwidth_bytes_per_s": facts.max_bandwidth,
        "limits": msgspec.to_builtins(facts.limits),
        "completed": None if end is None else end.completed,
        "downtime_s": end.downtime_s if end is not None and completed else None,
        "total_s": None if end is None else end.total_s,
        "sent_bytes": sum(one.sent_bytes for one in trace.samples) if end is None else end.sent_bytes,
        "guest_time_lost_s": time_lost_s(trace.samples, 0.0 if end is None else end.downtime_s),
        "reason": "" if end is None else end.error,
        **_course(trace.samples, trace),
    }


def _replayed(done: Replayed) -> dict[str, Any]:
    outcome = done.outcome
    return {
        "policy": done.policy,
        "clear": done.clear,
        "bandwidth_bytes_per_s": done.bandwidth,
        "limits": msgspec.to_builtins(done.limits),
        "completed": outcome.completed,
        "downtime_s": outcome.downtime_s,
        "total_s": outcome.total_s,
        "sent_bytes": outcome.sent_bytes,
        "guest_time_lost_s": outcome.guest_time_lost_s,
        "reason": outcome.decision.reason,
        **_course(outcome.rounds, done.trace),
    }
