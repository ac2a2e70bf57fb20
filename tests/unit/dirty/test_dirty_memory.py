"""What `DirtyMemory` gives and takes: counts, snapshots, ranges, errors, and counters over several logs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Bitmap, Runs
from precopy.dirty import DirtyLog, DirtyMemory, DirtySnapshot, LogCounters
from precopy.errors import BitmapRangeError, Unsupported, UsageError
from precopy.memory import DirtyClient, MemoryRegion, RamBlock, RamLayout
from precopy.units import PAGE_SIZE, RamPage
from support.scripted_log import ScriptedLog

MIGRATION, VGA, CODE = DirtyClient.MIGRATION, DirtyClient.VGA, DirtyClient.CODE
LAYOUT = RamLayout.of_blocks([("b0", 70 * PAGE_SIZE), ("b1", 3 * PAGE_SIZE), ("b2", 130 * PAGE_SIZE)])
END = LAYOUT.end_page
B0, B1, B2 = LAYOUT.blocks


class RecordingLog(ScriptedLog):
    """Notes what is called, in order."""

    def __init__(self, pages: int = END, name: str = "scripted") -> None:
        super().__init__(pages)
        self.name = name
        self.calls: list[str] = []
        self.clears: list[tuple[int, int]] = []

    def start(self) -> None:
        self.calls.append("start")
        super().start()

    def stop(self) -> None:
        self.calls.append("stop")
        super().stop()

    def clear(self, start: int, count: int) -> None:
        self.clears.append((start, count))
        super().clear(start, count)


def memory_with(*pages: int) -> tuple[DirtyMemory, RecordingLog]:
    """A migration under way, in which these pages were written and harvested."""
    log = RecordingLog()
    memory = DirtyMemory(LAYOUT, log)
    memory.start()
    log.wrote(Runs.of(*((page, 1) for page in pages)))
    memory.sync()
    return memory, log


def bitmap_of(*pages: int, size: int = END) -> Bitmap:
    return Bitmap.from_indexes(size, pages)


def pages_in(bitmap: Bitmap) -> set[int]:
    return set(bitmap.indexes().tolist())


def in_blocks(page: int) -> bool:
    return any(block.first_page <= page < block.end_page for block in LAYOUT.blocks)


class TestTestAndClear:
    def test_without_a_destination_every_dirty_page_counts(self) -> None:
        memory, log = memory_with(0, 1, 69, 128, 200)
        assert memory.test_and_clear(MIGRATION, 0, 70) == 3
        assert memory.test_and_clear(MIGRATION, 0, 70) == 0
        assert memory.count(MIGRATION) == 2
        assert log.clears == [(0, 70)]

    def test_with_one_only_those_that_were_not_set_there(self) -> None:
        memory, _ = memory_with(0, 1, 69, 128)
        dest = bitmap_of(1, 5, 200)
        assert memory.test_and_clear(MIGRATION, 0, END, dest) == 3
        assert pages_in(dest) == {0, 1, 5, 69, 128, 200}
        assert memory.count(MIGRATION) == 0

    def test_a_range_is_re_armed_also_where_all_of_it_was_pending(self) -> None:
        """In the series' last version only the count tells whether anything was found, and with a destination that is
        0 here; pages that stayed unarmed would cost nothing but law 1."""
        memory, log = memory_with(3, 4)
        dest = bitmap_of(3, 4)
        assert memory.test_and_clear(MIGRATION, 0, 70, dest) == 0
        assert log.clears == [(0, 70)]
        memory.sync()
        assert memory.count(MIGRATION) == 0
        log.wrote(Runs.of((4, 1)))
        memory.sync()
        assert memory.test_and_clear(MIGRATION, 0, 70) == 1

    def test_nothing_is_re_armed_where_nothing_was_found(self) -> None:
        memory, log = memory_with(200)
        assert memory.test_and_clear(MIGRATION, 0, 70) == 0
        assert memory.test_and_clear(MIGRATION, 192, 8, Bitmap(END)) == 0
        assert log.clears == []

    def test_what_was_not_harvested_is_not_taken(self) -> None:
        memory, log = memory_with(3)
        log.wrote(Runs.of((4, 1)))
        assert memory.test_and_clear(MIGRATION, 0, 70) == 1
        memory.sync()
        assert memory.test_and_clear(MIGRATION, 0, 70) == 1

    def test_another_client_keeps_its_bits(self) -> None:
        memory, log = memory_with()
        memory.start_display(B0)
        memory.test_and_clear(VGA, 0, 70)
        log.wrote(Runs.of((5, 1)))
        memory.sync()
        assert memory.test_and_clear(MIGRATION, 0, 70) == 1
        assert memory.test_and_clear(VGA, 0, 70) == 1
        assert memory.test_and_clear(VGA, 0, 70) == 0

    def test_every_log_is_cleared(self) -> None:
        logs = [RecordingLog(), RecordingLog()]
        memory = DirtyMemory(LAYOUT, logs)
        memory.start()
        logs[1].wrote(Runs.of((7, 1)))
        memory.sync()
        memory.test_and_clear(MIGRATION, 0, 70)
        assert [log.clears for log in logs] == [[(0, 70)], [(0, 70)]]

    @pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, END + 1), (END, 1), (5, -1)])
    def test_a_range_that_is_not_there(self, start: int, count: int) -> None:
        memory, log = memory_with(3)
        with pytest.raises(BitmapRangeError):
            memory.test_and_clear(MIGRATION, start, count)
        assert memory.count(MIGRATION) == 1
        assert log.clears == []

    pages = st.sets(st.integers(0, END - 1).filter(in_blocks), max_size=40)

    @given(
        dirty=pages,
        pending=pages,
        start=st.integers(0, END),
        count=st.integers(0, END),
        with_dest=st.booleans(),
        client=st.sampled_from([MIGRATION, VGA, CODE]),
    )
    def test_against_sets(
        self, dirty: set[int], pending: set[int], start: int, count: int, *, with_dest: bool, client: DirtyClient
    ) -> None:
        memory = DirtyMemory(LAYOUT, RecordingLog())
        memory.test_and_clear(client, 0, END)
        memory.set_from(bitmap_of(*sorted(dirty)), client)
        count = min(count, END - start)
        found = dirty & set(range(start, start + count))
        dest = bitmap_of(*sorted(pending))
        new = memory.test_and_clear(client, start, count, dest if with_dest else None)
        assert new == len(found - pending if with_dest else found)
        assert pages_in(dest) == (pending | found if with_dest else pending)
        assert memory.count(client) == len(dirty - found)


class TestWhereBitsComeFrom:
    @pytest.mark.parametrize("at", [0, 1, 63, 64, 65, 100])
    def test_a_listeners_bitmap_may_begin_anywhere(self, at: int) -> None:
        memory, _ = memory_with()
        memory.set_from(bitmap_of(0, 2, 63, 64, size=70), MIGRATION | VGA, at)
        for client in (MIGRATION, VGA):
            dest = Bitmap(END)
            assert memory.test_and_clear(client, 0, END, dest) == 4
            assert pages_in(dest) == {at, at + 2, at + 63, at + 64}

    def test_one_that_reaches_beyond_the_end_is_refused(self) -> None:
        memory, _ = memory_with()
        with pytest.raises(BitmapRangeError):
            memory.set_from(Bitmap(70), MIGRATION, at=END - 69)

    def test_a_device_tells_all_clients_unless_it_says_which(self) -> None:
        memory, _ = memory_with()
        memory.test_and_clear(CODE, 0, END)
        memory.set_range(10, 3)
        memory.set_range(20, 2, VGA)
        assert [memory.count(client) for client in (MIGRATION, VGA, CODE)] == [3, 5, 3]

    @pytest.mark.parametrize(("start", "count"), [(-1, 1), (END, 1), (0, END + 1)])
    def test_a_device_cannot_write_what_is_not_there(self, start: int, count: int) -> None:
        memory, _ = memory_with()
        with pytest.raises(BitmapRangeError):
            memory.set_range(start, count)
        assert memory.count(MIGRATION) == 0

    def test_there_is_no_translated_code_at_first(self) -> None:
        memory = DirtyMemory(LAYOUT, RecordingLog())
        assert memory.count(CODE) == LAYOUT.pages
        assert memory.count(CODE, B1.first_page, B1.pages) == 3

    def test_a_harvest_reaches_those_that_log_the_page(self) -> None:
        memory, log = memory_with()
        memory.start_display(B2)
        memory.test_and_clear(VGA, 0, END)
        log.wrote(Runs.of((1, 1), (B2.first_page, 2)))
        memory.sync()
        assert memory.count(MIGRATION) == 3
        assert memory.count(VGA) == 2
        memory.stop()
        log.wrote(Runs.of((2, 1), (B2.first_page + 5, 1)))
        memory.sync()
        assert memory.count(MIGRATION) == 3
        assert memory.count(VGA) == 3

    def test_a_harvest_of_one_block_leaves_the_others_for_later(self) -> None:
        memory, log = memory_with()
        memory.start_display(B0)
        log.wrote(Runs.of((1, 1), (B2.first_page, 2)))
        memory.sync(B2)
        assert memory.count(MIGRATION) == 2
        memory.clear(0, END)  # page 1 was not harvested, and so it is not forgotten
        memory.sync()
        assert memory.count(MIGRATION) == 3

    def test_exchange_hands_out_the_bitmap_and_takes_the_empty_one(self) -> None:
        memory, log = memory_with(3, 4)
        empty = Bitmap(END)
        taken = memory.exchange(MIGRATION, empty)
        assert pages_in(taken) == {3, 4}
        assert log.clears == []
        memory.set_range(9, 1)
        assert pages_in(empty) == {9}
        assert pages_in(taken) == {3, 4}

    @pytest.mark.parametrize("size", [0, END - 1, END + 1])
    def test_exchange_of_another_size_is_refused(self, size: int) -> None:
        memory, _ = memory_with(3)
        with pytest.raises(ValueError, match="sizes differ"):
            memory.exchange(MIGRATION, Bitmap(size))
        assert memory.count(MIGRATION) == 1


class TestReset:
    @pytest.mark.parametrize(("start", "count", "left"), [(0, None, 0), (1, None, 1), (0, 1, 2), (2, 1, 2), (3, 0, 3)])
    def test_part_of_a_block(self, start: int, count: int | None, left: int) -> None:
        memory, _ = memory_with()
        memory.set_range(B1.first_page, 3, VGA)
        memory.set_range(B0.first_page, 70, VGA)
        memory.reset(VGA, B1, start, count)
        assert memory.count(VGA, B1.first_page, 3) == left
        assert memory.count(VGA, B0.first_page, 70) == 70

    @pytest.mark.parametrize(("start", "count"), [(0, 4), (-1, 1), (-1, 4), (3, 1), (4, None), (1, 3), (2, -1)])
    def test_what_does_not_lie_in_it_is_refused(self, start: int, count: int | None) -> None:
        memory, _ = memory_with()
        memory.set_range(0, END, VGA)
        with pytest.raises(UsageError, match="do not lie in 'b1', which has 3"):
            memory.reset(VGA, B1, start, count)
        assert memory.count(VGA) == END


def by_byte(snapshot: DirtySnapshot, start: int, size: int) -> bool:
    """As a display that looks at each byte's page."""
    return any(byte // snapshot.page_size in snapshot.pages for byte in range(start, start + size))


class TestSnapshot:
    def test_it_has_what_was_written_since_the_last_one(self) -> None:
        memory, log = memory_with()
        memory.start_display(B2)
        first = memory.snapshot_and_clear(VGA, B2)
        assert pages_in(first.pages) == set(range(130))
        log.wrote(Runs.of((B2.first_page + 5, 2), (B0.first_page, 1)))
        second = memory.snapshot_and_clear(VGA, B2)
        assert pages_in(second.pages) == {5, 6}
        assert second.block == B2
        assert not memory.snapshot_and_clear(VGA, B2).pages.any()

    def test_it_is_a_copy(self) -> None:
        memory, log = memory_with()
        memory.start_display(B2)
        memory.snapshot_and_clear(VGA, B2)
        log.wrote(Runs.of((B2.first_page + 5, 1)))
        snapshot = memory.snapshot_and_clear(VGA, B2)
        log.wrote(Runs.of((B2.first_page + 9, 1)))
        memory.sync()
        assert pages_in(snapshot.pages) == {5}

    def test_its_block_is_re_armed_and_no_other(self) -> None:
        memory, log = memory_with()
        memory.start_display(B1)
        memory.snapshot_and_clear(VGA, B1)
        log.clears.clear()
        log.wrote(Runs.of((B1.first_page, 1), (0, 1)))
        memory.snapshot_and_clear(VGA, B1)
        assert log.clears == [(B1.first_page, 3)]
        memory.snapshot_and_clear(VGA, B1)
        assert log.clears == [(B1.first_page, 3)]

    def test_a_migration_keeps_what_a_display_took(self) -> None:
        memory, log = memory_with()
        memory.start_display(B1)
        log.wrote(Runs.of((B1.first_page + 1, 1)))
        memory.snapshot_and_clear(VGA, B1)
        assert memory.count(MIGRATION) == 1

    shapes = st.sampled_from([(512, 7), (512, 64), (1024, 5), (4096, 3)])
    """Pages and their size: what a line's first and last byte are in matters, and no page is too large to try all."""

    @given(shape=shapes, data=st.data())
    def test_dirty_against_every_byte(self, shape: tuple[int, int], data: st.DataObject) -> None:
        snapshot = snapshot_of(shape, data)
        size = snapshot.block.pages * snapshot.page_size
        start = data.draw(st.integers(0, size))
        length = data.draw(st.integers(0, min(size - start, 3 * snapshot.page_size)))
        assert snapshot.dirty(start, length) == by_byte(snapshot, start, length)

    @given(shape=shapes, data=st.data())
    def test_lines_against_every_byte(self, shape: tuple[int, int], data: st.DataObject) -> None:
        snapshot = snapshot_of(shape, data)
        size = snapshot.block.pages * snapshot.page_size
        stride = data.draw(st.integers(1, size))
        offset = data.draw(st.integers(0, size - stride))
        count = data.draw(st.integers(0, min((size - offset) // stride, 50)))
        lines = snapshot.lines(stride, count, offset)
        assert lines.dtype == bool
        assert lines.tolist() == [by_byte(snapshot, offset + stride * line, stride) for line in range(count)]

    def test_no_bytes_are_never_dirty(self) -> None:
        assert not DirtySnapshot(B1, bitmap_of(0, 1, 2, size=3), PAGE_SIZE).dirty(5000, 0)

    @pytest.mark.parametrize(("start", "size"), [(-1, 1), (0, 3 * PAGE_SIZE + 1), (3 * PAGE_SIZE, 1)])
    def test_dirty_of_bytes_that_are_not_there(self, start: int, size: int) -> None:
        with pytest.raises(BitmapRangeError):
            DirtySnapshot(B1, Bitmap(3), PAGE_SIZE).dirty(start, size)

    @pytest.mark.parametrize(
        ("stride", "count", "offset"),
        [(0, 1, 0), (-1, 1, 0), (1, -1, 0), (1, 1, -1), (PAGE_SIZE, 4, 0), (PAGE_SIZE, 3, 1), (1, 1, 3 * PAGE_SIZE)],
    )
    def test_lines_that_are_not_there(self, stride: int, count: int, offset: int) -> None:
        with pytest.raises(UsageError, match=r"do not lie in 'b1'"):
            DirtySnapshot(B1, Bitmap(3), PAGE_SIZE).lines(stride, count, offset)

    def test_lines_of_a_whole_screen(self) -> None:
        """800 x 600 in 32 bits: the second page holds the end of line 1 and the beginning of line 2."""
        block = RamBlock("vga", RamPage(0), 600 * 3200 // PAGE_SIZE + 1)
        changed = DirtySnapshot(block, bitmap_of(1, size=block.pages), PAGE_SIZE).lines(3200, 600)
        assert changed.nonzero()[0].tolist() == [1, 2]


def snapshot_of(shape: tuple[int, int], data: st.DataObject) -> DirtySnapshot:
    page_size, pages = shape
    dirty = data.draw(st.sets(st.integers(0, pages - 1), max_size=4))
    return DirtySnapshot(RamBlock("b", RamPage(64), pages), bitmap_of(*sorted(dirty), size=pages), page_size)


class Failing(RecordingLog):
    """Cannot be started."""

    def start(self) -> None:
        super().start()
        raise Unsupported("there is no such log here", "use another")


class TestStartAndStop:
    def test_all_logs_are_started_and_stopped(self) -> None:
        logs = [RecordingLog(), RecordingLog()]
        memory = DirtyMemory(LAYOUT, logs)
        assert not memory.logging
        memory.start()
        assert (memory.logging, bool(memory.count(MIGRATION))) == (True, False)
        memory.stop()
        memory.stop()
        assert not memory.logging
        assert [log.calls for log in logs] == [["start", "stop", "stop"]] * 2

    def test_where_one_cannot_be_started_the_others_are_stopped(self) -> None:
        logs = [RecordingLog(), Failing(), RecordingLog()]
        memory = DirtyMemory(LAYOUT, logs)
        with pytest.raises(Unsupported, match="no such log"):
            memory.start()
        assert [log.calls for log in logs] == [["start", "stop"], ["start", "stop"], []]
        assert not memory.logging

    def test_where_none_was_started_nothing_of_a_harvest_is_the_migrations(self) -> None:
        logs = [RecordingLog(), Failing()]
        memory = DirtyMemory(LAYOUT, logs)
        with pytest.raises(Unsupported):
            memory.start()
        logs[0].wrote(Runs.of((3, 1)))
        memory.sync()
        assert memory.count(MIGRATION) == 0

    def test_a_new_migration_begins_with_no_bit(self) -> None:
        memory, _ = memory_with(3, 4)
        memory.stop()
        memory.set_range(9, 1)
        memory.start()
        assert memory.count(MIGRATION) == 0

    def test_what_a_display_has_not_heard_of_is_harvested_before_a_migration_ends(self) -> None:
        memory, log = memory_with()
        memory.start_display(B0)
        memory.snapshot_and_clear(VGA, B0)
        log.wrote(Runs.of((6, 1)))
        memory.stop()
        assert memory.count(VGA) == 1
        assert memory.logging

    def test_a_display_that_starts_twice_starts_once(self) -> None:
        memory, _ = memory_with()
        memory.start_display(B1)
        memory.test_and_clear(VGA, 0, END)
        memory.start_display(B1)
        assert memory.count(VGA) == 0
        memory.stop_display(B1)
        memory.stop()
        assert not memory.logging

    def test_a_display_that_stops_takes_its_bits_along_and_leaves_the_migrations(self) -> None:
        memory, log = memory_with()
        memory.start_display(B0)
        memory.start_display(B1)
        log.wrote(Runs.of((4, 1)))
        memory.stop_display(B0)
        memory.stop_display(B0)
        assert memory.count(VGA) == 3
        assert memory.count(MIGRATION) == 1

    def test_a_display_has_its_blocks_region_logged_and_no_other(self) -> None:
        regions = {block.name: MemoryRegion.ram(block.name, block) for block in LAYOUT.blocks[:2]}
        memory = DirtyMemory(LAYOUT, RecordingLog(), regions)
        memory.start_display(B0)
        memory.start_display(B2)  # which has no region here
        assert [regions[name].log_mask for name in ("b0", "b1")] == [VGA, DirtyClient(0)]
        memory.stop_display(B0)
        memory.stop_display(B2)
        assert regions["b0"].log_mask == DirtyClient(0)


class TestLogsTogether:
    def test_their_counters_add_up(self) -> None:
        logs = [RecordingLog(), RecordingLog()]
        memory = DirtyMemory(LAYOUT, logs)
        memory.start()
        logs[0].wrote(Runs.of((3, 1)))
        for _ in range(3):
            memory.sync()
        memory.clear(0, 10)
        counters = [log.counters for log in logs]
        assert memory.counters == counters[0] + counters[1]
        assert (memory.counters.get_calls, memory.counters.clear_calls) == (6, 1)
        assert memory.counters.get_s > counters[0].get_s > 0

    def test_no_log_has_done_nothing(self) -> None:
        memory = DirtyMemory(LAYOUT, [])
        memory.start()
        memory.sync()
        assert memory.counters == LogCounters()
        assert memory.count(MIGRATION) == 0

    @pytest.mark.parametrize(
        ("names", "together"), [(["a"], "a"), (["a", "b"], "a and b"), (["a", "a"], "a"), (["b", "a", "b"], "b and a")]
    )
    def test_their_names(self, names: list[str], together: str) -> None:
        assert DirtyMemory(LAYOUT, [RecordingLog(name=name) for name in names]).name == together

    def test_one_log_needs_no_list(self) -> None:
        log = RecordingLog()
        assert DirtyMemory(LAYOUT, log).logs == (log,)
        assert isinstance(log, DirtyLog)

    @pytest.mark.parametrize("clear", [DirtyMemory.clear, DirtyMemory.clear_always], ids=["clear", "clear_always"])
    def test_a_clear_goes_to_each(self, clear: Callable[[DirtyMemory, int, int], None]) -> None:
        logs = [RecordingLog(), RecordingLog()]
        clear(DirtyMemory(LAYOUT, logs), 5, 7)
        assert [log.clears for log in logs] == [[(5, 7)], [(5, 7)]]

    def test_in_vain_only_where_a_log_can(self) -> None:
        class Eager(RecordingLog):
            def clear_always(self, start: int, count: int) -> None:
                self.calls.append(f"always {start} {count}")

        log = Eager()
        memory = DirtyMemory(LAYOUT, log)
        memory.clear_always(5, 7)
        memory.clear(5, 7)
        assert log.calls == ["always 5 7"]
        assert log.clears == [(5, 7)]
