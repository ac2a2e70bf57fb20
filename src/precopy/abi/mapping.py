"""mmap(2) at addresses of our own choice, for which Python has no function: parts of one reserved range become views of
files, or zeros.

Everything here is private: what is written to such memory never reaches a file. Source: mmap(2).
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache

from precopy.errors import KernelCallError, OutOfMemory

MAP_FIXED = 0x10
MAP_NORESERVE = 0x4000
"""No memory is set aside for pages that may never be written (include/uapi/asm-generic/mman-common.h)."""

_PRIVATE = mmap.MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


@cache
def _mmap() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    )  # fmt: skip
    function.restype = ctypes.c_void_p
    return function


def reserve(size: int) -> mmap.mmap:
    """``size`` bytes of zeros, of which none takes memory before it is written. Unmapped when nothing refers to it any
    more, with all that was mapped into it. Raises `OutOfMemory` where there is no such range of addresses."""
    try:
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    except (OSError, ValueError, OverflowError) as error:
        raise OutOfMemory("the memory of a snapshot", size, None, "restore it on a larger machine") from error


def map_file(address: int, length: int, fd: int, offset: int, target: str) -> None:
    """Has ``[address, address + length)``, which the caller must own, show the file ``fd`` from ``offset`` on. All are
    multiples of the page size. Pages beyond the file's end would be fatal to touch: the caller has looked.

    Raises `KernelCallError` that names ``target``; what the range shows then is not known.
    """
    _check(_mmap()(address, length, _READ_WRITE, _PRIVATE, fd, offset), target)


def map_zeros(address: int, length: int, target: str) -> None:
    """Has ``[address, address + length)``, which the caller must own, be zeros. Raises as `map_file` does."""
    _check(_mmap()(address, length, _READ_WRITE, _PRIVATE | mmap.MAP_ANONYMOUS, -1, 0), target)


def _check(result: int | None, target: str) -> None:
    if result == _FAILED:
        raise KernelCallError("mmap", target, ctypes.get_errno())
