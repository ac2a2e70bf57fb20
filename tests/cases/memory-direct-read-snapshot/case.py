"""An O_DIRECT read into the memory, and a snapshot while it is under way."""

import ctypes, mmap, os, shutil, tempfile, threading, time
import numpy as np, precopy
from precopy.errors import PrecopyError, UsageError

P = 4096
libc = ctypes.CDLL(None)


def differ(a, b):
    return int(
        (np.frombuffer(a, np.uint8).reshape(-1, P) != np.frombuffer(b, np.uint8).reshape(-1, P)).any(axis=1).sum()
    )


N = 32 << 20
file = tempfile.NamedTemporaryFile(dir=".")  # a file system that has O_DIRECT
for _ in range(N >> 20):
    file.write(os.urandom(1 << 20))
file.flush(), os.fsync(file.fileno())
direct = os.open(file.name, os.O_RDONLY | os.O_DIRECT)

for trial in range(5):
    memory = precopy.Memory(N)
    np.frombuffer(memory, np.uint8)[:] = 1
    where = tempfile.mkdtemp(dir=".")
    precopy.snapshot(memory, where)
    reader = threading.Thread(target=lambda: os.preadv(direct, [memory.view], 0))
    reader.start(), time.sleep(0.001)
    precopy.snapshot(memory, where)  # beside the read
    reader.join()
    precopy.snapshot(memory, where)  # nobody writes any more
    print("pages that differ in what is restored:", differ(precopy.restore(where), memory))
    shutil.rmtree(where)
