"""Whether devices may write this process's memory: descriptors with which that is asked for (files with O_DIRECT,
rings of io_uring), and memory that drivers have pinned.

Source: open(2), io_uring_setup(2), proc(5).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat

_STATUS = "/proc/self/status"
_DESCRIPTORS = "/proc/self/fd"
_RING = "anon_inode:[io_uring]"


def may_be_under_way() -> bool:
    """Whether this process has such a descriptor now. A transfer that is under way has one, unless another process
    makes it or it was closed meanwhile. True where the system does not say."""
    try:
        return any(map(_direct, map(int, os.listdir(_DESCRIPTORS))))
    except OSError:
        return True


def pinned_bytes() -> int:
    """Bytes of this process's memory that drivers have pinned for good (``VmPin``), 0 where the system does not say."""
    with contextlib.suppress(OSError), open(_STATUS, encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("VmPin:"):
                return int(line.split()[1]) << 10
    return 0


def _direct(fd: int) -> bool:
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            return True
        # What has no name in any file system has no type either, and only that is worth asking for its name.
        return not stat.S_IFMT(os.fstat(fd).st_mode) and os.readlink(f"{_DESCRIPTORS}/{fd}") == _RING
    except OSError:  # closed meanwhile, like the one that the list was read from
        return False
