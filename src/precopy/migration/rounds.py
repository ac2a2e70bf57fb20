"""One round: reading what is pending out of the guest's memory and sending it.

Law 1 in this module: `MigrationBitmap.take` re-arms pages before it hands them out, and only then are they read.

Torn batches. A batch's checksum is made over guest memory and the batch is sent from guest memory, and the guest may
write in between; then the destination sees a checksum that does not match. That is no error while the guest runs: the
destination names the batch in its `RoundAck`, and its pages are pending again. It cannot hide a broken link either:
law 1 says that a write after the page was armed is found by the next sync, so a torn batch none of whose pages that
sync finds dirty was not torn by a write that anybody reported. With the guest paused nothing may tear at all. Who did
it, the memory tells: where it still is what the checksum was made of, the link damaged the batch; where it is not,
something writes it without being noticed, and the link is not to blame (`Rounds._blame`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from precopy.bitmap import NO_RUNS, Runs
from precopy.dirty import MigrationBitmap, SyncStats
from precopy.errors import PeerProtocolError, UnreportedWrites
from precopy.migration.channel import NO_CONTENT, Channel, Content
from precopy.migration.rate_limit import RateLimiter
from precopy.planning.model.round import Round
from precopy.ports import Clock, MemoryReader
from precopy.wire.events import Alive, PageBatch, Pages, RoundAck, RoundEnd

WINDOW_PAGES = 4096
"""Pages taken at a time (16 MiB): large enough for few calls, small enough that pages are re-armed just before they are
read."""
BATCH_PAGES = 512
"""Pages in a batch (2 MiB): large enough to hide the cost of its system calls; a torn batch is sent again whole."""
LEAST_BATCH_PAGES = 32
"""Smallest batch (128 KiB), for small rounds."""

_LEAST_BATCHES = 16
"""Batches that a round is cut into at least, so that a tear costs at most a sixteenth of a small round."""
_BATCH_S = 0.005
"""Seconds of sending in a batch at most, under a bandwidth limit."""
_ALIVE_S = 0.25
"""Seconds between two signs of life in a long sync, far below any peer's time-out."""


@dataclass(frozen=True)
class EarlyEnd:
    """When to end a round early: every ``pages`` pages, ``ends`` is called with the bytes of the round that are left
    and the seconds since the sync before it."""

    pages: int
    ends: Callable[[int, float], bool]


@dataclass
class _Tally:
    """What is counted while a round is sent."""

    send_s: float = 0.0
    scan_s: float = 0.0
    clear_s: float = 0.0
    sent_pages: int = 0
    zero_pages: int = 0
    batches: list[PageBatch] = field(default_factory=list)


