"""Taking a vhost log atomically: instructions of our own against libatomic, called for each word that has a bit.

The log is that of a guest with 256 GiB: 8 MiB, of which no word, or one in 1000 to 1 words, has a bit. Median of 15.

Run: .venv/bin/python benchmarks/atomic_exchange.py
"""

from __future__ import annotations

import ctypes
import ctypes.util
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from precopy.abi.atomic import exchange_words, set_bits

Words = npt.NDArray[np.uint64]

WORDS, REPEATS = 1 << 20, 15
EVERY = (None, 1000, 100, 10, 1)
_SEQ_CST = 5


def main() -> None:
    name = ctypes.util.find_library("atomic")
    if name is None:
        sys.exit("libatomic is not installed")
    exchange_8 = ctypes.CDLL(name).__atomic_exchange_8
    exchange_8.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int)
    exchange_8.restype = ctypes.c_uint64

    def libatomic(source: Words, dest: Words) -> None:
        address = source.__array_interface__["data"][0]
        index = np.flatnonzero(source)
        taken = [exchange_8(address + 8 * at, 0, _SEQ_CST) for at in index.tolist()]
        dest[index] |= np.array(taken, np.uint64)

    def own(source: Words, dest: Words) -> None:
        exchange_words(source, dest)

    start = time.perf_counter()
    set_bits(np.zeros(1, np.uint64), 0)
    print(f"assembling them, once a process: {1e3 * (time.perf_counter() - start):.1f} ms\n")
    print("one word in   own ms   libatomic ms   ratio")
    for every in EVERY:
        ours, theirs = (1e3 * measured(take, every) for take in (own, libatomic))
        print(f"{every or 'none':>11}   {ours:6.3f}   {theirs:12.3f}   {theirs / ours:5.1f}")


def measured(take: Callable[[Words, Words], None], every: int | None) -> float:
    """Seconds to take a log of which one word in ``every`` has a bit (None: none has)."""
    source, dest = np.zeros(WORDS, np.uint64), np.zeros(WORDS, np.uint64)
    dest |= np.uint64(0)  # touched
    samples = []
    for _ in range(REPEATS):
        if every is not None:
            source[::every] = 1 << 40
        start = time.perf_counter()
        take(source, dest)
        samples.append(time.perf_counter() - start)
        assert not source.any()
    return statistics.median(samples)


if __name__ == "__main__":
    main()
