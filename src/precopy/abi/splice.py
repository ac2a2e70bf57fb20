"""Sending pages without copying them: vmsplice refers to user pages from a pipe, splice moves the pipe into a socket.

Source: vmsplice(2), splice(2). Since Linux 6.5 Unix and TCP sockets take the pages themselves (MSG_SPLICE_PAGES), so
the only copy left is the receiver's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

PIPE_BYTES = (2 << 20, 1 << 20)
"""What is asked for, in this order: a whole batch, which takes CAP_SYS_RESOURCE, and the most that any process may have
by default (/proc/sys/fs/pipe-max-size)."""
_MAX_BUFFERS = 1024  # UIO_MAXIOV


@cache
def _vmsplice() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).vmsplice
    function.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
    function.restype = ctypes.c_ssize_t
    return function


def _give_up(error: OSError) -> None:
    raise error


class PagePipe:
    """A pipe through which pages of this process go to a socket. Raises `OSError` where the system gives none.

    ``moved`` counts the bytes that sockets have taken so far.
    """

    def __init__(self) -> None:
        self.moved = 0
        self._out, self._in = os.pipe()
        for size in PIPE_BYTES:
            with contextlib.suppress(OSError):  # a smaller pipe takes more calls
                fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, size)
                break

    def close(self) -> None:
        for descriptor in (self._out, self._in):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def send(
        self,
        sock: int,
        buffers: npt.NDArray[np.uint64],
        moved: Callable[[], None] = lambda: None,
        again: Callable[[OSError], None] = _give_up,
    ) -> None:
        """Sends all of ``buffers`` to the socket ``sock``, which goes on reading them until its peer has received
        them. ``moved`` is called after each part, ``again`` where the socket takes nothing for now; either may raise
        to stop. Raises `OSError`; where `moved` is still 0 then, nothing was sent."""
        rest = np.ascontiguousarray(buffers)
        left = int(rest[:, 1].sum())
        while left:
            there = self._fill(rest[:_MAX_BUFFERS])
            left -= there
            until = self.moved + there
            while self.moved < until:
                try:
                    self.moved += os.splice(self._out, sock, until - self.moved)
                except BlockingIOError as error:
                    again(error)
                else:
                    moved()
            if left:
                rest = after(rest, there)

    def _fill(self, buffers: npt.NDArray[np.uint64]) -> int:
        """Puts as much of ``buffers`` into the empty pipe as fits, without waiting; returns the bytes."""
        while True:
            done = _vmsplice()(self._in, buffers.__array_interface__["data"][0], len(buffers), 0)
            if done > 0:
                return int(done)
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number or errno.EIO, os.strerror(number))


def after(buffers: npt.NDArray[np.uint64], done: int) -> npt.NDArray[np.uint64]:
    """What is left of ``buffers`` after their first ``done`` bytes."""
    ends = np.cumsum(buffers[:, 1])
    first = int(np.searchsorted(ends, done, side="right"))
    rest = buffers[first:].copy()
    if len(rest):
        skipped = np.uint64(done) - (ends[first] - buffers[first, 1])
        rest[0, 0] += skipped
        rest[0, 1] -= skipped
    return rest