class Rounds:
    """Sends rounds of ``memory`` over ``channel``; ``tick`` is called between batches and may raise to stop.
    ``started`` is when the migration began (None: now), by ``clock``; ``throttled_share`` says which share of the
    guest's time was taken since it was asked last."""

    def __init__(
        self,
        bitmap: MigrationBitmap,
        memory: MemoryReader,
        channel: Channel,
        *,
        rate_limiter: RateLimiter,
        clock: Clock,
        tick: Callable[[], None],
        started: float | None = None,
        throttled_share: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.bitmap, self.memory, self.channel = bitmap, memory, channel
        self.rate_limiter, self.clock, self.tick = rate_limiter, clock, tick
        self.number = 0
        self._batch = BATCH_PAGES
        self._torn: list[PageBatch] = []
        self._again = 0
        self._before = bitmap.memory.counters
        self._throttled_share = throttled_share
        self._alive_at = self.synced_at = clock.now()
        self._started = self.synced_at if started is None else started
        """When the last sync ended."""
        self.dirty_rate = 0.0

    def sync(self) -> SyncStats:
        """Takes over what the guest wrote, and settles the torn batches of the round before.

        Raises `PeerProtocolError` where one was the link's doing, `UnreportedWrites` where memory changed unnoticed.
        """
        stats = self.bitmap.sync(self._sync_tick)
        now = self.clock.now()
        self.dirty_rate = stats.new_dirty_pages * self.memory.layout.page_size / max(now - self.synced_at, 1e-9)
        self.synced_at = now
        torn, self._torn = self._torn, []
        if torn:
            self._settle(torn)
        return stats

    def _settle(self, torn: list[PageBatch]) -> None:
        before = self.bitmap.pending.count()
        for batch in torn:
            if not self.bitmap.dirty.intersects(batch.content):
                raise self._blame(
                    [batch],
                    f"a batch of {batch.content.pages} pages of round {self.number} arrived with a wrong checksum, and "
                    f"the guest wrote none of them",
                )
            self.bitmap.mark(batch.content)
        self._again = self.bitmap.pending.count() - before

    def _blame(self, torn: list[PageBatch], what: str) -> PeerProtocolError | UnreportedWrites:
        """The error for torn batches that no reported write explains: the link damaged them, unless the memory
        changed."""
        changed = [batch.content for batch in torn if not batch.matches(self.memory.buffers(batch.content))]
        return (
            UnreportedWrites(sum(runs.pages for runs in changed), int(changed[0].starts[0]))
            if changed
            else PeerProtocolError(f"the link damages data: {what}")
        )

    def _sync_tick(self) -> None:
        """In a long sync: lets the user stop it, and tells the destination that the source is alive."""
        self.tick()
        now = self.clock.now()
        if now - self._alive_at > _ALIVE_S:
            self._alive_at = now
            self.channel.send(Alive())

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
        self.tick()
        sent_before, tally = self.channel.sent_bytes, _Tally()
        # From the sync on, so that no moment in which the guest writes lies between two rounds.
        start = self.synced_at if final is None else self.clock.now()
        pending = self.bitmap.pending.count()
        # A batch that tears is sent again, so small rounds have small ones; they tear less often, too.
        most = min(BATCH_PAGES, early_end.pages if early_end else BATCH_PAGES)
        small = pending // _LEAST_BATCHES if self.number > 1 else most
        self._batch = min(max(small, LEAST_BATCH_PAGES), most)
        asked = 0

        def enough() -> bool:
            """Whether the policy ends the round here; it is asked every ``early_end.pages`` pages."""
            nonlocal asked
            done = tally.sent_pages + tally.zero_pages
            if early_end is None or done - asked < early_end.pages:
                return False
            asked = done
            return early_end.ends((pending - done) * self.memory.layout.page_size, self.clock.now() - start)

        for runs in self._windows(tally):
            if self._send_window(runs, tally, enough):
                break
        ending = self.clock.now()
        pages = tally.sent_pages + tally.zero_pages
        self.channel.send(RoundEnd(self.number, len(tally.batches), pages, final is not None))
        self._acknowledge(self.channel.expect(RoundAck), tally, final=final is not None)
        end = self.clock.now()
        tally.send_s += end - ending
        sent = self.channel.sent_bytes - sent_before
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
            send_s=tally.send_s,
            scan_s=tally.scan_s,
            clear_s=tally.clear_s,
            ack_s=end - ending,
            dirty_pages=sync.dirty_pages - found_twice,
            new_dirty_pages=sync.new_dirty_pages,
            sent_pages=tally.sent_pages,
            zero_pages=tally.zero_pages,
            torn_batches=len(self._torn),
            sent_bytes=sent,
            get_log_ioctls=did.get_calls,
            clear_log_ioctls=did.clear_calls,
            get_log_ioctl_s=did.get_s,
            clear_log_ioctl_s=did.clear_s,
            bandwidth_bytes_per_s=sent / max(tally.send_s, 1e-9),
            dirty_rate_bytes_per_s=self.dirty_rate,
            arrived_s=end - self._started,
            throttled_share=0.0 if final is not None else self._throttled_share(),
            dirty_map=dirty_map,
            pending_pages=pending,
            pending_bytes=pending * self.memory.layout.page_size,
            again_pages=again,
            left_pages=pending - pages,
            found_twice_pages=found_twice,
        )

    def _windows(self, tally: _Tally) -> Iterator[Runs]:
        for start, count in self.bitmap.windows(WINDOW_PAGES):
            began = self.clock.now()
            runs = self.bitmap.take(start, count)
            tally.clear_s += self.clock.now() - began
            yield runs

    def _send_window(self, runs: Runs, tally: _Tally, enough: Callable[[], bool]) -> bool:
        """Sends a window, or as much of it as is ``enough``: then the rest is pending again, and True is returned."""
        began = self.clock.now()
        content, zero = self.memory.split_zero(runs)
        tally.scan_s += self.clock.now() - began
        cut, bounds = zero.cut(WINDOW_PAGES)
        for lo, hi in pairwise(bounds):
            self._send_batch(NO_CONTENT, cut[lo:hi], tally)
        tally.zero_pages += zero.pages
        # Views and addresses are made for the whole window at once; a batch takes its slice of them.
        cut, bounds = content.cut(self.rate_limiter.batch_pages(self.memory.layout.page_size, self._batch, _BATCH_S))
        parts = Content.of(self.memory, cut)
        for lo, hi in pairwise(bounds):
            self._send_batch(parts[lo:hi], NO_RUNS, tally)
            tally.sent_pages += parts.runs[lo:hi].pages
            if enough():
                self.bitmap.mark(parts.runs[hi:])
                return True
        return enough()

    def _send_batch(self, content: Content, zero: Runs, tally: _Tally) -> None:
        self.tick()
        before, began = self.channel.sent_bytes, self.clock.now()
        batch = self.channel.send_pages(Pages, content, zero)
        self.rate_limiter.sent(self.channel.sent_bytes - before)
        tally.send_s += self.clock.now() - began
        tally.batches.append(batch)

    def _acknowledge(self, ack: RoundAck, tally: _Tally, *, final: bool) -> None:
        pages = tally.sent_pages + tally.zero_pages
        if ack.number != self.number or ack.pages != pages:
            raise PeerProtocolError(
                f"round {ack.number} was acknowledged with {ack.pages} pages; round {self.number} had {pages}"
            )
        if not all(number < other for number, other in pairwise((-1, *ack.torn, len(tally.batches)))):
            raise PeerProtocolError(f"batches were called torn that round {self.number} does not have, or twice")
        self._torn = [tally.batches[batch] for batch in ack.torn]
        if final and self._torn:
            raise self._blame(
                self._torn,
                f"{len(ack.torn)} batches of the last round arrived with wrong checksums while the guest was paused",
            )
