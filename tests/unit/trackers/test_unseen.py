"""Writes that no log hears of: what is announced, and what is written perhaps, reaches every consumer of a log."""

from __future__ import annotations

import os
import tempfile

import pytest

from precopy.abi import direct_io
from precopy.bitmap import Bitmap, Runs
from precopy.trackers.fanout import Consumer, FanOut
from precopy.trackers.unseen import RECENT_S
from support.scripted_log import ScriptedLog

PAGES = 200


class Shared:
    """A scripted log with two consumers, a third that has not begun, and a clock that the test sets."""

    def __init__(self) -> None:
        self.now, self.possible = 100.0, False
        self.log = ScriptedLog(PAGES)
        self.fan_out = FanOut(self.log, PAGES, unseen=lambda: self.possible, now=lambda: self.now)
        self.one, self.two, self.late = (self.fan_out.consumer(name) for name in ("one", "two", "late"))
        for consumer in (self.one, self.two):
            consumer.start()
            found(consumer)

    def wrote(self, page: int) -> None:
        self.log.wrote(Runs.of((page, 1)))


def found(consumer: Consumer) -> list[int]:
    pages = Bitmap(PAGES)
    consumer.harvest(pages)
    consumer.clear(0, PAGES)
    return list(pages.indexes())


@pytest.fixture
def shared() -> Shared:
    return Shared()


class TestAnnounced:
    def test_touched_pages_are_found_once_by_everybody(self, shared: Shared) -> None:
        shared.fan_out.touched(Runs.of((3, 2)))
        for consumer in (shared.one, shared.two):
            assert found(consumer) == [3, 4]
            assert not consumer.perhaps.any()
            assert found(consumer) == []

    def test_who_starts_later_has_read_them_since(self, shared: Shared) -> None:
        shared.fan_out.touched(Runs.of((3, 2)))
        shared.late.start()
        assert found(shared.late) == []

    def test_pages_that_are_being_written_are_found_by_every_sync_and_once_more_after_the_end(
        self, shared: Shared
    ) -> None:
        with shared.fan_out.writing(Runs.of((7, 1))):
            shared.late.start()
            for consumer in (shared.one, shared.two, shared.late) * 2:
                assert found(consumer) == [7]
                assert not consumer.perhaps.any()
        for consumer in (shared.one, shared.two, shared.late):
            assert found(consumer) == [7]
            assert found(consumer) == []

    def test_an_exception_ends_it_like_any_end(self, shared: Shared) -> None:
        def fails() -> None:
            with shared.fan_out.writing(Runs.of((7, 1))):
                found(shared.one)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fails()
        assert found(shared.one) == found(shared.two) == [7]
        assert found(shared.one) == []

    def test_two_at_once_end_one_by_one(self, shared: Shared) -> None:
        with shared.fan_out.writing(Runs.of((7, 1))):
            with shared.fan_out.writing(Runs.of((7, 1))):
                assert found(shared.one) == [7]
            assert found(shared.one) == [7]
            assert found(shared.one) == [7]
        assert found(shared.one) == [7]
        assert found(shared.one) == []


class TestBuffers:
    def test_are_found_by_every_sync_of_everybody(self, shared: Shared) -> None:
        shared.fan_out.buffer(Runs.of((5, 2)))
        shared.late.start()
        for consumer in (shared.one, shared.two, shared.late) * 2:
            assert found(consumer) == [5, 6]
            assert list(consumer.perhaps.indexes()) == [5, 6]

    def test_a_write_that_was_reported_is_certain(self, shared: Shared) -> None:
        shared.fan_out.buffer(Runs.of((5, 2)))
        shared.wrote(6)
        assert found(shared.two) == [5, 6]
        assert list(shared.two.perhaps.indexes()) == [5]
        assert found(shared.one) == [5, 6]
        assert list(shared.one.perhaps.indexes()) == [5]  # the other's sync has not made it uncertain
        assert found(shared.one) == [5, 6]
        assert list(shared.one.perhaps.indexes()) == [5, 6]


class TestRecent:
    def test_a_page_is_found_again_while_a_transfer_may_be_under_way(self, shared: Shared) -> None:
        shared.possible = True
        shared.wrote(9)
        assert found(shared.one) == [9]
        assert not shared.one.perhaps.any()
        shared.possible = False  # what was under way may be yet
        for _ in range(3):
            shared.now += RECENT_S / 4
            assert found(shared.one) == [9]
            assert list(shared.one.perhaps.indexes()) == [9]
        assert found(shared.two) == [9]
        assert not shared.two.perhaps.any()  # it is told for the first time
        assert found(shared.one) == [9]
        shared.now += RECENT_S
        assert found(shared.two) == [9]  # as it was told when the other asked
        assert found(shared.one) == found(shared.two) == []

    def test_each_page_for_its_own_time(self, shared: Shared) -> None:
        shared.possible = True
        for page in range(20):
            shared.wrote(page)
            shared.now += RECENT_S / 8
            assert {max(0, page - 7), page} <= set(found(shared.one))
        assert 0 not in found(shared.one)

    def test_all_memory_when_the_log_begins(self) -> None:
        shared = Shared()
        shared.one.stop()
        shared.two.stop()
        shared.possible = True
        shared.late.start()
        assert len(found(shared.late)) == PAGES
        shared.now += 2 * RECENT_S
        assert found(shared.late) == []

    def test_nothing_where_no_transfer_is_possible(self, shared: Shared) -> None:
        shared.wrote(9)
        assert found(shared.one) == [9]
        assert found(shared.one) == []


class TestWhatThisProcessHas:
    def test_nothing_at_first(self) -> None:
        assert not direct_io.may_be_under_way()
        assert direct_io.pinned_bytes() == 0

    def test_a_file_with_o_direct(self) -> None:
        with tempfile.NamedTemporaryFile(dir=".") as file:
            direct = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
            assert direct_io.may_be_under_way()
            os.close(direct)
        assert not direct_io.may_be_under_way()

    def test_where_the_system_does_not_say(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(direct_io, "_DESCRIPTORS", "/nonexistent")
        monkeypatch.setattr(direct_io, "_STATUS", "/nonexistent")
        assert direct_io.may_be_under_way()
        assert direct_io.pinned_bytes() == 0
