"""Proxmox VE's qemu-server, which doubles QEMU's downtime limit while a migration does not get ahead."""

from __future__ import annotations

from collections.abc import Sequence

from precopy.planning.decision import Decision
from precopy.planning.limits import Limits
from precopy.planning.metrics import Metrics, RoundSample
from precopy.planning.policies.qemu import threshold_decision

LOOK_S, SHORT_LOOK_S = 1.0, 0.1
"""Between two looks at the migration; the shorter once less remains than an average look sees sent."""
RISES = 6
"""So many looks that find more than the look before, or nothing, double the limit."""


def doublings(rounds: Sequence[RoundSample], ram_bytes: int) -> int:
    """How often the downtime limit has been doubled by the end of the last of ``rounds``.

    Looks fall into the middle of rounds. Between two syncs, what remains is taken to fall evenly, and during one to be
    nothing. What the last sync found is not seen yet: the next look sees it.
    """
    moment, every, looks, rises = LOOK_S, LOOK_S, 0, 0
    last_remaining = last_sent = 0.0
    remaining_before, sent_before = float(ram_bytes), 0.0
    for one in rounds:
        while moment < one.ended_s:
            looks += 1
            done = _done(one, moment)
            remaining, sent = remaining_before * (1 - done), sent_before + one.sent_bytes * done
            if sent != last_sent:
                every = SHORT_LOOK_S if remaining < last_sent / looks else every
                rises += (0 < last_remaining < remaining) or remaining == 0
                last_remaining = remaining
            last_sent = sent
            moment += every
        remaining_before, sent_before = one.remaining_bytes, sent_before + one.sent_bytes
    return rises // RISES


def _done(one: RoundSample, moment: float) -> float:
    """The share of a round that is sent by ``moment``."""
    begun_s = moment - (one.ended_s - one.interval_s)
    if begun_s >= one.transfer_s:
        return 1.0
    return max(begun_s, 0.0) / one.transfer_s if one.transfer_s > 0 else 0.0


def proxmox(metrics: Metrics, limits: Limits, now: float) -> Decision:
    """Proxmox VE: QEMU's rule, with a downtime limit that starts at migrate_downtime and is doubled each time that six
    looks at the migration found more remaining than the look before (or nothing). There is no highest limit.

    ``limits.downtime_s`` is migrate_downtime (100 ms by default), at which it starts. Looks are 1 s apart, and 100 ms
    once less remains than an average look sees sent; here they are reckoned from the rounds, see `doublings`. A round
    that is longer than a look nearly always counts, also where each is shorter than the one before. Proxmox has no
    timeout.

    Source: qemu-server, PVE/QemuMigrate.pm, phase2 (the loop around query-migrate); PVE/QemuServer.pm for the default.
    """
    times = doublings(metrics.rounds, metrics.ram_bytes)
    return threshold_decision(metrics, limits, now, limits.downtime_s * 2.0**times)
