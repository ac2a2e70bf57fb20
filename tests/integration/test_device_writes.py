"""Memory that something else than a CPU writes: reads with O_DIRECT, and buffers registered with io_uring."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import precopy
from precopy import Memory
from precopy.errors import PrecopyError, UnreportedWrites, UsageError
from precopy.trackers import unseen
from precopy.units import PAGE_SIZE
from support.io_uring import Ring
from support.patience import IN_TIME_S
from support.replicas import same, words

pytestmark = [
    pytest.mark.needs("pagemap"),
    # The kernel takes its time to let go of a ring's buffers: later tests hear of them, too.
    pytest.mark.filterwarnings("ignore:this process has .* of pinned memory"),
]

MIB = 1 << 20
SIZE = 16 * MIB
CASES = Path(__file__).parents[1] / "cases"

Copy = Callable[[], Memory]


@pytest.fixture(scope="module")
def content() -> Iterator[str]:
    """A file of random bytes on a file system that has O_DIRECT."""
    with tempfile.NamedTemporaryFile(dir=".") as file:
        file.write(os.urandom(SIZE))
        file.flush()
        os.fsync(file.fileno())
        yield file.name


@pytest.fixture
def direct(content: str) -> Iterator[int]:
    fd = os.open(content, os.O_RDONLY | os.O_DIRECT)
    yield fd
    os.close(fd)


@pytest.fixture
def registered(direct: int) -> Iterator[Registered]:
    with Ring() as ring:
        yield Registered(ring, direct)


class Registered:
    """A memory of which a part is registered with a ring, so that no write to that part is ever noticed."""

    first, pages = 8, 16

    def __init__(self, ring: Ring, file: int) -> None:
        self._ring, self._file = ring, file
        self.memory = Memory(SIZE)
        words(self.memory)[:] = 1
        ring.register(self.memory.address + self.start, self.length)

    @property
    def start(self) -> int:
        return self.first * PAGE_SIZE

    @property
    def length(self) -> int:
        return self.pages * PAGE_SIZE

    @property
    def indexes(self) -> list[int]:
        return list(range(self.first, self.first + self.pages))

    def device_writes(self, offset: int = 0) -> None:
        before = bytes(self.memory.view[self.start : self.start + self.length])
        self._ring.read(self._file, offset, self.memory.address + self.start, self.length, fixed=True)
        assert bytes(self.memory.view[self.start : self.start + self.length]) != before


@pytest.fixture
def nothing_recent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was announced has to do; that this process has a ring does not help."""
    monkeypatch.setattr(unseen, "RECENT_S", -1.0)


