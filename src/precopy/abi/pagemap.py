"""PAGEMAP_SCAN on Linux: its structures and request (include/uapi/linux/fs.h).

One call walks a range of a process's page tables, returns the ranges of pages of wanted categories, and write-protects
them in the same step where asked to. Source: Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_uint64

import numpy as np
import numpy.typing as npt

from precopy.abi.ioctl import iowr
from precopy.errors import Unsupported, raise_without_descriptor

PAGEMAP = "/proc/self/pagemap"

PAGE_IS_WPALLOWED = 1 << 0
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_FILE = 1 << 2
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4
PAGE_IS_PFNZERO = 1 << 5
PAGE_IS_HUGE = 1 << 6

PM_SCAN_WP_MATCHING = 1 << 0
"""Write-protects the pages that are returned, in the same step."""
PM_SCAN_CHECK_WPASYNC = 1 << 1
"""Fails (EPERM) where a mapping is not registered for asynchronous write protection, instead of leaving it out."""


class PmScanArg(ctypes.Structure):
    """``struct pm_scan_arg``: addresses in bytes; ``vec_len`` in regions; ``walk_end`` is where the walk stopped."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages",
            "category_inverted", "category_mask", "category_anyof_mask", "return_mask",
        )
    )  # fmt: skip


PAGE_REGION = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])
"""``struct page_region``: the addresses ``[start, end)``, whose pages all have ``categories``."""

PageRegions = npt.NDArray[np.void]

PAGEMAP_SCAN = iowr("PAGEMAP_SCAN", ord("f"), 16, PmScanArg)


def open_pagemap() -> int:
    """This process's page map. Raises `Unsupported`, `KernelCallError`."""
    try:
        return os.open(PAGEMAP, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise_without_descriptor("open", PAGEMAP, error)
        raise Unsupported(f"{PAGEMAP} cannot be opened ({error.strerror})", "mount /proc") from error


def scan_argument(regions: PageRegions, category: int, flags: int = 0) -> PmScanArg:
    """An argument that looks for pages of ``category`` and has the kernel fill ``regions``, which must outlive it;
    ``start`` and ``end`` are still to be set."""
    return PmScanArg(
        size=ctypes.sizeof(PmScanArg),
        flags=flags,
        vec=regions.__array_interface__["data"][0],
        vec_len=regions.size,
        # Exactly this combination is the kernel's fastest: one category, asked for and returned.
        category_anyof_mask=category,
        return_mask=category,
    )
