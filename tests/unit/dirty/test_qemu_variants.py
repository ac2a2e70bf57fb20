"""The thread's clear policies: which clears each version makes, counted; what they share; and RFC v1's range."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Bitmap
from precopy.dirty import ClearPolicy, DirtyMemory, LogCounters, MigrationBitmap, clear_policy
from precopy.dirty.log import LogClear
from precopy.dirty.qemu_variants import (
    CLEAR_BITMAP_SHIFT,
    BeforePatch,
    BlockByBlock,
    ClearBmap,
    RfcV1,
    Upstream,
)
from precopy.memory import RamBlock, RamLayout
from precopy.names import ALL_CLEAR_POLICIES, HISTORIC_CLEAR_POLICIES
from precopy.units import PAGE_SIZE

THREAD: tuple[type[BlockByBlock], ...] = (BeforePatch, RfcV1, Upstream, ClearBmap)
Call = tuple[str, int, int]


class Log:
    """KVM's dirty log with manual protect over sets, and each call that it gets; ``always`` is one in vain, as QEMU
    makes them."""

    name = "recording"
    counters = LogCounters()

    def __init__(self) -> None:
        self.dirty: set[int] = set()
        self.harvested: set[int] = set()
        self.calls: list[Call] = []

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        assert block is None
        self.harvested = set(self.dirty)
        for page in self.dirty:
            dirty.set_range(page, 1)

    def clear(self, start: int, count: int) -> None:
        self.calls.append(("clear", start, count))
        self.forget(start, count)

    def clear_always(self, start: int, count: int) -> None:
        self.calls.append(("always", start, count))
        self.forget(start, count)

    def forget(self, start: int, count: int) -> None:
        cleared = self.harvested & set(range(start, start + count))
        self.dirty -= cleared
        self.harvested -= cleared

    def taken(self) -> list[Call]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


def layout_of(*sizes: int) -> RamLayout:
    return RamLayout.of_blocks((f"b{n}", pages * PAGE_SIZE) for n, pages in enumerate(sizes))


def bitmap_with(policy: ClearPolicy, layout: RamLayout) -> tuple[MigrationBitmap, Log]:
    log = Log()
    memory = DirtyMemory(layout, log)
    memory.start()
    return MigrationBitmap(memory, policy), log


def always(*ranges: tuple[int, int]) -> list[Call]:
    return [("always", start, count) for start, count in ranges]


MIXED = layout_of(128, 70, 64, 3)
"""Aligned, unaligned, aligned, unaligned; at pages 0, 128, 256 and 320."""


class TestClearsOfASync:
    @pytest.mark.parametrize(
        "dirty", [[], [0], [130], [0, 128, 197, 256, 322], list(range(128)) + list(range(128, 198))]
    )
    def test_before_the_patch_one_for_each_page_of_each_unaligned_block(self, dirty: list[int]) -> None:
        """Whatever is dirty, also where nothing is: ``physical_memory_test_and_clear_dirty`` ends in a clear whatever
        it has found."""
        bitmap, log = bitmap_with(BeforePatch(MIXED), MIXED)
        log.dirty = set(dirty)
        bitmap.sync()
        assert log.taken() == always(*((page, 1) for page in [*range(128, 198), *range(320, 323)]))

    @pytest.mark.parametrize("policy", [RfcV1, Upstream])
    @pytest.mark.parametrize("dirty", [[], [0], [130], [0, 128, 197, 256, 322]])
    def test_rfc_v1_and_upstream_one_for_each_unaligned_block(
        self, policy: type[BlockByBlock], dirty: list[int]
    ) -> None:
        bitmap, log = bitmap_with(policy(MIXED), MIXED)
        log.dirty = set(dirty)
        bitmap.sync()
        assert log.taken() == always((128, 70), (320, 3))

    @pytest.mark.parametrize("dirty", [[], [130], [0, 128, 197, 256, 322]])
    def test_with_clear_bmap_for_every_block_none(self, dirty: list[int]) -> None:
        bitmap, log = bitmap_with(ClearBmap(MIXED), MIXED)
        log.dirty = set(dirty)
        bitmap.sync()
        assert log.taken() == []

    @pytest.mark.parametrize("policy", THREAD)
    def test_a_machine_with_none_unaligned_has_none(self, policy: type[BlockByBlock]) -> None:
        layout = layout_of(64, 128)
        bitmap, log = bitmap_with(policy(layout), layout)
        log.dirty = {0, 70}
        bitmap.sync()
        assert log.taken() == []

    def test_the_seeds_flash_costs_960_calls_over_two_listeners_and_then_2(self) -> None:
        """system.flash0 of the series' author: 1966080 bytes, which KVM hears of in kvm-memory and in kvm-smram. It is
        unaligned to QEMU by its length: 480 pages are 7.5 words."""
        layout = RamLayout.of_blocks([("pc.ram", 4 << 20), ("system.flash0", 1966080)])
        for policy, calls in ((BeforePatch(layout), 960), (Upstream(layout), 2)):
            logs = [Log(), Log()]
            memory = DirtyMemory(layout, logs)
            memory.start()
            MigrationBitmap(memory, policy).sync()
            assert sum(len(log.calls) for log in logs) == calls

    def test_a_sync_that_takes_long_lets_its_caller_know(self) -> None:
        layout = layout_of(1000)
        bitmap, log = bitmap_with(BeforePatch(layout), layout)
        ticks: list[int] = []
        bitmap.sync(lambda: ticks.append(len(log.calls)))
        assert len(ticks) == 4
        assert ticks == sorted(ticks)

    def test_and_stops_where_that_raises(self) -> None:
        class Cancelled(Exception):
            pass

        def cancel() -> None:
            raise Cancelled

        layout = layout_of(1000)
        bitmap, log = bitmap_with(BeforePatch(layout), layout)
        log.dirty = {3, 900}
        with pytest.raises(Cancelled):
            bitmap.sync(cancel)
        assert len(log.calls) < 1000
        assert set(bitmap.pending.indexes().tolist()) == {3, 900}


class TestClearsBeforeARead:
    @pytest.mark.parametrize("policy", THREAD)
    def test_a_chunk_is_cleared_once_before_its_first_page_is_read(self, policy: type[BlockByBlock]) -> None:
        layout = layout_of(256)
        bitmap, log = bitmap_with(policy(layout, 6), layout)
        bitmap.sync()
        for page in (70, 71, 127, 64):
            bitmap.take(page, 1)
        assert log.taken() == always((64, 64))
        bitmap.take(60, 10)
        assert log.taken() == always((0, 64))
        bitmap.take(0, 256)
        assert log.taken() == always((128, 64), (192, 64))
        bitmap.take(0, 256)
        assert log.taken() == []

    @pytest.mark.parametrize("policy", THREAD)
    def test_the_next_sync_marks_all_chunks_again(self, policy: type[BlockByBlock]) -> None:
        """Also where it finds nothing: QEMU marks what it has looked at."""
        layout = layout_of(128)
        bitmap, log = bitmap_with(policy(layout, 6), layout)
        for _ in range(2):
            bitmap.sync()
            bitmap.take(0, 64)
            assert log.taken() == always((0, 64))

    @pytest.mark.parametrize("policy", [BeforePatch, RfcV1, Upstream])
    def test_of_an_unaligned_block_nothing_is_left_to_clear(self, policy: type[BlockByBlock]) -> None:
        bitmap, log = bitmap_with(policy(MIXED, 6), MIXED)
        bitmap.sync()
        log.taken()
        bitmap.take(128, 70)
        bitmap.take(320, 3)
        assert log.taken() == []

    def test_with_clear_bmap_for_every_block_its_last_chunk_ends_with_it(self) -> None:
        bitmap, log = bitmap_with(ClearBmap(MIXED, 6), MIXED)
        bitmap.sync()
        bitmap.take(197, 1)
        bitmap.take(322, 1)
        assert log.taken() == always((192, 6), (320, 3))

    def test_chunks_are_the_blocks_own(self) -> None:
        """They are counted from the block's start, not in the ram_addr space: two blocks in one chunk of that are
        cleared one by one."""
        layout = layout_of(64, 64, 128)
        bitmap, log = bitmap_with(Upstream(layout, 7), layout)
        bitmap.sync()
        bitmap.take(64, 1)
        bitmap.take(128, 1)
        bitmap.take(0, 1)
        assert log.taken() == always((64, 64), (128, 128), (0, 64))

    @pytest.mark.parametrize("policy", THREAD)
    def test_a_chunk_of_qemus_default_size_is_a_whole_block_here(self, policy: type[BlockByBlock]) -> None:
        assert 1 << CLEAR_BITMAP_SHIFT == (1 << 30) // PAGE_SIZE
        layout = layout_of(640)
        bitmap, log = bitmap_with(policy(layout), layout)
        bitmap.sync()
        bitmap.take(300, 1)
        assert log.taken() == always((0, 640))

    @pytest.mark.parametrize("policy", THREAD)
    def test_before_the_first_sync_nothing_is_cleared(self, policy: type[BlockByBlock]) -> None:
        bitmap, log = bitmap_with(policy(MIXED), MIXED)
        bitmap.mark_all()
        bitmap.take(0, 128)
        bitmap.take(128, 70)
        assert log.taken() == []

    @pytest.mark.parametrize("policy", THREAD)
    def test_a_range_between_blocks_is_nobodys(self, policy: type[BlockByBlock]) -> None:
        log = Log()
        one = policy(MIXED, 6)
        one.harvested(Bitmap(MIXED.end_page), log)
        log.taken()
        one.before_read(198, 10, log)
        one.before_read(MIXED.end_page, 10, log)
        assert log.taken() == []


class TestAligned:
    @pytest.mark.parametrize(("pages", "is_aligned"), [(64, True), (128, True), (1, False), (63, False), (65, False)])
    def test_by_its_length(self, pages: int, is_aligned: bool) -> None:
        (block,) = layout_of(pages).blocks
        assert block.aligned is is_aligned

    @pytest.mark.parametrize("policy", THREAD)
    def test_what_is_cleared_at_once_and_what_is_deferred(self, policy: type[BlockByBlock]) -> None:
        one = policy(MIXED)
        at_once = [] if policy is ClearBmap else [block for block in MIXED.blocks if not block.aligned]
        assert list(one.at_once) == at_once
        assert sorted([*one.at_once, *one.deferred], key=lambda block: block.first_page) == list(MIXED.blocks)


def overrun_of_rfc_v1(start: int, length: int, page_size: int) -> tuple[int, int]:
    """(first page, pages) of the one clear that RFC v1 makes for ``length`` bytes from byte ``start``: its end is
    rounded up from one page past the loop's end, so that it names a page that the sync did not look at.

    `RfcV1` clears the range that was meant.
    """
    first = start // page_size
    end = -(-(start + length + page_size) // page_size)
    return first, end - first


def range_of_the_thread(start: int, length: int, offset: int) -> tuple[int, int]:
    """RFC v1's own arithmetic, in bytes, with ``TARGET_PAGE_BITS`` of 12: (first page, pages) of its one clear.

    ``addr`` is what the loop leaves in it: the first multiple of a page that is not below ``length``."""
    addr = 0
    while addr < length:
        addr += 1 << 12
    end = (start + addr + offset + (1 << 12) + (1 << 12) - 1 & ~((1 << 12) - 1)) >> 12  # TARGET_PAGE_ALIGN
    start_page = (start + offset) >> 12
    return start_page, end - start_page


class OverrunningRfcV1(RfcV1):
    """RFC v1 to the letter."""

    def clear_now(self, block: RamBlock, log: LogClear, tick: object) -> None:  # noqa: ARG002 - one call
        log.clear_always(*overrun_of_rfc_v1(block.first_page * PAGE_SIZE, block.pages * PAGE_SIZE, PAGE_SIZE))


class UnmaskedLog(Log):
    """Clears whatever it is told to, harvested or not: a log without a mask of its own."""

    def forget(self, start: int, count: int) -> None:
        self.dirty -= set(range(start, start + count))


class TestOverrunOfRfcV1:
    @given(
        first=st.integers(0, 1 << 24), pages=st.integers(1, 1000), offset=st.integers(0, 1 << 24).map(lambda n: n * 64)
    )
    def test_it_is_the_threads_formula(self, first: int, pages: int, offset: int) -> None:
        start, length = first * PAGE_SIZE, pages * PAGE_SIZE
        assert overrun_of_rfc_v1(start + offset * PAGE_SIZE, length, PAGE_SIZE) == range_of_the_thread(
            start, length, offset * PAGE_SIZE
        )

    @given(first=st.integers(0, 1 << 40), pages=st.integers(1, 1 << 20))
    def test_it_is_exactly_one_page_too_many(self, first: int, pages: int) -> None:
        assert overrun_of_rfc_v1(first * PAGE_SIZE, pages * PAGE_SIZE, PAGE_SIZE) == (first, pages + 1)

    @given(sizes=st.lists(st.integers(1, 200), min_size=1, max_size=6))
    def test_behind_a_whole_unaligned_block_the_page_is_nobodys(self, sizes: list[int]) -> None:
        """The next block begins at a multiple of 64 pages, which an unaligned one does not end at. Only where a part of
        a block is synced, such as what is in use of one that can grow, does the page exist."""
        layout = layout_of(*sizes)
        for block in layout.blocks:
            first, pages = overrun_of_rfc_v1(block.first_page * PAGE_SIZE, block.pages * PAGE_SIZE, PAGE_SIZE)
            beyond = first + pages - 1
            if not block.aligned:
                assert not any(other.first_page <= beyond < other.end_page for other in layout.blocks)

    @pytest.mark.parametrize(
        ("policy", "make_log", "kept"),
        [
            pytest.param(OverrunningRfcV1, UnmaskedLog, False, id="overrun, no mask"),
            pytest.param(OverrunningRfcV1, Log, True, id="overrun, KVM's mask"),
            pytest.param(RfcV1, UnmaskedLog, True, id="as here, no mask"),
        ],
    )
    def test_it_forgets_a_page_that_nobody_looked_at(
        self, policy: type[RfcV1], make_log: type[Log], kept: bool
    ) -> None:
        """70 of 128 pages are in use and synced; the guest writes the page behind them. Where the log masks by what was
        harvested, as whoever calls KVM has to, that is harmless."""
        layout = layout_of(128)
        in_use = RamBlock("in use", layout.blocks[0].first_page, 70)
        log = make_log()
        log.harvest(Bitmap(128))
        log.dirty = {70}
        policy(layout).clear_now(in_use, log, lambda: None)
        assert (70 in log.dirty) is kept

    @pytest.mark.parametrize("pages", [1, 3, 63, 65, 70, 1000])
    def test_rfc_v1_here_ends_with_the_block(self, pages: int) -> None:
        layout = layout_of(pages, 64)
        bitmap, log = bitmap_with(RfcV1(layout), layout)
        bitmap.sync()
        assert log.taken() == always((0, pages))


class TestInCommon:
    def test_all_of_the_thread_are_here_by_name(self) -> None:
        assert HISTORIC_CLEAR_POLICIES == ("before-patch", "rfc-v1", "upstream", "clear-bmap")
        for name, policy in zip(HISTORIC_CLEAR_POLICIES, THREAD, strict=True):
            made = clear_policy(name, MIXED)
            assert type(made) is policy
            assert made.name == name

    syncs = st.lists(st.sets(st.integers(0, MIXED.end_page - 1), max_size=30), min_size=1, max_size=5)

    @given(syncs=syncs, taken=st.lists(st.integers(0, 4), max_size=5))
    def test_every_policy_ends_with_the_same_bits_and_counts(self, syncs: list[set[int]], taken: list[int]) -> None:
        """What is pending, what is new and what was found is the same under each; what is not is how often pages are
        found again that were not yet cleared. So the guest's writes are of pages that are armed under all."""
        within = {page for start, count in MIXED.runs for page in range(start, start + count)}
        outcomes = [outcome(name, [pages & within for pages in syncs], taken) for name in ALL_CLEAR_POLICIES]
        for name, one in zip(ALL_CLEAR_POLICIES, outcomes, strict=True):
            assert one == outcomes[0], f"{name} differs from {ALL_CLEAR_POLICIES[0]}"

    @given(dirty=st.sets(st.integers(0, 127)), pending=st.sets(st.integers(0, 127)))
    def test_a_merge_counts_what_was_not_pending(self, dirty: set[int], pending: set[int]) -> None:
        layout = layout_of(128, 70)
        for name in ALL_CLEAR_POLICIES:
            into = Bitmap.from_indexes(layout.end_page, sorted(pending))
            found = Bitmap.from_indexes(layout.end_page, sorted(dirty))
            assert clear_policy(name, layout).merge(found, into) == (len(dirty), len(dirty - pending))
            assert set(into.indexes().tolist()) == dirty | pending


def outcome(name: str, syncs: list[set[int]], taken: Iterable[int]) -> list[object]:
    """All that a migration with this policy sees, over syncs that each find what was written and windows that are taken
    in between. After each of them all is armed, as a pause of the guest would have it."""
    bitmap, log = bitmap_with(clear_policy(name, MIXED, 6), MIXED)
    seen: list[object] = []
    windows = iter(taken)
    for pages in syncs:
        log.dirty |= pages
        stats = bitmap.sync()
        seen += [stats.dirty_pages, stats.new_dirty_pages, bitmap.pending.indexes().tolist()]
        index = next(windows, 0)
        for start, count in list(bitmap.windows(64))[index : index + 2]:
            seen.append(bitmap.take(start, count).indexes().tolist())
        log.clear(0, MIXED.end_page)
    return seen
