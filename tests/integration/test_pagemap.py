"""The tracker of this process's own memory, on the real kernel: what the dirty logs' contract does not ask."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Bitmap
from precopy.errors import Unsupported
from precopy.memory import Backing, GuestMemory, RamLayout
from precopy.trackers import pagemap as tracker
from precopy.trackers import write_protection
from precopy.trackers.pagemap import PagemapLog
from precopy.trackers.write_protection import huge_bytes
from precopy.units import PAGE_SIZE, HostAddress
from support.log_model import LogModel
from support.patience import IN_TIME_S

pytestmark = pytest.mark.needs("pagemap")

PAGES = 2000
HUGE = 2 << 20


class Tracked:
    """One block of ``pages`` pages, logged from the start."""

    def __init__(
        self, pages: int = PAGES, *, one_step: bool = True, backing: Backing = Backing.ANONYMOUS, start: bool = True
    ) -> None:
        self.layout = RamLayout.of_blocks([("ram", pages * PAGE_SIZE)])
        self.memory = GuestMemory(self.layout, backing)
        (self.host,) = self.memory.hosts
        self.log = PagemapLog(self.layout, [self.host.address], one_step=one_step)
        if start:
            self.log.start()

    def __enter__(self) -> Tracked:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.stop()
        self.memory.close()

    def write(self, *pages: int) -> None:
        self.host.words[np.array(pages, np.int64) * (PAGE_SIZE // 8)] += np.uint64(1)

    def harvest(self) -> list[int]:
        dirty = Bitmap(self.layout.end_page)
        self.log.harvest(dirty)
        return list(dirty.indexes())

    def found(self) -> list[int]:
        """The next harvest, all of which is cleared."""
        pages = self.harvest()
        self.log.clear(0, self.layout.end_page)
        return pages


BOTH_STEPS = pytest.mark.parametrize("one_step", [True, False], ids=["one step", "two steps"])
BACKINGS = pytest.mark.parametrize("backing", list(Backing), ids=lambda one: one.value)


@BOTH_STEPS
@BACKINGS
class TestWhatCountsAsAWrite:
    @pytest.fixture
    def tracked(self, one_step: bool, backing: Backing) -> Iterator[Tracked]:
        with Tracked(one_step=one_step, backing=backing) as tracked:
            yield tracked

    def test_nothing_at_first(self, tracked: Tracked) -> None:
        assert tracked.found() == []

    def test_reads_are_none(self, tracked: Tracked) -> None:
        assert not tracked.host.words.any()
        assert tracked.found() == []

    def test_first_touch(self, tracked: Tracked) -> None:
        tracked.write(0, 7, PAGES - 1)
        assert tracked.found() == [0, 7, PAGES - 1]
        assert tracked.found() == []

    def test_what_the_kernel_writes_for_us(self, tracked: Tracked) -> None:
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb", 0) as source, os.fdopen(writer, "wb", 0) as sink:
            sink.write(b"x" * 5000)
            assert source.readinto(tracked.host.view[3 * PAGE_SIZE + 100 :][:5000]) == 5000
        assert tracked.found() == [3, 4]

    def test_pages_given_back(self, tracked: Tracked, backing: Backing) -> None:
        tracked.write(*range(PAGES))
        tracked.found()
        advice = mmap.MADV_REMOVE if backing is Backing.MEMFD else mmap.MADV_DONTNEED
        tracked.host._map.madvise(advice, 100 * PAGE_SIZE, 700 * PAGE_SIZE)
        reported = tracked.found()
        assert not tracked.host.words[100 * 512 : 800 * 512].any()
        if backing is Backing.ANONYMOUS:
            assert reported == list(range(100, 800))
        tracked.write(150)
        assert 150 in tracked.found()

    def test_stopped_and_started_again(self, tracked: Tracked) -> None:
        tracked.write(5)
        tracked.log.stop()
        tracked.write(6)
        tracked.log.start()
        assert tracked.found() == []
        tracked.write(7)
        assert tracked.found() == [7]

    def test_started_twice_is_started_anew(self, tracked: Tracked) -> None:
        tracked.write(5)
        tracked.log.start()
        assert tracked.found() == []
        tracked.write(7)
        assert tracked.found() == [7]

    def test_writes_of_threads(self, tracked: Tracked) -> None:
        threads = [threading.Thread(target=tracked.write, args=tuple(range(n, PAGES, 16))) for n in range(16)]
        for thread in threads:
            thread.start()
        seen: set[int] = set()
        for _ in range(20):
            seen |= set(tracked.found())
        for thread in threads:
            thread.join()
        assert seen | set(tracked.found()) == set(range(PAGES))


class TestCalls:
    """System calls, counted."""

    def test_one_step_is_one_call_and_a_clear_is_none(self) -> None:
        with Tracked() as tracked:
            tracked.write(*range(0, PAGES, 5))
            before = tracked.log.ioctls
            assert len(tracked.found()) == PAGES // 5
            assert tracked.log.ioctls - before == tracked.log.counters.get_calls == 1
            assert tracked.log.counters.clear_calls == 1

    @BOTH_STEPS
    def test_where_the_kernel_says_that_it_stopped_before_it_did(self, one_step: bool) -> None:
        """With more than 512 ranges, ``walk_end`` may lie before the end although all was returned."""
        with Tracked(one_step=one_step) as tracked:
            for step in (2, 3):
                tracked.write(*range(0, PAGES, step))
                assert tracked.found() == list(range(0, PAGES, step))
                assert tracked.found() == []

    @pytest.mark.parametrize("regions", [1, 2, 7, 100])
    @BOTH_STEPS
    def test_more_ranges_than_one_call_returns(
        self, monkeypatch: pytest.MonkeyPatch, regions: int, one_step: bool
    ) -> None:
        monkeypatch.setattr(write_protection, "REGIONS", regions)
        written = list(range(1, PAGES, 2))[:200]
        with Tracked(one_step=one_step) as tracked:
            for _ in range(2):
                tracked.write(*written)
                before = tracked.log.counters.get_calls
                assert tracked.harvest() == written
                assert tracked.log.counters.get_calls - before >= len(written) // regions
                tracked.log.clear(0, PAGES)
                assert tracked.harvest() == []

    def test_two_steps_choose_between_runs_and_one_scan(self) -> None:
        with Tracked(one_step=False) as tracked:
            for written, calls in (([3], 1), ([3, 900], 2), (range(0, PAGES, 5), 1)):
                tracked.write(*written)
                tracked.harvest()
                before = tracked.log.counters.clear_calls
                tracked.log.clear(0, PAGES)
                assert tracked.log.counters.clear_calls - before == calls
                assert tracked.harvest() == []

    def test_a_long_gap_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tracker, "GAP_PAGES", 100)
        monkeypatch.setattr(tracker, "PROTECT_US", 1e9)
        with Tracked(one_step=False) as tracked:
            tracked.write(10, 110, 211, 311, 1000)  # gaps of 99, 100, 99 and 688
            tracked.harvest()
            before = tracked.log.counters.clear_calls
            tracked.log.clear(0, PAGES)
            assert tracked.log.counters.clear_calls - before == 2
            assert tracked.found() == []


pages = st.integers(0, 299)
operations = st.one_of(
    st.tuples(st.just("write"), st.lists(pages, min_size=1, max_size=8)),
    st.tuples(st.just("harvest"), st.just([])),
    st.tuples(st.just("clear"), st.lists(pages, min_size=2, max_size=2).map(sorted)),
)


@pytest.mark.parametrize("scan", [True, False], ids=["by scans", "by runs"])
@given(sequence=st.lists(operations, max_size=25))
def test_two_steps_agree_with_a_model(sequence: list[tuple[str, list[int]]], scan: bool) -> None:
    """Law 2, with either way of protecting: a clear never takes a write that no harvest has reported."""
    with pytest.MonkeyPatch.context() as patch, Tracked(300, one_step=False) as tracked:
        patch.setattr(tracker, "PROTECT_US", 1e9 if scan else 0.0)
        model = LogModel()
        for what, argument in [*sequence, ("harvest", [])]:
            if what == "write":
                tracked.write(*argument)
                model.write(argument)
            elif what == "harvest":
                model.harvest(tracked.harvest())
            else:
                start, end = argument
                tracked.log.clear(start, end - start)
                model.clear(start, end)


class TestSeveralMappings:
    def test_one_log_of_several(self) -> None:
        layout = RamLayout.of_blocks([("a", 70 * PAGE_SIZE), ("b", PAGE_SIZE), ("c", 200 * PAGE_SIZE)])
        with GuestMemory(layout) as memory:
            log = PagemapLog(layout, [host.address for host in memory.hosts])
            log.start()
            for host, page in zip(memory.hosts, (69, 0, 199), strict=True):
                host.words[page * 512] = 1
            written = [int(block.first_page) + page for block, page in zip(layout.blocks, (69, 0, 199), strict=True)]
            for block, page in zip(layout.blocks, written, strict=True):
                dirty = Bitmap(layout.end_page)
                log.harvest(dirty, block)
                assert list(dirty.indexes()) == [page]
            dirty = Bitmap(layout.end_page)
            log.harvest(dirty)
            assert list(dirty.indexes()) == written
            log.stop()

    def test_parts_of_one_mapping_with_others_between_them(self) -> None:
        layout = RamLayout.of_blocks([("low", 10 * PAGE_SIZE), ("high", 10 * PAGE_SIZE)])
        with mmap.mmap(-1, 30 * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
            words = np.frombuffer(area, np.uint64)
            base = int(words.__array_interface__["data"][0])
            # In another order than the blocks, too.
            log = PagemapLog(layout, [HostAddress(base + 20 * PAGE_SIZE), HostAddress(base)])
            log.start()
            words[::512] += np.uint64(1)
            dirty = Bitmap(layout.end_page)
            log.harvest(dirty)
            assert dirty.count() == 20
            log.stop()
            del words

    def test_several_logs_at_once(self) -> None:
        with Tracked() as one, Tracked(one_step=False) as other:
            one.write(1)
            other.write(2)
            assert (one.found(), other.found()) == ([1], [2])
            one.log.stop()
            other.write(3)
            assert other.found() == [3]

    def test_memory_that_is_tracked_already(self) -> None:
        with Tracked() as tracked:
            second = PagemapLog(tracked.layout, [tracked.host.address])
            with pytest.raises(Unsupported, match="'ram' has another userfaultfd already; stop the log that tracks it"):
                second.start()
            tracked.write(9)
            assert tracked.found() == [9]  # the first one has lost nothing
            tracked.log.stop()
            second.start()
            tracked.write(8)
            dirty = Bitmap(tracked.layout.end_page)
            second.harvest(dirty)
            assert list(dirty.indexes()) == [8]
            second.stop()


class TestEnds:
    def test_every_descriptor_is_closed(self) -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        with Tracked() as tracked:
            tracked.log.stop()
            tracked.log.stop()
            assert sorted(os.listdir("/proc/self/fd")) == before

    def test_memory_that_was_unmapped_first(self) -> None:
        with Tracked() as tracked:
            tracked.memory.close()
            tracked.log.stop()

    def test_a_signal_in_the_middle_loses_nothing(self) -> None:
        """Law 1: what the kernel has protected again, and nobody has noted yet, counts as dirty."""
        for one_step in (True, False):
            with Tracked(one_step=one_step) as tracked, contextlib.ExitStack() as undo:
                patch = undo.enter_context(pytest.MonkeyPatch.context())
                tracked.write(5, 900)
                if not one_step:
                    tracked.harvest()
                    tracked.write(7)
                    patch.setattr(tracker, "PROTECT_US", 1e9)
                patch.setattr(write_protection, "runs_of", interrupt)
                with pytest.raises(KeyboardInterrupt):
                    tracked.found() if one_step else tracked.log.clear(0, PAGES)
                patch.undo()
                assert {5, 900} <= set(tracked.harvest())
                assert one_step or 7 in tracked.harvest()


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class TestSharedMemory:
    def test_only_writes_through_the_mapping_that_is_tracked(self) -> None:
        with Tracked(backing=Backing.MEMFD) as tracked:
            assert tracked.host.fd is not None
            with mmap.mmap(tracked.host.fd, PAGES * PAGE_SIZE) as other:
                other[4 * PAGE_SIZE] = 1
                os.pwrite(tracked.host.fd, b"x", 5 * PAGE_SIZE)
                tracked.write(6)
                assert tracked.host.view[4 * PAGE_SIZE] == 1
                assert tracked.found() == [6]


def huge_pages(log: PagemapLog) -> int:
    """Bytes of the memory that huge pages map now."""
    return sum(huge_bytes(mapping) for mapping in log._mappings)


class TestHugePages:
    @pytest.fixture
    def huge(self) -> Iterator[Tracked]:
        with Tracked(8 * HUGE // PAGE_SIZE, start=False) as tracked:
            tracked.memory.touch()
            if huge_pages(tracked.log) < 4 * HUGE:
                pytest.skip("the system gives no transparent huge pages now")
            yield tracked

    @BOTH_STEPS
    def test_a_first_write_splits_one_and_finds_one_page(self, huge: Tracked, one_step: bool) -> None:
        huge.log.one_step = one_step
        before = huge_pages(huge.log)
        huge.log.start()
        assert huge_pages(huge.log) == before
        page = (-huge.host.address % HUGE + 2 * HUGE) // PAGE_SIZE + 100
        huge.write(page)
        assert huge_pages(huge.log) == before - HUGE
        assert huge.found() == [page]
        assert huge.found() == []
        huge.write(page + 1)
        assert huge.found() == [page + 1]
        huge.log.stop()
        assert huge_pages(huge.log) == before - HUGE

    def test_memory_touched_while_it_is_tracked_has_small_pages(self) -> None:
        with Tracked(4 * HUGE // PAGE_SIZE) as tracked:
            tracked.memory.touch()
            assert huge_pages(tracked.log) == 0


FORK = """
import os
from precopy.bitmap import Bitmap
from precopy.memory import GuestMemory, RamLayout
from precopy.trackers.pagemap import PagemapLog

