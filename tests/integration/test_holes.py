"""Pages whose content goes without a write, and memory that is not there any more, on the real kernel."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import precopy
from precopy import Memory
from precopy.abi import inotify, maps
from precopy.errors import KernelCallError, MappingChanged, Unsupported
from precopy.trackers import mapped
from precopy.trackers.write_protection import Mapping, WriteProtection
from precopy.units import PAGE_SIZE
from support.mappings import MADV_DONTNEED, libc, map_over, protect, punch, unmap
from support.patience import IN_TIME_S
from support.replicas import same, words

pytestmark = [pytest.mark.needs("pagemap")]

PAGES = 256
CASES = Path(__file__).parents[1] / "cases"


def case(name: str, where: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CASES / name / "case.py"],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * IN_TIME_S,
    )


class TestCases:
    @pytest.mark.parametrize("name", ["memory-shared-hole-snapshot", "memory-restored-dontneed-snapshot"])
    def test_nothing_differs(self, name: str, tmp_path: Path) -> None:
        done = case(name, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "pages that differ in what is restored: 0"

    def test_a_mapping_that_was_replaced(self, tmp_path: Path) -> None:
        done = case("memory-mapping-replaced", tmp_path)
        assert "MappingChanged" in done.stderr
        assert "is not the mapping any more that tracking began with (16 pages, from page 64 on)" in done.stderr
        assert "begin anew" in done.stderr


class Backed:
    """A memory over something with a file."""

    def __init__(self, memory: Memory, fd: int | None, close: Callable[[], object] = lambda: None) -> None:
        self.memory, self.fd, self.close = memory, fd, close


def _memfd() -> Backed:
    fd = os.memfd_create("holes")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    return Backed(Memory.adopt(mmap.mmap(fd, PAGES * PAGE_SIZE), writers="this process"), fd, lambda: os.close(fd))


def _anonymous() -> Backed:
    return Backed(Memory.adopt(mmap.mmap(-1, PAGES * PAGE_SIZE)), None)


def _file(where: str | None = None, flags: int = mmap.MAP_SHARED) -> Backed:
    with tempfile.TemporaryFile(dir=where) as file:
        file.write(b"\x05" * PAGES * PAGE_SIZE)
        file.flush()
        fd = os.dup(file.fileno())
    return Backed(
        Memory.adopt(mmap.mmap(fd, PAGES * PAGE_SIZE, flags=flags), writers="this process"), fd, lambda: os.close(fd)
    )


def _shared_memory() -> Backed:
    """What `multiprocessing.shared_memory` maps, without its destructor."""
    return _file("/dev/shm")


def _private_file() -> Backed:
    return _file(flags=mmap.MAP_PRIVATE)


SHARED = {"memfd": _memfd, "SharedMemory": _shared_memory, "anonymous": _anonymous, "file": _file}
ALL = {**SHARED, "private file": _private_file}


@pytest.fixture
def backed(request: pytest.FixtureRequest) -> Iterator[Backed]:
    one: Backed = ALL[request.param]()
    yield one
    one.memory.close()
    one.close()


def kinds(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("backed", names, indirect=True)


class TestHoles:
    @kinds(*SHARED)
    def test_madv_remove(self, backed: Backed) -> None:
        words(backed.memory)[:] = 7
        with backed.memory.track() as changes:
            changes.sync()
            assert changes.sync().pages == 0
            libc.madvise(backed.memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE, mmap.MADV_REMOVE)
            assert set(range(64, 80)) <= set(changes.sync().indexes)
            assert not words(backed.memory)[64 * 512 : 80 * 512].any()
            changes.sync()
            assert changes.sync().pages == 0

    @kinds("memfd", "SharedMemory", "file")
    def test_punched_and_truncated(self, backed: Backed) -> None:
        assert backed.fd is not None
        words(backed.memory)[:] = 7
        with backed.memory.track() as changes:
            changes.sync()
            punch(backed.fd, 64 * PAGE_SIZE, 16 * PAGE_SIZE)
            assert set(range(64, 80)) <= set(changes.sync().indexes)
            words(backed.memory)[:] = 7
            changes.sync()
            os.ftruncate(backed.fd, 100 * PAGE_SIZE)
            os.ftruncate(backed.fd, PAGES * PAGE_SIZE)
            assert not words(backed.memory)[100 * 512 :].any()  # touched again
            assert set(range(100, PAGES)) <= set(changes.sync().indexes)
            assert changes.sync().pages == 0

    @kinds("SharedMemory", "file", "private file")
    def test_written_by_a_call(self, backed: Backed) -> None:
        assert backed.fd is not None
        assert int(words(backed.memory)[:].sum()) >= 0
        with backed.memory.track() as changes:
            changes.sync()
            os.pwrite(backed.fd, b"x", 70 * PAGE_SIZE)
            assert backed.memory.view[70 * PAGE_SIZE] == ord("x")
            assert 70 in changes.sync().indexes
            assert changes.sync().pages == 0

    @kinds("SharedMemory", "file")
    def test_touched_again_before_the_next_look(self, backed: Backed) -> None:
        words(backed.memory)[:] = 7
        with backed.memory.track() as changes:
            changes.sync()
            libc.madvise(backed.memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE, mmap.MADV_REMOVE)
            assert not words(backed.memory)[64 * 512 : 80 * 512].any()
            assert set(range(64, 80)) <= set(changes.sync().indexes)

    @kinds(*ALL)
    def test_nothing_is_found_where_nothing_goes(self, backed: Backed) -> None:
        words(backed.memory)[:] = 7
        with backed.memory.track() as changes:
            assert changes.sync().pages == 0
            words(backed.memory)[5 * 512] = 8
            assert list(changes.sync().indexes) == [5]
            assert int(words(backed.memory).sum())
            assert changes.sync().pages == 0

    @kinds(*SHARED)
    def test_without_notifications(self, backed: Backed, request: pytest.FixtureRequest) -> None:
        """For a user who has as many inotify instances as the system allows."""
        with contextlib.ExitStack() as all_there_are:
            with contextlib.suppress(KernelCallError):
                while True:
                    all_there_are.callback(inotify.Inotify().close)
            if request.node.callspec.params["backed"] == "file":
                with pytest.raises(Unsupported, match=r"fs\.inotify\.max_user_instances"):
                    backed.memory.consumer("of no use").start()
            else:
                self.test_madv_remove(backed)

    @kinds("private file")
    def test_private_copies_given_back(self, backed: Backed) -> None:
        pages = words(backed.memory).reshape(-1, 512)
        pages[10:20] = 1  # before it is tracked
        with backed.memory.track() as changes:
            pages[30:40] = 2
            assert list(changes.sync().indexes) == list(range(30, 40))
            libc.madvise(backed.memory.address + 15 * PAGE_SIZE, 20 * PAGE_SIZE, MADV_DONTNEED)
            assert list(changes.sync().indexes) == [*range(15, 20), *range(30, 35)]
            assert (pages[15:35] == 0x0505050505050505).all()
            assert list(changes.sync().indexes) == [*range(15, 20), *range(30, 35)]  # now it is known what they are
            assert changes.sync().pages == 0

    @given(data=st.data())
    def test_snapshots_of_restored_memory_against_the_memory_itself(self, data: st.DataObject) -> None:
        """Any order of writes, pages given back, reads and snapshots: what is restored is what the memory was."""
        with tempfile.TemporaryDirectory() as where:
            base = Memory(32 * PAGE_SIZE)
            words(base)[:] = 7
            precopy.snapshot(base, where)
            memory = precopy.restore(where)
            for _ in range(data.draw(st.integers(1, 12))):
                what = data.draw(st.sampled_from(("write", "give back", "read", "snapshot")))
                first = data.draw(st.integers(0, 31))
                count = data.draw(st.integers(1, 32 - first))
                part = words(memory)[first * 512 : (first + count) * 512]
                if what == "write":
                    part[:] += np.uint64(1)
                elif what == "give back":
                    libc.madvise(memory.address + first * PAGE_SIZE, count * PAGE_SIZE, MADV_DONTNEED)
                elif what == "read":
                    assert part.any()
                else:
                    precopy.snapshot(memory, where)
                    assert same(precopy.restore(where), memory)


class TestMappingChanged:
    @pytest.fixture
    def memory(self) -> Iterator[Memory]:
        with Memory(PAGES * PAGE_SIZE) as memory:
            words(memory)[:] = 7
            yield memory

    def changes(self, memory: Memory, act: Callable[[int, int], None], says: str) -> None:
        """``act`` on the 16 pages from the 64th on is noticed by everybody who would read them."""
        with memory.track() as changes:
            changes.sync()
            act(memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE)
            for _ in range(2):
                with pytest.raises(MappingChanged) as caught:
                    changes.sync()
                assert says in str(caught.value)
                assert (caught.value.first, caught.value.pages) == (64, 16)

    def test_replaced(self, memory: Memory, tmp_path: Path) -> None:
        precopy.snapshot(memory, tmp_path)
        self.changes(memory, map_over, "is not the mapping any more that tracking began with")
        with pytest.raises(MappingChanged):
            precopy.snapshot(memory, tmp_path)
        assert precopy.snapshot(memory, tmp_path, full=True).full
        assert same(precopy.restore(tmp_path), memory)
        words(memory)[70 * 512] = 9
        assert precopy.snapshot(memory, tmp_path).pages == 1
        assert same(precopy.restore(tmp_path), memory)

    def test_replaced_beside_another_who_tracks(self, memory: Memory, tmp_path: Path) -> None:
        """Who begins anew does not take from the others what they have to hear of."""
        with memory.track() as changes:
            precopy.snapshot(memory, tmp_path)
            map_over(memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE)
            precopy.snapshot(memory, tmp_path, full=True)
            assert set(range(64, 80)) <= set(changes.sync().indexes)
            words(memory)[70 * 512] = 9
            assert list(changes.sync().indexes) == [70]

    def test_unmapped(self, memory: Memory, tmp_path: Path) -> None:
        precopy.snapshot(memory, tmp_path)
        self.changes(memory, unmap, "is not mapped any more")
        for full in (False, True):
            with pytest.raises(MappingChanged, match="is not mapped any more"):
                precopy.snapshot(memory, tmp_path, full=full)
        with pytest.raises(MappingChanged), memory.track():
            pass
        map_over(memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE)
        precopy.snapshot(memory, tmp_path, full=True)
        assert same(precopy.restore(tmp_path), memory)

    def test_unreadable(self, memory: Memory, tmp_path: Path) -> None:
        precopy.snapshot(memory, tmp_path)
        self.changes(memory, lambda at, length: protect(at, length, 0), "may not be read any more")
        with pytest.raises(MappingChanged, match="may not be read any more"):
            precopy.snapshot(memory, tmp_path)
        protect(memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE, mmap.PROT_READ)
        assert precopy.snapshot(memory, tmp_path).pages == 0
        protect(memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE, 0)
        with pytest.raises(MappingChanged, match="may not be read any more"):
            precopy.snapshot(memory, tmp_path, full=True)
        protect(memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE, mmap.PROT_READ)
        precopy.snapshot(memory, tmp_path)
        assert same(precopy.restore(tmp_path), memory)

    def test_replicated(self, memory: Memory, tmp_path: Path) -> None:
        with precopy.Standby(f"unix:{tmp_path}/wire") as standby, precopy.replicate(memory, standby.address) as handle:
            handle.wait()
            unmap(memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE)
            with pytest.raises(MappingChanged), handle.cutover():
                pass

    @kinds("memfd", "SharedMemory", "file", "private file")
    def test_a_file_that_is_cut(self, backed: Backed, tmp_path: Path) -> None:
        assert backed.fd is not None
        words(backed.memory)[:] = 7
        precopy.snapshot(backed.memory, tmp_path)
        os.ftruncate(backed.fd, 100 * PAGE_SIZE + 5)
        for full in (False, True):
            with pytest.raises(MappingChanged, match="lies beyond the end of its file") as caught:
                precopy.snapshot(backed.memory, tmp_path, full=full)
            assert (caught.value.first, caught.value.pages) == (101, PAGES - 101)
        os.ftruncate(backed.fd, PAGES * PAGE_SIZE)
        precopy.snapshot(backed.memory, tmp_path)
        assert same(precopy.restore(tmp_path), backed.memory)

    @kinds("memfd", "SharedMemory", "file", "private file")
    def test_a_file_that_is_cut_and_compared(self, backed: Backed) -> None:
        """Contents are compared without the kernel's help; to read what is not there would end the process."""
        assert backed.fd is not None
        with backed.memory.track(by="content") as changes:
            os.ftruncate(backed.fd, 100 * PAGE_SIZE)
            with pytest.raises(MappingChanged, match="lies beyond the end of its file") as caught:
                changes.sync()
            assert (caught.value.first, caught.value.pages) == (100, PAGES - 100)
            os.ftruncate(backed.fd, PAGES * PAGE_SIZE)
            changes.sync()

    def test_compared_and_not_there(self, memory: Memory) -> None:
        at, length = memory.address + 64 * PAGE_SIZE, 16 * PAGE_SIZE
        with memory.track(by="content") as changes:
            protect(at, length, 0)
            with pytest.raises(MappingChanged, match="may not be read any more"):
                changes.sync()
            unmap(at, length)
            with pytest.raises(MappingChanged, match="is not mapped any more"):
                changes.sync()
            map_over(at, length)
            assert list(changes.sync().indexes) == list(range(64, 80))

    @pytest.mark.parametrize("many", [mapped.MANY, 2])
    def test_memory_of_many_mappings(self, memory: Memory, monkeypatch: pytest.MonkeyPatch, many: int) -> None:
        monkeypatch.setattr(mapped, "MANY", many)
        for page in range(1, 32, 2):
            protect(memory.address + page * PAGE_SIZE, PAGE_SIZE, mmap.PROT_READ)
        self.changes(memory, unmap, "is not mapped any more")


