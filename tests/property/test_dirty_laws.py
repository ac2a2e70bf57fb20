"""Laws 1 and 2: a state machine that tries to have a migration lose a write.

The guest writes at any time: between the calls of a migration, inside them (before and after each call of the log), and
between the taking of pages and the reading of their content. The machine itself is held against broken variants at the
end of this file: each of them has to be caught.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from precopy.bitmap import Bitmap
from precopy.dirty import DirtyLog, DirtyMemory, LogCounters, MigrationBitmap, clear_policy
from precopy.dirty.merge import Merge, Merged
from precopy.errors import KernelCallError
from precopy.memory import DirtyClient, RamBlock, RamLayout
from precopy.names import ALL_CLEAR_POLICIES
from precopy.trackers.write_log import WriteLog
from precopy.units import PAGE_SIZE
from support.variants import assert_caught
from support.ways import ways

way = ways(scope="module")

WINDOWS = (64, 128, 1024)
SHIFTS = (6, 7, 31)
SHAPES = ((1,), (64,), (70, 3, 130), (65, 64, 63), (200, 1))


def layout_of(shape: tuple[int, ...]) -> RamLayout:
    return RamLayout.of_blocks((f"b{n}", pages * PAGE_SIZE) for n, pages in enumerate(shape))


class ModelLog:
    """KVM's dirty log with manual protect, over a set: a harvest leaves bits set, a clear clears just those of its
    range that the last harvest gave out and that no clear has taken since."""

    name = "model"
    counters = LogCounters()

    def __init__(self, pages: Iterable[int]) -> None:
        self.dirty = set(pages)
        self.harvested: set[int] = set()

    def wrote(self, page: int) -> None:
        self.dirty.add(page)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        within = set(range(block.first_page, block.end_page)) if block else self.dirty | self.harvested
        self.harvested = self.harvested - within | self.dirty & within
        found = self.dirty & within
        for page in found:
            dirty.set_range(page, 1)

    def clear(self, start: int, count: int) -> None:
        cleared = self.harvested & set(range(start, start + count))
        self.dirty -= cleared
        self.harvested -= cleared


class Interrupted:
    """A log around which the guest gets to run: before and after each call, as the machine has planned."""

    name = "interrupted"

    def __init__(self, log: DirtyLog, guest: Callable[[], None]) -> None:
        self.log, self._guest = log, guest

    @property
    def counters(self) -> LogCounters:
        return self.log.counters

    def start(self) -> None:
        self.log.start()

    def stop(self) -> None:
        self.log.stop()

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        self._guest()
        self.log.harvest(dirty, block)
        self._guest()

    def clear(self, start: int, count: int) -> None:
        self._guest()
        self.log.clear(start, count)
        self._guest()


class InterruptedMerging(Interrupted):
    """The same, of a log that merges in one step; now and then a fetch fails, when half of the pages were fetched."""

    def harvest_into(self, found: Bitmap, merge: Merge, *, empty: bool) -> Merged:
        source = Bitmap(found.size)
        self._guest()
        self.log.harvest(source)
        self._guest()
        if self.fails:
            self.fails = False
            found.add(source)
            raise KernelCallError("KVM_GET_DIRTY_LOG", "slot 5", 5)
        return merge.take(found, source, empty=empty)

    fails = False


Event = tuple[str, int]
events = st.lists(
    st.tuples(st.sampled_from(["write", "announce", "announce two", "store"]), st.integers(0, 7)), max_size=6
)
"""What the guest does, and to which of its eight pages."""


class Migration(RuleBasedStateMachine):
    """A guest, its log, a migration bitmap, and the copy that a destination would have."""

    policy = "merged"
    make_bitmap: Callable[..., MigrationBitmap] = MigrationBitmap
    make_interrupted: Callable[..., Interrupted] = Interrupted

    @initialize(
        shape=st.sampled_from(SHAPES),
        shift=st.sampled_from(SHIFTS),
        window=st.sampled_from(WINDOWS),
        near=st.integers(0, 60),
    )
    def begin(self, shape: tuple[int, ...], shift: int, window: int, near: int) -> None:
        self.layout, self.window = layout_of(shape), window
        every = {page for start, count in self.layout.runs for page in range(start, start + count)}
        seams = {0, 64, 128, *self.layout.runs.starts.tolist(), *self.layout.runs.ends.tolist()}
        candidates = sorted(every & {seam + by for seam in seams for by in (-2, -1, 0, 1)})
        self.pages = [candidates[(near + n) % len(candidates)] for n in range(8)]
        self.memory = dict.fromkeys(every, 0)
        self.sent = dict.fromkeys(every, -1)
        self.clock = 0
        self.plan: list[Event] = []
        self.to_read: list[int] = []
        self.looked: Bitmap | None = None
        self.make_log()
        policy = clear_policy(self.policy, self.layout, shift)
        memory = DirtyMemory(self.layout, self.make_interrupted(self.log, self.run_guest))
        self.bitmap = self.make_bitmap(memory, policy)
        memory.start()
        self.bitmap.mark_all()

    def make_log(self) -> None:
        self.log: Any = ModelLog(self.memory)

    # What the guest does.

    def store(self, page: int) -> None:
        self.clock += 1
        self.memory[page] = self.clock

    def happens(self, event: Event) -> None:
        """Under KVM a store and the bit that it sets are one."""
        what, number = event
        if what != "store":
            self.log.wrote(self.pages[number])
            self.store(self.pages[number])

    def settle(self) -> None:
        """The guest is paused."""

    def run_guest(self) -> None:
        if self.plan:
            self.happens(self.plan.pop())

    @rule(plan=events)
    def guest_runs(self, plan: list[Event]) -> None:
        for event in plan:
            self.happens(event)

    # What the migration does.

    @rule(plan=events)
    def sync(self, plan: list[Event]) -> None:
        self.plan = plan
        self.bitmap.sync()
        self.plan, self.looked = [], None

    @rule(plan=events)
    def look(self, plan: list[Event]) -> None:
        self.plan = plan
        self.looked = self.bitmap.mid_round()
        self.plan = []

    @rule(plan=events, index=st.integers(0, 5), read=st.booleans())
    def take_a_window(self, plan: list[Event], index: int, read: bool) -> None:
        windows = list(self.bitmap.windows(self.window))
        if windows:
            self.plan = plan
            self.take(*windows[index % len(windows)])
            self.plan = []
        if read:
            self.read_for_sending(len(self.to_read))

    @rule(plan=events, start=st.integers(0, 300), count=st.integers(0, 300))
    def take_any_range_of_a_block(self, plan: list[Event], start: int, count: int) -> None:
        block = self.layout.blocks[start % len(self.layout.blocks)]
        first = start % block.pages
        self.plan = plan
        self.take(block.first_page + first, 1 + count % (block.pages - first))
        self.plan = []

    def take(self, start: int, count: int) -> None:
        self.to_read += self.bitmap.take(start, count).indexes().tolist()

    @rule(count=st.integers(1, 100))
    def read_for_sending(self, count: int) -> None:
        for page in self.to_read[:count]:
            self.sent[page] = self.memory[page]
        del self.to_read[:count]

    # What must hold.

    def stale(self) -> set[int]:
        return {page for page, content in self.memory.items() if self.sent[page] != content}

    def found_by_the_next_sync(self) -> set[int]:
        """Harvested from a copy of the log, because a harvest decides what may be cleared."""
        bitmap = Bitmap(self.layout.end_page)
        copy.deepcopy(self.log).harvest(bitmap)
        if self.looked is not None:
            bitmap.add(self.looked)
        return set(bitmap.indexes().tolist())

    @invariant()
    def every_stale_page_will_be_sent(self) -> None:
        lost = self.stale().difference(self.bitmap.pending.indexes().tolist(), self.to_read)
        if lost:
            lost -= self.found_by_the_next_sync()
        assert not lost, f"lost: {lost}"

    @invariant()
    def only_pages_of_blocks_are_pending(self) -> None:
        assert set(self.bitmap.pending.indexes().tolist()) <= self.memory.keys()

    def teardown(self) -> None:
        """The switchover: the guest is paused, one more sync, and all that is pending is sent."""
        if hasattr(self, "bitmap"):
            self.settle()
            self.bitmap.sync()
            for start, count in self.bitmap.windows(self.window):
                self.take(start, count)
            self.read_for_sending(len(self.to_read))
            assert not self.stale(), f"lost: {self.stale()}"


class EmulatedMigration(Migration):
    """With the real `WriteLog`, and a CPU whose stores come after their announcements, sometimes long after."""

    log_class: Callable[..., WriteLog] = WriteLog

    def make_log(self) -> None:
        self.log = self.log_class(self.layout.end_page, self.layout.runs)
        self.announced: set[int] = set()

    def happens(self, event: Event) -> None:
        what, number = event
        if what != "store":
            self.complete()
            page = last = self.pages[number]
            if what == "announce two" and page + 1 in self.memory:
                last = page + 1
            self.log.wrote(page, last)
            self.announced = {page, last}
        if what in ("store", "write"):
            self.complete()

    def complete(self) -> None:
        for page in self.announced:
            self.store(page)
        self.announced = set()

    def settle(self) -> None:
        self.complete()
        self.log.settled()


class MergingMigration(Migration):
    """With a log that harvests and merges in one step."""

    make_interrupted = InterruptedMerging

    @rule(plan=events)
    def sync_that_fails(self, plan: list[Event]) -> None:
        (log,) = self.bitmap.memory.logs
        log.fails, self.plan = True, plan
        if self.bitmap.policy.whole_arrays:
            with pytest.raises(KernelCallError):
                self.bitmap.sync()
        log.fails, self.plan, self.looked = False, [], None

    def found_by_the_next_sync(self) -> set[int]:
        """Also what one that failed has fetched, and devices have written."""
        untaken = self.bitmap.memory._bitmaps[DirtyClient.MIGRATION]
        return super().found_by_the_next_sync() | set(untaken.indexes().tolist())


def variant(machine: type[Migration], policy: str) -> type[Migration]:
    return type(machine.__name__, (machine,), {"policy": policy})


@pytest.mark.parametrize("policy", ALL_CLEAR_POLICIES)
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "machine",
    [Migration, MergingMigration, EmulatedMigration],
    ids=["kvm's semantics", "kvm's semantics, merging", "write log"],
)
def test_no_write_is_lost(machine: type[Migration], policy: str) -> None:
    examples = max(
        settings().max_examples // 8, 1
    )  # of each of three logs under each of seven policies in each of two ways
    run_state_machine_as_test(
        variant(machine, policy), settings=settings(max_examples=examples, stateful_step_count=30)
    )


# The machine's teeth.


class ClearAfterRead(Migration):
    """Reads what it takes first, and has it armed again only then."""

    def take(self, start: int, count: int) -> None:
        self.to_read += self.bitmap.pending.take(start, count).indexes().tolist()
        self.read_for_sending(len(self.to_read))
        self.bitmap.policy.before_read(start, count, self.bitmap.memory)


class ClearsUnharvested(Migration):
    """Clears whatever is dirty in the range of a clear, as with a bitmap of ones."""

    def make_log(self) -> None:
        class Log(ModelLog):
            def clear(self, start: int, count: int) -> None:
                self.dirty -= set(range(start, start + count))

        self.log = Log(self.memory)


class ClearsWholeWords(Migration):
    """Widens each clear to multiples of 64 pages without masking it by what was harvested."""

    def make_log(self) -> None:
        class Log(ModelLog):
            def clear(self, start: int, count: int) -> None:
                self.dirty -= set(range(start // 64 * 64, -(-(start + count) // 64) * 64))

        self.log = Log(self.memory)


class ForgetsPending(Migration):
    """A sync that forgets what was still to be sent."""

    class Bitmap(MigrationBitmap):
        def sync(self) -> Any:
            self.pending.clear_all()
            return super().sync()

    make_bitmap = Bitmap


class DropsWhatAFailedFetchFound(MergingMigration):
    """A log that keeps what it fetched before a call failed, and may clear it later."""

    class Log(InterruptedMerging):
        def harvest_into(self, found: Bitmap, merge: Merge, *, empty: bool) -> Merged:
            before = found.copy()
            try:
                return super().harvest_into(found, merge, empty=empty)
            except KernelCallError:
                found.words[:] = before.words
                raise

    make_interrupted = Log


class LooksTakeAway(Migration):
    """A look that keeps what it finds to itself."""

    class Bitmap(MigrationBitmap):
        def mid_round(self) -> Any:
            super().mid_round().clear_all()
            return Bitmap(self.layout.end_page)

    make_bitmap = Bitmap


class NothingInFlight(EmulatedMigration):
    """A write log that takes an announcement for the store itself."""

    class Log(WriteLog):
        def wrote(self, first: int, last: int) -> None:
            super().wrote(first, last)
            self.settled()

    log_class = Log


class OnePageInFlight(EmulatedMigration):
    """A write log that forgets the second page of a store across two."""

    class Log(WriteLog):
        def wrote(self, first: int, last: int) -> None:
            super().wrote(first, last)
            self._in_flight = (first, first)

    log_class = Log

    def happens(self, event: Event) -> None:
        what, number = event
        super().happens(("announce two" if what == "announce" else what, number))


@pytest.mark.parametrize(
    ("machine", "policy", "start"),
    [
        (ClearAfterRead, "deferred", 1),
        (ClearsUnharvested, "deferred", 2),
        (ClearsUnharvested, "merged", 1),
        (ClearsWholeWords, "per-page", 1),
        (ClearsWholeWords, "merged", 1),
        (ForgetsPending, "merged", 0),
        (LooksTakeAway, "deferred", 1),
        (DropsWhatAFailedFetchFound, "deferred", 1),
        (NothingInFlight, "per-page", 8),
        (NothingInFlight, "merged", 8),
        (NothingInFlight, "deferred", 1),
        (OnePageInFlight, "merged", 8),
    ],
)
def test_a_broken_variant_is_caught(machine: type[Migration], policy: str, start: int) -> None:
    assert_caught(variant(machine, policy), r"lost: ", start)
