"""How processes that write the same shared memory find the one that tracks it, and hand it what it needs for that.

`TrackerConnection` is for those that write: it protects the process's own mappings, and sends the descriptors that
speak of them to the `Door`, at an address that follows from the memory alone. It does not wait for an answer, so a
writer that came is known before it writes, whenever the one that tracks looks. When it goes, it says what it has
written since; one that is killed cannot, and then all pages count as written (`precopy.trackers.shared_views`).

Law 5: **The peer is not trusted.** Only processes of the same user are heard. What they send is bounded and checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from precopy.abi.mapping_watch import MappingWatch, counted
from precopy.abi.shared_maps import SharedFile, open_maps, shared_at, who_maps
from precopy.bitmap import Runs
from precopy.errors import KernelCallError, Unsupported, UsageError, raise_without_descriptor, system_call
from precopy.memory.layout import MAX_PAGES
from precopy.trackers.shared_views import ProcessView, SharedPages, Writer
from precopy.trackers.write_protection import WriteProtection
from precopy.units import PAGE_SIZE

_ATTACH = b"precopy writer 1"
_BYE = b"precopy bye 1"
_BACKLOG = 4096
"""Writers that may come between two syncs; the system may allow fewer (net.core.somaxconn)."""
_TIMEOUT_S = 10.0
"""Seconds that connecting to the other process and its answers may take."""
_FORK_S = 1.0
"""Seconds for which a child that was just forked may keep its copy of a socket that was closed here."""
_CREDENTIALS = struct.Struct("3i")
_RUN_BYTES = 16
_SENT = 4
"""Descriptors that a writer sends: its userfaultfd, page map, list of mappings, and count of these."""


def shared_pages(address: int, size: int) -> SharedPages | None:
    """What shared memory ``size`` bytes of this process at ``address`` are, or None where they are private. Raises
    `UsageError` where they are of several files, `Unsupported`."""
    mappings = shared_at(address, address + size)
    if not mappings:
        return None
    first = mappings[0]
    at = address
    for mapping in mappings:
        if (
            mapping.start != at
            or mapping.file != first.file
            or mapping.offset - first.offset != mapping.start - first.start
        ):
            break
        at = mapping.end
    if at != address + size:
        raise UsageError("the buffer is made up of several mappings, of which one is shared; adopt each on its own")
    return SharedPages(first.file, first.offset, size // PAGE_SIZE, first.anonymous)


def own_writer(pages: SharedPages, skip: tuple[int, int], alone: Alone | None) -> Writer:
    """This process as a writer of ``pages`` through other mappings than at the addresses from and to ``skip``. Raises
    `Unsupported`, `KernelCallError`."""
    with contextlib.ExitStack() as undo:
        watch = MappingWatch(pages.file.inode)
        undo.callback(watch.close)
        protection = WriteProtection()
        undo.callback(protection.close)
        maps = open_maps()
        undo.callback(os.close, maps)
        view = ProcessView(pages, protection, maps, skip=skip)
        undo.pop_all()
    return Writer(view, lambda: (alone.forked() if alone else b"") + counted(watch.fd), lambda: None, watch.close)


_forks = [0]


def _count_fork() -> None:
    _forks[0] += 1


os.register_at_fork(after_in_parent=_count_fork)


class Alone:
    """Anonymous shared memory that no other process has, as far as can be seen: only a child can come to have it."""

    def __init__(self, pages: SharedPages) -> None:
        self._file, self._first = pages.file, _forks[0]
        self._seen, self._others = self._first, who_maps(pages.file)

    def forked(self) -> bytes:
        """Another value after each fork: what a child wrote that is gone again is not known. Raises `UsageError` where
        another process has the memory."""
        if self._seen != _forks[0]:
            self._seen = _forks[0]
            self._others = self._others or who_maps(self._file)
        if self._others:
            raise who_writes(f"process {self._others[0]} has it, too")
        return b"" if self._seen == self._first else self._seen.to_bytes(8, "little")


def who_writes(why: str) -> UsageError:
    """What is said where it is not known."""
    return UsageError(
        f'this memory is shared ({why}), so say who writes it: Memory.adopt(buffer, writers="this process"), '
        f'writers="attached" where each process that writes calls precopy.attach(buffer), or writers="any", which '
        f"finds every write by comparing contents"
    )


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
        ours = _peer(sock).uid == os.geteuid()
        said, descriptors, cut = _receive(sock, _SENT) if ours else (b"", [], False)
        if said is None:
            return None
        self._waiting.remove(sock)
        if said == _ATTACH and len(descriptors) == _SENT:
            return _writer(sock, descriptors, self._pages)
        _close_all(descriptors)
        sock.close()
        if said == _ATTACH and cut:  # another thread has taken those that there were
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


def _peer(sock: socket.socket) -> _Peer:
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
        if said != _BYE:
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


class TrackerConnection:
    """From this process, which writes ``file``, to the one that tracks it. Raises `UsageError` where none does,
    `Unsupported` and `KernelCallError` where this process's memory cannot be tracked."""

    def __init__(self, file: SharedFile, maps: int) -> None:
        self._file, self._process = file, os.getpid()
        with contextlib.ExitStack() as undo:
            not_taken = undo.enter_context(contextlib.ExitStack())
            not_taken.callback(os.close, maps)
            self._socket = undo.enter_context(_connected(file))
            self._watch = MappingWatch(file.inode)
            undo.callback(self._watch.close)
            self._began = counted(self._watch.fd)
            # All of the file, as long as it may be: the other side knows which part of it matters.
            protection = WriteProtection()
            not_taken.callback(protection.close)
            self._view = ProcessView(SharedPages(file, 0, MAX_PAGES), protection, maps)
            not_taken.pop_all()
            undo.callback(self._view.close)
            try:
                socket.send_fds(self._socket, [_ATTACH], [*protection.descriptors, maps, self._watch.fd])
            except OSError as error:  # it has gone since it was connected to
                raise _nobody_tracks(error) from error
            undo.pop_all()

    @property
    def heard(self) -> bool:
        """Whether the one that tracks is still there."""
        going = select.poll()  # which takes descriptors of any number
        going.register(self._socket, select.POLLIN)
        return not going.poll(0)  # it never says anything, but by going

    def close(self) -> None:
        """Says what was written, and is done. After that this process must not write the memory any more."""
        if self._process == os.getpid():  # and not a child of the one that attached
            with contextlib.suppress(OSError, KernelCallError, Unsupported):
                written = self._view.written()
                self._say(written if counted(self._watch.fd) == self._began else Runs.of((0, MAX_PAGES)))
        self._watch.close()
        self._view.close()
        self._socket.close()

    def _say(self, written: Runs) -> None:
        descriptor = os.memfd_create("precopy-written", os.MFD_CLOEXEC)
        try:
            table = np.column_stack((written.starts, written.lengths)).astype("<u8")
            with memoryview(table.tobytes()) as rest:
                at = 0
                while at < len(rest):
                    at += os.pwrite(descriptor, rest[at:], at)
            socket.send_fds(self._socket, [_BYE], [descriptor])
        finally:
            os.close(descriptor)


def _nobody_tracks(error: OSError) -> UsageError:
    return UsageError(
        f"no process of this user tracks this shared memory ({error.strerror or error}); call "
        f'precopy.Memory.adopt(memory, writers="attached") in one first'
    )


def _connected(file: SharedFile) -> socket.socket:
    with system_call("socket", "this process"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(_TIMEOUT_S)
    try:
        sock.connect(address_of(file))
    except OSError as error:
        sock.close()
        raise _nobody_tracks(error) from error
    peer = _peer(sock)
    if peer.uid != os.geteuid() or peer.pid == os.getpid():
        sock.close()
        raise UsageError(
            "this process has adopted the memory itself, and its writes are known; attach in the others that write"
            if peer.pid == os.getpid()
            else "another user's process listens for the writers of this memory"
        )
    return sock
