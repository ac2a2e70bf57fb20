"""What is taken for zero without being read is zero, whatever memory it is; and what is never touched is not read."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy import Memory, restore, snapshot
from precopy.abi.residency import mappings
from precopy.bitmap import NO_RUNS, Runs
from precopy.errors import KernelCallError
from precopy.machines.process import presence
from precopy.machines.process.presence import never_written
from precopy.units import PAGE_SIZE
from support.patience import IN_TIME_S
from support.snapshots import Written, content

PAGES = 2048
ALL = Runs.of((0, PAGES))


def rows_of(memory: Memory) -> Any:
    return np.frombuffer(memory.view, np.uint64).reshape(-1, PAGE_SIZE // 8)


def check(memory: Memory, written: Any) -> Runs:
    """What is found never to have been written is not among ``written``, and is zero; so does `split_zero` say."""
    found = never_written(memory.address, ALL)
    assert not set(found.indexes()) & set(written)
    kept, zero = memory.contents().split_zero(ALL)
    assert kept.indexes().tolist() == sorted(written)
    assert sorted([*kept.indexes(), *zero.indexes()]) == list(range(PAGES))
    return found


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    memory = SharedMemory(create=True, size=PAGES * PAGE_SIZE)
    yield memory
    memory.unlink()


@pytest.mark.parametrize("huge", [True, False])
def test_private_memory(huge: bool) -> None:
    mapping = mmap.mmap(-1, PAGES * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    memory = Memory.adopt(mapping, writers="this process")
    rows = rows_of(memory)
    rows[700:900] = 1
    rows[5, 3] = 2
    assert rows[1500].any() == False  # noqa: E712 - reads a page, which is then there, and zero
    found = check(memory, [5, *range(700, 900)])
    assert found.pages >= 512 if huge else found.pages == PAGES - 202
    mapping.madvise(mmap.MADV_DONTNEED, 0, 1024 * PAGE_SIZE)
    assert set(range(1024)) <= set(check(memory, []).indexes())


@pytest.mark.needs("pagemap")
def test_while_it_is_tracked() -> None:
    """The kernel has marks for pages that were never touched then, which are no pages."""
    with Memory(PAGES * PAGE_SIZE) as memory, memory.track() as changes:
        rows_of(memory)[9, 9] = 9
        assert check(memory, [9]).pages >= PAGES - 512
        changes.sync()
        rows_of(memory)[700, 9] = 9
        assert check(memory, [9, 700]).pages >= PAGES - 1024


def test_memory_that_another_process_has_filled(shared: SharedMemory) -> None:
    """It is in no page table of this one."""
    code = (
        "import sys\n"
        "with open(sys.argv[1], 'r+b') as file:\n"
        "    for page in (3, 600, 1999):\n"
        f"        file.seek(page * {PAGE_SIZE} + 5)\n"
        "        file.write(b'x')"
    )
    subprocess.run([sys.executable, "-c", code, f"/dev/shm/{shared.name}"], check=True, timeout=IN_TIME_S)
    memory = Memory.adopt(shared, writers="this process")
    assert check(memory, [3, 600, 1999]).pages == PAGES - 3


def test_a_memfd_that_was_written_as_a_file() -> None:
    fd = os.memfd_create("precopy-test")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    os.pwrite(fd, b"x", 1234 * PAGE_SIZE)
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        mapping = mmap.mmap(fd, PAGES * PAGE_SIZE, flags=flags)
        assert check(Memory.adopt(mapping, writers="this process"), [1234]).pages == (
            PAGES - 1 if flags == mmap.MAP_SHARED else 0
        )
    os.close(fd)


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE])
def test_a_file_whose_pages_are_not_in_memory(tmp_path: Path, flags: int) -> None:
    """They are on its disk, and no zeros."""
    path = tmp_path / "file"
    path.write_bytes(b"\1" * (PAGES * PAGE_SIZE))
    with open(path, "r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        mapping = mmap.mmap(file.fileno(), PAGES * PAGE_SIZE, flags=flags)
    memory = Memory.adopt(mapping, writers="this process")
    assert never_written(memory.address, ALL) == NO_RUNS
    assert check(memory, range(PAGES)) == NO_RUNS


@pytest.mark.needs("pagemap")
def test_a_restored_memory_in_full(tmp_path: Path) -> None:
    one = Written(PAGES)
    one.write([*range(100, 200), 1500], 4)
    snapshot(one.memory, tmp_path)
    one.write([3], 5)
    snapshot(one.memory, tmp_path)
    with restore(tmp_path) as memory:
        rows_of(memory)[1800] = 6
        assert check(memory, [3, *range(100, 200), 1500, 1800]).pages > PAGES // 2
        assert snapshot(memory, tmp_path, full=True).pages == 103
        assert np.array_equal(content(restore(tmp_path)), rows_of(memory))


class Swap:
    """What the machine says of its swap, one answer after the other."""

    def __init__(self, patch: pytest.MonkeyPatch, devices: list[Any], read: list[Any], swapped: int) -> None:
        patch.setattr(presence, "swap_devices", lambda: devices.pop(0) if len(devices) > 1 else devices[0])
        patch.setattr(presence, "swapped_in", lambda: read.pop(0) if len(read) > 1 else read[0])
        patch.setattr(presence, "_WORTH_A_WALK", 1)

        def patched(start: int, end: int, *, swapped: bool) -> Any:
            there = mappings(start, end, swapped=swapped)
            if not swapped:
                return there
            assert all(one.swapped is not None for one in there)
            return [type(one)(one.start, one.end, one.zeros, nothing) for one in there]

        nothing = swapped
        patch.setattr(presence, "mappings", patched)


@pytest.mark.parametrize(
    ("devices", "read", "swapped", "known"),
    [
        ([0], [(0, 0)], 0, True),
        ([1], [(7, 0)], 0, True),
        ([1], [(7, 0)], 4096, False),  # some of it is in swap
        ([1], [(7, 0), (8, 0)], 0, False),  # something has come back meanwhile
        ([1], [(7, 0), (7, 1)], 0, False),
        ([1], [None], 0, False),
        ([None], [(7, 0)], 0, True),
        ([0, 1], [(7, 0)], 0, False),
        ([1, 0], [(7, 0)], 0, False),
    ],
)
def test_on_a_machine_with_swap(
    monkeypatch: pytest.MonkeyPatch, devices: list[Any], read: list[Any], swapped: int, known: bool
) -> None:
    Swap(monkeypatch, devices, read, swapped)
    memory = Memory(PAGES * PAGE_SIZE)
    rows_of(memory)[5] = 1
    assert bool(len(check(memory, [5]))) == known


@pytest.mark.parametrize("error", [OSError(1, "no"), KernelCallError("mincore", "this process", 12)])
def test_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    for name in ("resident", "mappings", "swap_devices"):
        with monkeypatch.context() as patched:
            patched.setattr(presence, name, fails)
            assert check(Memory(PAGES * PAGE_SIZE), []) == NO_RUNS


SPARSE = textwrap.dedent(
    """
    import resource, sys, threading
    import numpy as np
    import precopy

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    memory = precopy.Memory(2 << 30)
    rows = np.frombuffer(memory.view, np.uint64).reshape(-1, 512)
    rows[5] = rows[-1] = 3
    precopy.snapshot(precopy.Memory(4096), sys.argv[1] + "/other")  # all is imported
    before = faults()
    if sys.argv[2] == "snapshot":
        saved = precopy.snapshot(memory, sys.argv[1] + "/s")
        assert (saved.pages, saved.zero_pages) == (2, (2 << 18) - 2)
    else:
        address = f"unix:{sys.argv[1]}/socket"
        got = []
        standby = threading.Thread(target=lambda: got.append(precopy.receive_memory(address)))
        standby.start()
        import os, time
        while not os.path.exists(address[5:]):
            time.sleep(0.01)
        with precopy.replicate(memory, address) as handle:
            with handle.cutover():
                pass
        standby.join()
        assert np.frombuffer(got[0].view, np.uint64)[-1] == 3
    print(faults() - before)
    """
)


@pytest.mark.needs("pagemap")
@pytest.mark.parametrize("what", ["snapshot", "replicate"])
def test_what_was_never_touched_is_not_read(tmp_path: Path, what: str) -> None:
    """Reading its half a million pages takes as many faults while they are tracked."""
    done = subprocess.run(
        [sys.executable, "-c", SPARSE, str(tmp_path), what],
        capture_output=True,
        text=True,
        timeout=2 * IN_TIME_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50_000


pages = st.integers(0, 127)
pieces = st.lists(st.tuples(pages, st.integers(1, 40)), max_size=8).map(
    lambda some: sorted({page for start, length in some for page in range(start, min(start + length, 128))})
)


@given(one=pieces, other=pieces)
def test_sets_of_runs(one: list[int], other: list[int]) -> None:
    left, right = (Runs.from_indexes(np.array(some, np.int64)) for some in (one, other))
    assert presence._common(left, right).indexes().tolist() == sorted(set(one) & set(other))
    mask = np.zeros(128, np.bool_)
    mask[one] = True
    assert presence._runs_of(mask) == left
    both = sorted(set(one) | set(other))
    if both:
        kept = presence._without(Runs.from_indexes(np.array(both, np.int64)), right)
        assert kept.indexes().tolist() == sorted(set(one) - set(other))
