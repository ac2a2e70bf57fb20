"""Something else is mapped over a part of the memory."""

import ctypes, mmap, os, shutil, tempfile, threading, time
import numpy as np, precopy
from precopy.errors import PrecopyError, UsageError

P = 4096
libc = ctypes.CDLL(None)


def differ(a, b):
    return int(
        (np.frombuffer(a, np.uint8).reshape(-1, P) != np.frombuffer(b, np.uint8).reshape(-1, P)).any(axis=1).sum()
    )


libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
memory = precopy.Memory(1 << 20)
with memory.track() as changes:
    changes.sync()
    libc.mmap(memory.address + 64 * P, 16 * P, 3, 0x32, -1, 0)  # MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS
    print(changes.sync())
