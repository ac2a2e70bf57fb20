"""A round, as the engine makes it, as documents and reports show it, and as recordings keep it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number
from precopy.ports.stall import Stall


@dataclass(frozen=True)
class Round:
    """One sync and the sending of what it found. What the next sync finds belongs to the next round.

    The first sync is that of starting to log, when every page is dirty. The last round has ``final`` set and counts
    two syncs: the one that found that little enough is left, and the one after the guest was paused.

    - ``sync_s``: x of the sync that begins it, the sum of ``log_sync_s``, ``bitmap_sync_s`` and ``log_clear_s``;
    - ``transfer_s``: t, from the end of the sync until the destination said that all of it arrived;
    - ``send_s``: the part of t spent sending: checksums, system calls, waiting for the peer and for the bandwidth
      limit, and of it ``ack_s`` waiting for the word that all had arrived; ``scan_s``: looking for zero pages;
      ``clear_s``: log_clear calls made while reading (deferred);
    - ``dirty_pages``: pages that the sync found dirty, each counted once; ``new_dirty_pages``: those not yet pending;
      ``found_twice_pages``: what the last round's second sync found and was to be sent already (0 in other rounds);
    - ``pending_pages``: to be sent when the round began: all pages in the first one, then what the round before left,
      the ``new_dirty_pages``, and the ``again_pages``, which are other pages of the batches that tore before;
      ``pending_bytes``: the same in bytes;
    - ``sent_pages``, ``zero_pages``: pages sent with and without content; ``left_pages``: what an early end left;
      ``torn_batches``: batches to send again because the guest wrote while they were sent;
    - ``sent_bytes``: all bytes given to the stream; ``bandwidth``: those a second of ``send_s``;
    - ``dirty_rate``: bytes of pages newly dirtied, a second, between the sync before and this one;
    - ``arrived_s``: since the migration's start, when the destination said that all of it had arrived;
    - ``throttled_share``: the share of the vCPUs' time that was taken since the round before had arrived; 0 in the last
      one, in which the guest is paused;
    - ``stall``: what was taken from the guest since the round before had arrived (in the first: since the migration
      was asked for), by its own clock, and in the last round until it was paused; None where that is not measured;
    - ``dirty_map``: how many pages were to be sent in each of equal parts of the ram_addr space, when it began; empty
      for the last round, in which the guest waits.
    """

    number: Count
    final: bool
    sync_s: Number
    log_sync_s: Number
    bitmap_sync_s: Number
    log_clear_s: Number
    transfer_s: Number
    send_s: Number
    scan_s: Number
    clear_s: Number
    ack_s: Number
    dirty_pages: Count
    new_dirty_pages: Count
    sent_pages: Count
    zero_pages: Count
    torn_batches: Count
    sent_bytes: Count
    get_log_ioctls: Count
    clear_log_ioctls: Count
    get_log_ioctl_s: Number
    clear_log_ioctl_s: Number
    bandwidth_bytes_per_s: Number
    dirty_rate_bytes_per_s: Number
    arrived_s: Number = 0.0
    throttled_share: Number = 0.0
    dirty_map: Annotated[tuple[Count, ...], Meta(max_length=256)] = ()
    pending_pages: Count = 0
    pending_bytes: Count = 0
    again_pages: Count = 0
    left_pages: Count = 0
    found_twice_pages: Count = 0
    stall: Stall | None = None


@dataclass(frozen=True, slots=True)
class NextSync:
    """The sync after a round, which begins the next one or is the last before the migration ends.

    - ``ended_s``: when it was done, since the migration's start; ``since_s``: from the end of the sync before until
      this one began; ``sync_s``: x, what it took;
    - ``dirty_bytes``: pages that it found newly dirty; ``remaining_bytes``: pages to be sent after it;
    - ``throttled_share``: the share of the vCPUs' time that was taken since the sync before.
    """

    ended_s: float
    since_s: float
    sync_s: float
    dirty_bytes: float
    remaining_bytes: float
    throttled_share: float
