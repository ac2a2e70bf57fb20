"""Notices that this process maps a file, also where it is unmapped again before this process looks at the page tables.

Python says so of every mapping that is made through it (the audit event ``mmap.__new__``: mmap, numpy.memmap,
SharedMemory), just before it is made. Of mappings that C code makes by itself nothing is heard.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref

from precopy.errors import system_call

_watches: weakref.WeakSet[MappingWatch] = weakref.WeakSet()
_hooked: list[bool] = []
# A child process has copies of its parent's watches, and its mappings are none of theirs.
os.register_at_fork(after_in_child=_watches.clear)


class MappingWatch:
    """Counts how often this process was about to map the file ``inode``, of whatever device: the kernel and fstat may
    name that differently, and one time too many does no harm. ``fd`` has the count, for other processes, too; it is
    empty as long as there was none. Raises `KernelCallError`."""

    def __init__(self, inode: int) -> None:
        self.inode, self._count = inode, 0
        with system_call("memfd_create", "this process"):
            self.fd = os.memfd_create("precopy-mappings", os.MFD_CLOEXEC)
        if not _hooked:
            _hooked.append(True)
            sys.addaudithook(_heard)
        _watches.add(self)

    def close(self) -> None:
        """Counts no more. May be called twice."""
        _watches.discard(self)
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _another(self) -> None:
        self._count += 1
        with contextlib.suppress(OSError):
            os.pwrite(self.fd, self._count.to_bytes(8, "little"), 0)


def counted(fd: int) -> bytes:
    """The count behind such a descriptor, which is to be compared and means nothing else; another process's may be no
    count at all. Raises `OSError`."""
    return os.pread(fd, 8, 0)


def _heard(event: str, arguments: tuple[object, ...]) -> None:
    if event != "mmap.__new__" or not _watches:
        return
    fd = arguments[0]
    if isinstance(fd, int) and fd >= 0:
        with contextlib.suppress(OSError):
            inode = os.fstat(fd).st_ino
            for watch in tuple(_watches):
                if watch.inode == inode:
                    watch._another()
