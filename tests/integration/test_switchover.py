"""Where the guest is when something goes wrong that nobody thought of: here, there or unknown, and never twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from precopy.bitmap import Bitmap
from precopy.dirty import DirtyLog, LogCounters
from precopy.errors import Cancelled, OutcomeUnknown
from precopy.machines.workload import Workload, params, params_gpa
from precopy.machines.workload.image import words_at
from precopy.memory import RamBlock
from precopy.migration import Destination, GuestIs, HelloReader, Migrated, MigrationOptions, Round, Source
from precopy.ports import SyncWay
from precopy.units import PAGE_SIZE
from precopy.wire.default import DEFAULT_FORMAT
from support.live_guests import Ending, Pair, migrate, runs_on, stands_still, stream_pair
from support.patience import IN_TIME_S

pytestmark = pytest.mark.needs("kvm")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair(ram=8 << 20, layout="flat", workload=Workload("random", 5000)) as pair:
        yield pair


class Slow:
    """A tracker whose first ``slow`` clears take ``clear_s`` seconds each; all else is the guest's own."""

    def __init__(self, log: DirtyLog, clear_s: float, slow: int) -> None:
        self._log, self._clear_s, self._slow, self.clears = log, clear_s, slow, 0
        self.name = log.name

    @property
    def counters(self) -> LogCounters:
        return self._log.counters

    def start(self) -> None:
        self._log.start()

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        self._log.harvest(dirty, block)

    def clear(self, start: int, count: int) -> None:
        if self.clears < self._slow:
            time.sleep(self._clear_s)
        self.clears += 1
        self._log.clear(start, count)

    def stop(self) -> None:
        self._log.stop()


def receive(destination: Destination, endings: list[Ending]) -> threading.Thread:
    thread = threading.Thread(target=lambda: endings.append(Ending.of(destination.run)))
    thread.start()
    return thread


def test_a_listener_that_fails_after_the_commit_changes_nothing(pair: Pair) -> None:
    def emit(event: object) -> None:
        if isinstance(event, Round) and event.final:
            raise RuntimeError("the listener failed")

    with stream_pair() as (near, far):
        endings: list[Ending] = []
        thread = receive(Destination(pair.destination, far, HelloReader(DEFAULT_FORMAT)), endings)
        source = Source(pair.source, near, open_format=DEFAULT_FORMAT, emit=emit)
        assert isinstance(source.run(), Migrated)
        thread.join(IN_TIME_S)
    assert source.guest_is is GuestIs.THERE
    stands_still(pair.source)
    runs_on(pair.destination)


def test_a_listener_that_fails_before_the_commit_leaves_the_guest_here(pair: Pair) -> None:
    def emit(event: object) -> None:
        if isinstance(event, Round):
            raise RuntimeError("the listener failed")

    with stream_pair() as (near, far):
        endings: list[Ending] = []
        thread = receive(Destination(pair.destination, far, HelloReader(DEFAULT_FORMAT)), endings)
        source = Source(pair.source, near, open_format=DEFAULT_FORMAT, emit=emit)
        with pytest.raises(RuntimeError, match="listener failed"):
            source.run()
        thread.join(IN_TIME_S)
    assert source.guest_is is GuestIs.HERE
    assert not pair.destination.ran
    runs_on(pair.source)


