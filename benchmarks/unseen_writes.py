"""What it costs to look for writes that the kernel does not notice: for docs/adr/0022-unseen-writes.md.

A sync that finds one page, of each kind of memory, with these checks and without them; what is checked are mappings,
files, residency, private copies, and the process's descriptors. Then with many descriptors, and with one of O_DIRECT,
which has what was found before found again.

    python benchmarks/unseen_writes.py [MiB]
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np

import precopy
from precopy import Memory
from precopy.abi import direct_io
from precopy.trackers import holes, pagemap
from precopy.trackers.unseen import RECENT_S

SYNCS = 200
DESCRIPTORS = (0, 100, 1000)


def private(size: int) -> Memory:
    return Memory(size)


def small_pages(size: int) -> Memory:
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    return Memory.adopt(mapping)


def anonymous_shared(size: int) -> Memory:
    return adopted(mmap.mmap(-1, size))


def shared_memory(size: int) -> Memory:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(size)
        return adopted(mmap.mmap(file.fileno(), size))


def restored(size: int) -> Memory:
    with tempfile.TemporaryDirectory() as where:
        memory = Memory(size)
        np.frombuffer(memory, np.uint8)[::4096] = 1
        precopy.snapshot(memory, where)
        return precopy.restore(where)


def adopted(mapping: mmap.mmap) -> Memory:
    return Memory.adopt(mapping, writers="this process")


@contextlib.contextmanager
def without_looks() -> Iterator[None]:
    with (
        mock.patch.object(pagemap, "check_mapped", return_value=[]),
        mock.patch.object(holes.Holes, "check"),
        mock.patch.object(holes.Holes, "look"),
        mock.patch.object(direct_io, "_direct", return_value=False),
        mock.patch.object(os, "listdir", return_value=[]),
    ):
        yield


def syncs(memory: Memory) -> float:
    """Seconds of a sync, the median; 1 page was written before each."""
    page = np.frombuffer(memory, np.uint8)[:4096]
    took = []
    with memory.track() as changes:
        changes.sync()
        for _ in range(SYNCS):
            page[0] ^= 1
            took.append(changes.sync().seconds)
    return statistics.median(took)


def compared(memory: Memory) -> tuple[float, float]:
    """Without and with the checks, in turns."""
    plain, looked = [], []
    for _ in range(3):
        with without_looks():
            plain.append(syncs(memory))
        looked.append(syncs(memory))
    return min(plain), min(looked)


def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 1024) << 20
    print(f"{size >> 20} MiB, Linux {platform.release()}; medians of {SYNCS} syncs, in microseconds")
    print("memory                    without looks   with them   ratio")
    kinds: dict[str, Callable[[int], Memory]] = {
        "Memory (huge pages)": private,
        "Memory (small pages)": small_pages,
        "anonymous shared": anonymous_shared,
        "SharedMemory": shared_memory,
        "restored, all rewritten": restored,
    }
    for name, make in kinds.items():
        memory = make(size)
        np.frombuffer(memory, np.uint8)[::4096] = 2
        plain, looked = compared(memory)
        print(f"{name:23} {1e6 * plain:13.1f} {1e6 * looked:13.1f} {looked / plain:7.2f}", flush=True)
        memory.close()
        del memory
    print("\nMemory (huge pages), by descriptors that the process has open:")
    memory = private(size)
    np.frombuffer(memory, np.uint8)[::4096] = 2
    for count in DESCRIPTORS:
        with contextlib.ExitStack() as opened:
            for _ in range(count):
                opened.enter_context(socket.socket())
            print(f"{count:5} more {1e6 * syncs(memory):13.1f}", flush=True)
    with tempfile.NamedTemporaryFile(dir=".") as file:
        direct = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
        with memory.track() as changes:
            time.sleep(1.5 * RECENT_S)
            np.frombuffer(memory, np.uint8)[: size // 100 : 4096] = 3
            first, again = changes.sync(), changes.sync()
        os.close(direct)
    print(
        f"with O_DIRECT: {first.pages} pages were found in {1e6 * first.seconds:.1f}, and {again.pages} of them again "
        f"in {1e6 * again.seconds:.1f}"
    )


if __name__ == "__main__":
    main()
