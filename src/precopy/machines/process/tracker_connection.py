"""From a process that writes shared memory to the one that tracks it, whose side is `rendezvous`.

It protects the process's own mappings, and sends the descriptors that speak of them. It does not wait for an answer, so
a writer that came is known before it writes, whenever the one that tracks looks. When it goes, it says what it has
written since; one that is killed cannot, and then all pages count as written (`precopy.trackers.shared_views`).
"""

from __future__ import annotations

import contextlib
import os
import select
import socket

import numpy as np

from precopy.abi.mapping_watch import MappingWatch, counted
from precopy.abi.shared_maps import SharedFile
from precopy.bitmap import Runs
from precopy.errors import KernelCallError, Unsupported, UsageError, system_call
from precopy.machines.process.rendezvous import ATTACH, BYE, address_of, peer_of
from precopy.memory.layout import MAX_PAGES
from precopy.trackers.shared_views import ProcessView, SharedPages
from precopy.trackers.write_protection import WriteProtection

_TIMEOUT_S = 10.0
"""Seconds that connecting to the other process may take."""


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
                socket.send_fds(self._socket, [ATTACH], [*protection.descriptors, maps, self._watch.fd])
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
            socket.send_fds(self._socket, [BYE], [descriptor])
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
    peer = peer_of(sock)
    if peer.uid != os.geteuid() or peer.pid == os.getpid():
        sock.close()
        raise UsageError(
            "this process has adopted the memory itself, and its writes are known; attach in the others that write"
            if peer.pid == os.getpid()
            else "another user's process listens for the writers of this memory"
        )
    return sock
