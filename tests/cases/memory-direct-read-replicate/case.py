"""An O_DIRECT read into a memory that is replicated."""

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


def read_on(memory, stop):
    while not stop:
        os.preadv(direct, [memory.view], 0)
        np.frombuffer(memory, np.uint8)[::P] += 1


for trial in range(10):
    memory, stop = precopy.Memory(N), []
    address, got = f"unix:{os.getcwd()}/wire{trial}", {}
    standby = threading.Thread(target=lambda: got.update(copy=precopy.receive_memory(address)))
    standby.start()
    while not os.path.exists(address[5:]):
        time.sleep(0.02)
    reader = threading.Thread(target=read_on, args=(memory, stop))
    try:
        with precopy.replicate(memory, address) as handle:
            reader.start(), time.sleep(1)
            stop.append(1), reader.join()
            with handle.cutover():
                pass
    finally:
        stop.append(1)
    standby.join()
    print("pages that differ after cutover:", differ(got["copy"], memory))
