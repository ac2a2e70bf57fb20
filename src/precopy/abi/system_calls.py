"""System calls on this process for which Python has no function of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from functools import cache

from precopy.errors import KernelCallError

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_SIGSET_BYTES = 128  # sigset_t


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when ``parent``, the process that started it, ends, however that ends.

    One that has ended already, before it could be asked for, counts, too. Raises `KernelCallError`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise KernelCallError("prctl(PR_SET_PDEATHSIG)", "this process", ctypes.get_errno())
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGKILL)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Has signals to this thread wait. Python's own `signal.pthread_sigmask` takes a hundred times as long for all."""
    before = ctypes.create_string_buffer(_SIGSET_BYTES)
    _libc().pthread_sigmask(signal.SIG_BLOCK, b"\xff" * _SIGSET_BYTES, before)
    try:
        yield
    finally:
        _libc().pthread_sigmask(signal.SIG_SETMASK, before, None)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
