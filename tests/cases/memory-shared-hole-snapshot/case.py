"""Pages of shared memory that the program itself gives back."""

import ctypes, mmap, os, shutil, tempfile, threading, time
import numpy as np, precopy
from precopy.errors import PrecopyError, UsageError

P = 4096
libc = ctypes.CDLL(None)


def differ(a, b):
    return int(
        (np.frombuffer(a, np.uint8).reshape(-1, P) != np.frombuffer(b, np.uint8).reshape(-1, P)).any(axis=1).sum()
    )


mapping = mmap.mmap(-1, 4 << 20)  # shared, as multiprocessing.SharedMemory is
memory = precopy.Memory.adopt(mapping)
np.frombuffer(memory, np.uint8)[:] = 7
where = tempfile.mkdtemp(dir=".")
precopy.snapshot(memory, where)
mapping.madvise(mmap.MADV_REMOVE, 64 * P, 128 * P)  # through the mapping that is tracked; they read as zeros now
precopy.snapshot(memory, where)
print("pages that differ in what is restored:", differ(precopy.restore(where), memory))
shutil.rmtree(where)
