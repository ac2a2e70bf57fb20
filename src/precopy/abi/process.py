"""System calls on this process for which Python has no function of its own."""

from __future__ import annotations

import ctypes
import os
import signal

from precopy.errors import KernelCallError

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Has the kernel kill this process when ``parent``, the process that started it, ends, however that ends.

    One that has ended already, before it could be asked for, counts, too. Raises `KernelCallError`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise KernelCallError("prctl(PR_SET_PDEATHSIG)", "this process", ctypes.get_errno())
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGKILL)
