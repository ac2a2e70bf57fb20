"""Rounds: what was written is taken over by a sync, and what is pending is sent.

Law 1 in this module: `MigrationBitmap.take` re-arms pages before it hands them out, and only then are they read.

Torn batches (see `page_source`) are settled by the next sync: their pages are pending again. That cannot hide a broken
link: law 1 says that a write after the page was armed is found by that sync, so a torn batch none of whose pages it
finds dirty was not torn by a write that a tracker reported, and ends the migration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from precopy.bitmap import Runs
from precopy.dirty import MigrationBitmap, SyncStats
from precopy.migration.page_source import BATCH_PAGES, WINDOW_PAGES, PageSource
from precopy.planning.model.round import Round
from precopy.ports import Stall
from precopy.wire.events import PageBatch

LEAST_BATCH_PAGES = 32
"""Smallest batch (128 KiB), for small rounds."""

_LEAST_BATCHES = 16
"""Batches that a round is cut into at least, so that a tear costs at most a sixteenth of a small round."""
_BATCH_S = 0.005
"""Seconds of sending in a batch at most, under a bandwidth limit."""


@dataclass(frozen=True)
class EarlyEnd:
    """When to end a round early: every ``pages`` pages, ``ends`` is called with the bytes of the round that are left
    and the seconds since the sync before it."""

    pages: int
    ends: Callable[[int, float], bool]


@dataclass
class _Taken:
    """How long it took to get at a round's pages, in seconds."""

    scan_s: float = 0.0
    clear_s: float = 0.0


