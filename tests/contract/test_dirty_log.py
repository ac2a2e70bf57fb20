"""What every `precopy.ports.DirtyLog` owes its caller, with real writes behind each of them."""

from __future__ import annotations

import errno
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precopy.abi import kvm
from precopy.abi.ioctl import failure
from precopy.bitmap import Bitmap, Runs, kernels
from precopy.dirty import DirtyMemory, MigrationBitmap, clear_policy
from precopy.dirty.log import MergingLog
from precopy.errors import KernelCallError
from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload
from precopy.machines.workload.image import RESERVED_END
from precopy.memory import DirtyClient, GuestMemory, RamLayout
from precopy.memory.captures.machines import machine_layout
from precopy.names import ALL_CLEAR_POLICIES
from precopy.ports import DirtyLog
from precopy.trackers.write_log import WriteLog
from precopy.units import PAGE_SIZE
from support.dirty_logs import (
    HOLE,
    LENGTHS,
    SPLIT_AT,
    Counting,
    EmulatedHarness,
    Harness,
    KvmHarness,
    MakeHarness,
    NativeKvmHarness,
    RingHarness,
    ScriptedHarness,
    StandIn,
    gpa_in,
    several_slots,
    writable,
)
from support.log_model import Found, LogModel
from support.pagemap import (
    HotPagemapHarness,
    PagemapHarness,
    RelaxedConsumerHarness,
    RelaxedPagemapHarness,
    RunningPagemapGuest,
    SharedPagemapHarness,
    StreamingPagemapGuest,
    TwoStepPagemapHarness,
    two_step_guest,
)
from support.patience import IN_TIME_S
from support.vhost import RunningVhostGuest, VhostHarness

LAYOUT = several_slots()
WRITABLE = writable(LAYOUT)
FIRST = {block.name: int(block.first_page) for block in LAYOUT.blocks}
LOW_END = RESERVED_END // PAGE_SIZE
BEYOND = LAYOUT.end_page + 1000

KINDS = [
    pytest.param(StandIn, id="write log"),
    pytest.param(EmulatedHarness, id="emulated", marks=pytest.mark.needs("unicorn")),
    pytest.param(ScriptedHarness, id="scripted"),
    pytest.param(VhostHarness, id="vhost log"),
    pytest.param(PagemapHarness, id="pagemap", marks=pytest.mark.needs("pagemap")),
    pytest.param(TwoStepPagemapHarness, id="pagemap in two steps", marks=pytest.mark.needs("pagemap")),
    pytest.param(SharedPagemapHarness, id="pagemap, shared", marks=pytest.mark.needs("pagemap")),
    pytest.param(RelaxedPagemapHarness, id="pagemap, not exact", marks=pytest.mark.needs("pagemap")),
    pytest.param(HotPagemapHarness, id="pagemap, not exact, hot", marks=pytest.mark.needs("pagemap")),
    pytest.param(RelaxedConsumerHarness, id="pagemap, not exact, shared", marks=pytest.mark.needs("pagemap")),
    pytest.param(KvmHarness, id="kvm dirty log", marks=pytest.mark.needs("kvm")),
    pytest.param(NativeKvmHarness, id="kvm dirty log, native", marks=pytest.mark.needs("kvm", "numba")),
    pytest.param(RingHarness, id="kvm dirty ring", marks=pytest.mark.needs("kvm")),
]


@pytest.fixture(scope="module", params=KINDS)
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    make: MakeHarness = request.param
    harness = make(LAYOUT)
    yield harness
    harness.close()


def harvest(harness: Harness) -> set[int]:
    """The next harvest, without the reserved low memory: there the harness's guest answers, a first read may count as
    a write (KVM maps a page that it finds unmapped writable), and the CPU walks over page tables."""
    return without_low(harness, whole_harvest(harness))


def without_low(harness: Harness, found: set[int]) -> set[int]:
    pages = {page for page in found if page >= LOW_END}
    return Found(pages, harness.counted) if isinstance(harness, Counting) else pages


def whole_harvest(harness: Harness, into: Bitmap | None = None) -> set[int]:
    dirty = Bitmap(harness.layout.end_page) if into is None else into
    harness.log.harvest(dirty)
    if isinstance(harness, Counting):
        harness.note()
    return set(dirty.indexes().tolist())


