"""A program's memory as the engine reads it, which does not read what was never written.

Reading a page that was never touched gives zeros, takes a fault, and leaves entries in the page tables: about a second
a GiB. So before long runs are read it is asked which of their pages are there at all (mincore). What is neither in
memory nor in swap is zero where no file is behind it: in private anonymous memory and in shared memory (memfd, shm).
All else is read.

Law 1: the caller has armed the log before, as for every read. A page that is written after it was looked for is found
by the next sync.

**Swap.** A page that is in swap is not in memory, and not zero. On a machine with swap devices the answer therefore
counts only if the mappings have nothing in swap, and if nothing was read back from swap since before mincore was
asked: then nothing was in swap when it was asked, either.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from precopy.abi.residency import Mapped, mappings, resident, swap_devices, swapped_in
from precopy.bitmap import NO_RUNS, Runs
from precopy.errors import KernelCallError
from precopy.memory import GuestMemory
from precopy.units import PAGE_SIZE, HostAddress

LONG_RUN = 512
"""Pages of a run (2 MiB) from which on the kernel is asked which of them are present. Shorter runs are read without
asking: they come from writes of single pages, which are present."""
_AT_ONCE = 1 << 20
"""Pages (4 GiB) that are asked for in one call."""
_WORTH_A_WALK = 1 << 16
"""Pages (256 MiB) from which on, on a machine with swap, skipping absent pages saves more than the kernel's walk over
all page tables costs."""


class ProcessMemory(GuestMemory):
    """`GuestMemory` over memory of this process."""

    def split_zero(self, runs: Runs) -> tuple[Runs, Runs]:
        host = self.hosts[0]  # a program's memory has one block, which begins at page 0
        long = runs.lengths >= LONG_RUN
        if not long.any():
            return super().split_zero(runs)
        untouched = never_written(host.address, Runs(runs.starts[long], runs.lengths[long]))
        if not len(untouched):
            return super().split_zero(runs)
        content, zero = NO_RUNS, NO_RUNS
        rest = _without(runs, untouched)
        if len(rest):
            content, zero = super().split_zero(rest)
        return content, _ascending(Runs.concatenate([zero, untouched]))


def never_written(address: HostAddress, runs: Runs) -> Runs:
    """Pages of ``runs``, counted from ``address``, that are zero for certain, because they are nowhere. Reads none."""
    try:
        return _nowhere(int(address), runs)
    except (KernelCallError, OSError, ValueError):  # what the system does not say is read
        return NO_RUNS


def _nowhere(address: int, runs: Runs) -> Runs:
    devices = swap_devices()
    swap = devices != 0
    before = swapped_in() if swap else None
    if swap and (before is None or runs.pages < _WORTH_A_WALK):
        return NO_RUNS
    absent = _absent(address, runs)
    if not len(absent):
        return NO_RUNS
    first, last = int(absent.starts[0]), int(absent.ends[-1])
    there = mappings(address + first * PAGE_SIZE, address + last * PAGE_SIZE, swapped=swap)
    if swap_devices() != devices or (swap and swapped_in() != before):
        return NO_RUNS
    return _common(absent, _zeros(there, address, first, last))


def _absent(address: int, runs: Runs) -> Runs:
    """Pages that are not in memory."""
    parts: list[Runs] = []
    for start, length in runs:
        for at in range(start, start + length, _AT_ONCE):
            pages = min(_AT_ONCE, start + length - at)
            there = resident(address + at * PAGE_SIZE, pages)
            parts.append(_runs_of(~there).shifted(at))
    return _ascending(Runs.concatenate(parts))


def _runs_of(mask: npt.NDArray[np.bool_]) -> Runs:
    """The runs of true elements: of few runs, many times faster than from the indexes of all."""
    edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    edges = np.concatenate(([0] if mask[0] else [], edges, [mask.size] if mask[-1] else [])).astype(np.int64)
    return Runs(edges[::2], edges[1::2] - edges[::2])


def _zeros(there: list[Mapped], address: int, first: int, last: int) -> Runs:
    """The pages from ``first`` to ``last`` whose mappings are zero where they have nothing."""
    good = [mapping for mapping in there if mapping.zeros and not mapping.swapped]
    bounds = [((mapping.start - address) // PAGE_SIZE, (mapping.end - address) // PAGE_SIZE) for mapping in good]
    return Runs.of(*((max(lo, first), min(hi, last) - max(lo, first)) for lo, hi in bounds))


def _common(one: Runs, other: Runs) -> Runs:
    """What is in both."""
    if not len(one) or not len(other):
        return NO_RUNS
    lo = np.searchsorted(other.ends, one.starts, side="right")
    pairs = Runs(lo, np.maximum(np.searchsorted(other.starts, one.ends) - lo, 0))
    mine, its = np.repeat(np.arange(len(one)), pairs.lengths), pairs.indexes()
    starts = np.maximum(one.starts[mine], other.starts[its])
    lengths = np.minimum(one.ends[mine], other.ends[its]) - starts
    return Runs(starts[lengths > 0], lengths[lengths > 0])


def _without(runs: Runs, gone: Runs) -> Runs:
    """``runs`` without ``gone``, all of which are in them."""
    ends = gone.ends
    starts = np.concatenate(([0], ends))
    return _common(runs, Runs(starts, np.concatenate((gone.starts, [int(runs.ends[-1])])) - starts))


def _ascending(runs: Runs) -> Runs:
    order = np.argsort(runs.starts, kind="stable")
    return Runs(runs.starts[order], runs.lengths[order]).merged(0)