def test_whatever_fails_between_commit_and_answer_leaves_the_outcome_unknown(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stream_pair() as (near, far):
        endings: list[Ending] = []
        source = Source(pair.source, near, open_format=DEFAULT_FORMAT)
        receive_into = near.receive_into

        def fail_after_the_commit(*arguments: Any) -> None:
            if source.guest_is is GuestIs.UNKNOWN:
                raise MemoryError
            receive_into(*arguments)

        monkeypatch.setattr(near, "receive_into", fail_after_the_commit)
        thread = receive(Destination(pair.destination, far, HelloReader(DEFAULT_FORMAT)), endings)
        with pytest.raises(OutcomeUnknown, match=source.session):
            source.run()
        near.close()
        thread.join(IN_TIME_S)
    assert source.guest_is is GuestIs.UNKNOWN
    stands_still(pair.source)


def test_a_destination_that_was_told_not_to_never_runs_the_guest(pair: Pair) -> None:
    with stream_pair() as (near, far):
        endings: list[Ending] = []
        destination = Destination(pair.destination, far, HelloReader(DEFAULT_FORMAT))
        assert destination.forbid()
        thread = receive(destination, endings)
        ending = Ending.of(Source(pair.source, near, open_format=DEFAULT_FORMAT).run)
        thread.join(IN_TIME_S)
    assert "told not to run" in str(ending.error)
    assert isinstance(endings[0].error, Cancelled)
    assert not pair.destination.ran
    runs_on(pair.source)


def test_a_guest_that_runs_cannot_be_forbidden(pair: Pair) -> None:
    with stream_pair() as (near, far):
        endings: list[Ending] = []
        destination = Destination(pair.destination, far, HelloReader(DEFAULT_FORMAT))
        thread = receive(destination, endings)
        Source(pair.source, near, open_format=DEFAULT_FORMAT).run()
        thread.join(IN_TIME_S)
    assert not destination.forbid()
    runs_on(pair.destination)


def test_a_long_sync_keeps_the_link_alive(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """2048 clears of two milliseconds in the first sync, and a destination that takes three seconds of silence for the
    end. These clears are slower than any machine's, so it allows more for a sync than it does otherwise."""
    monkeypatch.setattr("precopy.migration.destination._SYNC_S_PER_PAGE", 0.02)
    monkeypatch.setattr(pair.source.dirty, "logs", (Slow(pair.source.dirty.logs[0], 0.002, pair.layout.end_page),))
    with stream_pair(timeout=3.0) as streams:
        options = MigrationOptions(clear="per-page", downtime_limit_s=10, on_timeout="switch")
        done = migrate(pair.source, pair.destination, streams, options).migrated()
    assert done.rounds[0].sync_s > 4.0
    runs_on(pair.destination)


def test_a_way_of_syncing_that_has_to_be_compiled_first_keeps_the_link_alive(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than the destination takes silence for the end."""
    choose = pair.source.choose_sync_way

    def choose_slowly() -> SyncWay:
        time.sleep(4.5)
        return choose()

    monkeypatch.setattr(pair.source, "choose_sync_way", choose_slowly)
    with stream_pair(timeout=3.0) as streams:
        done = migrate(pair.source, pair.destination, streams, MigrationOptions(downtime_limit_s=10)).migrated()
    assert done.setup_s > 4.0
    assert done.sync_way == "numpy"
    runs_on(pair.destination)


def test_a_long_sync_can_be_cancelled(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take 40 s; what was done of it by its end is counted, because all takes longer on a busy machine."""
    slow = Slow(pair.source.dirty.logs[0], 0.02, pair.layout.end_page)
    monkeypatch.setattr(pair.source.dirty, "logs", (slow,))
    with stream_pair() as (near, far):
        endings: list[Ending] = []
        thread = receive(Destination(pair.destination, far, HelloReader(DEFAULT_FORMAT)), endings)
        source = Source(pair.source, near, MigrationOptions(clear="per-page"), open_format=DEFAULT_FORMAT)
        threading.Timer(0.2, source.cancel).start()
        with pytest.raises(Cancelled):
            source.run()
        assert slow.clears < pair.layout.end_page / 2
        thread.join(IN_TIME_S)
    runs_on(pair.source)


def test_an_interval_from_a_hostile_peer_neither_ends_the_vcpu_nor_holds_it_up(pair: Pair) -> None:
    page = words_at(pair.source.memory, params_gpa(0), PAGE_SIZE)
    page[params.INTERVAL_NS // 8] = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
    time.sleep(0.1)
    assert pair.source.pause() < IN_TIME_S
    assert pair.source.self_check().ok
    pair.source.resume()