def rearm(harness: Harness) -> None:
    """Starts the log anew, with every page armed."""
    harness.log.stop()
    harness.log.start()
    harvest(harness)
    harness.log.clear(0, harness.layout.end_page)
    if isinstance(harness, Counting):
        harness.rearmed()


def clear_counted(harness: Harness, written: set[int]) -> None:
    """Clears what the last harvest has counted as written that was not, as far as a log may do that."""
    if isinstance(harness, Counting):
        for page in harness.counted - written:
            harness.log.clear(page, 1)


@pytest.fixture
def armed(harness: Harness) -> Harness:
    rearm(harness)
    return harness


def ends(block: str, pages: int) -> set[int]:
    return {FIRST[block], FIRST[block] + pages // 2, FIRST[block] + pages - 1}


class TestHarvest:
    def test_nothing_is_dirty_where_nothing_was_written(self, armed: Harness) -> None:
        assert harvest(armed) == set()

    def test_it_is_a_dirty_log(self, harness: Harness) -> None:
        assert isinstance(harness.log, DirtyLog)
        assert harness.log.name

    @pytest.mark.parametrize("pages", LENGTHS)
    def test_pages_of_a_slot_of_any_length(self, armed: Harness, pages: int) -> None:
        written = ends(f"b{pages}", pages)
        armed.write(sorted(written))
        assert harvest(armed) == written

    def test_pages_of_all_slots_at_once(self, armed: Harness) -> None:
        written = set().union(*(ends(f"b{pages}", pages) for pages in LENGTHS))
        written |= {FIRST["split"], FIRST["split"] + SPLIT_AT - 1, FIRST["split"] + SPLIT_AT, FIRST["split"] + 99}
        written |= {FIRST["holey"] + HOLE[0], FIRST["holey"] + HOLE[1] - 1}
        armed.write(sorted(written))
        assert harvest(armed) == written

    def test_every_page_that_there_is(self, armed: Harness) -> None:
        armed.write(WRITABLE)
        assert harvest(armed) == set(WRITABLE)

    def test_a_page_written_often_is_found(self, armed: Harness) -> None:
        page = FIRST["b65"] + 64
        armed.write([page] * 50)
        assert harvest(armed) == {page}

    def test_pages_stay_until_they_are_cleared(self, armed: Harness) -> None:
        armed.write([FIRST["b7"], FIRST["b64"] + 63])
        first = harvest(armed)
        assert harvest(armed) == first == {FIRST["b7"], FIRST["b64"] + 63}

    def test_later_writes_are_added(self, armed: Harness) -> None:
        armed.write([FIRST["b7"]])
        harvest(armed)
        armed.write([FIRST["b7"] + 6])
        assert harvest(armed) == {FIRST["b7"], FIRST["b7"] + 6}

    def test_what_the_bitmap_holds_already_stays_in_it(self, armed: Harness) -> None:
        armed.write([FIRST["b63"]])
        dirty = Bitmap.from_indexes(LAYOUT.end_page, [100, FIRST["b64"]])
        written = {FIRST["b63"], FIRST["b64"]}
        found = whole_harvest(armed, dirty)
        assert 100 in found
        assert without_low(armed, found) == written


class TestClear:
    def test_a_cleared_page_is_clean_until_it_is_written_again(self, armed: Harness) -> None:
        page = FIRST["b129"] + 128
        for _ in range(3):
            armed.write([page])
            assert harvest(armed) == {page}
            armed.log.clear(page, 1)
            assert harvest(armed) == set()

    @pytest.mark.parametrize("pages", LENGTHS)
    def test_a_whole_slot_of_any_length(self, armed: Harness, pages: int) -> None:
        first = FIRST[f"b{pages}"]
        armed.write(range(first, first + pages))
        assert harvest(armed) == set(range(first, first + pages))
        armed.log.clear(first, pages)
        assert harvest(armed) == set()
        armed.write([first + pages - 1])
        assert harvest(armed) == {first + pages - 1}

    @pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 100])
    @pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 129, 500])
    def test_exactly_the_pages_of_an_unaligned_range(self, armed: Harness, start: int, count: int) -> None:
        first = FIRST["b1000"]
        armed.write(range(first, first + 1000))
        harvest(armed)
        armed.log.clear(first + start, count)
        cleared = set(range(first + start, first + start + count))
        assert harvest(armed) == set(range(first, first + 1000)) - cleared

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (0, LAYOUT.end_page),
            (0, BEYOND),
            (FIRST["b1"], FIRST["b129"] + 3),
            (FIRST["b7"] + 3, FIRST["b63"] - 1),
            (FIRST["b7"] + 5, FIRST["b7"] + 40),
            (FIRST["split"] + 10, FIRST["split"] + 60),
            (FIRST["split"] + SPLIT_AT, FIRST["split"] + SPLIT_AT + 1),
            (FIRST["holey"], FIRST["holey"] + 200),
            (FIRST["holey"] + HOLE[0] - 1, FIRST["holey"] + HOLE[0] + 1),
            (FIRST["holey"] + HOLE[1], BEYOND),
            (FIRST["b4095"] + 4000, BEYOND),
            (LAYOUT.end_page - 80, LAYOUT.end_page + 64),
            (LAYOUT.end_page, BEYOND),
            (LAYOUT.end_page + 3, BEYOND),
        ],
    )
    def test_ranges_over_slots_and_gaps_and_beyond(self, armed: Harness, start: int, end: int) -> None:
        armed.write(WRITABLE)
        harvest(armed)
        armed.log.clear(start, end - start)
        left = set(WRITABLE) - set(range(start, end))
        assert harvest(armed) == left
        armed.write(WRITABLE[::7])
        assert harvest(armed) == left | set(WRITABLE[::7])

    def test_a_page_that_was_written_and_not_yet_harvested_survives_a_clear(self, armed: Harness) -> None:
        seen, unseen = FIRST["b64"] + 10, [FIRST["b64"] + 9, FIRST["b64"] + 11, FIRST["b64"] + 63, FIRST["b65"]]
        armed.write([seen])
        harvest(armed)
        armed.write(unseen)
        armed.log.clear(0, LAYOUT.end_page)
        assert harvest(armed) == set(unseen)

    def test_a_page_written_after_it_was_cleared_survives_a_second_clear(self, armed: Harness) -> None:
        page = FIRST["b7"] + 2
        armed.write([page])
        harvest(armed)
        armed.log.clear(page, 1)
        armed.write([page])
        armed.log.clear(page, 1)
        assert harvest(armed) == {page}

    def test_a_wide_clear_after_a_narrow_one_takes_only_what_was_not_yet_cleared(self, armed: Harness) -> None:
        first, second, third = FIRST["b1000"] + 3, FIRST["b1000"] + 4, FIRST["b1000"] + 900
        armed.write([first, second, third])
        harvest(armed)
        armed.log.clear(first, 1)
        armed.write([first])
        armed.log.clear(0, LAYOUT.end_page)
        assert harvest(armed) == {first}

    def test_a_page_written_between_harvest_and_clear_is_armed_again(self, armed: Harness) -> None:
        """Its content is read after the clear, so that write is not lost, and may be reported once more; one after the
        clear must be found."""
        page = FIRST["b2"] + 1
        armed.write([page])
        harvest(armed)
        armed.write([page])
        armed.log.clear(page, 1)
        assert harvest(armed) <= {page}
        armed.log.clear(page, 1)
        assert harvest(armed) == set()
        armed.write([page])
        assert harvest(armed) == {page}


