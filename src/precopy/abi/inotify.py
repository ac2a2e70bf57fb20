"""Being told that a file was modified other than through a mapping: written, truncated, or given holes.

Source: inotify(7). ``fallocate`` and MADV_REMOVE count as modifications of a file, stores through a mapping do not.
Files without a name (memfd, shared anonymous memory) tell of nothing but truncation since Linux 6.14.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache

from precopy.errors import KernelCallError

_MODIFY = 0x2
_EVENT = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, bytes of a name
_ROOM = 64 << 10
"""Bytes of events that one read takes; an event with a name has at most 272. What is left stays for the next read."""


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Watches files by descriptors of them. Raises `KernelCallError` where the user has too many of these already."""

    def __init__(self) -> None:
        self._fd = _checked(_libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1", "this process")

    def watch(self, fd: int, target: str) -> int:
        """Watches the file of ``fd``; returns what `modified` calls it. Raises `KernelCallError`."""
        path = f"/proc/self/fd/{fd}".encode()
        return _checked(_libc().inotify_add_watch(self._fd, path, _MODIFY), "inotify_add_watch", target)

    def modified(self) -> set[int]:
        """The files that were modified since the last call; -1 is among them where there were too many to tell."""
        found: set[int] = set()
        while True:
            try:
                events = os.read(self._fd, _ROOM)
            except BlockingIOError:
                return found
            at = 0
            while at < len(events):
                watch, _, _, name = _EVENT.unpack_from(events, at)
                found.add(watch)
                at += _EVENT.size + name

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _checked(result: int, operation: str, target: str) -> int:
    if result < 0:
        raise KernelCallError(operation, target, ctypes.get_errno())
    return result
