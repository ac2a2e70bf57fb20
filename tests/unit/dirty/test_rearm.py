"""Re-arming: after a take, the next store to the page is noticed, also where a sync found nothing that was not pending.

In QEMU such a sync clears dirty bits without re-arming the emulated CPU's TLB; what the CPU then writes is lost.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest

from precopy.bitmap import Bitmap
from precopy.dirty import DirtyMemory, MigrationBitmap, clear_policy
from precopy.dirty.code import CodeBits
from precopy.errors import BitmapRangeError, GuestError
from precopy.machines.emulated import EmulatedGuest
from precopy.machines.emulated.exclusive import Exclusive
from precopy.machines.workload import Workload
from precopy.memory import GuestMemory, RamLayout
from precopy.memory.captures.machines import machine_layout
from precopy.memory.topology.log_mask import ALL_CLIENTS, DirtyClient
from precopy.names import ALL_CLEAR_POLICIES
from precopy.trackers.write_log import WriteLog
from precopy.units import PAGE_SIZE
from support.dirty_logs import EmulatedHarness, several_slots, writable
from support.patience import IN_TIME_S

LAYOUT = RamLayout.of_blocks([("a", 70 * PAGE_SIZE), ("b", 200 * PAGE_SIZE)])
MIGRATION, VGA, CODE = DirtyClient.MIGRATION, DirtyClient.VGA, DirtyClient.CODE


class LazyCpu:
    """A CPU with a TLB: it announces the first store to a page, and no other until it has to forget that."""

    def __init__(self, layout: RamLayout, forgets: bool = True) -> None:
        self.writable: set[int] = set()
        self.log = WriteLog(layout.end_page, layout.runs, self.rearming if forgets else self.nothing)
        self.rearmed = 0

    def write(self, *pages: int) -> None:
        for page in pages:
            if page not in self.writable:
                self.log.wrote(page, page)
                self.writable.add(page)
        self.log.settled()

    @contextmanager
    def rearming(self) -> Iterator[None]:
        yield
        self.rearmed += 1
        self.writable.clear()

    @contextmanager
    def nothing(self) -> Iterator[None]:
        yield


def take_all(bitmap: MigrationBitmap) -> set[int]:
    return {page for window in bitmap.windows(512) for page in bitmap.take(*window).indexes().tolist()}


def migrating(memory: DirtyMemory, policy: str) -> MigrationBitmap:
    """At the start of a migration: everything is pending."""
    bitmap = MigrationBitmap(memory, clear_policy(policy, memory.layout))
    memory.start()
    bitmap.mark_all()
    return bitmap


class TestOnlyPendingBits:
    @pytest.mark.parametrize("policy", ALL_CLEAR_POLICIES)
    def test_a_sync_that_finds_nothing_new_rearms_what_is_taken(self, policy: str) -> None:
        cpu = LazyCpu(LAYOUT)
        memory = DirtyMemory(LAYOUT, cpu.log)
        bitmap = migrating(memory, policy)
        cpu.write(5, 69, 130)
        sync = bitmap.sync()
        assert sync.dirty_pages > 0
        assert sync.new_dirty_pages == 0
        take_all(bitmap)
        cpu.write(69)
        bitmap.sync()
        assert take_all(bitmap) == {69}

    def test_a_cpu_that_does_not_forget_loses_the_store(self) -> None:
        """What the test before is about."""
        cpu = LazyCpu(LAYOUT, forgets=False)
        memory = DirtyMemory(LAYOUT, cpu.log)
        bitmap = migrating(memory, "merged")
        cpu.write(69)
        bitmap.sync()
        take_all(bitmap)
        cpu.write(69)
        bitmap.sync()
        assert take_all(bitmap) == set()

    def test_test_and_clear_rearms_where_the_destination_has_all_of_it(self) -> None:
        cpu = LazyCpu(LAYOUT)
        memory = DirtyMemory(LAYOUT, cpu.log)
        memory.start()
        memory.sync()
        memory.test_and_clear(MIGRATION, 0, LAYOUT.end_page)
        cpu.write(7)
        memory.sync()
        pending = Bitmap.from_indexes(LAYOUT.end_page, [7])
        assert memory.test_and_clear(MIGRATION, 0, LAYOUT.end_page, pending) == 0
        cpu.write(7)
        memory.sync()
        assert memory.count(MIGRATION) == 1

    def test_nothing_harvested_stops_no_cpu(self) -> None:
        cpu = LazyCpu(LAYOUT)
        cpu.log.clear(0, LAYOUT.end_page)
        assert cpu.rearmed == 0

    @pytest.mark.parametrize("seed", range(20))
    def test_random_stores_syncs_and_takes(self, seed: int) -> None:
        rng = random.Random(seed)
        cpu = LazyCpu(LAYOUT)
        memory = DirtyMemory(LAYOUT, cpu.log)
        bitmap = migrating(memory, rng.choice(sorted(ALL_CLEAR_POLICIES)))
        pages = [*range(70), *range(128, 328)]
        guest, copy = dict.fromkeys(pages, 0), dict.fromkeys(pages, -1)

        def take(start: int, count: int) -> None:
            for page in bitmap.take(start, count).indexes().tolist():
                copy[page] = guest[page]

        for step in range(200):
            match rng.randrange(4):
                case 0 | 1:
                    page = rng.choice(pages[:: rng.choice([1, 60])])
                    guest[page] = step
                    cpu.write(page)
                case 2:
                    bitmap.sync()
                case 3:
                    for window in list(bitmap.windows(64))[: rng.randrange(3)]:
                        take(*window)
        bitmap.sync()
        for window in bitmap.windows(64):
            take(*window)
        assert copy == guest


@pytest.mark.needs("unicorn")
class TestRealCpu:
    @pytest.fixture
    def harness(self) -> Iterator[EmulatedHarness]:
        harness = EmulatedHarness(several_slots())
        yield harness
        harness.close()

    @pytest.mark.parametrize("policy", ALL_CLEAR_POLICIES)
    def test_a_sync_that_finds_nothing_new_rearms_what_is_taken(self, harness: EmulatedHarness, policy: str) -> None:
        bitmap = migrating(harness.guest.dirty, policy)
        pages = writable(harness.layout)
        again = random.Random(7).sample(pages, 50)
        harness.write(pages)
        sync = bitmap.sync()
        assert sync.dirty_pages >= len(pages)
        assert sync.new_dirty_pages == 0
        take_all(bitmap)
        for written in ([again[0]], again, again[:3]):
            harness.write(written)
            harness.write(written)
            bitmap.sync()
            assert take_all(bitmap) >= set(written)

    def test_a_page_that_is_not_armed_costs_nothing_more(self, harness: EmulatedHarness) -> None:
        tlb = harness.guest._tlb
        page = writable(harness.layout)[0]
        harness.write([page])
        before = tlb.fills
        for _ in range(20):
            harness.write([page] * 100)
        assert tlb.fills == before

    @pytest.mark.parametrize("policy", ALL_CLEAR_POLICIES)
    @pytest.mark.parametrize("pattern", ["random", "hotset"])
    def test_no_store_of_a_running_guest_is_lost(self, policy: str, pattern: str) -> None:
        """The guest writes as fast as it can, while its memory is taken over window by window."""
        memory = GuestMemory(machine_layout("q35", 4 << 20))
        with EmulatedGuest(memory) as guest:
            guest.boot(Workload(pattern, rate=None))
            copy = [np.zeros_like(memory.pages(block)) for block in memory.layout.blocks]
            bitmap = migrating(guest.dirty, policy)

            def take_some() -> None:
                for start, count in bitmap.windows(512):
                    runs = bitmap.take(start, count)
                    for index, (first, length) in zip(memory.layout.block_of(runs), runs, strict=True):
                        block = memory.layout.blocks[index]
                        at = first - block.first_page
                        copy[index][at : at + length] = memory.pages(block)[at : at + length]

            guest.resume()
            for _ in range(6):
                time.sleep(0.003)
                bitmap.sync()
                take_some()
            guest.pause()
            assert guest.self_check().steps > 0
            bitmap.sync()
            take_some()
            for block, copied in zip(memory.layout.blocks, copy, strict=True):
                assert np.array_equal(memory.pages(block), copied), block.name


class Recorder:
    """A translator that notes what it is asked, and what the CODE bits were then."""

    def __init__(self, memory: DirtyMemory) -> None:
        self.memory, self.asked, self.inside = memory, [], False  # type: ignore[var-annotated]
        memory.translate_with(self)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False

    def protect(self, start: int, count: int) -> None:
        self.asked.append(("protect", start, count))

    def invalidate(self, start: int, count: int) -> None:
        assert self.inside
        self.asked.append(("invalidate", start, count, self.memory.count(CODE, start, count)))


class TestCodeBits:
    @pytest.fixture
    def memory(self) -> DirtyMemory:
        return DirtyMemory(LAYOUT, WriteLog(LAYOUT.end_page, LAYOUT.runs))

    def test_a_write_where_nothing_is_translated_stops_nobody(self, memory: DirtyMemory) -> None:
        recorder = Recorder(memory)
        memory.set_range(3, 10)
        memory.set_from(Bitmap.from_indexes(64, [1, 2]))
        assert recorder.asked == []

    def test_translations_are_dropped_before_the_bits_are_set(self, memory: DirtyMemory) -> None:
        recorder = Recorder(memory)
        assert memory.test_and_clear(CODE, 5, 3) == 3
        memory.set_range(6, 1)
        memory.set_range(0, 10)
        memory.set_range(0, 10)
        assert recorder.asked == [("protect", 5, 3), ("invalidate", 6, 1, 0), ("invalidate", 0, 10, 8)]
        assert memory.count(CODE) == LAYOUT.pages

    def test_clearing_protects_also_where_no_bit_was_set(self, memory: DirtyMemory) -> None:
        recorder = Recorder(memory)
        assert memory.test_and_clear(CODE, 5, 1) == 1
        assert memory.test_and_clear(CODE, 5, 1) == 0
        memory.reset(CODE, LAYOUT.blocks[0], 5, 1)
        assert recorder.asked == [("protect", 5, 1)] * 3

    def test_a_bitmap_asks_only_for_pages_that_are_protected(self, memory: DirtyMemory) -> None:
        recorder = Recorder(memory)
        memory.test_and_clear(CODE, 130, 4)
        memory.set_from(Bitmap.from_indexes(64, [0, 2, 3, 4, 9]), at=128)
        assert recorder.asked[1:] == [("invalidate", 130, 3, 0)]
        assert memory.count(CODE) == LAYOUT.pages - 1

    def test_other_clients_ask_nobody(self, memory: DirtyMemory) -> None:
        recorder = Recorder(memory)
        memory.start()
        memory.test_and_clear(CODE, 0, 70)
        memory.set_range(0, 70, MIGRATION | VGA)
        memory.test_and_clear(MIGRATION, 0, 70)
        assert recorder.asked == [("protect", 0, 70)]
        assert memory.count(CODE) == LAYOUT.pages - 70

    def test_taking_code_bits_rearms_no_log(self) -> None:
        cpu = LazyCpu(LAYOUT)
        memory = DirtyMemory(LAYOUT, cpu.log)
        memory.start()
        memory.sync()
        memory.test_and_clear(CODE, 0, 70)
        assert cpu.rearmed == 0

    def test_without_a_translator_bits_are_bits(self, memory: DirtyMemory) -> None:
        destination = Bitmap.from_indexes(LAYOUT.end_page, [4])
        assert memory.test_and_clear(CODE, 3, 3, destination) == 2
        assert memory.count(CODE) == LAYOUT.pages - 3
        assert list(destination.indexes()) == [3, 4, 5]
        memory.set_range(3, 3)
        assert memory.count(CODE) == LAYOUT.pages
        assert memory.snapshot_and_clear(CODE, LAYOUT.blocks[0]).pages.count() == 70

    def test_what_is_refused(self, memory: DirtyMemory) -> None:
        with pytest.raises(ValueError, match="test_and_clear"):
            memory.exchange(CODE, Bitmap(LAYOUT.end_page))
        for wrong in (lambda: memory.set_range(0, 1000, CODE), lambda: memory.set_range(-1, 1, ALL_CLIENTS)):
            with pytest.raises(BitmapRangeError):
                wrong()
        with pytest.raises(BitmapRangeError):
            CodeBits(Bitmap(64)).set_from(Bitmap(65), 0)


class FakeCpu:
    """Executes in a thread until it is told to stop, again and again; ``at_work`` while it does."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.exclusive = Exclusive(self.stop.set)
        self.at_work = self.ended = False
        self.ran = 0
        self.thread = threading.Thread(target=self.main)
        self.thread.start()

    def main(self) -> None:
        while not self.ended:
            with self.exclusive.executing():
                self.stop.clear()
                self.at_work, self.ran = True, self.ran + 1
                self.stop.wait()
                self.at_work = False

    def close(self) -> None:
        self.ended = True
        while self.thread.is_alive():
            self.stop.set()
            self.thread.join(0.001)