class TestCounters:
    def test_a_harvest_counts_and_takes_time(self, armed: Harness) -> None:
        before = armed.log.counters
        harvest(armed)
        harvest(armed)
        did = armed.log.counters - before
        assert did.get_calls >= 2
        assert did.get_calls % 2 == 0 or isinstance(armed, Counting)  # which protects other ranges each time
        assert did.get_s > 0
        assert (did.clear_calls, did.clear_s) == (0, 0)

    def test_a_clear_counts_and_takes_time(self, armed: Harness) -> None:
        armed.write([FIRST["b1"]])
        harvest(armed)
        before = armed.log.counters
        armed.log.clear(FIRST["b1"], 1)
        did = armed.log.counters - before
        assert did.clear_calls == 1
        assert did.clear_s > 0
        assert (did.get_calls, did.get_s) == (0, 0)

    @pytest.mark.parametrize("count", [0, 1, LAYOUT.end_page])
    def test_a_clear_of_clean_pages_makes_no_call(self, armed: Harness, count: int) -> None:
        harvest(armed)
        clear_counted(armed, set())
        before = armed.log.counters
        armed.log.clear(0, count)
        assert armed.log.counters == before

    def test_a_clear_of_pages_that_no_harvest_has_reported_makes_no_call(self, armed: Harness) -> None:
        armed.write([FIRST["b64"]])
        before = armed.log.counters
        armed.log.clear(0, LAYOUT.end_page)
        assert armed.log.counters == before
        assert harvest(armed) == {FIRST["b64"]}

    def test_a_clear_beside_the_dirty_pages_makes_no_call(self, armed: Harness) -> None:
        armed.write([FIRST["b64"] + 5])
        harvest(armed)
        clear_counted(armed, {FIRST["b64"] + 5})
        before = armed.log.counters
        armed.log.clear(FIRST["b64"], 5)
        armed.log.clear(FIRST["b64"] + 6, LAYOUT.end_page - FIRST["b64"] - 6)
        armed.log.clear(FIRST["b64"] + 5, 0)
        assert armed.log.counters == before
        assert harvest(armed) == {FIRST["b64"] + 5}


