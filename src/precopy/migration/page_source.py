"""The one sender of pages: a migration's rounds, a replication's rounds and its points are sent here.

Content is sent from where it lies, or as a copy where the memory is not mapped here (`reading`). What was sent since
`begin` is counted, so that the round or point can say what it had (`end_round`, `end_point`), and the receiver's answer
be held against it.

Torn batches. A batch's checksum is made over guest memory and the batch is sent from guest memory, and the guest may
write in between; then the receiver sees a checksum that does not match. That is no error while the guest runs: the
receiver names the batch in its `RoundAck`, and its pages are to be sent again. With the guest paused nothing may tear
at all, and copies never. Who did it, the memory tells: where it still is what the checksum was made of, the link
damaged the batch; where it is not, something writes it without being noticed, and the link is not to blame
(`PageSource.blame`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from precopy.bitmap import NO_RUNS, Runs
from precopy.errors import PeerProtocolError, UnreportedWrites
from precopy.migration.channel import NO_CONTENT, Channel, Content
from precopy.migration.rate_limit import RateLimiter
from precopy.migration.reading import PageReader, reader_of
from precopy.migration.session import ALIVE_S
from precopy.ports import Clock, MemoryCopier, MemoryReader
from precopy.wire.events import Alive, PageBatch, Pages, Point, PointAck, RoundAck, RoundEnd

WINDOW_PAGES = 4096
"""Pages taken at a time (16 MiB): large enough for few calls, small enough that pages are re-armed just before they are
read."""
BATCH_PAGES = 512
"""Pages in a batch (2 MiB): large enough to hide the cost of its system calls; a torn batch is sent again whole."""


class PageSource:
    """Sends pages of ``memory`` over ``channel``; ``tick`` is called before each batch and may raise to stop."""

    def __init__(
        self,
        memory: MemoryReader | MemoryCopier,
        channel: Channel,
        *,
        rate_limiter: RateLimiter,
        clock: Clock,
        tick: Callable[[], None],
    ) -> None:
        self.reader: PageReader = reader_of(memory)
        self.layout, self.channel, self.clock, self.tick = memory.layout, channel, clock, tick
        self._rate_limiter = rate_limiter
        self._alive_at = clock.now()
        self.begin()

    def begin(self) -> None:
        """A round or a point begins."""
        self._batches: list[PageBatch] = []
        self.content_pages = self.zero_pages = 0
        """Sent since then."""
        self.send_s = 0.0
        """Seconds that sending took since then."""
        self.ack_s = 0.0
        """The part of it that ended the round: waiting for the word that all had arrived."""

    @property
    def pages(self) -> int:
        """Sent since `begin`, with content or without."""
        return self.content_pages + self.zero_pages

    def batch_pages(self, most: int, within_s: float | None = None) -> int:
        """Pages with content that a batch may have: ``most``, fewer where the bandwidth is limited and they would take
        longer than ``within_s`` seconds (None: what the limiter takes for short)."""
        return self._rate_limiter.batch_pages(self.layout.page_size, most, *(() if within_s is None else (within_s,)))

    def send(self, content: Content, zero: Runs = NO_RUNS) -> None:
        """Sends one batch. Raises `PeerRefused`, `PeerLost`, and what ``tick`` raises."""
        self.tick()
        before, began = self.channel.sent_bytes, self.clock.now()
        batch = self.channel.send_pages(Pages, content, zero)
        self._rate_limiter.sent(self.channel.sent_bytes - before)
        self.send_s += self.clock.now() - began
        self._batches.append(batch)
        self.content_pages += content.runs.pages
        self.zero_pages += zero.pages

    def send_zero(self, zero: Runs) -> None:
        """Sends pages that are all zero, in as few batches as they need."""
        cut, bounds = zero.cut(WINDOW_PAGES)
        for lo, hi in pairwise(bounds):
            self.send(NO_CONTENT, cut[lo:hi])

    def end_round(self, number: int, *, final: bool) -> list[PageBatch]:
        """Ends the round, waits until it has arrived, and returns its torn batches.

        Raises `PeerProtocolError` where the answer does not fit what was sent, or the link damaged what cannot have
        been torn: the last round, or a copy; `UnreportedWrites` where memory changed while the guest was paused.
        """
        began, batches = self.clock.now(), self._batches
        self.channel.send(RoundEnd(number, len(batches), self.pages, final))
        ack = self.channel.expect(RoundAck)
        self.ack_s = self.clock.now() - began
        self.send_s += self.ack_s
        if ack.number != number or ack.pages != self.pages:
            raise PeerProtocolError(
                f"round {ack.number} was acknowledged with {ack.pages} pages; round {number} had {self.pages}"
            )
        sent = {batch.id: batch for batch in batches}
        if not sent.keys() >= set(ack.torn) or any(first >= second for first, second in pairwise(ack.torn)):
            raise PeerProtocolError(f"batches were called torn that round {number} does not have, or twice")
        torn = [sent[id] for id in ack.torn]
        if final and torn:
            raise self.blame(
                torn,
                f"{len(torn)} batches of the last round arrived with wrong checksums while the guest was paused",
            )
        if torn and not self.reader.may_tear:
            raise self.blame(torn, f"{len(torn)} batches of round {number} arrived with wrong checksums")
        return torn

    def end_point(self, number: int) -> None:
        """Ends the point and waits until the standby has it. Raises `PeerError`."""
        self.channel.send(Point(number, len(self._batches), self.pages))
        ack = self.channel.expect(PointAck)
        if ack.number != number:
            raise PeerProtocolError(f"point {ack.number} was acknowledged; point {number} was sent")

    def blame(self, torn: Sequence[PageBatch], what: str) -> PeerProtocolError | UnreportedWrites:
        """The error for torn batches that no reported write explains: the link damaged them, unless the memory
        changed."""
        changed = [batch.content for batch in torn if self.reader.has_changed(batch)]
        return (
            UnreportedWrites(sum(runs.pages for runs in changed), int(changed[0].starts[0]))
            if changed
            else PeerProtocolError(f"the link damages data: {what}")
        )

    def alive(self) -> None:
        """In a long sync: lets the user stop it, and tells the receiver now and then that this side is alive."""
        self.tick()
        now = self.clock.now()
        if now - self._alive_at > ALIVE_S:
            self._alive_at = now
            self.channel.send(Alive())
