"""What a migration reports: records of measured numbers. Seconds, bytes and pages; see each field."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """One sync (x) and the sending of what it found (t).

    The first sync is that of starting to log, when every page is dirty. The last round has ``final`` set and counts
    two syncs: the one that found that little enough is left, and the one after the guest was paused.

    - ``sync_s``: x, the sum of ``log_sync_s``, ``bitmap_sync_s`` and ``log_clear_s``;
    - ``transfer_s``: t, from the end of the sync until the destination said that all of it arrived;
    - ``send_s``: the part of t spent sending: checksums, system calls, waiting for the peer and for the bandwidth
      limit; ``scan_s``: looking for zero pages; ``clear_s``: log_clear calls made while reading (deferred);
    - ``dirty_pages``: what the sync harvested; ``new_dirty_pages``: those not yet pending;
    - ``sent_pages``, ``zero_pages``: pages sent with and without content; ``torn_batches``: batches to send again
      because the guest wrote while they were sent;
    - ``sent_bytes``: all bytes given to the stream; ``bandwidth``: those a second of ``send_s``;
    - ``dirty_rate``: bytes of pages newly dirtied, a second, between the sync before and this one.
    """

    number: int
    final: bool
    sync_s: float
    log_sync_s: float
    bitmap_sync_s: float
    log_clear_s: float
    transfer_s: float
    send_s: float
    scan_s: float
    clear_s: float
    dirty_pages: int
    new_dirty_pages: int
    sent_pages: int
    zero_pages: int
    torn_batches: int
    sent_bytes: int
    get_log_ioctls: int
    clear_log_ioctls: int
    get_log_ioctl_s: float
    clear_log_ioctl_s: float
    bandwidth_bytes_per_s: float
    dirty_rate_bytes_per_s: float


@dataclass(frozen=True)
class Downtime:
    """From the request to pause until the destination said that the guest runs, without verification.

    ``pause_s`` until every vCPU stood still; ``final_sync_s``; ``final_send_s`` until all of it had arrived;
    ``state_s`` saving, sending and loading the vCPUs' state; ``commit_s`` from the commit to its answer.
    """

    pause_s: float
    final_sync_s: float
    final_send_s: float
    state_s: float
    commit_s: float

    @property
    def total_s(self) -> float:
        return self.pause_s + self.final_sync_s + self.final_send_s + self.state_s + self.commit_s


@dataclass(frozen=True)
class Migrated:
    """A migration that completed. ``total_s`` runs from the first frame to the destination's last answer;
    ``verify_s`` is what verification took of it; ``compared_pages`` were compared byte for byte (0: not asked for)."""

    session: str
    guest: str
    tracker: str
    tracker_why: str
    tracker_pause_s: float
    clear: str
    clear_chunk_shift: int
    rounds: tuple[Round, ...]
    downtime: Downtime
    downtime_limit_s: float
    total_s: float
    verify_s: float
    setup_s: float
    sent_bytes: int
    ram_bytes: int
    compared_pages: int

    @property
    def throughput_bytes_per_s(self) -> float:
        """Bytes given to the stream, over the time from the first page to the end, verification excluded."""
        return self.sent_bytes / max(self.total_s - self.verify_s - self.setup_s, 1e-9)


@dataclass(frozen=True)
class Progress:
    """Where a migration stands, while a round goes on. ``eta_s`` is None before the first round is done, and
    infinite where the guest dirties memory faster than it is sent."""

    phase: str
    round: int
    sent_bytes: int
    remaining_bytes: int
    dirty_rate_bytes_per_s: float
    bandwidth_bytes_per_s: float
    elapsed_s: float
    expected_downtime_s: float | None
    eta_s: float | None