class TestExclusive:
    @pytest.fixture
    def cpu(self) -> Iterator[FakeCpu]:
        cpu = FakeCpu()
        yield cpu
        cpu.close()

    def test_in_a_section_the_cpu_stands_and_afterwards_it_runs(self, cpu: FakeCpu) -> None:
        for _ in range(50):
            with cpu.exclusive.section():
                ran = cpu.ran
                assert not cpu.at_work
                time.sleep(1e-4)
                assert cpu.ran == ran
            end = time.monotonic() + IN_TIME_S
            while cpu.ran == ran and time.monotonic() < end:
                time.sleep(1e-5)
            assert cpu.ran > ran

    def test_whoever_is_inside_may_enter_again(self, cpu: FakeCpu) -> None:
        with cpu.exclusive.section(), cpu.exclusive.section():
            assert not cpu.at_work

    def test_one_thread_at_a_time(self, cpu: FakeCpu) -> None:
        inside, most = 0, 0

        def enter() -> None:
            nonlocal inside, most
            for _ in range(100):
                with cpu.exclusive.section():
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0)
                    inside -= 1

        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(IN_TIME_S)
            assert not thread.is_alive()
        assert most == 1

    def test_the_cpu_cannot_wait_for_itself(self) -> None:
        exclusive = Exclusive(lambda: None)
        with exclusive.executing():
            assert exclusive.own
            with pytest.raises(RuntimeError, match="cannot wait"):
                self.enter(exclusive.section)
            with exclusive.resting():
                assert not exclusive.own
                self.enter(exclusive.section)

    def enter(self, section: Callable[[], AbstractContextManager[None]]) -> None:
        with section():
            pass

    def test_a_cpu_that_does_not_stop_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("precopy.machines.emulated.exclusive.STOP_S", 0.05)
        exclusive = Exclusive(lambda: None)
        release = threading.Event()

        def execute() -> None:
            with exclusive.executing():
                release.wait()

        thread = threading.Thread(target=execute)
        thread.start()
        while exclusive._executes is None:
            time.sleep(1e-4)
        with pytest.raises(GuestError, match="did not stop"):
            self.enter(exclusive.section)
        release.set()
        thread.join()
        self.enter(exclusive.section)
        with exclusive.executing():
            assert exclusive.own
