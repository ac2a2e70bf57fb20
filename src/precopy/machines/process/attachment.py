"""`attach`: this process writes shared memory that another one has adopted, and that one finds its writes."""

from __future__ import annotations

import mmap
import os
from multiprocessing import util
from types import TracebackType
from typing import Any, NoReturn, Self, SupportsIndex

import numpy as np

from precopy.abi.shared_maps import SharedFile, open_maps
from precopy.errors import UsageError, raise_without_descriptor
from precopy.machines.process.buffers import buffer_of
from precopy.machines.process.sharing import shared_pages
from precopy.machines.process.tracker_connection import TrackerConnection
from precopy.units import PAGE_SIZE

_NAMES = "/dev/shm"
_NAME_BYTES = 255  # NAME_MAX of limits.h
_SHOWN = 100
"""Characters of a name that cannot be meant, in the sentence about it."""
_EXIT_PRIORITY = 10
"""Before what multiprocessing cleans up itself (0 and less), and after what a program's own finalizers may still write
(those without a priority aside)."""

_attached: dict[SharedFile, Attachment] = {}


def attach(memory: Any) -> Attachment:
    """Says that this process writes ``memory``, which another process has adopted with ``writers="attached"``: a
    ``multiprocessing.shared_memory.SharedMemory`` or its name, an mmap, or an array over one.

    From here on what this process writes is found by the other one's syncs, through whatever mapping of it. Call it
    before the first write, in each process that writes, started by fork or spawn; in a pool, as its ``initializer``.
    Until `Attachment.close` is called, or the process ends, the memory stays mapped. A process that is killed leaves
    its last writes unknown: all pages count as written then.

    Raises `UsageError` where the memory is private, or no process has adopted it; `Unsupported` and
    `KernelCallError` where the kernel cannot track this process's memory.
    """
    if isinstance(memory, str):
        known = _attached.get(_named(memory))
        if known is not None and known.alive:
            return known
    buffer = _mapped(memory) if isinstance(memory, str) else memory
    view = buffer_of(buffer, "attach to a SharedMemory or its name, an mmap, or an array over one")
    if not view.c_contiguous:
        raise UsageError("only a contiguous buffer can be attached to")
    view = view.cast("B")
    if not view.nbytes:
        raise UsageError("there is nothing to attach to: the buffer has 0 bytes")
    address, size = int(np.frombuffer(view, np.uint8).__array_interface__["data"][0]), view.nbytes
    pages = shared_pages(address - address % PAGE_SIZE, size)
    if pages is None:
        raise UsageError("this memory is private to this process, so nobody else can track it")
    known = _attached.get(pages.file)
    if known is not None and known.alive:
        view.release()
        return known
    if known is not None:
        known.close()
    attachment = _attached[pages.file] = Attachment(pages.file, view, buffer)
    return attachment


def _path(name: str) -> str:
    """Where Linux keeps the shared memory of this name. Raises `UsageError` for what is no name of any: it has no path
    of its own (shm_open(3)), so nothing outside of ``_NAMES`` can be opened with one."""
    own = name.removeprefix("/")
    try:
        encoded = os.fsencode(own)
    except UnicodeError:
        encoded = b""
    if not encoded or encoded in (b".", b"..") or b"/" in encoded or b"\0" in encoded or len(encoded) > _NAME_BYTES:
        raise UsageError(
            f"{name[:_SHOWN]!r} is no name of shared memory: that has 1 to {_NAME_BYTES} bytes, and no slash but in "
            f"front; give what SharedMemory.name says"
        )
    return os.path.join(_NAMES, own)


def _none_called(name: str, error: OSError) -> UsageError:
    return UsageError(f"there is no shared memory called {name!r} ({error.strerror or error})")


def _named(name: str) -> SharedFile:
    """The file of a name, as the list of mappings identifies it."""
    try:
        found = os.stat(_path(name), follow_symlinks=False)
    except OSError as error:
        raise _none_called(name, error) from error
    return SharedFile(f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}", found.st_ino)


def _mapped(name: str) -> mmap.mmap:
    try:
        descriptor = os.open(_path(name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise_without_descriptor("open", _path(name), error)
        raise _none_called(name, error) from error
    try:
        return mmap.mmap(descriptor, 0)
    except (OSError, ValueError) as error:
        raise_without_descriptor("mmap", _path(name), error)
        raise UsageError(f"the shared memory {name!r} cannot be mapped ({error})") from error
    finally:
        os.close(descriptor)


class Attachment:
    """Made by `attach`; a context manager that closes itself."""

    def __init__(self, file: SharedFile, view: memoryview, owner: object) -> None:
        self._file, self.view = file, view
        self._owner: object = owner  # a SharedMemory that went now would try in vain to unmap it
        self._connection: TrackerConnection | None = TrackerConnection(file, open_maps())
        self._process = os.getpid()
        # Also in a process of multiprocessing, which ends without the interpreter's own end.
        self._at_exit = util.Finalize(self, self._end, exitpriority=_EXIT_PRIORITY)

    view: memoryview
    """All bytes of what was attached to, to be read and written; empty once closed."""

    @property
    def alive(self) -> bool:
        """Whether the process that tracks the memory is there, and this one has not closed."""
        return self._connection is not None and self._process == os.getpid() and self._connection.heard

    def close(self) -> None:
        """Hands over what was written, and is done: after that this process must not write the memory any more. May be
        called twice."""
        self._at_exit.cancel()
        self._end()

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if _attached.get(self._file) is self:
                del _attached[self._file]
            connection.close()
        self.view = memoryview(b"")
        self._owner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "attached" if self.alive else "closed" if self._connection is None else "nobody tracks it any more"
        return f"<Attachment to shared memory {self._file.device}/{self._file.inode}, {state}>"

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UsageError("an attachment cannot be pickled or copied; call precopy.attach in the other process")
