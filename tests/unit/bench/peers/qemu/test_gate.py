"""The receiver that decides when the next sync is made, before a sender that syncs when all is sent, as QEMU does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from precopy.bench.pacing import Pacing
from precopy.bench.peers.qemu.gate import Gate, MigrationEndedError
from precopy.errors import PeerLost, Unsupported
from precopy.units import PAGE_SIZE
from support.patience import IN_TIME_S

PAGES = 1301
INTERVAL_S = 0.02


class Sender:
    """Writes the trace of a sync, sends what it found, and goes on with the next: pages of ``rounds``, then no more.
    It then closes its socket, or ``stays`` until the receiver does."""

    def __init__(self, log: Path, socket_end: socket.socket, rounds: list[int], traced: bool, stays: bool) -> None:
        self._log, self._socket, self._rounds, self._traced, self._stays = log, socket_end, rounds, traced, stays
        self.syncs = 0

    def run(self) -> None:
        dirty = 0
        with self._log.open("a", buffering=1) as log, self._socket:
            try:
                for pages in self._rounds:
                    dirty += pages
                    self._sync(log.write, dirty)
                    self._socket.sendall(bytes(pages * PAGE_SIZE))
                if self._stays:
                    self._socket.recv(1)
            except OSError:
                return  # the receiver has gone

    def _sync(self, write: Callable[[str], int], dirty: int) -> None:
        self.syncs += 1
        if self._traced:
            now = time.time()
            write(f"7@{now:.6f}:migration_bitmap_sync_start \n")
            write(f"7@{now + 1e-4:.6f}:migration_bitmap_sync_end dirty_pages {dirty}\n")


@contextmanager
def gate(
    tmp_path: Path,
    rounds: list[int],
    *,
    traced: bool = True,
    stays: bool = False,
    interval_s: float = INTERVAL_S,
    deadline_s: float = IN_TIME_S,
) -> Iterator[tuple[Gate, Sender]]:
    path = tmp_path / "trace.log"
    path.touch()
    ours, theirs = socket.socketpair()
    sender = Sender(path, theirs, rounds, traced, stays)
    thread = threading.Thread(target=sender.run)
    with path.open() as log, ours:
        thread.start()
        try:
            yield Gate(ours, log, Pacing(PAGES, interval_s), time.monotonic() + deadline_s), sender
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_syncs_come_as_far_apart_as_they_are_let(tmp_path: Path) -> None:
    """However fast the sender is, and however late the receiver comes back."""
    with gate(tmp_path, [0, 8192, *[PAGES] * 20]) as (receiver, sender):
        receiver.pass_all_of_ram(2, 8192 * PAGE_SIZE)
        assert len(receiver.syncs) == 2
        made = []
        for number in range(8):
            made += receiver.pass_sync()
            if number == 4:
                time.sleep(5 * INTERVAL_S)
            assert len(receiver.syncs) == 3 + number
            assert sender.syncs == 3 + number
    assert [sync.pages for sync in made] == [PAGES] * 8
    assert all(sync.interval_s > 0.9 * INTERVAL_S for sync in made)
    assert all(sync.sync_s == pytest.approx(1e-4, abs=2e-6) for sync in made)


def test_rounds_too_small_to_be_held_back_are_all_told(tmp_path: Path) -> None:
    """They find other work, so that they are left out."""
    with gate(tmp_path, [0, 4096, 1, 2, 3, 4096]) as (receiver, _):
        receiver.pass_all_of_ram(2, 4096 * PAGE_SIZE)
        made = []
        while len(receiver.syncs) < 6:
            made += receiver.pass_sync()
    assert [sync.pages for sync in made] == [1, 2, 3, 4096]


def test_a_migration_that_ends_is_told(tmp_path: Path) -> None:
    with gate(tmp_path, [0, 4096, PAGES]) as (receiver, _):
        receiver.pass_all_of_ram(2, 4096 * PAGE_SIZE)
        receiver.pass_sync()
        with pytest.raises(MigrationEndedError):
            receiver.pass_sync()


@pytest.mark.parametrize(("interval_s", "waits_for"), [(10 * IN_TIME_S, "its time"), (INTERVAL_S, "the sender")])
def test_closing_ends_what_waits(tmp_path: Path, interval_s: float, waits_for: str) -> None:
    rounds = [0, 4096, *([PAGES] if waits_for == "its time" else [])]
    with gate(tmp_path, rounds, interval_s=interval_s, stays=True) as (receiver, _):
        receiver.pass_all_of_ram(2, 4096 * PAGE_SIZE)
        closing = threading.Timer(0.1, receiver.close)
        closing.start()
        with pytest.raises(MigrationEndedError):
            receiver.pass_sync()
        closing.join()


def test_a_build_without_the_trace_is_told(tmp_path: Path) -> None:
    with gate(tmp_path, [0, 4096], traced=False) as (receiver, _), pytest.raises(Unsupported, match="no trace events"):
        receiver.pass_all_of_ram(2, 1024 * PAGE_SIZE)


def test_a_sender_that_is_late_is_lost(tmp_path: Path) -> None:
    with gate(tmp_path, [0, 4096, PAGES], deadline_s=0.0) as (receiver, _), pytest.raises(PeerLost, match="in time"):
        receiver.pass_all_of_ram(2, 4096 * PAGE_SIZE)
