"""Copy-free sending: what the peer receives is what memory holds when it receives, and nothing is lost on the way."""

from __future__ import annotations

import os
import socket
import threading

import numpy as np
import pytest

from precopy.abi.splice import PIPE_BYTES, PagePipe, after
from precopy.memory import HostMemory
from precopy.transport import SocketStream

PAGE = 4096
LARGEST = max(PIPE_BYTES)


def table(memory: HostMemory, runs: list[tuple[int, int]]) -> np.ndarray:
    return np.array([(memory.address + start * PAGE, pages * PAGE) for start, pages in runs], np.uint64)


def received(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += sock.recv(min(size - len(data), 1 << 20))
    return bytes(data)


@pytest.fixture
def memory() -> HostMemory:
    memory = HostMemory("test", 3 * LARGEST)
    memory.words[:] = np.arange(memory.words.size, dtype=np.uint64)
    return memory


@pytest.mark.parametrize(
    "runs",
    [
        [(0, 1)],
        [(5, 3), (1, 1), (700, 2)],
        [(0, 3 * LARGEST // PAGE)],  # more than the pipe holds
        [(page, 1) for page in range(0, 600, 2)],  # as many runs as pages
    ],
)
def test_pages_arrive_in_order(memory: HostMemory, runs: list[tuple[int, int]]) -> None:
    ours, theirs = socket.socketpair()
    pipe = PagePipe()
    size = sum(pages for _, pages in runs) * PAGE
    sender = threading.Thread(target=pipe.send, args=(ours.fileno(), table(memory, runs)))
    sender.start()
    data = received(theirs, size)
    sender.join()
    expected = b"".join(bytes(memory.view[start * PAGE : (start + pages) * PAGE]) for start, pages in runs)
    pipe.close()
    ours.close()
    theirs.close()
    assert data == expected


def test_memory_is_read_when_it_is_received(memory: HostMemory) -> None:
    """The contract of `ByteStream.send_pages`: what is written before the peer has received it may be sent."""
    ours, theirs = socket.socketpair()
    pipe = PagePipe()
    pipe.send(ours.fileno(), table(memory, [(0, 1)]))
    memory.words[0] = 77
    data = received(theirs, PAGE)
    pipe.close()
    ours.close()
    theirs.close()
    assert int.from_bytes(data[:8], "little") == 77


def test_a_socket_that_cannot_be_spliced_into_says_so_before_anything_is_sent(memory: HostMemory) -> None:
    pipe = PagePipe()
    descriptor = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        pipe.send(descriptor, table(memory, [(0, 1)]))
    os.close(descriptor)
    pipe.close()


def test_a_stream_falls_back_to_copying(memory: HostMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "splice", refuse)
    ours, theirs = socket.socketpair()
    stream = SocketStream(ours, "test", 5)
    sender = threading.Thread(
        target=stream.send_pages, args=(b"head", [memory.view[: 4 * PAGE]], table(memory, [(0, 4)]))
    )
    sender.start()
    data = received(theirs, 4 + 4 * PAGE)
    sender.join()
    theirs.close()
    stream.close()
    assert data == b"head" + bytes(memory.view[: 4 * PAGE])


def test_after_skips_bytes_inside_a_buffer() -> None:
    buffers = np.array([(1000, 10), (2000, 20), (3000, 30)], np.uint64)
    assert after(buffers, 0).tolist() == buffers.tolist()
    assert after(buffers, 10).tolist() == [[2000, 20], [3000, 30]]
    assert after(buffers, 25).tolist() == [[2015, 5], [3000, 30]]
    assert after(buffers, 60).tolist() == []
