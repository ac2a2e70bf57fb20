"""The table of which writes are seen, in docs/memory.md and docs/snapshots.md: one experiment for each row."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import precopy
from precopy import Memory
from precopy.errors import MappingChanged
from precopy.trackers import unseen
from precopy.units import PAGE_SIZE
from support import io_uring
from support.mappings import MADV_COLLAPSE, MADV_DONTNEED, MADV_PAGEOUT, libc, map_over, move, protect, punch, unmap
from support.patience import IN_TIME_S
from support.replicas import same, words

pytestmark = [
    pytest.mark.needs("pagemap"),
    pytest.mark.filterwarnings("ignore:this process has .* of pinned memory"),
]

DOCS = Path(__file__).parents[2] / "docs"
PAGES = 512
SIZE = PAGES * PAGE_SIZE
FIRST, COUNT = 64, 16
AT, LENGTH = FIRST * PAGE_SIZE, COUNT * PAGE_SIZE
_ROW = re.compile(r"^\| (.+?) \| (yes|no|no write|refused) \|")


def table(page: str) -> list[str]:
    """The rows of the first table of a page."""
    lines = (DOCS / page).read_text().splitlines()
    first = next(at for at, line in enumerate(lines) if line.startswith("| what changes the memory |")) + 2
    last = next(at for at in range(first, len(lines)) if not lines[at].startswith("|"))
    return lines[first:last]


def seen() -> dict[str, str]:
    """What the table says of each way to change memory."""
    rows = [_ROW.match(line) for line in table("memory.md")]
    assert all(rows)
    return {row[1]: row[2] for row in rows if row}


@dataclass
class Try:
    """A memory full of sevens, that some experiment changes from page ``FIRST`` on, or is said to."""

    memory: Memory
    fd: int | None = None
    ring: io_uring.Ring | None = None

    @property
    def address(self) -> int:
        return self.memory.address + AT

    @property
    def part(self) -> memoryview:
        return self.memory.view[AT : AT + LENGTH]


Act = Callable[[Try], None]
EXPERIMENTS: dict[str, list[tuple[Callable[[], contextlib.AbstractContextManager[Try]], Act]]] = {}


@contextlib.contextmanager
def plain() -> Iterator[Try]:
    memory = Memory(SIZE)
    words(memory)[:] = 7
    yield Try(memory)


@contextlib.contextmanager
def restored() -> Iterator[Try]:
    """Of fives, and all written since."""
    with tempfile.TemporaryDirectory() as where:
        with plain() as one:
            words(one.memory)[:] = 5
            precopy.snapshot(one.memory, where)
        memory = precopy.restore(where)
        words(memory)[:] = 7
        yield Try(memory)


@contextlib.contextmanager
def mapped(fd: int, flags: int = mmap.MAP_SHARED) -> Iterator[Try]:
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, b"\5" * SIZE, 0)
    memory = shared(mmap.mmap(fd, SIZE, flags=flags))
    words(memory)[:] = 7
    try:
        yield Try(memory, fd)
    finally:
        os.close(fd)


def shared(mapping: mmap.mmap) -> Memory:
    return Memory.adopt(mapping, writers="this process")


def memfd() -> contextlib.AbstractContextManager[Try]:
    return mapped(os.memfd_create("seen"))


def a_file(where: str | None = None, flags: int = mmap.MAP_SHARED) -> contextlib.AbstractContextManager[Try]:
    with tempfile.TemporaryFile(dir=where) as file:
        return mapped(os.dup(file.fileno()), flags)


def shm() -> contextlib.AbstractContextManager[Try]:
    return a_file("/dev/shm")


def private_file() -> contextlib.AbstractContextManager[Try]:
    return a_file(flags=mmap.MAP_PRIVATE)


@contextlib.contextmanager
def unwritten_private_file() -> Iterator[Try]:
    """Of fives, which are the file's."""
    with tempfile.TemporaryFile() as file:
        file.write(b"\5" * SIZE)
        file.flush()
        yield Try(Memory.adopt(mmap.mmap(file.fileno(), SIZE, flags=mmap.MAP_PRIVATE)), file.fileno())


@contextlib.contextmanager
def anonymous_shared() -> Iterator[Try]:
    memory = shared(mmap.mmap(-1, SIZE))
    words(memory)[:] = 7
    yield Try(memory)


def row(name: str, *where: Callable[[], contextlib.AbstractContextManager[Try]]) -> Callable[[Act], Act]:
    def add(act: Act) -> Act:
        EXPERIMENTS.setdefault(name, []).extend((one, act) for one in where or (plain,))
        return act

    return add


