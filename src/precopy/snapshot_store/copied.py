"""Which pages of a restored memory were written, before anything tracked them.

A restored page is the snapshot's file, or nothing at all, until it is written: then the kernel has to give this process
a copy, and says in its page map that there is one (PAGEMAP_SCAN). So restoring starts no tracker, which for large
memory would take longer than all the rest, and the first snapshot after it still saves only what was written.

Law 1 where tracking then begins: pages with copies are looked for, the log is started, and they are looked for again,
because some may have come between. In the second look, a page that is in swap cannot be told from an untouched one that
is protected now; so memory is left untracked only on machines without swap, and all pages count as written where this
process has any swapped out all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

import numpy as np

from precopy.abi.ioctl import call
from precopy.abi.pagemap import (
    PAGE_IS_FILE,
    PAGE_IS_PRESENT,
    PAGE_IS_SWAPPED,
    PAGE_REGION,
    PAGEMAP,
    PAGEMAP_SCAN,
    PmScanArg,
    open_pagemap,
)
from precopy.bitmap import Bitmap, Runs
from precopy.dirty import DirtyLog
from precopy.units import PAGE_SIZE

_REGIONS = 16384
"""Ranges that one scan returns (384 KiB); further ones come from the next scan."""


def start_after_restore(log: DirtyLog, address: int, pages: Bitmap) -> None:
    """Starts ``log``, and sets in ``pages`` those of the memory at ``address`` that were written since it was restored
    (and maybe some that were only read). Raises `Unsupported`, `KernelCallError`: then the log is not started."""
    _copied(address, pages, PAGE_IS_PRESENT | PAGE_IS_SWAPPED)
    log.start()
    try:
        _copied(address, pages, PAGE_IS_PRESENT)
    except BaseException:
        log.stop()
        raise
    if _kib("/proc/self/status", "VmSwap:") != 0:
        pages.set_all()


def _copied(address: int, into: Bitmap, categories: int) -> None:
    """Sets the pages that this process has copies of: those in one of ``categories`` that are no file's."""
    regions = np.empty(_REGIONS, PAGE_REGION)
    at, end = address, address + into.size * PAGE_SIZE
    fd = open_pagemap()
    try:
        while at < end:
            argument = PmScanArg(
                size=ctypes.sizeof(PmScanArg),
                start=at,
                end=end,
                vec=regions.__array_interface__["data"][0],
                vec_len=regions.size,
                category_inverted=PAGE_IS_FILE,
                category_mask=PAGE_IS_FILE,
                category_anyof_mask=categories,
                return_mask=PAGE_IS_FILE,
            )
            found = regions[: call(fd, PAGEMAP_SCAN, argument, target=PAGEMAP)]
            starts = (found["start"].astype(np.int64) - address) // PAGE_SIZE
            into.set_runs(Runs(starts, (found["end"].astype(np.int64) - address) // PAGE_SIZE - starts))
            at = argument.walk_end
    finally:
        os.close(fd)


def _kib(path: str, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as lines:
        for line in lines:
            if line.startswith(name):
                return int(line.split()[1])
    return None
