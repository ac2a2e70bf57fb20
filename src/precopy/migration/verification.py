"""Verification at the source's side: all of the paused memory goes over once more, and the destination compares."""

from __future__ import annotations

from collections.abc import Callable

from precopy.errors import PeerProtocolError, VerificationFailed
from precopy.migration.channel import NO_CONTENT, Channel, Content, printable
from precopy.migration.rounds import BATCH_PAGES, WINDOW_PAGES
from precopy.ports import MemoryReader
from precopy.wire.events import Compare, Ready


def send_for_comparison(channel: Channel, memory: MemoryReader, tick: Callable[[], None]) -> int:
    """Sends all pages of the paused guest, to be held against the destination's byte for byte; returns how many.
    ``tick`` is called between batches and may raise to stop."""
    compared = 0
    for window in memory.layout.runs.batches(WINDOW_PAGES):
        content, zero = memory.split_zero(window)
        if len(zero):
            channel.send_pages(Compare, NO_CONTENT, zero)
        for batch in content.batches(BATCH_PAGES):
            tick()
            channel.send_pages(Compare, Content.of(memory, batch))
        compared += window.pages
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
