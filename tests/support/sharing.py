"""Processes that write shared memory which another has adopted, for both ways of starting them; and as a script, a
process that knows nothing of multiprocessing: ``sharing.py NAME SEED WRITES``."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import time
from multiprocessing import shared_memory
from typing import Any

import numpy as np

import precopy

if __package__:
    from .patience import IN_TIME_S
else:  # as a script
    from patience import IN_TIME_S

PAGE = 4096


def write(words: np.ndarray[Any, np.dtype[np.uint64]], seed: int, writes: int) -> None:
    """Random words of random pages."""
    rng = np.random.default_rng(seed)
    words[rng.integers(0, words.size, writes)] = rng.integers(1, 1 << 63, writes, np.uint64)


def work(name: str, seed: int, writes: int, end: str = "return", at: Any = None) -> None:
    """Attaches to the shared memory ``name``, writes, and ends: ``return``, ``close`` (detaches before), ``kill`` (is
    killed at once), ``exit`` (os._exit), or ``exec`` (becomes another program). ``at`` is a barrier."""
    shared = mapped(name)
    attachment = precopy.attach(shared)
    words = np.frombuffer(shared, np.uint64)
    if at is not None:
        at.wait(IN_TIME_S)
    write(words, seed, writes)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif end == "exit":
        os._exit(0)
    elif end == "exec":
        os.execv("/bin/true", ["true"])
    elif end == "close":
        attachment.close()
    if at is not None:
        at.wait(IN_TIME_S)
    del words


def steadily(name: str, lock: Any, stop: Any, seed: int, attach: bool) -> None:
    """Writes with the lock held until it is told to stop: all that it writes in one go is one step, counted in the
    first and the last word."""
    own = mapped(name)
    with precopy.attach(own) if attach else contextlib.nullcontext():
        words = np.frombuffer(own, np.uint64)
        rng = np.random.default_rng(seed)
        while not stop.is_set():
            with lock:
                words[0] += np.uint64(1)
                words[rng.integers(8, words.size - 8, 20)] = words[0]
                words[-1] += np.uint64(1)
            time.sleep(0.0005)
        del words


def mapped(name: str) -> mmap.mmap:
    """Python's own class has a tracker remove the memory where a program that did not make it ends."""
    with open(f"/dev/shm/{name}", "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


_pool: dict[str, Any] = {}


def join(name: str, attach: bool = True) -> None:
    """A pool's initializer."""
    _pool["shared"] = shared_memory.SharedMemory(name)
    if attach:
        precopy.attach(_pool["shared"])


def passing_task(name: str, seed: int) -> int:
    """A task that maps the memory for itself alone, and unmaps it again."""
    words = np.frombuffer(mapped(name), np.uint64)
    write(words, seed, 50)
    return os.getpid()


def task(seed: int) -> int:
    """A pool's task."""
    write(np.frombuffer(_pool["shared"].buf, np.uint64), seed, 50)
    return os.getpid()


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