@pytest.mark.parametrize("case", ["memory-direct-read-snapshot", "memory-direct-read-replicate"])
def test_cases_as_they_are(case: str, tmp_path: Path) -> None:
    """Five trials of a second each are enough here: the fault that the second one shows came in one of ten or more, so
    a run misses it about as often with ten of them."""
    text = (CASES / case / "case.py").read_text().replace("range(10)", "range(5)")
    with tempfile.TemporaryDirectory(dir=".") as where:  # /tmp may have no O_DIRECT
        done = subprocess.run(
            [sys.executable, "-c", text],
            cwd=where,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * IN_TIME_S,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 5
    assert all(line.endswith(": 0") for line in lines), done.stdout


@pytest.mark.needs("io_uring")
@pytest.mark.usefixtures("nothing_recent")
class TestRegisteredBuffers:
    def test_are_written_unnoticed(self, registered: Registered) -> None:
        """Which all of this is about: where it fails, the kernel has learned something."""
        with registered.memory.track() as changes:
            changes.sync()
            registered.device_writes()
            assert changes.sync().pages == 0

    def test_touched(self, registered: Registered) -> None:
        with registered.memory.track() as changes, registered.memory.track() as others:
            registered.device_writes()
            registered.memory.touched(registered.start + 5, registered.length - 10)
            assert list(changes.sync().indexes) == list(others.sync().indexes) == registered.indexes
            assert changes.sync().pages == others.sync().pages == 0

    def test_writing(self, registered: Registered) -> None:
        with registered.memory.track() as changes, registered.memory.track() as others:
            with registered.memory.writing(registered.start, registered.length):
                assert list(changes.sync().indexes) == registered.indexes
                registered.device_writes()
            assert list(changes.sync().indexes) == list(others.sync().indexes) == registered.indexes
            assert changes.sync().pages == 0

    def test_writing_that_fails(self, registered: Registered) -> None:
        def fails(changes: precopy.Changes) -> None:
            with registered.memory.writing(registered.start, 1):
                changes.sync()
                raise OSError("the disk")

        with registered.memory.track() as changes:
            with pytest.raises(OSError, match="the disk"):
                fails(changes)
            assert list(changes.sync().indexes) == [registered.first]

    def test_io_buffer_before_anybody_tracks(self, registered: Registered, tmp_path: Path) -> None:
        memory = registered.memory
        memory.io_buffer(registered.start, registered.length)
        for number in range(3):
            registered.device_writes(number * MIB)
            done = precopy.snapshot(memory, tmp_path / "state")
            assert number == 0 or done.pages == registered.pages
            assert same(precopy.restore(tmp_path / "state"), memory)

    def test_io_buffer_is_cut_over_exactly(self, registered: Registered, tmp_path: Path) -> None:
        """Its pages are always found; yet nobody is said to write them."""
        registered.memory.io_buffer(registered.start, registered.length)
        with replicated(registered.memory, tmp_path) as (handle, copy):
            handle.wait()
            registered.device_writes()
            with handle.cutover():
                pass
            assert same(copy(), registered.memory)

    @pytest.mark.parametrize("how", ["lock", "quiet", "checkpoint"])
    def test_io_buffer_in_points(self, registered: Registered, tmp_path: Path, how: str) -> None:
        memory = registered.memory
        memory.io_buffer(registered.start, registered.length)
        lock = threading.Lock()
        options = {
            "lock": {"interval": 0.01, "lock": lock},
            "quiet": {"interval": 0.01},
            "checkpoint": {"interval": 1e9},
        }
        with (
            precopy.Standby(f"unix:{tmp_path}/wire") as standby,
            precopy.replicate(memory, standby.address, **options[how]) as handle,  # type: ignore[arg-type]  # of each kind
        ):
            for number in range(1, 4):
                with lock:
                    registered.device_writes(number * MIB)
                    memory.view[0] = number
                if how == "checkpoint":
                    handle.checkpoint(wait=True)
                else:
                    until(lambda number=number: standby.memory is not None and standby.memory.view[0] == number)
                    until(lambda: standby.memory is not None and same(standby.memory, memory))
            handle.checkpoint(wait=True)
            assert same(standby.promote(), memory)

    def test_pinned_memory_is_mentioned(self, registered: Registered) -> None:
        with pytest.warns(RuntimeWarning, match=r"has [0-9]+ KiB of pinned memory.*memory\.io_buffer"):
            registered.memory.track()

    def test_a_cutover_beside_a_transfer_is_refused(self, registered: Registered, tmp_path: Path) -> None:
        with replicated(registered.memory, tmp_path) as (handle, copy):
            with (
                registered.memory.writing(registered.start, registered.length),
                pytest.raises(UsageError, match="is written while it is cut over"),
                handle.cutover(),
            ):
                pass
            registered.device_writes()
            registered.memory.touched(registered.start, registered.length)
            with handle.cutover():
                pass
            assert same(copy(), registered.memory)

    def test_the_link_is_not_blamed(self, registered: Registered, tmp_path: Path) -> None:
        """Nobody announces anything: it ends with an exact copy or says what is wrong, and whose fault it is not."""
        stop = threading.Event()

        def write() -> None:
            offset = 0
            while not stop.is_set():
                registered.device_writes(offset)
                offset = (offset + registered.length) % (SIZE - registered.length)

        words(registered.memory)[: SIZE // 16] += 1
        thread = threading.Thread(target=write)
        thread.start()
        try:
            with replicated(registered.memory, tmp_path) as (handle, _), contextlib.suppress(PrecopyError):
                until(lambda: handle.error is not None, 1.0)  # or does not show itself
                stop.set()
                thread.join()
            error = handle.error
        finally:
            stop.set()
            thread.join()
        assert error is None or isinstance(error, UnreportedWrites)
        if isinstance(error, UnreportedWrites):
            assert "memory.writing()" in str(error)
            assert "link" not in str(error)


def until(holds: Callable[[], bool], timeout: float = IN_TIME_S) -> None:
    end = time.monotonic() + timeout
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)


@contextlib.contextmanager
def replicated(memory: Memory, tmp_path: Path) -> Iterator[tuple[precopy.Replication, Copy]]:
    got: list[Memory] = []

    def receive() -> None:
        with contextlib.suppress(PrecopyError):
            standby.wait()
            got.append(standby.promote())

    with precopy.Standby(f"unix:{tmp_path}/wire") as standby:
        thread = threading.Thread(target=receive)
        thread.start()
        with precopy.replicate(memory, standby.address) as handle:

            def copy() -> Memory:
                thread.join(IN_TIME_S)
                return got[0]

            yield handle, copy
        thread.join(IN_TIME_S)


class TestDirectReads:
    """With no word from the program: descriptors with O_DIRECT are noticed."""

    def test_a_point_under_the_lock_that_the_reader_holds(self, direct: int, tmp_path: Path) -> None:
        """Points copy most before they take the lock, and so in the middle of reads: what a standby has is what the
        memory was under the lock, all the same."""
        memory, lock, stop = Memory(SIZE), threading.Lock(), threading.Event()
        words(memory)[:] = 1

        def read_on() -> None:
            number = 0
            while not stop.is_set():
                with lock:
                    number += 1
                    words(memory)[:: PAGE_SIZE // 8] = number
                    os.preadv(direct, [memory.view], 0)
                time.sleep(0.001)

        reader = threading.Thread(target=read_on)
        with (
            precopy.Standby(f"unix:{tmp_path}/wire") as standby,
            precopy.replicate(memory, standby.address, interval=0.02, lock=lock) as handle,
        ):
            reader.start()
            try:
                until(lambda: handle.progress.points >= 20)
            finally:
                stop.set()
                reader.join()
            until(lambda points=handle.progress.points: handle.progress.points >= points + 2)
            assert handle.error is None
            with open(f"/proc/self/fd/{direct}", "rb") as file:
                expected = np.frombuffer(file.read(), np.uint64)
            assert np.array_equal(words(standby.promote()), expected)

    @pytest.mark.usefixtures("nothing_recent")
    def test_a_snapshot_under_the_lock_that_the_reader_holds(self, direct: int, tmp_path: Path) -> None:
        """While others sync without the lock, in the middle of reads: none takes pages from the snapshots, which look
        for what changed when they have the lock. No look at descriptors is needed for that."""
        memory, lock, stop = Memory(SIZE), threading.Lock(), threading.Event()
        words(memory)[:] = 1

        def read_on() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                with lock:
                    words(memory)[:: PAGE_SIZE // 8] = number
                    os.preadv(direct, [memory.view], 0)
                    memory.view[0] = number % 256
                time.sleep(0.001)

        def sync_on() -> None:
            with memory.track() as changes:
                while not stop.is_set():
                    changes.sync()

        threads = [threading.Thread(target=read_on), threading.Thread(target=sync_on)]
        precopy.snapshot(memory, tmp_path / "state")
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                with lock:
                    precopy.snapshot(memory, tmp_path / "state", lock=contextlib.nullcontext())
                    assert same(precopy.restore(tmp_path / "state"), memory)
                time.sleep(0.05)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