class TestMaps:
    """Both ways to ask say the same."""

    def test_text_and_query(self) -> None:
        memory = Memory(64 * PAGE_SIZE)
        protect(memory.address + PAGE_SIZE, PAGE_SIZE, 0)
        backed = _memfd()
        for one in (memory, backed.memory):
            end = one.address + one.size
            asked = maps.vmas(one.address, end)
            assert asked == [vma for vma in maps._parsed(one.address) if vma.start < end]
            assert asked[0].shared == (one is backed.memory)
            assert bool(asked[0].inode) == (one is backed.memory)
        backed.close()

    def test_no_descriptors_stay_open(self) -> None:
        backed = _memfd()
        gc.collect()  # mappings of tests before this one
        before = set(os.listdir("/proc/self/fd"))
        with backed.memory.track() as changes:
            changes.sync()
            assert len(set(os.listdir("/proc/self/fd")) - before) == 8  # userfaultfd, page map, inotify, the file
            # And for other mappings of it in this process: userfaultfd, page map, the mappings, their count.
        assert set(os.listdir("/proc/self/fd")) == before
        backed.close()

    def test_nothing_is_watched_without_a_file(self) -> None:
        memory = Memory(64 * PAGE_SIZE)
        gc.collect()
        before = set(os.listdir("/proc/self/fd"))
        with memory.track():
            assert len(set(os.listdir("/proc/self/fd")) - before) == 2  # userfaultfd and page map

    def test_the_structure_has_the_kernels_size(self) -> None:
        assert ctypes.sizeof(maps.Query) == 104