@contextlib.contextmanager
def other_content(direct: bool = True) -> Iterator[int]:
    """A file of ``LENGTH`` other bytes, opened with O_DIRECT."""
    with tempfile.NamedTemporaryFile(dir=".") as file:
        file.write(os.urandom(LENGTH))
        file.flush()
        os.fsync(file.fileno())
        fd = os.open(file.name, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        try:
            yield fd
        finally:
            os.close(fd)


@row("stores of any thread, in numpy or C")
def _(one: Try) -> None:
    ctypes.memset(one.address, 1, LENGTH // 2)
    words(one.memory)[(AT + LENGTH // 2) // 8 : (AT + LENGTH) // 8] = 3


@row("`readinto`, `recv_into` and other calls that copy")
def _(one: Try) -> None:
    with other_content(direct=False) as fd, open(fd, "rb", 0, closefd=False) as file:
        assert file.readinto(one.part) == LENGTH


@row("`readinto`, `recv_into` and other calls that copy")
def _(one: Try) -> None:
    near, far = socket.socketpair()
    with near, far:
        for at in range(0, LENGTH, PAGE_SIZE):
            near.sendall(os.urandom(PAGE_SIZE))
            assert far.recv_into(one.part[at:], PAGE_SIZE, socket.MSG_WAITALL) == PAGE_SIZE


@row("`process_vm_writev` of another process")
def _(one: Try) -> None:
    code = (
        "import ctypes, sys; pid, to, length = map(int, sys.argv[1:]); data = ctypes.create_string_buffer(length)\n"
        "vector = lambda at: (ctypes.c_size_t * 2)(at, length); libc = ctypes.CDLL(None, use_errno=True)\n"
        "done = libc.process_vm_writev(pid, vector(ctypes.addressof(data)), 1, vector(to), 1, 0)\n"
        "sys.exit(0 if done == length else ctypes.get_errno())"
    )
    arguments = [str(os.getpid()), str(one.address), str(LENGTH)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, timeout=IN_TIME_S)
    if done.returncode == 1:
        pytest.skip("processes may not write each other's memory here (kernel.yama.ptrace_scope)")
    assert done.returncode == 0


@row("a read with O_DIRECT")
def _(one: Try) -> None:
    with other_content() as fd:
        assert os.preadv(fd, [one.part], 0) == LENGTH


def need_ring() -> None:
    why = io_uring.unavailable()
    if why:
        pytest.skip(f"needs io_uring: {why}")


@row("a read by io_uring")
def _(one: Try) -> None:
    need_ring()
    with other_content() as fd, io_uring.Ring() as ring:
        ring.read(fd, 0, one.address, LENGTH, fixed=False)


@contextlib.contextmanager
def registered() -> Iterator[Try]:
    need_ring()
    with plain() as one, io_uring.Ring() as ring:
        ring.register(one.address, LENGTH)
        one.ring = ring
        yield one


@row("a buffer registered with io_uring, pinned for RDMA, VFIO or a GPU", registered)
def _(one: Try) -> None:
    with other_content() as fd:
        assert one.ring is not None
        one.ring.read(fd, 0, one.address, LENGTH, fixed=True)


@row("MADV_DONTNEED of a `Memory`")
@row("MADV_DONTNEED of restored memory, or of a file mapped privately", restored, private_file)
@row("MADV_DONTNEED of shared memory", memfd, shm, anonymous_shared, a_file)
def _(one: Try) -> None:
    libc.madvise(one.address, LENGTH, MADV_DONTNEED)


@row("MADV_FREE of a `Memory`")
def _(one: Try) -> None:
    libc.madvise(one.address, LENGTH, mmap.MADV_FREE)
    libc.madvise(one.address, LENGTH, MADV_PAGEOUT)  # the system takes them
    if one.part[0] == 7:
        pytest.skip("the system does not take the pages")


@row("MADV_REMOVE, holes, `ftruncate` of `SharedMemory` or a file", shm, a_file)
@row("MADV_REMOVE or holes of a memfd or an anonymous shared mapping", memfd, anonymous_shared)
def remove(one: Try) -> None:
    libc.madvise(one.address, LENGTH, mmap.MADV_REMOVE)


@row("MADV_REMOVE, holes, `ftruncate` of `SharedMemory` or a file", shm, a_file)
@row("MADV_REMOVE or holes of a memfd or an anonymous shared mapping", memfd)
def punched(one: Try) -> None:
    assert one.fd is not None
    punch(one.fd, AT, LENGTH)


@row("MADV_REMOVE, holes, `ftruncate` of `SharedMemory` or a file", shm, a_file)
def _(one: Try) -> None:
    assert one.fd is not None
    os.ftruncate(one.fd, AT)
    os.ftruncate(one.fd, SIZE)
    assert not any(one.part)  # touched again


@row("`write` to the file of `SharedMemory`, or to a file that is mapped", shm, a_file)
@row("`write` to a memfd", memfd)
def _(one: Try) -> None:
    assert one.fd is not None
    os.pwrite(one.fd, os.urandom(LENGTH), AT)


@row("the same, and read again before the next sync", memfd, anonymous_shared)
def _(one: Try) -> None:
    remove(one)
    assert not any(one.part)


@row("stores through a shared mapping of a file, which this memory maps privately", unwritten_private_file)
def _(one: Try) -> None:
    assert one.fd is not None
    with mmap.mmap(one.fd, SIZE) as other:
        other[AT : AT + LENGTH] = os.urandom(LENGTH)


@row("stores of a forked child into private memory", plain, restored, private_file)
def _(one: Try) -> None:
    child = os.fork()
    if not child:
        ctypes.memset(one.address, 1, LENGTH)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@row("MADV_PAGEOUT, MADV_COLLAPSE, `mlock`, `mprotect(PROT_READ)`", plain, restored, memfd, shm)
def _(one: Try) -> None:
    libc.madvise(one.address, LENGTH, MADV_PAGEOUT)


@row("MADV_PAGEOUT, MADV_COLLAPSE, `mlock`, `mprotect(PROT_READ)`", plain, restored, memfd)
def _(one: Try) -> None:
    with contextlib.suppress(OSError):  # where it is protected, the kernel may refuse
        libc.madvise(one.memory.address, SIZE, MADV_COLLAPSE)


@row("MADV_PAGEOUT, MADV_COLLAPSE, `mlock`, `mprotect(PROT_READ)`", plain, restored)
def _(one: Try) -> None:
    libc.mlock(one.address, LENGTH)
    libc.munlock(one.address, LENGTH)
    protect(one.address, LENGTH, mmap.PROT_READ)


@row("KSM (MADV_MERGEABLE)")
def _(one: Try) -> None:
    libc.madvise(one.memory.address, SIZE, mmap.MADV_MERGEABLE)
    with contextlib.suppress(OSError):
        if Path("/sys/kernel/mm/ksm/run").read_text().strip() == "1":
            time.sleep(1)  # it merges when it likes to


REFUSED = "`munmap`, `mmap(MAP_FIXED)`, `mremap` of a part"


@row(REFUSED, plain, restored, memfd)
def _(one: Try) -> None:
    unmap(one.address, LENGTH)


@row(REFUSED, plain, restored, memfd)
def _(one: Try) -> None:
    map_over(one.address, LENGTH)


@row(REFUSED, plain, restored, memfd)
def _(one: Try) -> None:
    """Away, and back."""
    with mmap.mmap(-1, LENGTH) as elsewhere:
        there = ctypes.addressof(ctypes.c_char.from_buffer(elsewhere))
        gc.collect()
        move(one.address, LENGTH, there)
        move(there, LENGTH, one.address)
        map_over(there, LENGTH)  # for the mapping's own end


@row("`mprotect(PROT_NONE)` of a part", plain, restored, memfd)
def _(one: Try) -> None:
    protect(one.address, LENGTH, 0)


@row("a file that was cut shorter than its mapping", memfd, shm, a_file, private_file)
def _(one: Try) -> None:
    assert one.fd is not None
    os.ftruncate(one.fd, AT)


def test_both_pages_have_the_same_table() -> None:
    assert table("memory.md") == table("snapshots.md")


def test_every_row_has_an_experiment_and_every_experiment_a_row() -> None:
    assert EXPERIMENTS.keys() == seen().keys()


CASES = [
    pytest.param(name, where, act, id=f"{name}-{n}")
    for name, experiments in EXPERIMENTS.items()
    for n, (where, act) in enumerate(experiments)
]


@pytest.mark.parametrize(("name", "where", "act"), CASES)
def test_row(
    name: str,
    where: Callable[[], contextlib.AbstractContextManager[Try]],
    act: Act,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = seen()[name]
    if expected == "no":
        monkeypatch.setattr(unseen, "RECENT_S", -1.0)  # the ring that the experiment has open does not help
    with where() as one, one.memory.track() as changes:
        precopy.snapshot(one.memory, tmp_path)
        changes.sync()
        before = b"" if expected == "refused" else bytes(one.part)
        act(one)
        if expected == "refused":
            with pytest.raises(MappingChanged):
                changes.sync()
            with pytest.raises(MappingChanged):
                precopy.snapshot(one.memory, tmp_path)
            return
        found = set(changes.sync().indexes)
        assert (bytes(one.part) == before) == (expected == "no write")
        if expected == "yes":
            assert set(range(FIRST, FIRST + COUNT)) <= found
        elif expected == "no":
            if found:
                pytest.skip("this kernel notices it: the table is on the safe side")
            precopy.snapshot(one.memory, tmp_path)
            assert not same(precopy.restore(tmp_path), one.memory)
            one.memory.touched(AT, LENGTH)
            assert set(changes.sync().indexes) == set(range(FIRST, FIRST + COUNT))
        precopy.snapshot(one.memory, tmp_path)
        assert same(precopy.restore(tmp_path), one.memory)
