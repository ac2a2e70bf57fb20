"""The raw socket between two processes: what a migration could reach if it did nothing but send.

The receiver is a process of its own: ``python -m precopy.bench.peers.ceiling PATH SIZE CHUNK``. Both sides use memory
that was touched before, in calls of the size of a migration's batches.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time

from precopy.errors import PeerLost
from precopy.memory import HostMemory

_TIMEOUT_S = 60.0


def socket_ceiling(size: int, chunk: int) -> float:
    """Bytes a second of ``size`` bytes over a Unix socket in calls of ``chunk``. Raises `PeerLost`, `OutOfMemory`."""
    memory = HostMemory("ceiling", size)
    try:
        memory.touch()
        with tempfile.TemporaryDirectory(prefix="precopy-") as directory:
            return _measure(memory, os.path.join(directory, "raw"), chunk)
    finally:
        memory.close()


def _measure(memory: HostMemory, path: str, chunk: int) -> float:
    command = [sys.executable, "-m", __spec__.name, path, str(memory.size), str(chunk)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        listener.settimeout(_TIMEOUT_S)
        with subprocess.Popen(command) as child:
            try:
                stream, _ = listener.accept()
                with stream:
                    return _send(stream, memory, chunk)
            except OSError as error:
                raise PeerLost(f"the receiver of the raw socket measurement is gone: {error}") from error
            finally:
                child.kill()


def _send(stream: socket.socket, memory: HostMemory, chunk: int) -> float:
    stream.settimeout(None)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    stream.recv(1)  # the receiver's memory is warm
    start = time.perf_counter()
    for at in range(0, memory.size, chunk):
        part = memory.view[at : at + chunk]
        while part:
            part = part[stream.sendmsg([part]) :]
    stream.recv(1)
    return memory.size / (time.perf_counter() - start)


def _receive(path: str, size: int, chunk: int) -> None:
    memory = HostMemory("ceiling", size)
    memory.touch()
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(path)
        stream.send(b"r")
        for at in range(0, size, chunk):
            part = memory.view[at : at + chunk]
            if stream.recvmsg_into([part], 0, socket.MSG_WAITALL)[0] != len(part):
                sys.exit("the raw socket measurement was cut short")
        stream.send(b"d")
    memory.close()


if __name__ == "__main__":
    _receive(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
