"""A restored memory gives pages back that it has written."""

import ctypes, mmap, os, shutil, tempfile, threading, time
import numpy as np, precopy
from precopy.errors import PrecopyError, UsageError

P = 4096
libc = ctypes.CDLL(None)


def differ(a, b):
    return int(
        (np.frombuffer(a, np.uint8).reshape(-1, P) != np.frombuffer(b, np.uint8).reshape(-1, P)).any(axis=1).sum()
    )


libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
memory = precopy.Memory(4 << 20)
np.frombuffer(memory, np.uint8)[:] = 7
where = tempfile.mkdtemp(dir=".")
precopy.snapshot(memory, where)
again = precopy.restore(where)
array = np.frombuffer(again, np.uint8)
array[100 * P : 110 * P] = 0x55
precopy.snapshot(again, where)  # with 0x55
libc.madvise(again.address + 100 * P, 10 * P, mmap.MADV_DONTNEED)
print("after MADV_DONTNEED they hold", array[100 * P])
precopy.snapshot(again, where)
print("pages that differ in what is restored:", differ(precopy.restore(where), again))
shutil.rmtree(where)
