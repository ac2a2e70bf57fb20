"""Shared memory that several processes write: tracked, replicated and saved exactly, however they start and end."""

from __future__ import annotations

import contextlib
import gc
import mmap
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import precopy
from precopy import Memory, Standby
from precopy.errors import UsageError
from precopy.machines.process.rendezvous import address_of
from precopy.machines.process.sharing import shared_pages
from precopy.units import PAGE_SIZE
from support import sharing
from support.live_guests import until
from support.patience import IN_TIME_S
from support.replicas import MIB, words

pytestmark = [pytest.mark.needs("pagemap")]

METHODS = ["fork", "spawn"]
SIZE = 4 * MIB


@pytest.fixture(autouse=True)
def adopted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test adopts and leaves open, because it failed, does not fail the next one."""
    memories: list[Memory] = []
    adopt = Memory.adopt.__func__  # type: ignore[attr-defined]

    def remember(cls: type[Memory], *args: Any, **options: Any) -> Memory:
        memories.append(adopt(cls, *args, **options))
        return memories[-1]

    monkeypatch.setattr(Memory, "adopt", classmethod(remember))
    yield
    for memory in memories:
        memory.close()


@pytest.fixture
def shared() -> Iterator[shared_memory.SharedMemory]:
    shared = shared_memory.SharedMemory(create=True, size=SIZE)
    yield shared
    shared.unlink()
    gc.collect()
    try:
        shared.close()
    except BufferError:  # the frames of a test that failed hold views, and its second try would be one more warning
        shared._mmap = None  # type: ignore[attr-defined]


def mapped(name: str) -> mmap.mmap:
    with open(f"/dev/shm/{name}", "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def memfd() -> mmap.mmap:
    fd = os.memfd_create("test")
    os.ftruncate(fd, SIZE)
    mapping = mmap.mmap(fd, SIZE)
    os.close(fd)
    return mapping


def pages_of(memory: Memory) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return words(memory).reshape(-1, PAGE_SIZE // 8)


class Replica:
    """What a consumer has that reads a page when it is told of it, and at no other time."""

    def __init__(self, memory: Memory, changes: precopy.Changes) -> None:
        self._pages, self._changes = pages_of(memory), changes
        if changes.content is not None:
            self._pages = np.frombuffer(changes.content, np.uint64).reshape(self._pages.shape)
        self.copy = self._pages.copy()
        self.live = pages_of(memory)

    def sync(self) -> int:
        found = self._changes.sync().indexes
        self.copy[found] = self._pages[found]
        return len(found)

    @property
    def exact(self) -> bool:
        return np.array_equal(self.copy, self.live)


class TestWhoWrites:
    def test_shared_memory_asks_for_its_writers(self, shared: shared_memory.SharedMemory) -> None:
        for buffer in (shared, shared.buf, np.frombuffer(shared.buf, np.uint8), mapped(shared.name), memfd()):
            with pytest.raises(UsageError, match="this memory is shared") as said:
                Memory.adopt(buffer)
            for way in ('writers="this process"', 'writers="attached"', "precopy.attach", 'writers="any"'):
                assert way in str(said.value)
            assert "\n" not in str(said.value)

    @pytest.mark.parametrize("lives", [True, False])
    def test_anonymous_memory_needs_a_word_once_a_child_has_it(self, lives: bool) -> None:
        mapping = mmap.mmap(-1, SIZE)
        memory = Memory.adopt(mapping)
        with memory.track() as changes:
            replica = Replica(memory, changes)
            memory[0] = 1
            assert replica.sync() == 1
            child = os.fork()
            if not child:
                mapping[5 * PAGE_SIZE] = 5
                if not lives:
                    os._exit(0)
                time.sleep(60)
            try:
                if lives:
                    until(lambda: bool(mapping[5 * PAGE_SIZE] == 5))
                    for _ in range(2):
                        with pytest.raises(UsageError, match=f"process {child} has it, too"):
                            changes.sync()
                    with pytest.raises(UsageError, match=f"process {child} has it, too"):
                        Memory.adopt(mapping)
                else:
                    os.waitpid(child, 0)
                    replica.sync()
                    assert replica.exact
                    until(lambda: replica.sync() == 0)
            finally:
                if lives:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)

    def test_private_memory_needs_no_word(self) -> None:
        mapping = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        assert Memory.adopt(mapping).size == SIZE
        assert Memory.adopt(mapping, writers="this process").size == SIZE
        assert Memory.adopt(mapping, writers="any").by_content
        with pytest.raises(UsageError, match="is private"):
            Memory.adopt(mapping, writers="attached")
        with pytest.raises(UsageError, match="is private"):
            precopy.attach(mapping)

    def test_words_that_mean_nothing(self, shared: shared_memory.SharedMemory) -> None:
        with pytest.raises(UsageError, match="writers is one of 'this process', 'attached', 'any', not 'all'"):
            Memory.adopt(shared, writers="all")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="by is 'content', not 'kernel'"):
            Memory(4096).track(by="kernel")  # type: ignore[arg-type]

    def test_attaching_where_nobody_tracks(self, shared: shared_memory.SharedMemory) -> None:
        for target in (shared, shared.name, shared.buf):
            with pytest.raises(UsageError, match="no process of this user tracks this shared memory"):
                precopy.attach(target)
        with pytest.raises(UsageError, match="no shared memory called 'precopy-not-there'"):
            precopy.attach("precopy-not-there")
        outside = f"../../proc/self/fd/{shared._fd}"  # type: ignore[attr-defined] # a path that leads to it
        for no_name in (outside, f"./{shared.name}", f"//{shared.name}", "..", "a\0b", "x" * 256):
            with pytest.raises(UsageError, match="is no name of shared memory"):
                precopy.attach(no_name)
        link = Path("/dev/shm", f"{shared.name}-link")
        link.symlink_to(Path("/dev/shm", shared.name))
        try:
            with pytest.raises(UsageError, match="no shared memory called"):
                precopy.attach(link.name)
        finally:
            link.unlink()
        for nothing in (b"", 5, None, [1]):
            with pytest.raises(UsageError):
                precopy.attach(nothing)

    def test_one_memory_has_one_who_tracks_it(self, shared: shared_memory.SharedMemory) -> None:
        memory = Memory.adopt(shared, writers="attached")
        with pytest.raises(UsageError, match="adopted with its writers already"):
            Memory.adopt(shared, writers="attached")
        with pytest.raises(UsageError, match="this process has adopted the memory itself"):
            precopy.attach(shared)
        child = os.fork()
        if not child:
            time.sleep(60)
        try:
            memory.close()
            Memory.adopt(shared, writers="attached").close()  # a child's copies keep nothing in use
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def test_of_no_points_that_cannot_be_found(self, shared: shared_memory.SharedMemory) -> None:
        memory = Memory.adopt(shared, writers="any")
        with pytest.raises(UsageError, match="use lock= with a lock that all of them hold"):
            precopy.replicate(memory, "unix:/nowhere", interval=0.1)


@pytest.mark.parametrize("method", METHODS)
class TestTracked:
    @pytest.mark.parametrize("end", ["return", "close", "kill", "exit", "exec"])
    def test_however_a_writer_ends(self, shared: shared_memory.SharedMemory, method: str, end: str) -> None:
        context = multiprocessing.get_context(method)
        memory = Memory.adopt(shared, writers="attached")
        with memory.track() as changes:
            replica = Replica(memory, changes)
            for seed in range(2):
                before = replica.copy.copy()
                process = context.Process(target=sharing.work, args=(shared.name, seed, 50, end))
                process.start()
                process.join(IN_TIME_S)
                assert process.exitcode == (-signal.SIGKILL if end == "kill" else 0)
                found = replica.sync()
                assert replica.exact
                written = int((replica.live != before).any(axis=1).sum())
                assert written
                # Who ends in order is found to the page; what others wrote is not known, so it may be all.
                assert found == (written if end in ("return", "close") else memory.pages)
                assert replica.sync() == 0
        memory.close()

    def test_while_writers_are_there(self, shared: shared_memory.SharedMemory, method: str) -> None:
        context = multiprocessing.get_context(method)
        memory = Memory.adopt(shared, writers="attached")
        barrier = context.Barrier(3)
        with memory.track() as changes:
            replica = Replica(memory, changes)
            args = [(shared.name, seed, 100, "return", barrier) for seed in range(2)]
            processes = [context.Process(target=sharing.work, args=one) for one in args]
            for process in processes:
                process.start()
            barrier.wait(IN_TIME_S)  # both are attached
            began = time.monotonic()
            while not replica.live[:, :].any() and time.monotonic() - began < IN_TIME_S:
                replica.sync()
            pages_of(memory)[5, 5] = 1  # and this process writes, too
            for _ in range(50):
                replica.sync()
            barrier.wait(IN_TIME_S)
            for process in processes:
                process.join(IN_TIME_S)
            replica.sync()
            assert replica.exact
            assert replica.sync() == 0
        memory.close()

    @pytest.mark.parametrize("how", ["close", "terminate"])
    def test_a_pool(self, shared: shared_memory.SharedMemory, method: str, how: str) -> None:
        context = multiprocessing.get_context(method)
        memory = Memory.adopt(shared, writers="attached")
        with memory.track() as changes:
            replica = Replica(memory, changes)
            with context.Pool(2, sharing.join, (shared.name,)) as pool:
                for round_ in range(3):
                    before = replica.copy.copy()
                    pool.map(sharing.task, range(8 * round_, 8 * round_ + 8), chunksize=1)
                    assert replica.sync() == int((replica.live != before).any(axis=1).sum())
                    assert replica.exact
                pool.map(sharing.task, range(100, 108), chunksize=1)
                getattr(pool, how)()
                pool.join()
            replica.sync()
            assert replica.exact
        memory.close()

    @pytest.mark.parametrize("how", ["close", "terminate"])
    def test_a_pool_whose_tasks_map_for_themselves(
        self, shared: shared_memory.SharedMemory, method: str, how: str
    ) -> None:
        """What they map is unmapped again before anybody has looked."""
        context = multiprocessing.get_context(method)
        memory = Memory.adopt(shared, writers="attached")
        with memory.track() as changes:
            replica = Replica(memory, changes)
            with context.Pool(2, precopy.attach, (shared.name,)) as pool:
                for round_ in range(3):
                    args = [(shared.name, seed) for seed in range(8 * round_, 8 * round_ + 8)]
                    pool.starmap(sharing.passing_task, args, chunksize=1)
                    replica.sync()
                    assert replica.exact
                pool.starmap(sharing.passing_task, [(shared.name, 99)])
                getattr(pool, how)()
                pool.join()
            replica.sync()
            assert replica.exact
        memory.close()

    def test_a_pool_that_attaches_nowhere(self, shared: shared_memory.SharedMemory, method: str) -> None:
        """By content: nobody has to say anything."""
        context = multiprocessing.get_context(method)
        memory = Memory.adopt(shared, writers="any")
        with memory.track() as changes:
            replica = Replica(memory, changes)
            with context.Pool(2, sharing.join, (shared.name, False)) as pool:
                before = replica.copy.copy()
                pool.map(sharing.task, range(8), chunksize=1)
                assert replica.sync() == int((replica.live != before).any(axis=1).sum())
                assert replica.exact
                pool.close()
                pool.join()
        memory.close()


def test_a_program_of_its_own(shared: shared_memory.SharedMemory) -> None:
    memory = Memory.adopt(shared, writers="attached")
    with memory.track() as changes:
        replica = Replica(memory, changes)
        command = [sys.executable, sharing.__file__, shared.name, "3", "200"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=IN_TIME_S)
        assert not done.stderr
        assert 0 < replica.sync() <= 200
        assert replica.exact
    memory.close()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("writers", ["attached", "any"])
class TestCopies:
    """Workers that write with a lock held; one of them is killed on the way."""

    @contextlib.contextmanager
    def at_work(self, name: str, method: str, writers: str) -> Iterator[tuple[Any, Callable[[], None]]]:
        context = multiprocessing.get_context(method)
        lock, stop = context.Lock(), context.Event()
        args = [(name, lock, stop, seed, writers == "attached") for seed in range(3)]
        processes = [context.Process(target=sharing.steadily, args=one) for one in args]
        for process in processes:
            process.start()

        def end() -> None:
            stop.set()
            for process in processes:
                process.join(IN_TIME_S)

        try:
            yield lock, end
        finally:
            end()

    def test_replicated(self, shared: shared_memory.SharedMemory, method: str, writers: Any) -> None:
        memory = Memory.adopt(shared, writers=writers)
        with (
            Standby("tcp:127.0.0.1:0") as standby,
            self.at_work(shared.name, method, writers) as (lock, end),
        ):
            until(lambda: bool(words(memory)[0] > 5))
            with precopy.replicate(memory, standby.address, interval=0.05, lock=lock) as handle:
                assert handle.wait(IN_TIME_S)
                for _ in range(5):
                    point = standby.point
                    until(lambda point=point: standby.point >= point + 2)  # type: ignore[misc]
                    with standby._changed:
                        copy = words(standby.memory).copy()  # type: ignore[arg-type]
                    assert copy[0] == copy[-1] > 0  # nobody is inside a step
                with lock:
                    handle.checkpoint(wait=True)
                    assert np.array_equal(words(standby.memory), words(memory))  # type: ignore[arg-type]
                end()
                with handle.cutover():
                    pass
                assert np.array_equal(words(standby.promote()), words(memory))
        memory.close()

    def test_saved(self, shared: shared_memory.SharedMemory, method: str, writers: Any, tmp_path: Path) -> None:
        memory = Memory.adopt(shared, writers=writers)
        with self.at_work(shared.name, method, writers) as (lock, end):
            for _ in range(5):
                time.sleep(0.1)
                with lock:
                    precopy.snapshot(memory, tmp_path)
                    expected = words(memory).copy()
                with precopy.restore(tmp_path) as again:
                    assert np.array_equal(words(again), expected)
            end()
            saved = precopy.snapshot(memory, tmp_path)
            assert not saved.full
            with precopy.restore(tmp_path) as again:
                assert np.array_equal(words(again), words(memory))
        memory.close()


def test_a_writer_killed_between_two_points(shared: shared_memory.SharedMemory) -> None:
    memory = Memory.adopt(shared, writers="attached")
    with (
        Standby("tcp:127.0.0.1:0") as standby,
        precopy.replicate(memory, standby.address, interval=1e9) as handle,
    ):
        for seed in range(3):
            process = multiprocessing.get_context("fork").Process(
                target=sharing.work, args=(shared.name, seed, 50, "kill")
            )
            process.start()
            process.join(IN_TIME_S)
            handle.checkpoint(wait=True)
            assert np.array_equal(words(standby.memory), words(memory))  # type: ignore[arg-type]
        with handle.cutover():
            pass
    memory.close()


class TestMappings:
    @pytest.mark.parametrize("writers", ["this process", "attached", "any"])
    def test_another_mapping_of_this_process(self, shared: shared_memory.SharedMemory, writers: Any) -> None:
        memory = Memory.adopt(shared, writers=writers)
        before = shared_memory.SharedMemory(shared.name)
        with memory.track() as changes:
            replica = Replica(memory, changes)
            before.buf[5 * PAGE_SIZE] = 1
            assert replica.sync() == 1
            assert replica.exact
            after = shared_memory.SharedMemory(shared.name)  # when it is tracked already
            after.buf[7 * PAGE_SIZE] = 1
            assert replica.sync()
            assert replica.exact
            until(lambda: replica.sync() == 0)
            after.buf[8 * PAGE_SIZE] = 1
            assert replica.sync() == 1
            assert replica.exact
            after.buf[9 * PAGE_SIZE] = 1
            after.close()
            replica.sync()
            assert replica.exact
            passing = shared_memory.SharedMemory(shared.name)  # mapped and unmapped before anybody has looked
            passing.buf[10 * PAGE_SIZE] = 1
            passing.close()
            replica.sync()
            assert replica.exact
            until(lambda: replica.sync() == 0)
        memory.close()
        before.close()

    @pytest.mark.parametrize("writers", ["this process", "attached"])
    def test_a_part_of_it(self, shared: shared_memory.SharedMemory, writers: Any) -> None:
        """Other mappings may show more of the file, or less, or from elsewhere on."""
        part = np.frombuffer(shared.buf, np.uint8)[3 * PAGE_SIZE : 103 * PAGE_SIZE]
        memory = Memory.adopt(part, writers=writers)
        with open(f"/dev/shm/{shared.name}", "r+b") as file:
            other = mmap.mmap(file.fileno(), 50 * PAGE_SIZE, offset=64 * PAGE_SIZE)
        with memory.track() as changes:
            replica = Replica(memory, changes)
            shared.buf[2 * PAGE_SIZE] = shared.buf[103 * PAGE_SIZE] = 1  # not of this memory
            assert replica.sync() == 0
            shared.buf[3 * PAGE_SIZE] = shared.buf[102 * PAGE_SIZE] = 1
            other[0] = other[49 * PAGE_SIZE] = 1  # of which the second is outside
            assert changes.sync().indexes.tolist() == [0, 61, 99]
        memory.close()
        other.close()
        if writers == "attached":
            self._from_a_child(shared)

    def _from_a_child(self, shared: shared_memory.SharedMemory) -> None:
        part = np.frombuffer(shared.buf, np.uint8)[3 * PAGE_SIZE : 103 * PAGE_SIZE]
        memory = Memory.adopt(part, writers="attached")
        with memory.track() as changes:
            child = os.fork()
            if not child:
                code = 1
                with contextlib.suppress(BaseException), precopy.attach(shared):
                    shared.buf[2 * PAGE_SIZE] = 2
                    shared.buf[3 * PAGE_SIZE] = 2
                    shared.buf[102 * PAGE_SIZE] = 2
                    shared.buf[103 * PAGE_SIZE] = 2
                    code = 0
                os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
            assert changes.sync().indexes.tolist() == [0, 99]
        memory.close()

    def test_anonymous_memory_of_parent_and_child(self) -> None:
        mapping = mmap.mmap(-1, SIZE)
        memory = Memory.adopt(mapping, writers="attached")
        with memory.track() as changes:
            replica = Replica(memory, changes)
            child = os.fork()
            if not child:
                code = 1
                with contextlib.suppress(BaseException), precopy.attach(mapping):
                    mapping[9 * PAGE_SIZE] = 9
                    code = 0
                os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
            assert replica.sync() == 1
            assert replica.exact
        memory.close()

    def test_private_pieces_in_a_shared_mapping(self, shared: shared_memory.SharedMemory) -> None:
        from precopy.abi.mapping import map_zeros

        address = int(np.frombuffer(shared.buf, np.uint8).__array_interface__["data"][0])
        map_zeros(address + 16 * PAGE_SIZE, PAGE_SIZE, "a page")
        with pytest.raises(UsageError, match="made up of several mappings"):
            Memory.adopt(shared, writers="this process")


class TestTheDoor:
    def test_who_sends_nonsense_is_dropped(self, shared: shared_memory.SharedMemory) -> None:
        memory = Memory.adopt(shared, writers="attached")
        pages = shared_pages(memory.address, memory.size)
        assert pages is not None
        with memory.track() as changes:
            replica = Replica(memory, changes)
            before = len(os.listdir("/proc/self/fd"))
            peers = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(5)]
            for peer in peers:
                peer.connect(address_of(pages.file))
            peers[0].close()
            peers[1].send(b"precopy writer 1")
            peers[2].send(b"x" * 1000)
            with open("/dev/null", encoding="ascii") as null:
                socket.send_fds(peers[3], [b"precopy writer 1"], [null.fileno()] * 2)
                assert replica.sync() == 0
                liar = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                liar.connect(address_of(pages.file))
                socket.send_fds(liar, [b"precopy writer 1"], [null.fileno()] * 4)
            assert replica.sync() == memory.pages  # it may have been somebody
            liar.close()
            for peer in peers:  # of which the last has said nothing yet
                peer.close()
            assert replica.sync() == 0
            assert len(os.listdir("/proc/self/fd")) <= before
        memory.close()

    @pytest.mark.parametrize("said", [b"\0" * 15, b"\xff" * 160, b"\xff" * (1 << 20)], ids=len)
    def test_last_words_that_cannot_be_are_all_pages(self, shared: shared_memory.SharedMemory, said: bytes) -> None:
        """And whatever is in the table, nothing outside the memory is touched."""
        memory = Memory.adopt(shared, writers="attached")
        with memory.track() as changes:
            child = os.fork()
            if not child:
                attachment = precopy.attach(shared)
                shared.buf[PAGE_SIZE] = 1
                table = os.memfd_create("table")
                os.write(table, said)
                assert attachment._connection is not None
                socket.send_fds(attachment._connection._socket, [b"precopy bye 1"], [table])
                os._exit(0)
            os.waitpid(child, 0)
            found = changes.sync()
            assert found.mask[1]
            assert found.found.size == memory.pages
        memory.close()

    def test_attaching_twice_is_attaching_once_and_again_after_the_tracker_went(
        self, shared: shared_memory.SharedMemory
    ) -> None:
        """Where the one that tracks is another process, which is replaced."""
        program = (
            "import sys, precopy; from multiprocessing import resource_tracker as r, shared_memory as s; "
            "r.register = lambda *_: None; m = precopy.Memory.adopt(s.SharedMemory(sys.argv[1]), writers='attached');\n"
            "with m.track() as changes:\n"
            "    print('ready', flush=True)\n"
            "    for _ in sys.stdin: print(changes.sync().indexes.tolist(), flush=True)\n"
        )

        @contextlib.contextmanager
        def tracker() -> Iterator[Callable[[], str]]:
            command = [sys.executable, "-c", program, shared.name]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"

                def sync() -> str:
                    assert process.stdin is not None
                    assert process.stdout is not None
                    process.stdin.write("\n")
                    process.stdin.flush()
                    return process.stdout.readline().strip()

                yield sync
                process.kill()

        with tracker() as sync:
            attachment = precopy.attach(shared)
            assert precopy.attach(shared.name) is attachment
            assert attachment.alive
            assert "attached" in repr(attachment)
            shared.buf[3 * PAGE_SIZE] = 1
            assert sync() == "[3]"
            assert sync() == "[]"
        until(lambda: not attachment.alive)
        assert "nobody tracks it any more" in repr(attachment)
        with tracker() as sync, precopy.attach(shared) as second:
            assert second is not attachment
            assert "closed" in repr(attachment)
            sync()
            shared.buf[4 * PAGE_SIZE] = 1
            assert sync() == "[4]"
            shared.buf[5 * PAGE_SIZE] = 1
            second.close()
            assert sync() == "[5]"


class TestByContent:
    def test_every_memory_can_be_tracked_so(self) -> None:
        memory = Memory(SIZE)
        with memory.track(by="content") as changes, memory.track() as others:
            memory[5 * PAGE_SIZE] = 1
            assert changes.sync().indexes.tolist() == others.sync().indexes.tolist() == [5]
            memory[5 * PAGE_SIZE] = 1  # written, and the same
            assert changes.sync().pages == 0
            assert others.sync().indexes.tolist() == [5]
            assert changes.content is not None
            assert changes.content.readonly
            assert others.content is None

    @pytest.mark.parametrize("seed", range(20))
    def test_content_that_changes_back_is_never_lost(self, seed: int) -> None:
        """Whoever reads `content` has what the last sync saw, whatever the memory was in between."""
        chance = random.Random(seed)
        memory = Memory(64 * PAGE_SIZE)
        live = pages_of(memory)
        with memory.track(by="content") as changes:
            assert changes.content is not None
            content = np.frombuffer(changes.content, np.uint64).reshape(live.shape)
            copy = content.copy()
            for _ in range(200):
                match chance.choice(["flip", "sync", "sync, then flip, then read"]):
                    case "flip":
                        live[chance.randrange(64), 0] ^= np.uint64(1)
                    case "sync":
                        found = changes.sync().indexes
                        copy[found] = content[found]
                        assert np.array_equal(copy, live)
                    case _:
                        found = changes.sync().indexes
                        expected = live.copy()
                        live[chance.randrange(64), 0] ^= np.uint64(1)
                        copy[found] = content[found]
                        assert np.array_equal(copy, expected)

    def test_while_others_write(self) -> None:
        memory = Memory(SIZE)
        live, stop = pages_of(memory), threading.Event()

        def flip() -> None:
            rng = np.random.default_rng(1)
            while not stop.is_set():
                live[rng.integers(0, len(live), 100), rng.integers(0, 512, 100)] ^= np.uint64(1)

        with memory.track(by="content") as changes:
            replica = Replica(memory, changes)
            thread = threading.Thread(target=flip)
            thread.start()
            for _ in range(30):
                replica.sync()
            stop.set()
            thread.join()
            replica.sync()
            assert replica.exact
            assert replica.sync() == 0


@pytest.mark.parametrize("seed", range(6))
def test_anything_that_two_processes_do(shared: shared_memory.SharedMemory, seed: int) -> None:
    """A child that writes, maps the memory anew, unmaps it, attaches, detaches and is replaced, in any order."""
    chance = random.Random(seed)
    memory = Memory.adopt(shared, writers="attached")
    with memory.track() as changes, contextlib.ExitStack() as stack:
        replica = Replica(memory, changes)
        child: Child | None = None
        for _ in range(60):
            match chance.choice(["write", "write", "write", "map", "unmap", "sync", "end", "kill", "mine"]):
                case "mine":
                    replica.live[chance.randrange(1024), 1] += np.uint64(1)
                case "sync":
                    replica.sync()
                    assert replica.exact
                case "end" | "kill" as how if child is not None:
                    child.end(how)
                    child = None
                case what:
                    if child is None:
                        child = stack.enter_context(Child(shared.name))
                    child.do(f"{what} {chance.randrange(1024)}")
        replica.sync()
        assert replica.exact
    memory.close()


class Child:
    """A process that attaches, and then does what it is told, one thing after the other."""

    def __init__(self, name: str) -> None:
        self._ours, theirs = multiprocessing.get_context("fork").Pipe()
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(name, theirs))
        self._process.start()
        theirs.close()
        assert self._ours.recv() == "attached"

    @staticmethod
    def _run(name: str, pipe: Any) -> None:
        more: list[shared_memory.SharedMemory] = []
        with precopy.attach(name) as attached:
            pipe.send("attached")
            number = 0
            while (told := pipe.recv()) != "end":
                what, _, page = told.partition(" ")
                number += 1
                if what == "map":
                    more.append(shared_memory.SharedMemory(name))
                view = more[-1].buf if more else attached.view
                view[int(page) * PAGE_SIZE + 16] = number % 255 + 1
                if what == "unmap" and more:
                    more.pop().close()
                pipe.send(told)
        os._exit(0)

    def do(self, what: str) -> None:
        self._ours.send(what)
        assert self._ours.recv() == what

    def end(self, how: str) -> None:
        if how == "kill":
            self._process.kill()
        else:
            self._ours.send("end")
        self._process.join(IN_TIME_S)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join(IN_TIME_S)
        self._ours.close()
