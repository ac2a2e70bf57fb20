"""Where processes that write the same shared memory find the one that tracks it: an address that follows from the
memory alone. What they send there, and when, is `tracker_connection`'s.

Law 1: **No dirty page is lost.** A writer that cannot be taken in now, for want of descriptors, is not forgotten: the
sync fails until it is.

Law 5: **The peer is not trusted.** Only processes of the same user are heard. What they send is bounded and checked.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from precopy.abi.mapping_watch import counted
from precopy.abi.shared_maps import SharedFile
from precopy.bitmap import Runs
from precopy.errors import KernelCallError, UsageError, raise_without_descriptor, system_call
from precopy.memory.layout import MAX_PAGES
from precopy.trackers.shared_views import ProcessView, SharedPages, Writer
from precopy.trackers.write_protection import WriteProtection
from precopy.units import PAGE_SIZE

ATTACH = b"precopy writer 1"
BYE = b"precopy bye 1"
_BACKLOG = 4096
"""Writers that may come between two syncs; the system may allow fewer (net.core.somaxconn)."""
_FORK_S = 1.0
"""Seconds for which a child that was just forked may keep its copy of a socket that was closed here."""
_CREDENTIALS = struct.Struct("3i")
_RUN_BYTES = 16
_SENT = 4
"""Descriptors that a writer sends: its userfaultfd, page map, list of mappings, and count of these."""


def address_of(file: SharedFile) -> str:
    """Where the process that tracks a shared file listens: a name without a file, of this user's."""
    return f"\0precopy/{os.geteuid()}/{file.device}/{file.inode}"


class Door:
    """Where writers of ``pages`` come to. Raises `UsageError` where another process, or another memory of this one,
    tracks the same file, `KernelCallError`."""

    def __init__(self, pages: SharedPages) -> None:
        self._pages = pages
        self._waiting: list[socket.socket] = []  # connected, and their first message not read yet
        self._lost: KernelCallError | None = None  # a writer that came, of which is not known what it writes
        with system_call("socket", "this process"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            _bind(self._socket, address_of(pages.file))
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise UsageError(
                f"this shared memory was adopted with its writers already, here or in another process "
                f"({error.strerror}); close that Memory, or attach to it (precopy.attach)"
            ) from error
        _doors.add(self)

    def new_writers(self) -> Iterator[Writer]:
        """Writers that have connected since the last call, one after the other. Raises `KernelCallError` where this
        process cannot take one in for want of descriptors: then it waits for the next call, and so do those after it
        (law 1)."""
        self._accept()
        for sock in tuple(self._waiting):
            writer = self._writer_at(sock)
            if writer is not None:
                yield writer

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError as error:  # no further connection
                raise_without_descriptor("accept", "a process that writes this shared memory", error)
                return
            sock.setblocking(False)
            self._waiting.append(sock)

    def _writer_at(self, sock: socket.socket) -> Writer | None:
        """What has connected there; None as long as it has not begun to write, and where it is no writer."""
        if self._lost is not None:
            raise self._lost
        _need_descriptors(_SENT)
        ours = peer_of(sock).uid == os.geteuid()
        said, descriptors, cut = _receive(sock, _SENT) if ours else (b"", [], False)
        if said is None:
            return None
        self._waiting.remove(sock)
        if said == ATTACH and len(descriptors) == _SENT:
            return _writer(sock, descriptors, self._pages)
        _close_all(descriptors)
        sock.close()
        if said == ATTACH and cut:  # another thread has taken those that there were
            self._lost = KernelCallError("recvmsg", "a process that writes this shared memory", errno.EMFILE)
            raise self._lost
        return None

    def close(self) -> None:
        """Refuses further writers. May be called twice."""
        for sock in (self._socket, *self._waiting):
            sock.close()


def _bind(sock: socket.socket, address: str) -> None:
    until = time.monotonic() + _FORK_S
    while True:
        try:
            return sock.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                raise
            time.sleep(0.01)


_doors: weakref.WeakSet[Door] = weakref.WeakSet()


def _close_in_child() -> None:
    """A child process has copies of its parent's sockets, which would keep their addresses in use."""
    for door in _doors:
        door.close()


os.register_at_fork(after_in_child=_close_in_child)


@dataclass(frozen=True)
class _Peer:
    pid: int
    uid: int


def peer_of(sock: socket.socket) -> _Peer:
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return _Peer(pid, uid)


def _writer(sock: socket.socket, descriptors: list[int], pages: SharedPages) -> Writer:
    protection = WriteProtection((descriptors[0], descriptors[1]))
    view = ProcessView(pages, protection, descriptors[2], begun=True)

    def mapped() -> bytes:
        try:
            return counted(descriptors[3])
        except OSError:  # nothing that can be read
            return os.urandom(8)

    def close() -> None:
        sock.close()
        os.close(descriptors[3])

    return Writer(view, mapped, lambda: _last_words(sock, pages), close)


def _receive(sock: socket.socket, most: int) -> tuple[bytes | None, list[int], bool]:
    """One message, the descriptors that came with it, and whether some were cut off; empty where the other side is
    gone, None where there is none yet."""
    try:
        said, descriptors, flags, _ = socket.recv_fds(sock, 64, most, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        return None, [], False
    except OSError:
        return b"", [], False
    return said, list(descriptors), bool(flags & socket.MSG_CTRUNC)


def _need_descriptors(count: int) -> None:
    """Raises `KernelCallError` where this process may not open ``count`` more: those that come with a message would be
    dropped, and the message be gone."""
    room: list[int] = []
    try:
        with system_call("dup", "descriptors that a process sends which writes this shared memory"):
            room.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            room.extend(os.dup(room[0]) for _ in range(count - 1))
    finally:
        _close_all(room)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _last_words(sock: socket.socket, pages: SharedPages) -> Runs | None:
    """What a writer says that it wrote, when it goes; None where it has said nothing."""
    said, descriptors, _ = _receive(sock, 1)
    try:
        if said != BYE:
            return None
        if len(descriptors) != 1:
            raise ValueError
        table = np.frombuffer(_all(descriptors[0], pages.pages), "<u8").reshape(-1, 2)
        if table.size and table.max() > MAX_PAGES:
            raise ValueError
    except (OSError, ValueError):
        return Runs.of((0, pages.pages))  # it has written something, and what is not known
    finally:
        _close_all(descriptors)
    # In pages of the file; pages outside the memory are dropped.
    first, lengths = table.astype(np.int64).T
    starts = np.clip(first - pages.offset // PAGE_SIZE, 0, pages.pages)
    ends = np.clip(first + lengths - pages.offset // PAGE_SIZE, 0, pages.pages)
    some = ends > starts
    return Runs(starts[some], (ends - starts)[some])


def _all(descriptor: int, pages: int) -> bytes:
    """What was written to it: no more than the runs of ``pages`` pages can take. Raises `ValueError`."""
    size = os.fstat(descriptor).st_size
    if size % _RUN_BYTES or size > MAX_PAGES or size > _RUN_BYTES * (pages + 2):
        raise ValueError
    return os.pread(descriptor, size, 0) if size else b""
