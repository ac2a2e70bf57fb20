"""Memory that need not be tracked exactly, with a program that streams through it: every copy is exact all the same."""

from __future__ import annotations

import math
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import precopy
from precopy import Changes, MappingChanged, Memory, Standby, UsageError
from precopy.bitmap import Bitmap
from precopy.trackers.pagemap import PagemapLog
from precopy.trackers.write_protection import huge_bytes
from precopy.units import PAGE_SIZE
from support.mappings import map_over
from support.patience import IN_TIME_S

pytestmark = pytest.mark.needs("pagemap")

MIB = 1 << 20
SIZE = 16 * MIB
CHUNK = 2 * MIB // PAGE_SIZE
HOT_BYTES = 12 * MIB
"""What the program streams through; the rest is written here and there."""


class Streaming:
    """A program that adds 1 to the first bytes of its memory, over and over, and to a word elsewhere. ``lock`` is held
    for each pass, so that at any moment at which it is free all words of the first bytes are the same."""

    def __init__(self, memory: Memory) -> None:
        self.lock = threading.Lock()
        self.passes = 0
        self._words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Streaming:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        random = np.random.default_rng(1)
        while not self._stop.is_set():
            with self.lock:
                self.passes += 1
                self._words[: HOT_BYTES // 8] += np.uint64(1)
                self._words[random.integers(HOT_BYTES // 8, SIZE // 8)] = self.passes
            time.sleep(0.0005)  # whoever waits for the lock gets it


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + IN_TIME_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def hot(bytes_: Any) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.frombuffer(bytes_, np.uint64)[: HOT_BYTES // 8]


@pytest.fixture
def memory() -> Iterator[Memory]:
    with Memory(SIZE, exact=False) as memory:
        np.frombuffer(memory, np.uint64)[:] = 1  # type: ignore[call-overload]
        yield memory


def heat(words: np.ndarray[Any, np.dtype[np.uint64]], changes: Changes) -> None:
    """Has all whole chunks of the memory be unarmed."""
    for _ in range(2):
        words[:] += np.uint64(1)
        assert changes.sync().unarmed == 0
    words[:] += np.uint64(1)
    found = changes.sync()
    assert found.unarmed == found.pages == words.nbytes // PAGE_SIZE
    words[:] += np.uint64(1)


def is_hot(handle: precopy.Replication) -> bool:
    return handle.progress.unarmed_bytes >= HOT_BYTES // 2


def test_the_copy_after_a_cutover_is_exact(memory: Memory, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/standby"
    with Standby(address) as standby, Streaming(memory) as program, precopy.replicate(memory, address) as handle:
        wait_for(lambda: is_hot(handle))
        program.stop()
        before = handle.progress.points
        with handle.cutover() as done:
            np.frombuffer(memory, np.uint64)[5 * MIB // 8] = 77  # type: ignore[call-overload]
        assert done.given
        # One point for the last of what was written, and one for the word above: whatever was not armed is exact there.
        assert 1 <= done.points - before <= 3
        assert bytes(standby.promote()) == bytes(memory)


def test_a_program_that_writes_on_is_still_noticed_at_a_cutover(memory: Memory, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/standby"
    with Standby(address) as standby, Streaming(memory) as program, precopy.replicate(memory, address) as handle:
        wait_for(lambda: is_hot(handle))
        with pytest.raises(UsageError, match="is written while it is cut over"), handle.cutover():
            pass
        program.stop()
        with handle.cutover():
            pass
        assert bytes(standby.promote()) == bytes(memory)


def test_points_are_of_one_moment(memory: Memory, tmp_path: Path) -> None:
    """Each point has a whole number of passes; with the lock free, all words are the same."""
    address = f"unix:{tmp_path}/standby"
    with (
        Standby(address) as standby,
        Streaming(memory) as program,
        precopy.replicate(memory, address, interval=0.05, lock=program.lock) as handle,
    ):
        seen = 0
        for _ in range(4):
            seen = handle.progress.points
            wait_for(lambda: handle.progress.points > seen + 1)  # noqa: B023
        wait_for(lambda: is_hot(handle) or handle.progress.points > seen + 200)
        passes = program.passes
        handle.close()
        program.stop()
        copied = hot(standby.promote())
        assert (copied == copied[0]).all()
        assert 1 < copied[0] <= passes + 1 + program.passes


def test_points_are_found_in_quiet_moments(memory: Memory, tmp_path: Path) -> None:
    """What is not armed would never look quiet."""
    address = f"unix:{tmp_path}/standby"
    words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
    with Standby(address) as standby, precopy.replicate(memory, address, interval=0.05, quiet=0.01) as handle:
        for _ in range(6):
            words[: HOT_BYTES // 8] += np.uint64(1)
            seen = handle.progress.points
            wait_for(lambda: handle.progress.points > seen)  # noqa: B023
        wait_for(lambda: handle.progress.remaining_bytes == 0)
        seen = handle.progress.points
        wait_for(lambda: handle.progress.points > seen + 1)
        handle.close()
        assert bytes(standby.promote()) == bytes(memory)


def test_checkpoints_are_exact(memory: Memory, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/standby"
    words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
    with Standby(address) as standby, precopy.replicate(memory, address, interval=math.inf) as handle:
        unarmed = 0
        for number in range(8):
            words[: HOT_BYTES // 8] += np.uint64(1)
            words[-number - 1] = number
            handle.checkpoint(wait=True)
            unarmed = max(unarmed, handle.progress.unarmed_bytes)
            assert bytes(standby.memory) == bytes(memory)
        assert unarmed >= HOT_BYTES // 2


@pytest.mark.parametrize("full", [False, True])
def test_snapshots_are_of_one_moment(memory: Memory, tmp_path: Path, full: bool) -> None:
    with Streaming(memory) as program:
        for _ in range(5):
            passes = program.passes
            wait_for(lambda: program.passes > passes)  # noqa: B023
            precopy.snapshot(memory, tmp_path / "a", lock=program.lock, full=full)
        program.stop()
        saved = precopy.snapshot(memory, tmp_path / "a")
        assert not saved.full
        with precopy.restore(tmp_path / "a") as again:
            assert bytes(again) == bytes(memory)
        # Nothing is written any more: after some snapshots nothing is saved any more, either.
        wait_for(lambda: precopy.snapshot(memory, tmp_path / "a").pages == 0)
        with precopy.restore(tmp_path / "a") as again:
            assert bytes(again) == bytes(memory)


def test_a_tracker_and_a_replication_and_snapshots_share_one_tracker(memory: Memory, tmp_path: Path) -> None:
    """None of them takes pages from another, whatever each wants."""
    address = f"unix:{tmp_path}/standby"
    copy = np.zeros(SIZE // PAGE_SIZE * 512, np.uint64).reshape(-1, 512)
    rows = np.frombuffer(memory, np.uint64).reshape(-1, 512)  # type: ignore[call-overload]
    with (
        Standby(address) as standby,
        Streaming(memory) as program,
        memory.track() as changes,
        precopy.replicate(memory, address, interval=0.05, lock=program.lock) as handle,
    ):
        copy[:] = rows
        for turn in range(12):
            for page in changes.sync().indexes:
                copy[page] = rows[page]
            if turn % 4 == 0:
                precopy.snapshot(memory, tmp_path / "a", lock=program.lock)
            time.sleep(0.02)
        program.stop()
        index = changes.sync().indexes
        copy[index] = rows[index]
        assert (copy == rows).all()
        precopy.snapshot(memory, tmp_path / "a")
        with handle.cutover():
            pass
        assert bytes(standby.promote()) == bytes(memory)
    with precopy.restore(tmp_path / "a") as again:
        assert bytes(again) == bytes(memory)


class TestTrack:
    def test_a_hot_chunk_costs_its_writer_nothing_and_counts_until_it_has_cooled(self, memory: Memory) -> None:
        words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
        with memory.track() as changes:
            heat(words, changes)
            found = changes.sync()
            assert (found.pages, found.unarmed) == (memory.pages, memory.pages)
            assert changes.sync().pages in (0, memory.pages)
            for _ in range(5):
                changes.sync()
            words[:: 4 * MIB // 8] += np.uint64(1)
            found = changes.sync()
            assert found.unarmed == 0
            assert found.indexes.tolist() == list(range(0, memory.pages, 4 * MIB // PAGE_SIZE))

    @pytest.mark.parametrize("which", ["memory", "track"])
    def test_the_default_is_exact(self, which: str) -> None:
        with Memory(4 * MIB) if which == "memory" else Memory(4 * MIB, exact=False) as memory:
            words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
            with memory.track() if which == "memory" else memory.track(exact=True) as changes:
                for _ in range(4):
                    words[:] += np.uint64(1)
                    found = changes.sync()
                    assert (found.pages, found.unarmed) == (memory.pages, 0)
                words[5 * 512] += np.uint64(1)
                assert changes.sync().indexes.tolist() == [5]

    def test_one_tracker_for_itself(self) -> None:
        with Memory(4 * MIB) as memory, memory.track(exact=False) as changes:
            heat(np.frombuffer(memory, np.uint64), changes)  # type: ignore[call-overload]
            assert memory.exact

    def test_it_can_be_set_at_any_time(self, memory: Memory) -> None:
        words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
        with memory.track() as changes:
            heat(words, changes)
            memory.exact = True
            assert changes.sync().unarmed == memory.pages  # once more, and then no more
            words[5 * 512] += np.uint64(1)
            assert changes.sync().indexes.tolist() == [5]
            memory.exact = False
            for _ in range(4):
                words[:] += np.uint64(1)
                assert changes.sync().pages == memory.pages
            assert changes.sync().unarmed == memory.pages

    @pytest.mark.parametrize("wrong", [1, "no", None])
    def test_what_is_no_bool(self, wrong: Any) -> None:
        for ask in (
            lambda: Memory(PAGE_SIZE, exact=wrong),
            lambda: Memory.adopt(mmap.mmap(-1, PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), exact=wrong),
            lambda: setattr(Memory(PAGE_SIZE), "exact", wrong),
        ):
            with pytest.raises(UsageError, match="exact is True or False"):
                ask()
        if wrong is not None:  # which is what is taken where nothing is said
            with pytest.raises(UsageError, match="exact is True or False"):
                Memory(PAGE_SIZE).track(exact=wrong)

    def test_content_is_compared_exactly_in_any_case(self, memory: Memory) -> None:
        words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
        with memory.track("content", exact=False) as changes:
            for _ in range(4):
                words[:] += np.uint64(1)
                found = changes.sync()
                assert (found.pages, found.unarmed) == (memory.pages, 0)
            assert changes.sync().pages == 0


class TestWhatHappensToAnUnarmedChunk:
    @pytest.fixture
    def changes(self, memory: Memory) -> Iterator[Changes]:
        with memory.track() as changes:
            heat(np.frombuffer(memory, np.uint64), changes)  # type: ignore[call-overload]
            yield changes

    def test_something_else_is_mapped_there(self, memory: Memory, changes: Changes) -> None:
        map_over(memory.address + 4 * MIB, 3 * PAGE_SIZE)
        with pytest.raises(MappingChanged) as caught:
            changes.sync()
        assert (caught.value.first, caught.value.pages) == (4 * MIB // PAGE_SIZE, 3)

    def test_pages_that_are_given_back_are_found_whatever_becomes_of_the_chunk(self) -> None:
        mapping = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with Memory.adopt(mapping, exact=False) as memory, memory.track() as changes:
            words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
            heat(words, changes)
            for turn in range(8):
                page = 700 + 100 * turn
                mapping.madvise(mmap.MADV_DONTNEED, page * PAGE_SIZE, 50 * PAGE_SIZE)
                assert set(range(page, page + 50)) <= set(changes.sync().indexes.tolist())
                assert not words[page * 512 : (page + 50) * 512].any()

    def test_huge_pages_come_back(self) -> None:
        with Memory(SIZE, exact=False) as memory:
            words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
            words[:] = 1
            with memory.track() as changes:
                (mapping,) = memory._shared().log._mappings  # type: ignore[attr-defined]
                if huge_bytes(mapping) < SIZE - 4 * MIB:
                    pytest.skip("this system gives no huge pages")
                words[:] += np.uint64(1)
                changes.sync()
                assert huge_bytes(mapping) == 0
                end = time.monotonic() + IN_TIME_S
                while huge_bytes(mapping) < 4 * MIB:
                    assert time.monotonic() < end
                    words[:] += np.uint64(1)
                    assert changes.sync().pages == memory.pages
                before = words.copy()
                words[::512] += np.uint64(1)
                index = changes.sync().indexes
                before.reshape(-1, 512)[index] = words.reshape(-1, 512)[index]
                assert (before == words).all()


def test_shared_memory_of_which_other_processes_write_nothing(tmp_path: Path) -> None:
    shared = shared_memory.SharedMemory(create=True, size=SIZE)

    def look() -> None:
        with Memory.adopt(shared, writers="attached", exact=False) as memory, memory.track() as changes:
            words = np.frombuffer(memory, np.uint64)  # type: ignore[call-overload]
            copy = words.copy().reshape(-1, 512)
            unarmed = 0
            for turn in range(8):
                words[: HOT_BYTES // 8] += np.uint64(1)
                words[-1 - turn * 512] += np.uint64(1)
                found = changes.sync()
                unarmed = max(unarmed, found.unarmed)
                copy[found.indexes] = words.reshape(-1, 512)[found.indexes]
                assert (copy.reshape(-1) == words).all()
            assert unarmed == HOT_BYTES // PAGE_SIZE
            precopy.snapshot(memory, tmp_path / "a")
            with precopy.restore(tmp_path / "a") as again:
                assert bytes(again) == bytes(memory)

    try:
        look()
    finally:
        shared.close()
        shared.unlink()


def test_a_log_in_two_steps_is_always_exact() -> None:
    with Memory(4 * MIB) as memory:
        log = PagemapLog(memory.layout, [memory.address], one_step=False, exact=False)
        log.start()
        for _ in range(4):
            np.frombuffer(memory, np.uint64)[:] += np.uint64(1)  # type: ignore[call-overload]
            found = Bitmap(memory.pages)
            log.harvest(found)
            log.clear(0, memory.pages)
            assert found.count() == memory.pages
            assert not len(log.unarmed)
        found = Bitmap(memory.pages)
        log.harvest(found)
        assert found.count() == 0
        log.stop()
