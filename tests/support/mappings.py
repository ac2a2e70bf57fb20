"""System calls on this process's mappings that Python's mmap does not have, each checked."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

MADV_DONTNEED, MADV_PAGEOUT, MADV_COLLAPSE = mmap.MADV_DONTNEED, 21, 25
_PUNCH_AND_KEEP_SIZE = 3
_MAP_FIXED = 0x10
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_FAILED = ctypes.c_void_p(-1).value


class _Libc:
    """libc's functions, which raise `OSError` where they fail."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._libc, name)
        function.restype = ctypes.c_ssize_t

        def call(*arguments: int | bytes) -> int:
            wide = [ctypes.c_ssize_t(one) if isinstance(one, int) else one for one in arguments]
            result = int(function(*wide))
            if result == -1:
                raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
            return result

        return call


libc = _Libc()


def map_over(address: int, length: int) -> None:
    """Zeros in place of what is there."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
    libc.mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)


def unmap(address: int, length: int) -> None:
    libc.munmap(address, length)


def protect(address: int, length: int, allowed: int) -> None:
    libc.mprotect(address, length, allowed)


def move(address: int, length: int, to: int) -> None:
    libc.mremap(address, length, length, _MREMAP_MAYMOVE | _MREMAP_FIXED, to)


def punch(fd: int, offset: int, length: int) -> None:
    """A hole in a file, whose size stays."""
    libc.fallocate(fd, _PUNCH_AND_KEEP_SIZE, offset, length)
