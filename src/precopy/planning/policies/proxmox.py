"""Proxmox VE's qemu-server, which doubles QEMU's downtime limit while a migration does not get ahead."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from precopy.planning.model.decision import Decision
from precopy.planning.model.limits import Limits
from precopy.planning.model.metrics import Metrics, RoundSample
from precopy.planning.policies.qemu import threshold_decision

LOOK_S, SHORT_LOOK_S = 1.0, 0.1
"""Seconds between two looks at the migration; the shorter one once less remains than is sent between two looks."""
RISES = 6
"""Looks that find more bytes than the look before, or none, until the limit is doubled."""
_MANY = 1000
"""Looks left in a round from which those that can be foreseen are skipped in one step."""
_MOST_DOUBLINGS = 1000
"""Of a limit, below the largest power of two that a float holds (2^1023); longer than any migration long before."""
_DEEP = 400
"""Rounds up to which `_looked` recurses, far below Python's limit of 1000 nested calls."""


def doublings(rounds: tuple[RoundSample, ...], ram_bytes: int) -> int:
    """How often the downtime limit has been doubled by the end of the last of ``rounds``.

    Looks fall into the middle of rounds. Between two syncs, what remains is taken to fall evenly, and during one to be
    nothing. What the last sync found is not seen yet: the next look sees it.
    """
    return _looked(rounds, ram_bytes).rises // RISES


@dataclass(frozen=True, slots=True)
class _Loop:
    """Where Proxmox's loop is: when it looks next and how long it then waits, how often it has looked, how many looks
    count, and what it saw last; ``remaining`` and ``sent`` are those of the last sync."""

    remaining: float
    sent: float = 0.0
    moment: float = LOOK_S
    every: float = LOOK_S
    looks: int = 0
    rises: int = 0
    last_remaining: float = 0.0
    last_sent: float = 0.0


@functools.lru_cache(maxsize=1024)
def _looked(rounds: tuple[RoundSample, ...], ram_bytes: int) -> _Loop:
    """The loop at the end of the last round. A policy is asked after each round, so the result for the rounds before
    is cached."""
    if len(rounds) <= _DEEP:
        return _through(_looked(rounds[:-1], ram_bytes), rounds[-1]) if rounds else _Loop(float(ram_bytes))
    return functools.reduce(_through, rounds, _Loop(float(ram_bytes)))


def _through(loop: _Loop, sample: RoundSample) -> _Loop:
    """The loop a round later."""
    moment, every, looks, rises = loop.moment, loop.every, loop.looks, loop.rises
    last_remaining, last_sent = loop.last_remaining, loop.last_sent
    while moment < sample.ended_s:
        if sample.ended_s - moment > _MANY * every:
            passed = _foreseeable(replace(loop, moment=moment, every=every, looks=looks, last_sent=last_sent), sample)
            looks, moment = looks + passed, moment + passed * every
            if passed and last_sent < loop.sent + sample.sent_bytes:
                # The next look compares with the last of these.
                done = _done(sample, moment - every)
                last_remaining, last_sent = loop.remaining * (1 - done), loop.sent + sample.sent_bytes * done
                rises += 0 if loop.remaining else passed
            if moment >= sample.ended_s:
                break
        looks += 1
        done = _done(sample, moment)
        remaining, sent = loop.remaining * (1 - done), loop.sent + sample.sent_bytes * done
        if sent != last_sent:
            every = SHORT_LOOK_S if remaining < last_sent / looks else every
            rises += (0 < last_remaining < remaining) or remaining == 0
            last_remaining = remaining
        last_sent = sent
        moment += every
    return _Loop(
        sample.remaining_bytes, loop.sent + sample.sent_bytes, moment, every, looks, rises, last_remaining, last_sent
    )


def _foreseeable(loop: _Loop, sample: RoundSample) -> int:
    """How many of the next looks do not change how long the loop waits, and count all alike: none of them, or each
    where the round began with nothing remaining and yet something is sent."""
    if loop.last_sent == loop.sent + sample.sent_bytes:  # no look of this round sees any more sent
        return math.ceil((sample.ended_s - loop.moment) / loop.every)
    sending_s = sample.ended_s - sample.sync_s - loop.moment
    if loop.last_sent <= loop.sent or sending_s <= 0:
        return 0
    # What remains only falls until all is sent, or is none all the while. What is left to find is the first look
    # that makes the loop wait less: looks * remaining - sent is concave in the number of looks, and crosses 0 once.
    low, high = 0, max(int(sending_s / loop.every) - 2, 0)
    if loop.every == SHORT_LOOK_S:
        return high
    if not loop.remaining:  # the next look makes it wait less
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        done = _done(sample, loop.moment + middle * loop.every)
        before = _done(sample, loop.moment + (middle - 1) * loop.every)
        if (loop.looks + middle + 1) * loop.remaining * (1 - done) < loop.sent + sample.sent_bytes * before:
            high = middle - 1
        else:
            low = middle
    return low


def _done(sample: RoundSample, moment: float) -> float:
    """The share of a round that is sent by ``moment``."""
    begun_s = moment - (sample.ended_s - sample.interval_s)
    if begun_s >= sample.transfer_s:
        return 1.0
    return max(begun_s, 0.0) / sample.transfer_s if sample.transfer_s > 0 else 0.0


def proxmox(metrics: Metrics, limits: Limits, now: float) -> Decision:
    """Proxmox VE: QEMU's rule, with a downtime limit that starts at migrate_downtime and is doubled each time that six
    looks at the migration found more remaining than the look before (or nothing). There is no highest limit.

    ``limits.downtime_limit_s`` is migrate_downtime (100 ms by default), at which it starts. Looks are 1 s apart, and
    100 ms once less remains than an average look sees sent; here they are reckoned from the rounds, see `doublings`. A
    round that is longer than a look nearly always counts, also where each is shorter than the one before. Proxmox has
    no timeout.

    Source: qemu-server, PVE/QemuMigrate.pm, phase2 (the loop around query-migrate); PVE/QemuServer.pm for the default.
    """
    times = doublings(metrics.rounds, metrics.ram_bytes)
    return threshold_decision(metrics, limits, now, limits.downtime_limit_s * 2.0 ** min(times, _MOST_DOUBLINGS))
