"""Joining small pages to a transparent huge page: MADV_COLLAPSE (Linux 6.1). Source: madvise(2)."""

from __future__ import annotations

import ctypes
from functools import cache

HUGE_BYTES = 2 << 20
"""Bytes of a huge page of x86-64, which begins at a multiple of them."""
_MADV_COLLAPSE = 25


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def collapse(address: int) -> bool:
    """Has the kernel join the pages from ``address`` on; returns whether they are one huge page now. It is not where a
    page of them is write-protected or missing, where there is no such free memory, or where the kernel cannot do it."""
    return not _libc().madvise(ctypes.c_void_p(address), ctypes.c_size_t(HUGE_BYTES), _MADV_COLLAPSE)
