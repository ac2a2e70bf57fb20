"""Guests whose every write is known, and recordings of their migrations: what a replay says can be held against what
the same guest does in truth over another link."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Bitmap
from precopy.memory.layout import RamLayout
from precopy.planning import OURS, Costs, Estimate, Limits, Metrics, Outcome, Policy, RoundSample, simulate
from precopy.planning.estimation.estimators import observe
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.round import NextSync, Round
from precopy.planning.model.trace import MidRoundSample, RecordedFacts, RecordedOutcome, Trace, TraceRound
from precopy.recording.files import RecordingWriter
from precopy.units import PAGE_SIZE

PAGES = 16384
RAM = PAGES * PAGE_SIZE
LAYOUT = RamLayout.of_blocks([("ram", RAM)])
BEGIN_S = 0.01
BANDWIDTH = 64e6
"""A round of all memory takes about a second."""


@dataclass(frozen=True)
class Guest:
    """Writes page ``pages[i]`` at ``times[i]`` seconds of its own time, ascending."""

    times: npt.NDArray[np.float64]
    pages: npt.NDArray[np.int64]

    def written(self, start: float, end: float) -> Bitmap:
        lo, hi = np.searchsorted(self.times, [start, end], side="left")
        return Bitmap.from_indexes(PAGES, np.unique(self.pages[lo:hi]))


HORIZON_S = 60.0


def _guest(rate: float, pick: Callable[[np.random.Generator, int], npt.NDArray[np.int64]], seed: int = 1) -> Guest:
    """``rate`` writes a second, of pages that ``pick`` chooses."""
    count = int(rate * HORIZON_S)
    return Guest(np.arange(count) / rate, pick(np.random.default_rng(seed), count))


def sequential(rate: float, size: int = PAGES) -> Guest:
    """Goes round ``size`` pages in order."""
    return _guest(rate, lambda _, count: np.arange(count) % size)


def uniform(rate: float, size: int = PAGES) -> Guest:
    """Anywhere among ``size`` pages."""
    return _guest(rate, lambda rng, count: rng.integers(0, size, count))


def hot_and_cold(rate: float, hot: int, share: float = 0.9) -> Guest:
    """``share`` of the writes go to ``hot`` pages, the rest anywhere."""

    def pick(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        return np.where(rng.random(count) < share, rng.integers(0, hot, count), rng.integers(0, PAGES, count))

    return _guest(rate, pick)


class KnownGuest:
    """Implements `precopy.planning.GuestModel` for a guest whose writes are known."""

    def __init__(self, guest: Guest, costs: Costs) -> None:
        self._guest, self.costs = guest, costs
        self._at, self._time, self._throttle = BEGIN_S, 0.0, 0.0

    def dirtied(self, start_s: float, end_s: float, throttle: float) -> float:
        self._time += (start_s - self._at) * (1 - self._throttle)
        self._at, self._throttle = start_s, throttle
        end = self._time + (end_s - start_s) * (1 - throttle)
        return float(self._guest.written(self._time, end).count() * PAGE_SIZE)


def costs(bandwidth: float = BANDWIDTH) -> Costs:
    return Costs(
        bandwidth=Estimate.exact(bandwidth),
        sent_share=1.002,
        read_s_per_byte=2e-11,
        sync_s=5e-4,
        sync_s_per_byte=1e-12,
        switchover_overhead_s=Estimate.exact(5e-3),
    )


ZERO_SHARE = 0.25
FIRST_SYNC_S = 3e-4


def migrate(guest: Guest, policy: Policy = OURS, limits: Limits | None = None, bandwidth: float = BANDWIDTH) -> Outcome:
    """What becomes of a migration of this guest, its first round included. A part of its memory is zero at first."""
    model, limits = KnownGuest(guest, costs(bandwidth)), limits or Limits(downtime_limit_s=0.1)
    known = model.costs
    sent = RAM * (1 - ZERO_SHARE) * known.sent_share
    send_s, read_s = sent / bandwidth, RAM * known.read_s_per_byte
    transfer_s = send_s + read_s
    sync_s = known.sync_time_s(model.dirtied(BEGIN_S, BEGIN_S + transfer_s, 0.0))
    now = BEGIN_S + transfer_s + sync_s
    found = model.dirtied(BEGIN_S, now, 0.0)
    first = RoundSample(1, now, transfer_s, send_s, 0.0, read_s, sync_s, sent, RAM, found, found)

    def seen(rounds: tuple[RoundSample, ...], remaining: float, throttle: float) -> Metrics:
        return observe(RAM, rounds, remaining, known.switchover_overhead_s, throttled_share=throttle)

    outcome = simulate(seen((first,), found, 0.0), model, policy.decide, limits, now, observe=seen)
    return replace(outcome, rounds=(first, *outcome.rounds), sent_bytes=outcome.sent_bytes + sent)


def record(guest: Guest, *, mid_round: int = 0, policy: Policy = OURS, limits: Limits | None = None) -> Trace:
    """The recording of that migration, with ``mid_round`` samples of the dirty log in each round."""
    limits = limits or Limits(downtime_limit_s=0.1)
    outcome = migrate(guest, policy, limits)
    rounds, at = [], 0.0
    for sample in map(whole, outcome.rounds):
        speed = 1 - sample.throttled_share
        marks = [sample.interval_s * (number + 1) / (mid_round + 1) for number in range(mid_round)]
        seen = tuple(MidRoundSample(mark, guest.written(at, at + mark * speed)) for mark in marks)
        end = at + sample.interval_s * speed
        rounds.append(TraceRound(sample, guest.written(at, end), seen))
        at = end
    switchover_overhead_s = costs().switchover_overhead_s
    facts = RecordedFacts(
        "none", "simulated", "scripted", "merged", 15, policy.name, limits, None, switchover_overhead_s, FIRST_SYNC_S
    )
    sync_s, send_s = 1e-3, outcome.downtime_s - 1e-3 - switchover_overhead_s.value
    end_of = RecordedOutcome(
        outcome.completed, outcome.total_s, outcome.sent_bytes, Downtime(1e-3, sync_s, send_s, 2e-3, 2e-3)
    )
    if not outcome.completed:
        end_of = RecordedOutcome(False, outcome.total_s, outcome.sent_bytes, error=outcome.decision.reason)
    return Trace(LAYOUT, facts, tuple(rounds), end_of)


def as_made(sample: RoundSample, sync_s: float = FIRST_SYNC_S) -> tuple[Round, NextSync]:
    """A round and the sync after it that are seen as ``sample``: whole pages of it, and whole bytes. ``sync_s`` is of
    the sync that begins the round."""
    pages = round(sample.read_bytes / PAGE_SIZE)
    done = Round(
        number=sample.number, final=False, sync_s=sync_s, log_sync_s=0.0, bitmap_sync_s=0.0, log_clear_s=0.0,
        transfer_s=sample.transfer_s, send_s=sample.send_s, scan_s=sample.scan_s, clear_s=sample.clear_s, ack_s=0.0,
        dirty_pages=0, new_dirty_pages=0, sent_pages=pages, zero_pages=0, torn_batches=0,
        sent_bytes=round(sample.sent_bytes), get_log_ioctls=0, clear_log_ioctls=0, get_log_ioctl_s=0.0,
        clear_log_ioctl_s=0.0, bandwidth_bytes_per_s=4e9, dirty_rate_bytes_per_s=2.5e10,
    )  # fmt: skip
    after = NextSync(
        sample.ended_s, sample.transfer_s, sample.sync_s, sample.dirty_bytes, sample.remaining_bytes,
        sample.throttled_share,
    )  # fmt: skip
    return done, after


def whole(sample: RoundSample, *, limited: bool = False) -> RoundSample:
    """``sample`` as a recording has it."""
    return RoundSample.of(*as_made(sample), page_size=PAGE_SIZE, limited=limited)


def write(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Records it as a migration would."""
    with RecordingWriter(path) as writer:
        writer.begin(trace.layout, trace.facts)
        for one in trace.rounds:
            for sample in one.mid_round:
                writer.mid_round(sample.interval_s, sample.dirty)
            writer.round(*as_made(one.sample), one.dirty, one.did)
        if trace.outcome is not None:
            writer.end(trace.outcome)