class TestStartAndStop:
    def test_what_is_dirty_at_first_lies_in_the_blocks(self, harness: Harness) -> None:
        harness.log.stop()
        harness.log.start()
        blocks = {page for start, count in LAYOUT.runs for page in range(start, start + count)}
        assert whole_harvest(harness) <= blocks

    def test_a_write_before_the_first_harvest_is_found(self, harness: Harness) -> None:
        harness.log.stop()
        harness.log.start()
        harness.write([FIRST["b7"] + 6, FIRST["split"] + 60])
        assert {FIRST["b7"] + 6, FIRST["split"] + 60} <= harvest(harness)

    def test_stop_twice(self, armed: Harness) -> None:
        armed.log.stop()
        armed.log.stop()

    def test_clear_after_stop_is_harmless(self, armed: Harness) -> None:
        armed.write([FIRST["b1"]])
        harvest(armed)
        armed.log.stop()
        before = armed.log.counters
        armed.log.clear(0, LAYOUT.end_page)
        assert armed.log.counters == before

    def test_the_guest_runs_on_without_a_log(self, armed: Harness) -> None:
        armed.log.stop()
        armed.write(WRITABLE[::11])

    def test_start_again_finds_new_writes_and_forgets_old_harvests(self, armed: Harness) -> None:
        armed.write([FIRST["b64"]])
        harvest(armed)
        armed.log.stop()
        armed.write([FIRST["b65"]])
        armed.log.start()
        before = armed.log.counters
        armed.log.clear(FIRST["b64"], 1)  # nothing was harvested since
        assert armed.log.counters == before
        harvest(armed)
        armed.log.clear(0, LAYOUT.end_page)
        assert harvest(armed) == set()
        armed.write([FIRST["b129"] + 128])
        assert harvest(armed) == {FIRST["b129"] + 128}


@pytest.mark.parametrize("make", KINDS)
def test_stop_before_start(make: MakeHarness) -> None:
    harness = make(machine_layout("flat", 2 << 20))
    try:
        harness.log.stop()
        harness.log.start()
        harness.write([300])
        assert 300 in harvest(harness)
    finally:
        harness.close()


interesting = sorted(
    {page for section in LAYOUT.sections for page in (section.first_page, section.first_page + section.pages - 1)}
    & set(WRITABLE)
)
some_pages = st.lists(st.sampled_from(interesting) | st.sampled_from(WRITABLE), min_size=1, max_size=20)
bounds = st.sampled_from(interesting) | st.integers(0, BEYOND)
operations = st.one_of(
    st.tuples(st.just("write"), some_pages),
    st.tuples(st.just("harvest"), st.none()),
    st.tuples(st.just("clear"), st.tuples(bounds, bounds).map(sorted)),
    st.tuples(st.just("clear all"), st.none()),
)


