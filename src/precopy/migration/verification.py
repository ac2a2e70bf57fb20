"""Verification: all of the paused memory goes over once more, and the destination compares."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from precopy.errors import PeerProtocolError, VerificationFailed
from precopy.migration.channel import NO_CONTENT, printable
from precopy.migration.page_source import BATCH_PAGES, WINDOW_PAGES, PageSource
from precopy.ports import ByteStream, MemoryReader
from precopy.wire.events import MAX_DIFFERENT, Compare, PageBatch, Ready


def send_for_comparison(source: PageSource) -> int:
    """Sends all pages of the paused guest, to be held against the destination's byte for byte; returns how many.
    Raises what the source's ``tick`` raises."""
    compared = 0
    for runs in source.layout.runs.batches(WINDOW_PAGES):
        window = source.reader.read(runs)
        if len(window.zero):
            source.channel.send_pages(Compare, NO_CONTENT, window.zero)
        cut, bounds = window.content.cut(BATCH_PAGES)
        parts = window.contents(cut)
        for lo, hi in pairwise(bounds):
            source.tick()
            source.channel.send_pages(Compare, parts[lo:hi])
        compared += runs.pages
    return compared


def check_compared(ready: Ready, compared: int) -> None:
    """Raises `VerificationFailed`, `PeerProtocolError` where the destination has not found all ``compared`` pages to be
    the same, or the guest's invariant to hold."""
    if ready.different_pages:
        raise VerificationFailed(
            f"{ready.different_pages} of {compared} pages differ at the destination, the first at ram_addr page "
            f"{ready.different[0] if ready.different else '?'}; the guest runs on at the source"
        )
    if ready.broken:
        raise VerificationFailed(f"the guest's invariant is broken at the destination: {printable(ready.broken[0])}")
    if ready.compared != compared:
        raise PeerProtocolError(f"{compared} pages were sent for comparison, {ready.compared} were compared")


class Comparison:
    """The destination's part: holds what the source has against ``memory``, byte for byte, without changing it. Every
    batch's runs lie in the layout; its content follows on ``stream``."""

    def __init__(self, memory: MemoryReader, stream: ByteStream) -> None:
        self._memory, self._stream = memory, stream
        self.pages = 0
        """Compared so far."""
        self.bytes = 0
        """Of content that came for it."""
        self._different = 0
        self._first: list[int] = []

    def take(self, batch: PageBatch) -> None:
        """Raises `PeerProtocolError` where the content does not match its checksum."""
        here = self._memory.buffers(batch.content)
        scratch = memoryview(bytearray(sum(map(len, here))))
        sent: list[memoryview] = []
        at = 0
        for view in here:
            sent.append(scratch[at : at + len(view)])
            at += len(view)
        self._stream.receive_into(sent)
        if not batch.matches(sent):
            raise PeerProtocolError(
                "the link damages data, or something writes the source's memory while its guest is paused: a batch "
                "sent for comparison does not match its checksum"
            )
        for (start, _), mine, theirs in zip(batch.content, here, sent, strict=True):
            if not np.array_equal(np.frombuffer(mine, np.uint64), np.frombuffer(theirs, np.uint64)):
                self._differ(start, mine, theirs)
        content, _ = self._memory.split_zero(batch.zero)
        for start, length in content:
            self._note(range(start, start + length))
        self.pages += batch.pages
        self.bytes += batch.content.pages * self._memory.layout.page_size

    def _differ(self, start: int, mine: memoryview, theirs: memoryview) -> None:
        size = self._memory.layout.page_size
        ours, sent = (np.frombuffer(view, np.uint8).reshape(-1, size) for view in (mine, theirs))
        self._note([start + int(row) for row in np.flatnonzero((ours != sent).any(axis=1))])

    def _note(self, pages: range | list[int]) -> None:
        self._different += len(pages)
        self._first.extend(pages[: MAX_DIFFERENT - len(self._first)])

    def answer(self, load_s: float, broken: tuple[str, ...]) -> Ready:
        """What the source is told; ``broken`` are violations of the guest's invariant."""
        return Ready(
            compared=self.pages,
            load_s=load_s,
            different=tuple(self._first),
            different_pages=self._different,
            broken=broken[:MAX_DIFFERENT],
        )

    def check(self) -> None:
        """Raises `VerificationFailed` where a page differs."""
        if self._different:
            raise VerificationFailed(f"{self._different} of {self.pages} pages differ from the source's")
