"""What is known of a migration when it has to be decided how it goes on. Seconds and bytes, as the names say.

    x, t, B, D, y     sync time, transfer time of a round, bandwidth, dirty rate, downtime limit

The unit of judgement is a round *with the sync after it*: some bytes were sent in t, and the sync that followed took x
and found what was dirtied in x + t.
"""

from __future__ import annotations

from dataclasses import dataclass

from precopy.planning.model.curve import DirtyCurve
from precopy.planning.model.estimate import Estimate
from precopy.planning.model.round import NextSync, Round


@dataclass(frozen=True, slots=True)
class RoundSample:
    """What the estimators see of a round: its sending, and the sync of the next round, which found what was dirtied
    meanwhile. A view of a `Round` and the `NextSync`: see `of`.

    - ``ended_s``: when that sync was done, since the migration's start;
    - ``transfer_s``: t, from the end of the sync before until all of it had arrived; of it ``send_s`` were spent
      sending (checksums, system calls, waiting for the peer; all of it under a bandwidth limit), ``scan_s`` looking for
      zero pages and ``clear_s`` on clears made while reading;
    - ``sync_s``: x of the sync after it (log_sync, bitmap sync, log_clear);
    - ``sent_bytes``: all bytes given to the stream; ``read_bytes``: the pages that they stand for, zero pages included;
    - ``dirty_bytes``: pages that the sync found newly dirty; ``remaining_bytes``: pages to be sent after it;
    - ``throttled_share``: the share of the vCPUs' time that was taken meanwhile.
    """

    number: int
    ended_s: float
    transfer_s: float
    send_s: float
    scan_s: float
    clear_s: float
    sync_s: float
    sent_bytes: float
    read_bytes: float
    dirty_bytes: float
    remaining_bytes: float
    throttled_share: float = 0.0

    @classmethod
    def of(cls, done: Round, sync: NextSync, *, page_size: int, limited: bool) -> RoundSample:
        """``limited``: whether there was a bandwidth limit. It makes up for time in which nothing is sent, so that all
        of the time counts as sending."""
        return cls(
            number=done.number,
            ended_s=sync.ended_s,
            # From sync to sync, so that no moment in which the guest writes lies between two rounds.
            transfer_s=sync.since_s,
            send_s=sync.since_s if limited else done.send_s,
            scan_s=done.scan_s,
            clear_s=done.clear_s,
            sync_s=sync.sync_s,
            sent_bytes=done.sent_bytes,
            read_bytes=(done.sent_pages + done.zero_pages) * page_size,
            dirty_bytes=sync.dirty_bytes,
            remaining_bytes=sync.remaining_bytes,
            throttled_share=sync.throttled_share,
        )

    @property
    def interval_s(self) -> float:
        """x + t: the time in which ``dirty_bytes`` were dirtied."""
        return self.transfer_s + self.sync_s


@dataclass(frozen=True, slots=True)
class Costs:
    """What moving memory costs here, so that a round of ``read`` bytes takes
    ``t = read * (sent_share / bandwidth + read_s_per_byte)``, and a sync that finds ``dirty`` bytes takes
    ``x = sync_s + dirty * sync_s_per_byte``.

    - ``bandwidth``: B, bytes on the wire a second of time spent sending (syncs, scans and clears excluded);
    - ``sent_share``: bytes on the wire for each byte of memory (zero pages cost next to none);
    - ``read_s_per_byte``: scanning for zero pages, clearing while reading, and all else that is not sending;
    - ``switchover_overhead_s``: what a downtime has besides its last sync and its last round: stopping the vCPUs, their
      state, the commit.
    """

    bandwidth: Estimate
    sent_share: float
    read_s_per_byte: float
    sync_s: float
    sync_s_per_byte: float
    switchover_overhead_s: Estimate

    def s_per_byte(self, bandwidth: float) -> float:
        """Seconds to read and send a byte of memory at ``bandwidth``."""
        return self.sent_share / bandwidth + self.read_s_per_byte

    def transfer_s(self, read_bytes: float, bandwidth: float) -> float:
        """t of a round of ``read_bytes`` of memory at ``bandwidth``."""
        return read_bytes * self.s_per_byte(bandwidth)

    def sync_time_s(self, dirty_bytes: float) -> float:
        """x of a sync that finds ``dirty_bytes``."""
        return self.sync_s + dirty_bytes * self.sync_s_per_byte


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a policy decides by, right after a sync: the ``rounds`` made so far, ``remaining_bytes`` to be sent, and
    what the estimators make of them.

    ``dirty``: bytes dirtied in an interval, at the throttled share in force now; ``dirty_spread``: how far an
    interval's dirty bytes are off from it, as a share, about nine times in ten. ``throttled_share``: the share of the
    vCPUs' time that is taken now; ``asked_share``: the one that was asked for last, of which a dirty limit may take
    less.
    """

    ram_bytes: int
    rounds: tuple[RoundSample, ...]
    remaining_bytes: float
    dirty: DirtyCurve
    dirty_spread: float
    costs: Costs
    throttled_share: float = 0.0
    asked_share: float = 0.0

    @property
    def dirty_rate(self) -> float:
        """D, bytes a second: over an interval such as the last round's, or a very short one before the first."""
        interval_s = self.rounds[-1].interval_s if self.rounds else 0.0
        return self.dirty.dirty_bytes(interval_s) / interval_s if interval_s else self.dirty.rate

    def in_round(self, unsent_bytes: float, interval_s: float) -> Metrics:
        """What would be known if a round were cut short ``interval_s`` after the last sync, with ``unsent_bytes`` of it
        left: those, and what the guest is likely to have dirtied by the end of another sync; on the safe side."""
        dirtied = self.dirty.dirty_bytes(interval_s) * (1 + self.dirty_spread)
        dirtied += self.dirty.rate * self.costs.sync_time_s(dirtied)
        remaining = min((unsent_bytes + dirtied) * _SAFE, self.ram_bytes)
        # `replace` would take twice as long, and a sweep spends most of its time here.
        return Metrics(
            self.ram_bytes,
            self.rounds,
            remaining,
            self.dirty,
            self.dirty_spread,
            self.costs,
            self.throttled_share,
            self.asked_share,
        )


_SAFE = 1.05
"""Factor on remaining bytes in mid-round: a round that ends early for a wrong guess costs one more sync."""