layout = RamLayout.of_blocks([("ram", 64 * 4096)])
memory = GuestMemory(layout)
words = memory.hosts[0].words
words[::512] = 1
log = PagemapLog(layout, [memory.hosts[0].address])
log.start()
reader, writer = os.pipe()
child = os.fork()
if not child:
    words[5 * 512] = 2  # its own copy
    os.write(writer, b"x")
    os._exit(0)
os.read(reader, 1)
words[6 * 512] = 2
dirty = Bitmap(layout.end_page)
log.harvest(dirty)
assert list(dirty.indexes()) == [6], dirty.indexes()
os.waitpid(child, 0)
assert words[5 * 512] == 1
child = os.fork()  # one that holds the descriptors while we stop, and start again
if not child:
    os.read(reader, 1)
    os._exit(0)
log.stop()
log.start()
words[7 * 512] = 2
dirty = Bitmap(layout.end_page)
log.harvest(dirty)
assert list(dirty.indexes()) == [7], dirty.indexes()
os.write(writer, b"x")
os.waitpid(child, 0)
"""


def test_fork() -> None:
    """A child's writes are its own; tracking of the parent goes on, and can be stopped and started while it lives."""
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=IN_TIME_S)


NO_PRIVILEGE = """
import ctypes
from precopy.bitmap import Bitmap
from precopy.memory import GuestMemory, RamLayout
from precopy.trackers.pagemap import PagemapLog, unavailable

header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
assert unavailable() is None, unavailable()
layout = RamLayout.of_blocks([("ram", 64 * 4096)])
memory = GuestMemory(layout)
log = PagemapLog(layout, [memory.hosts[0].address])
log.start()
with open("/dev/zero", "rb", 0) as zeros:  # written inside the kernel, whose faults such a userfaultfd does not handle
    assert zeros.readinto(memory.hosts[0].view[5 * 4096 :][:100]) == 100
dirty = Bitmap(layout.end_page)
log.harvest(dirty)
assert list(dirty.indexes()) == [5], dirty.indexes()
"""


def test_no_privilege_is_needed() -> None:
    """Without a single capability, whatever vm.unprivileged_userfaultfd is."""
    subprocess.run([sys.executable, "-c", NO_PRIVILEGE], check=True, timeout=IN_TIME_S)
