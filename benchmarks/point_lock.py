"""How long a program's lock is held for a point: for docs/adr/0014-points.md.

For each number of pages written between two points: under the lock, sync and copy all of them; or sync and copy them
before, without the lock, and under it only what was written in the meantime (here: 64 of these pages).

    python benchmarks/point_lock.py [MiB]
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np

from precopy import Memory, Standby
from precopy.ports import SystemClock
from precopy.replication.primary import Primary
from precopy.transport import connect, parse_address

POINTS, WARM_UP, MEANWHILE = 24, 4, 64


def measure(size: int, pages: int) -> tuple[dict[bool, list[float]], list[float]]:
    """Seconds that the lock is held, by whether pages were staged before; and seconds that sending takes."""
    memory = Memory(size)
    words = np.frombuffer(memory, np.uint64).reshape(-1, 512)
    words[:] = 1
    chance = np.random.default_rng(0)
    held: dict[bool, list[float]] = {False: [], True: []}
    sent = []
    with Standby("tcp:127.0.0.1:0") as standby:
        stream = connect(parse_address(standby.address), 10)
        primary = Primary(memory, stream, max_bandwidth=None, clock=SystemClock(), tick=lambda: None)
        primary.greet()
        primary.last_point()
        for number in range(POINTS):
            before = bool(number % 2)
            written = chance.choice(len(words), pages, replace=False)
            words[written, 0] += np.uint64(1)
            if before:
                primary.points.copy()
                words[written[:MEANWHILE], 1] += np.uint64(1)
            began = time.perf_counter()
            primary.points.copy()
            primary.points.seal()
            taken = time.perf_counter()
            primary.points.send()
            if number >= WARM_UP:
                held[before].append(taken - began)
                sent.append(time.perf_counter() - taken)
        primary.stop("measured")
    return held, sent


def main() -> None:
    size = int(sys.argv[1] if len(sys.argv) > 1 else 1024) << 20
    print(f"{size >> 20} MiB; medians (and largest) of {(POINTS - WARM_UP) // 2} points, in ms")
    print("pages       all under the lock   staged before, then the lock   sending")
    for pages in (64, 1024, 4096, 16384, 65536):
        held, sent = measure(size, pages)
        cells = [f"{1e3 * statistics.median(held[how]):7.2f} ({1e3 * max(held[how]):.2f})" for how in (False, True)]
        print(f"{pages:6}   {cells[0]:>21}   {cells[1]:>28}   {1e3 * statistics.median(sent):7.1f}")


if __name__ == "__main__":
    main()