def test_a_page_written_while_tracking_begins_is_known_for_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No harvest tells of a write between the first look and the protection; that its content goes later has to be."""
    backed = _private_file()
    memory = backed.memory
    protect_it = WriteProtection.protect

    def write_just_before(self: WriteProtection, mapping: Mapping, start: int, count: int) -> None:
        memory[9 * PAGE_SIZE] = 7
        protect_it(self, mapping, start, count)

    monkeypatch.setattr(WriteProtection, "protect", write_just_before)
    with memory.track() as changes:
        assert changes.sync().pages == 0
        libc.madvise(ctypes.c_void_p(memory.address + 9 * PAGE_SIZE), ctypes.c_size_t(PAGE_SIZE), MADV_DONTNEED)
        assert memory[9 * PAGE_SIZE] == 5  # the file's
        assert changes.sync().indexes.tolist() == [9]
    backed.close()


def test_a_memory_that_was_not_closed_leaves_no_descriptor(tmp_path: Path) -> None:
    def use(number: int) -> None:
        memory = Memory(PAGES * PAGE_SIZE)
        precopy.snapshot(memory, tmp_path / str(number))
        with memory.track() as changes:
            changes.sync()

    use(0)
    gc.collect()
    before = os.listdir("/proc/self/fd")
    for number in range(1, 6):
        use(number)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == len(before)
