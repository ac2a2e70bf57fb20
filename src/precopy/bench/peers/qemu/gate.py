"""A receiver that decides when QEMU syncs: it reads the migration's socket up to the next sync, and no further.

QEMU syncs when it has sent all that the last sync found but for a page or two. So it makes no sync while that is not
read: what a socket holds is a small part of a round of hundreds of pages. Whether it has made one shows in its trace,
whose line it writes before it sends the first page of what it found; the trace is looked at after each piece that is
read, and a piece is a small part of a round, too. None of this depends on how fast anything runs.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from typing import TextIO

from precopy.bench.pacing import PacedSync, Pacing
from precopy.bench.peers.qemu.trace_log import SYNC_END, TracedSync, no_trace, parse_trace
from precopy.errors import PeerLost
from precopy.units import PAGE_SIZE

_PIECE = 64 << 10
"""Bytes that are read before the trace is looked at again."""
_AT_ONCE = 0.75
"""The share of a round that is read as fast as it comes; the rest is left for when the next sync is due."""


class MigrationEndedError(Exception):
    """QEMU has closed the migration's socket, or we have."""


class Gate:
    """``source`` is the end of the migration's socket that is read, ``log`` QEMU's trace from where it stands.
    ``deadline`` is by the monotonic clock, in seconds."""

    def __init__(self, source: socket.socket, log: TextIO, pacing: Pacing, deadline: float) -> None:
        self._source, self._log, self._pacing, self._deadline = source, log, pacing, deadline
        self._unread, self._lines, self._buffer = "", "", bytearray(_PIECE)
        self._closed = threading.Event()
        self.syncs: tuple[TracedSync, ...] = ()
        """All that were made so far."""

    def close(self) -> None:
        """Lets no more pass: a thread that waits in another method ends at once, with `MigrationEndedError`."""
        self._closed.set()
        self._source.shutdown(socket.SHUT_RDWR)

    def pass_all_of_ram(self, syncs: int, most: int) -> None:
        """Up to the end of that many syncs of the migration, read as fast as QEMU sends. Raises `Unsupported` where its
        trace shows none in ``most`` bytes, and otherwise as `pass_sync` does."""
        while len(self.syncs) < syncs:
            if not self._read(most):
                raise no_trace()

    def pass_sync(self) -> list[PacedSync]:
        """QEMU's next sync, as far from the last one as the pacing says; more than one where what the last one found
        was so little that it could be sent without being read. Raises `MigrationEndedError`, and `PeerLost` at the
        deadline."""
        before = len(self.syncs) - 1
        self._pass()
        return [
            PacedSync(sync.sync_s, sync.started_s - last.started_s, sync.new_pages)
            for last, sync in itertools.pairwise(self.syncs[before:])
        ]

    def _pass(self) -> None:
        last = self.syncs[-1]
        if not self._read(round(_AT_ONCE * last.new_pages) * PAGE_SIZE):
            left = last.started_s + self._pacing.wait_s - time.time()
            if self._closed.wait(min(max(left, 0.0), self._pacing.wait_s)):
                raise MigrationEndedError
            self._read(None)
        self._pacing.found(self.syncs[-1].new_pages)

    def _read(self, most: int | None) -> bool:
        """Reads up to QEMU's next sync, or ``most`` bytes. Whether there was a sync."""
        left = most
        while left is None or left > 0:
            got = self._receive(_PIECE if left is None else min(left, _PIECE))
            if self._synced():
                return True
            left = None if left is None else left - got
        return False

    def _receive(self, most: int) -> int:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise PeerLost("QEMU's syncs were not traced in time; allow more time, or less RAM", silent=True)
        self._source.settimeout(remaining)
        try:
            got = self._source.recv_into(self._buffer, most)
        except TimeoutError:
            raise PeerLost("QEMU sent nothing of its migration in time", silent=True) from None
        if not got:
            raise MigrationEndedError
        return got

    def _synced(self) -> bool:
        lines, end, self._unread = (self._unread + self._log.read()).rpartition("\n")
        if not end:
            return False
        self._lines += lines + end
        if SYNC_END not in lines:
            return False
        self.syncs = parse_trace(self._lines, complete=False).syncs
        return True