@settings(
    max_examples=max(settings().max_examples // 2, 1),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(operations, max_size=15))
def test_any_sequence_agrees_with_a_model(harness: Harness, sequence: list[tuple[str, list[int] | None]]) -> None:
    rearm(harness)
    model = LogModel()
    for what, argument in [*sequence, ("harvest", None)]:
        if what == "write":
            assert argument is not None
            harness.write(argument)
            model.write(argument)
        elif what == "harvest":
            model.harvest(harvest(harness))
        else:
            start, end = argument or (0, LAYOUT.end_page)
            harness.log.clear(start, end - start)
            model.clear(start, end)


class Busy:
    """A CPU that announces and stores in a thread, as fast as it can, until it is stopped."""

    def __init__(self, layout: RamLayout) -> None:
        self.layout, self.memory = layout, GuestMemory(layout)
        self._log = WriteLog(layout.end_page, layout.runs)
        self.dirty = DirtyMemory(layout, self._log)
        self._order, self._stamp = random.Random(1), 0

    def resume(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        self._stop.set()
        self._thread.join()
        self._log.settled()

    def close(self) -> None:
        self.memory.close()

    def _run(self) -> None:
        pages = [page for start, count in self.layout.runs for page in range(start, start + count)]
        (words,) = (host.words for host in self.memory.hosts)
        while not self._stop.is_set():
            page = self._order.choice(pages)
            self._stamp += 1
            self._log.wrote(page, page)
            if self._stamp % 64 == 0:
                time.sleep(0.002)  # a store that comes long after its announcement
            words[page * PAGE_SIZE // 8] = self._stamp


def kvm_guest(layout: RamLayout) -> object:
    from precopy.machines.kvm import KvmGuest

    guest = KvmGuest(GuestMemory(layout))
    guest.boot(Workload("random", rate=50_000))
    return guest


def native_kvm_guest(layout: RamLayout) -> object:
    """Whose syncs are native calls."""
    guest = kvm_guest(layout)
    guest.dirty.logs[0].use_native(True)
    return guest


def ring_guest(layout: RamLayout) -> object:
    """With a ring so small that its vCPU leaves now and then because it is full."""
    from precopy.machines.kvm import KvmGuest

    guest = KvmGuest(GuestMemory(layout), tracker="dirty-ring", ring_entries=512)
    guest.boot(Workload("random", rate=50_000))
    return guest


def emulated_guest(layout: RamLayout) -> object:
    from precopy.machines.emulated import EmulatedGuest

    guest = EmulatedGuest(GuestMemory(layout))
    guest.boot(Workload("random", rate=50_000))
    return guest


@contextmanager
def quick_switches() -> Iterator[None]:
    """Has Python switch between threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


RUNNING = [
    pytest.param(Busy, id="write log"),
    pytest.param(emulated_guest, id="emulated", marks=pytest.mark.needs("unicorn")),
    pytest.param(RunningVhostGuest, id="vhost log"),
    pytest.param(RunningPagemapGuest, id="pagemap", marks=pytest.mark.needs("pagemap")),
    pytest.param(two_step_guest, id="pagemap in two steps", marks=pytest.mark.needs("pagemap")),
    pytest.param(StreamingPagemapGuest, id="pagemap, not exact", marks=pytest.mark.needs("pagemap")),
    pytest.param(kvm_guest, id="kvm dirty log", marks=pytest.mark.needs("kvm")),
    pytest.param(native_kvm_guest, id="kvm dirty log, native", marks=pytest.mark.needs("kvm", "numba")),
    pytest.param(ring_guest, id="kvm dirty ring", marks=pytest.mark.needs("kvm")),
]


@pytest.mark.parametrize("policy", ALL_CLEAR_POLICIES)
@pytest.mark.parametrize("make", RUNNING)
def test_no_write_of_a_running_guest_is_lost(make: Callable[[RamLayout], Busy], policy: str) -> None:
    """A migration without a wire: pages are taken and copied while the guest writes them.

    It writes slowly enough for a lost page to stay lost until the end.
    """
    layout = machine_layout("flat", 4 << 20)
    guest = make(layout)
    try:
        (host,) = guest.memory.hosts
        copy = np.zeros_like(host.words)
        bitmap = MigrationBitmap(guest.dirty, clear_policy(policy, layout, 6))
        guest.dirty.start()
        bitmap.mark_all()

        def send_pending() -> None:
            for start, count in bitmap.windows(64):
                for first, length in bitmap.take(start, count):
                    part = slice(first * PAGE_SIZE // 8, (first + length) * PAGE_SIZE // 8)
                    copy[part] = host.words[part]

        for _ in range(4):
            with quick_switches():
                guest.resume()
                found, began = [bitmap.sync().dirty_pages], time.monotonic()
                # On a busy machine the guest may not get to run for a while.
                while (spent := time.monotonic() - began) < 0.06 or (sum(found[1:]) <= 10 and spent < IN_TIME_S):
                    send_pending()
                    found.append(bitmap.sync().dirty_pages)
                    if isinstance(guest, StreamingPagemapGuest):
                        guest.looked()
                guest.pause()
            found.append(bitmap.sync().dirty_pages)
            send_pending()
            assert sum(found[1:]) > 10  # it did write meanwhile
            assert np.array_equal(copy, host.words)
        assert not isinstance(guest, StreamingPagemapGuest) or guest.counted > 0
        guest.dirty.stop()
    finally:
        guest.close()
        kernels.use(None)


KVM_WAYS = [
    pytest.param(KvmHarness, id="numpy"),
    pytest.param(NativeKvmHarness, id="native", marks=pytest.mark.needs("numba")),
]


@pytest.mark.needs("kvm")
class TestKvm:
    """What only the KVM dirty log has: system calls to count, and slots that alias."""

    @pytest.fixture(params=KVM_WAYS)
    def kvm(self, request: pytest.FixtureRequest) -> Iterator[KvmHarness]:
        harness = request.param(LAYOUT)
        rearm(harness)
        yield harness
        harness.close()

    def test_a_harvest_is_one_call_a_slot(self, kvm: KvmHarness) -> None:
        before = kvm.log.counters
        harvest(kvm)
        assert (kvm.log.counters - before).get_calls == len(LAYOUT.sections)

    def test_a_clear_is_one_call_a_slot_with_dirty_pages(self, kvm: KvmHarness) -> None:
        second = FIRST["split"] + SPLIT_AT
        written = {FIRST["b1"], FIRST["b1000"], FIRST["b1000"] + 999, second - 1, second}
        kvm.write(sorted(written))
        found = whole_harvest(kvm)
        assert written <= found
        slots = {n for n, one in enumerate(LAYOUT.sections) for page in found if 0 <= page - one.first_page < one.pages}
        assert len(slots - {0}) == 4
        before = kvm.log.counters
        kvm.log.clear(0, LAYOUT.end_page)
        assert (kvm.log.counters - before).clear_calls == len(slots)

    def test_a_gap_that_costs_more_than_a_call_splits_it(
        self, kvm: KvmHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("precopy.trackers.kvm_log.GAP_WORDS", 3)
        first = FIRST["b4095"]
        words = [0, 1, 5, 9, 14, 63]  # gaps of 0, 3, 3, 4 and 48 clean words
        kvm.write([first + 64 * word for word in words])
        harvest(kvm)
        before = kvm.log.counters
        kvm.log.clear(first, 4095)
        assert (kvm.log.counters - before).clear_calls == 3
        assert harvest(kvm) == set()

    def test_what_was_fetched_before_a_get_that_fails_is_reported(self, kvm: KvmHarness) -> None:
        """It may be cleared from then on (law 2), so somebody has to have it (law 1)."""
        written = {FIRST["b1"], FIRST["b64"] + 1, FIRST["b1000"] + 5, FIRST["split"] + SPLIT_AT}
        kvm.write(sorted(written))
        broken = next(known for known in kvm.log._asked if known.slot.name == "b1000")
        before = broken.get.slot
        broken.get.slot = 77  # there is none, so the kernel refuses
        dirty = Bitmap(LAYOUT.end_page)
        with pytest.raises(KernelCallError, match=r"KVM_GET_DIRTY_LOG on slot \d+ \(b1000 at .*No such file"):
            kvm.log.harvest(dirty)
        broken.get.slot = before
        first = {page for page in dirty.indexes().tolist() if page >= LOW_END}
        assert first == {page for page in written if page < FIRST["b1000"]}
        kvm.log.clear(0, LAYOUT.end_page)  # drops what it has reported, and nothing else
        assert harvest(kvm) == written - first


WORD_LAYOUT = machine_layout("q35", 16 << 20)
"""All of whose slots begin at a word of the bitmap."""
LOW_OF_Q35 = next(section for section in WORD_LAYOUT.sections if section.gpa == 0).pages
OTHERS = [s.first_page for s in WORD_LAYOUT.sections if s.first_page >= LOW_OF_Q35 and s.gpa >= RESERVED_END]


@pytest.mark.needs("kvm")
class TestMerging:
    """A harvest and its merge in one step: `MergingLog`, which the KVM dirty log is, in either way."""

    @pytest.fixture(params=KVM_WAYS)
    def merging(self, request: pytest.FixtureRequest) -> Iterator[KvmHarness]:
        harness = request.param(WORD_LAYOUT)
        yield harness
        harness.close()

    @pytest.fixture
    def memory(self, merging: KvmHarness) -> Iterator[DirtyMemory]:
        memory = merging.guest.dirty
        memory.start()
        memory.sync()
        memory.clear(0, WORD_LAYOUT.end_page)
        memory.exchange(DirtyClient.MIGRATION, Bitmap(WORD_LAYOUT.end_page))
        yield memory
        memory.stop()

    def high(self, bitmap: Bitmap) -> set[int]:
        return {page for page in bitmap.indexes().tolist() if page >= LOW_OF_Q35}

    def test_it_is_a_merging_log(self, merging: KvmHarness) -> None:
        assert isinstance(merging.log, MergingLog)

    @pytest.mark.parametrize("policy", ["per-page", "merged", "deferred"])
    def test_what_was_written_is_pending_and_counted(
        self, merging: KvmHarness, memory: DirtyMemory, policy: str
    ) -> None:
        bitmap = MigrationBitmap(memory, clear_policy(policy, WORD_LAYOUT, 6))
        first, second = set(OTHERS[::2]), set(OTHERS)
        merging.write(sorted(first))
        done = bitmap.sync()
        assert self.high(bitmap.dirty) == self.high(bitmap.pending) == first
        assert done.dirty_pages == done.new_dirty_pages == bitmap.dirty.count()
        merging.write(sorted(second))
        memory.set_range(OTHERS[0] + 1, 1)  # a device
        calls = memory.counters.get_calls
        done = bitmap.sync()
        assert memory.counters.get_calls - calls == len(WORD_LAYOUT.sections)
        assert self.high(bitmap.dirty) == self.high(bitmap.pending) == {*second, OTHERS[0] + 1}
        assert done.dirty_pages == bitmap.dirty.count()
        assert done.new_dirty_pages <= done.dirty_pages - (0 if policy != "deferred" else len(first))
        assert min(done.log_sync_s, done.bitmap_sync_s) > 0
        for start, count in bitmap.windows(64):
            bitmap.take(start, count)
        bitmap.sync()
        assert self.high(bitmap.dirty) == set()
        merging.write(sorted(second))
        bitmap.sync()
        assert self.high(bitmap.dirty) == self.high(bitmap.pending) == second

    def test_a_get_that_fails_loses_no_page(self, merging: KvmHarness, memory: DirtyMemory) -> None:
        """Those of the slots before it were fetched; they are found by the next sync, also where a clear comes first.
        What is pending is as it was."""
        bitmap = MigrationBitmap(memory, clear_policy("deferred", WORD_LAYOUT, 6))
        merging.write(OTHERS)
        broken = merging.log._asked[len(merging.log._asked) // 2]
        before, counted = broken.get.slot, memory.counters.get_calls
        broken.get.slot = 77
        with pytest.raises(KernelCallError) as caught:
            bitmap.sync()
        broken.get.slot = before
        assert (caught.value.operation, caught.value.target) == ("KVM_GET_DIRTY_LOG", broken.target)
        assert caught.value.errno == errno.ENOENT
        assert memory.counters.get_calls - counted == len(merging.log._asked) // 2
        assert not bitmap.pending.any()
        memory.clear(0, WORD_LAYOUT.end_page)
        bitmap.sync()
        assert self.high(bitmap.dirty) == self.high(bitmap.pending) == set(OTHERS)

    def test_a_get_from_what_is_no_vm(self, merging: KvmHarness, memory: DirtyMemory) -> None:
        """The error is the same in each way, and names the first slot."""
        log = merging.log
        bitmap = MigrationBitmap(memory, clear_policy("deferred", WORD_LAYOUT, 6))
        for holder in (log, log._native):
            if holder is not None:
                holder._vm, vm = 9999, holder._vm
        with pytest.raises(KernelCallError, match=r"KVM_GET_DIRTY_LOG on slot 0 .*Bad file descriptor"):
            bitmap.sync()
        for holder in (log, log._native):
            if holder is not None:
                holder._vm = vm


@pytest.mark.needs("kvm", "numba")
def test_a_native_call_that_a_signal_ends() -> None:
    """A vCPU that is to leave at once ends KVM_RUN with EINTR, and so it is reported, as an ioctl from Python is."""
    from precopy.trackers.kvm_native import _fetch

    with KvmGuest(GuestMemory(machine_layout("flat", 4 << 20))) as guest:
        (vcpu,) = guest._vcpus
        vcpu.run.immediate_exit = 1
        numbers, spent = (np.zeros(2, kind) for kind in (np.int64, np.float64))
        failed, number = _fetch(vcpu.fd, kvm.RUN.number, np.zeros(1, np.int64), numbers, spent, numbers)
        assert (failed, number) == (0, errno.EINTR)
    assert isinstance(failure(kvm.RUN, number, target="vCPU 0"), InterruptedError)

    def test_aliases_of_a_block_are_logged_in_each_slot(self) -> None:
        layout = RamLayout.of_blocks([("low", 0xA0000), ("ram", 200 * PAGE_SIZE)]).mapped(
            [
                ("low", 0, 0xA0000, 0),
                ("ram", 0, 200 * PAGE_SIZE, 32 << 20),
                ("ram", 70 * PAGE_SIZE, 60 * PAGE_SIZE, 64 << 20),
            ]
        )
        _, whole, alias = layout.sections
        page = layout.blocks[1].first_page + 100
        harness = KvmHarness(layout)
        try:
            rearm(harness)
            for first, second in ((whole, alias), (alias, whole)):
                harness.write_at([gpa_in(first, page)])
                assert harvest(harness) == {page}
                harness.write_at([gpa_in(second, page)])  # which no harvest has reported
                harness.log.clear(page, 1)
                assert harvest(harness) == {page}
                harness.log.clear(page, 1)
                assert harvest(harness) == set()
        finally:
            harness.close()


class TestWriteLog:
    """What only the log of an emulated CPU has: announcements that come before their stores."""

    def log(self) -> WriteLog:
        log = WriteLog(300, Runs.of((0, 100), (128, 172)))
        log.start()
        self.harvest(log)
        log.clear(0, 300)
        return log

    def harvest(self, log: WriteLog) -> list[int]:
        dirty = Bitmap(300)
        log.harvest(dirty)
        return list(dirty.indexes())

    def test_all_blocks_are_dirty_at_first_and_nothing_between_them(self) -> None:
        log = WriteLog(300, Runs.of((0, 100), (128, 172)))
        log.start()
        assert self.harvest(log) == [*range(100), *range(128, 300)]

    def test_a_page_whose_store_is_still_to_come_stays_dirty_through_clears(self) -> None:
        log = self.log()
        log.wrote(5, 5)
        for _ in range(3):
            assert self.harvest(log) == [5]
            log.clear(0, 300)
        log.wrote(6, 6)  # which proves that the store to page 5 is done
        assert self.harvest(log) == [5, 6]
        log.clear(0, 300)
        assert self.harvest(log) == [6]

    def test_a_store_across_two_pages_is_in_both(self) -> None:
        log = self.log()
        log.wrote(130, 131)
        assert self.harvest(log) == [130, 131]
        log.clear(131, 1)
        assert self.harvest(log) == [130, 131]
        log.settled()
        log.clear(131, 1)
        assert self.harvest(log) == [130]

    def test_a_settled_cpu_has_no_store_to_come(self) -> None:
        log = self.log()
        log.wrote(5, 5)
        log.settled()
        self.harvest(log)
        log.clear(0, 300)
        assert self.harvest(log) == []
