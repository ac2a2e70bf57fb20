"""Programs whose memory is replicated, and what must be true of its copies.

As a script: the primary of a replication, to be killed: ``replicas.py ADDRESS SIZE INTERVAL``. It says ``ready`` when
the standby has its first point.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt

import precopy
from precopy import Memory, Replication, Standby
from precopy.units import PAGE_SIZE

MIB = 1 << 20
WORDS = PAGE_SIZE // 8


def words(memory: Memory) -> npt.NDArray[np.uint64]:
    """All of it."""
    return np.frombuffer(memory, np.uint64)


def same(one: Memory, other: Memory) -> bool:
    """Byte for byte."""
    return one.size == other.size and np.array_equal(words(one), words(other))


def filled(size: int, seed: int = 0) -> Memory:
    """A memory of which one page in four is zero and all others are random."""
    memory = Memory(size)
    pages = words(memory).reshape(-1, WORDS)
    rng = np.random.default_rng(seed)
    for lo in range(0, len(pages), 1024):
        part = pages[lo : lo + 1024]
        part[:] = rng.integers(0, 1 << 63, part.shape, np.uint64)
        part[rng.random(len(part)) < 0.25] = 0
    return memory


class Writers:
    """Threads that write random words of random pages, and zero whole pages, from entering to `stop`."""

    def __init__(
        self,
        memory: Memory,
        threads: int = 2,
        *,
        lock: AbstractContextManager[object] | None = None,
        pause: float = 0.0005,
    ) -> None:
        self._pages = words(memory).reshape(-1, WORDS)
        self._lock, self._pause = lock or contextlib.nullcontext(), pause
        self._stop = threading.Event()
        self.writes = 0
        self._threads = [threading.Thread(target=self._write, args=(seed,), daemon=True) for seed in range(threads)]

    def _write(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self._stop.is_set():
            with self._lock:
                pages = rng.integers(0, len(self._pages), 50)
                self._pages[pages, rng.integers(0, WORDS, 50)] = rng.integers(0, 1 << 63, 50, np.uint64)
                self._pages[int(pages[0])] = 0
                self.writes += 1
            time.sleep(self._pause)

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Returns when none of them writes any more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Steps:
    """A program whose every step writes pages all over its memory: its state is a function of how many it made.

    Word 0 of the first and of the last page count steps, so that they are equal whenever nobody is inside a step. Each
    step writes three pages in between.
    """

    def __init__(self, memory: Memory) -> None:
        self._pages = words(memory).reshape(-1, WORDS)

    @property
    def made(self) -> int:
        return int(self._pages[0, 0])

    def step(self) -> None:
        number = self.made + 1
        self._pages[0, 0] = number
        for page, word, value in self._writes(number):
            self._pages[page, word : word + 8] = value
        self._pages[-1, 0] = number

    def _writes(self, number: int) -> Iterator[tuple[int, int, int]]:
        for which in range(3):
            mixed = (number * 3 + which) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
            # One value in eight is a zero, which may make a page all zero again.
            yield 1 + mixed % (len(self._pages) - 2), (mixed >> 40) % (WORDS // 8) * 8, mixed if mixed >> 61 else 0

    def consistent(self) -> bool:
        """Whether the memory is what its own count of steps says, byte for byte."""
        replay = Memory(self._pages.size * 8)
        steps = Steps(replay)
        for _ in range(self.made):
            steps.step()
        return np.array_equal(self._pages, steps._pages)


@contextlib.contextmanager
def stepping(
    memory: Memory, lock: AbstractContextManager[object] | None = None, pause: float = 0.0
) -> Iterator[threading.Event]:
    """A thread that makes `Steps`, each with the lock held; set the event to stop it."""
    steps, stop = Steps(memory), threading.Event()

    def run() -> None:
        while not stop.is_set():
            with lock or contextlib.nullcontext():
                steps.step()
            time.sleep(pause)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def replicated(
    memory: Memory, address: str = "tcp:127.0.0.1:0", **options: object
) -> Iterator[tuple[Standby, Replication]]:
    """A standby in this process, and the replication of ``memory`` to it."""
    with (
        Standby(address) as standby,
        precopy.replicate(memory, standby.address, **options) as handle,  # type: ignore[arg-type]
    ):
        yield standby, handle


def main(address: str, size: str, interval: str) -> None:
    memory, lock = Memory(int(size)), threading.Lock()
    handle = precopy.replicate(memory, address, interval=float(interval), lock=lock)
    with stepping(memory, lock, 0.0001):
        handle.wait()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        time.sleep(600)  # it is killed long before


if __name__ == "__main__":
    main(*sys.argv[1:])