class Rounds:
    """Sends rounds of what ``bitmap`` has pending through ``page_source``. ``started`` is when the migration began, by
    the page source's clock (None: now); ``throttled_share`` says which share of the guest's time was taken since it was
    asked last, and ``stall`` what the guest says of that."""

    def __init__(
        self,
        bitmap: MigrationBitmap,
        page_source: PageSource,
        *,
        started: float | None = None,
        throttled_share: Callable[[], float] = lambda: 0.0,
        stall: Callable[[], Stall | None] = lambda: None,
    ) -> None:
        self.bitmap, self.page_source, self._clock = bitmap, page_source, page_source.clock
        self._page_size = page_source.layout.page_size
        self.number = 0
        self._batch = BATCH_PAGES
        self._torn: list[PageBatch] = []
        self._again = 0
        self._before = bitmap.memory.counters
        self._throttled_share = throttled_share
        self._stall = stall
        self._until_paused: Stall | None = None
        self.synced_at = self._clock.now()
        """When the last sync ended."""
        self._started = self.synced_at if started is None else started
        self.dirty_rate = 0.0

    def paused(self) -> None:
        """The guest is paused: what was taken from it in rounds ends here."""
        self._until_paused = self._stall()

    def sync(self) -> SyncStats:
        """Takes over what the guest wrote, and settles the torn batches of the round before.

        Raises `PeerProtocolError` where one was the link's doing, `UnreportedWrites` where memory changed unnoticed.
        """
        stats = self.bitmap.sync(self.page_source.alive)
        now = self._clock.now()
        self.dirty_rate = stats.new_dirty_pages * self._page_size / max(now - self.synced_at, 1e-9)
        self.synced_at = now
        torn, self._torn = self._torn, []
        if torn:
            self._settle(torn)
        return stats

    def _settle(self, torn: list[PageBatch]) -> None:
        before = self.bitmap.pending.count()
        for batch in torn:
            if not self.bitmap.dirty.intersects(batch.content):
                raise self.page_source.blame(
                    [batch],
                    f"a batch of {batch.content.pages} pages of round {self.number} arrived with a wrong checksum, and "
                    f"the guest wrote none of them",
                )
            self.bitmap.mark(batch.content)
        self._again = self.bitmap.pending.count() - before

    def send(
        self,
        sync: SyncStats,
        *,
        final: SyncStats | None = None,
        early_end: EarlyEnd | None = None,
        dirty_map: tuple[int, ...] = (),
    ) -> Round:
        """Sends all that is pending and waits until it has arrived, unless ``early_end`` ends the round before: then
        what is left stays pending. ``sync`` is this round's sync, for the record; ``final`` that of the paused guest,
        after which nothing is written any more."""
        self.number += 1
        self.page_source.tick()
        sent_before, taken = self.page_source.channel.sent_bytes, _Taken()
        self.page_source.begin()
        # From the sync on, so that no moment in which the guest writes lies between two rounds.
        start = self.synced_at if final is None else self._clock.now()
        pending = self.bitmap.pending.count()
        # A batch that tears is sent again, so small rounds have small ones; they tear less often, too.
        most = min(BATCH_PAGES, early_end.pages if early_end else BATCH_PAGES)
        small = pending // _LEAST_BATCHES if self.number > 1 else most
        self._batch = min(max(small, LEAST_BATCH_PAGES), most)
        asked = 0

        def enough() -> bool:
            """Whether the policy ends the round here; it is asked every ``early_end.pages`` pages."""
            nonlocal asked
            done = self.page_source.pages
            if early_end is None or done - asked < early_end.pages:
                return False
            asked = done
            return early_end.ends((pending - done) * self._page_size, self._clock.now() - start)

        for runs in self._windows(taken):
            if self._send_window(runs, taken, enough):
                break
        self._torn = self.page_source.end_round(self.number, final=final is not None)
        end = self._clock.now()
        pages = self.page_source.pages
        sent = self.page_source.channel.sent_bytes - sent_before
        counters = self.bitmap.memory.counters
        did, self._before = counters - self._before, counters
        again, self._again = self._again, 0
        found_twice = 0
        if final is not None:
            found_twice = final.dirty_pages - final.new_dirty_pages
            sync = sync + final
        return Round(
            number=self.number,
            final=final is not None,
            sync_s=sync.sync_s,
            log_sync_s=sync.log_sync_s,
            bitmap_sync_s=sync.bitmap_sync_s,
            log_clear_s=sync.log_clear_s,
            transfer_s=end - start,
            send_s=self.page_source.send_s,
            scan_s=taken.scan_s,
            clear_s=taken.clear_s,
            ack_s=self.page_source.ack_s,
            dirty_pages=sync.dirty_pages - found_twice,
            new_dirty_pages=sync.new_dirty_pages,
            sent_pages=self.page_source.content_pages,
            zero_pages=self.page_source.zero_pages,
            torn_batches=len(self._torn),
            sent_bytes=sent,
            get_log_ioctls=did.get_calls,
            clear_log_ioctls=did.clear_calls,
            get_log_ioctl_s=did.get_s,
            clear_log_ioctl_s=did.clear_s,
            bandwidth_bytes_per_s=sent / max(self.page_source.send_s, 1e-9),
            dirty_rate_bytes_per_s=self.dirty_rate,
            arrived_s=end - self._started,
            throttled_share=0.0 if final is not None else self._throttled_share(),
            dirty_map=dirty_map,
            pending_pages=pending,
            pending_bytes=pending * self._page_size,
            again_pages=again,
            left_pages=pending - pages,
            found_twice_pages=found_twice,
            stall=self._stall() if final is None else self._until_paused,
        )

    def _windows(self, taken: _Taken) -> Iterator[Runs]:
        for start, count in self.bitmap.windows(WINDOW_PAGES):
            began = self._clock.now()
            runs = self.bitmap.take(start, count)
            taken.clear_s += self._clock.now() - began
            yield runs

    def _send_window(self, runs: Runs, taken: _Taken, enough: Callable[[], bool]) -> bool:
        """Sends a window, or as much of it as is ``enough``: then the rest is pending again, and True is returned."""
        began = self._clock.now()
        window = self.page_source.reader.read(runs)
        taken.scan_s += self._clock.now() - began
        self.page_source.send_zero(window.zero)
        # Views and addresses are made for the whole window at once; a batch takes its slice of them.
        cut, bounds = window.content.cut(self.page_source.batch_pages(self._batch, _BATCH_S))
        parts = window.contents(cut)
        for lo, hi in pairwise(bounds):
            self.page_source.send(parts[lo:hi])
            if enough():
                self.bitmap.mark(parts.runs[hi:])
                return True
        return enough()
