"""`Memory`: bytes of this process that precopy can track, replicate and save while the program goes on writing them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, SupportsIndex, get_args, overload

from precopy.abi import direct_io
from precopy.bitmap import NO_RUNS, Runs
from precopy.dirty import DirtyLog
from precopy.errors import OutOfMemory, UsageError
from precopy.machines.process.buffers import buffer_of
from precopy.machines.process.changes import Changes
from precopy.machines.process.presence import ProcessMemory
from precopy.machines.process.rendezvous import Door
from precopy.machines.process.sharing import Alone, own_writer, shared_pages, who_writes
from precopy.memory import GuestMemory, RamBlock, RamLayout
from precopy.memory.host import BorrowedMemory
from precopy.memory.system_memory import available_memory
from precopy.trackers.content import ContentLog
from precopy.trackers.fanout import Consumer, FanOut
from precopy.trackers.mapped import check_mapped
from precopy.trackers.pagemap import PagemapLog
from precopy.trackers.shared_views import SharedMemoryLog, SharedPages
from precopy.units import PAGE_SIZE, HostAddress, check_bytes, check_choice, check_flag

_HUGE = 2 << 20  # bytes of a huge page of x86-64; smaller memory has no room for one
_NAME = "memory"

Writers = Literal["this process", "attached", "any"]
"""Which processes write a shared memory; see `Memory.adopt`."""


class _Byte(ctypes.Union):
    """A byte of a memory. An array of unions has the buffer format ``B``; one of ctypes' own bytes has ``<B``, which
    memoryview cannot index."""

    _fields_ = (("value", ctypes.c_ubyte),)


class Memory:
    """``size`` zero bytes of this process, rounded up to whole pages.

    It is a buffer of bytes: ``np.frombuffer(memory, np.float64)`` is an array over it, and ``memoryview(memory)`` and
    ``memory[0:8]`` are views. It cannot be pickled or copied, because its bytes are this process's. The
    kernel notes which pages are written through any of them, by any thread, while something tracks them (`track`,
    `precopy.replicate`, `precopy.snapshot`); nothing else about the program changes.

    With ``exact=False`` chunks of 2 MiB that are written all the time are not armed after each sync: that costs the
    program less, and all pages of such a chunk count as written (docs/memory.md). `exact` can be set later, too.

    Raises `OutOfMemory`, and `UsageError` for a size that is not above 0, or an ``exact`` that is no bool.
    """

    size: int
    """Bytes."""
    address: HostAddress
    """Where they begin, in this process."""
    layout: RamLayout
    """One block called ``memory``."""
    snapshots: dict[str, Any]
    """What `precopy.snapshot` remembers of it, by directory. Only `precopy.snapshot` uses it."""

    def __new__(cls, size: int, *, exact: bool = True) -> Self:
        size = check_bytes("the size of a memory", size)
        if size <= 0:
            raise UsageError(f"a memory has more than 0 bytes, not {size}")
        size = -(-size // PAGE_SIZE) * PAGE_SIZE
        available = available_memory()
        if available is not None and size > available:
            raise OutOfMemory("a Memory", size, available, "ask for fewer bytes")
        try:
            mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise OutOfMemory("a Memory", size, available, "ask for fewer bytes") from error
        if size >= _HUGE:
            with contextlib.suppress(OSError):  # a kernel without transparent huge pages works, slower
                mapping.madvise(mmap.MADV_HUGEPAGE)
        memory = cls._over(mapping, size)
        memory.exact = exact
        return memory

    def __init__(self, *_: object, exact: bool = True) -> None:
        """Nothing is left to do; the array type below would take the size for an element."""

    @classmethod
    def adopt(cls, buffer: Any, *, writers: Writers | None = None, exact: bool = True) -> Self:
        """The memory that ``buffer`` has: an mmap, a ``multiprocessing.shared_memory.SharedMemory``, a numpy array.

        It has to be writable, contiguous, and to consist of whole pages, because pages are what the kernel tracks.

        ``writers`` says which processes write *shared* memory, because the kernel tells this process of its own writes
        only: ``"this process"``; ``"attached"``: also processes that call `precopy.attach` before they write;
        ``"any"``: any process, found by comparing all of it with a copy at each sync. Private memory needs no
        ``writers``, nor does anonymous memory (``mmap.mmap(-1, size)``) as long as no child process has it.

        ``exact`` as in `Memory`; what attached processes write is found exactly in any case.

        Raises `UsageError` that says what is missing or wrong. The buffer is kept alive.
        """
        if writers is not None:
            check_choice("writers", writers, get_args(Writers))
        view = buffer_of(buffer, "adopt an mmap, a SharedMemory or an array")
        with view:
            if view.readonly or not view.c_contiguous:
                raise UsageError("only a writable, contiguous buffer can be adopted")
            size = view.nbytes
        if not size or size % PAGE_SIZE:
            raise UsageError(f"the buffer has {size} bytes; it has to have whole pages of {PAGE_SIZE}")
        memory = cls._over(getattr(buffer, "buf", buffer), size)
        memory.exact = exact
        if memory.address % PAGE_SIZE:
            raise UsageError(
                f"the buffer begins {memory.address % PAGE_SIZE} bytes into a page, so it shares pages with others; "
                f"use precopy.Memory(size), an mmap or a SharedMemory, and an array over it (np.frombuffer)"
            )
        memory._shared_with(writers)
        return memory

    @classmethod
    def over(cls, mapping: mmap.mmap) -> Self:
        """The memory of a mapping that is known to be private, writable and used by nothing else."""
        if not isinstance(mapping, mmap.mmap):
            raise UsageError(f"a memory can be over an mmap, not over a {type(mapping).__name__}; see Memory.adopt")
        return cls._over(mapping, len(mapping))

    @classmethod
    def _over(cls, buffer: Any, size: int) -> Self:
        # A ctypes array exports the buffer that it was made from: Python 3.11 has no other way for a class of ours.
        kind = type(cls.__name__, (cls, _Byte * size), {"__module__": cls.__module__})
        memory: Self = kind.from_buffer(buffer)  # type: ignore[attr-defined]
        memory.size = size
        memory.address = HostAddress(ctypes.addressof(memory))  # type: ignore[arg-type]
        memory.layout = RamLayout.of_blocks([(_NAME, size)])
        memory._lock = threading.Lock()
        memory._closed = False
        memory._exact = True
        memory._fan = None
        memory._writers = "this process"
        memory._file = None
        memory._door = None
        memory._alone = None
        memory.snapshots = {}
        return memory

    _lock: threading.Lock
    _closed: bool
    _exact: bool
    _fan: FanOut | None
    _writers: Writers
    _file: SharedPages | None
    _door: Door | None
    _alone: Alone | None

    def _shared_with(self, writers: Writers | None) -> None:
        self._file = shared_pages(self.address, self.size)
        if self._file is not None and writers is None:
            if not self._file.anonymous:
                raise who_writes("other processes can map it")
            self._alone = Alone(self._file)
            self._alone.forked()
        if self._file is None and writers == "attached":
            raise UsageError("this memory is private to this process, so no other can attach to it and write it")
        self._writers = writers or "this process"
        if self._file is not None and writers == "attached":
            self._door = Door(self._file)

    @property
    def pages(self) -> int:
        """Pages of 4096 bytes."""
        return self.size // PAGE_SIZE

    @property
    def block(self) -> RamBlock:
        """The layout's one block."""
        return self.layout.blocks[0]

    @property
    def view(self) -> memoryview:
        """All bytes, to be read and written."""
        return memoryview(self)  # type: ignore[arg-type]  # it is a ctypes array, too

    def contents(self) -> GuestMemory:
        """The same memory as the engine reads and writes it. Raises `UsageError` where it is closed, `MappingChanged`
        where a part of it is not mapped any more, or cannot be read."""
        self._need_open()
        check_mapped(self.address, self.pages, f"block {_NAME!r}")
        log = self._shared().log if self.by_content else None
        view = log.copy if isinstance(log, ContentLog) else self.view
        return ProcessMemory.of(self.layout, [BorrowedMemory(_NAME, view)])

    @property
    def by_content(self) -> bool:
        """Whether writes are found by comparing contents: it was adopted with ``writers="any"``."""
        return self._writers == "any"

    @property
    def exact(self) -> bool:
        """Whether trackers, snapshots and replications of this memory are told of written pages only. False: a chunk
        of 2 MiB that was wholly written at two syncs running is not armed, and counts as written, until it has cooled.
        Holds from the next sync on, for all that do not say otherwise."""
        return self._exact

    @exact.setter
    def exact(self, exact: bool) -> None:
        self._exact = check_flag("exact", exact)
        if self._fan is not None:
            self._fan.exact = self._exact

    def track(self, by: Literal["content"] | None = None, *, exact: bool | None = None) -> Changes:
        """A context in which changes are found: ``with memory.track() as changes: ... changes.sync()``.

        ``by="content"`` compares all of the memory with a copy of it at each sync, which finds writes that the kernel
        does not tell of, such as those of devices and of other processes; `Changes.content` is that copy.

        ``exact``: see `Memory.exact`, which holds where it is None. One tracker is shared by all, so it is exact as
        long as one of them wants it so; comparing contents always is.

        Raises `UsageError` for another ``by`` or ``exact``, `OutOfMemory` where there is no room for the copy, and
        `Unsupported` on entering where the kernel cannot track this process's memory.
        """
        exact = None if exact is None else check_flag("exact", exact)
        if by is not None:
            check_choice("by", by, ("content",))
        if by is None:
            content = self.contents().hosts[0].view if self.by_content else None
            return Changes(self.consumer("track", exact), self.layout, self._need_open, content)
        self._need_open()
        log = ContentLog(self.layout, self.view)
        return Changes(log, self.layout, self._need_open, log.copy)

    def consumer(self, name: str, exact: bool | None = None) -> Consumer:
        """A dirty log of one's own over the one tracker that all users of this memory share; ``name`` is for people,
        ``exact`` None: as the memory's.
        Raises `UsageError` where the memory is closed."""
        fan = self._shared()
        pinned = 0 if fan.buffers or self.by_content else direct_io.pinned_bytes()
        if pinned:
            warnings.warn(
                f"this process has {pinned >> 10} KiB of pinned memory, which devices write unnoticed by the kernel; "
                f"where some of it is in this memory, say so with memory.io_buffer()",
                RuntimeWarning,
                stacklevel=3,
            )
        return fan.consumer(name, exact=exact)

    def touched(self, start: int = 0, length: int | None = None) -> None:
        """``length`` bytes from ``start`` on (default: to the end) were written in a way that the kernel does not
        notice (docs/memory.md has a table): their pages are found by the next sync of each tracker.

        Call it when the write is done. Raises `UsageError` for bytes outside the memory, and where it is closed.
        """
        self._shared().touched(self._runs(start, length))

    def writing(self, start: int = 0, length: int | None = None) -> AbstractContextManager[None]:
        """``with memory.writing(start, length): os.preadv(direct, [memory.view[start:start + length]], at)``: a device
        writes these bytes meanwhile (O_DIRECT, io_uring), which the kernel does not notice where a sync falls into it.

        Their pages are found by every sync in between and by the next one after the end, which is when the transfer is
        done, also where it ends with an exception. Raises as `touched` does.
        """
        return self._shared().writing(self._runs(start, length))

    def io_buffer(self, start: int = 0, length: int | None = None) -> None:
        """A device may write these bytes at any time from now on: buffers registered with io_uring, memory pinned for
        RDMA or a GPU. Their pages count as written in every later sync, snapshot and point. Raises as `touched`
        does."""
        self._shared().buffer(self._runs(start, length))

    def _runs(self, start: int, length: int | None) -> Runs:
        """The pages of some bytes."""
        start = check_bytes("start", start)
        end = self.size if length is None else start + check_bytes("length", length)
        if not 0 <= start <= end <= self.size:
            raise UsageError(f"bytes [{start}, {end}) do not lie inside a memory of {self.size} bytes")
        first = start // PAGE_SIZE
        return Runs.of((first, -(-end // PAGE_SIZE) - first)) if start < end else NO_RUNS

    def _shared(self) -> FanOut:
        self._need_open()
        with self._lock:
            if self._fan is None:
                log = self._new_log()
                # Contents show what devices write, too.
                unseen = _never if self.by_content else direct_io.may_be_under_way
                self._fan = FanOut(log, self.layout.end_page, unseen=unseen)
                self._fan.exact = self._exact
            return self._fan

    def _new_log(self) -> DirtyLog:
        if self.by_content:
            return ContentLog(self.layout, self.view)
        own = PagemapLog(self.layout, [self.address])
        if self._file is None:
            weakref.finalize(self, own.stop).atexit = False  # a memory that is not closed leaves no descriptors behind
            return own
        log = SharedMemoryLog(
            self._file,
            own,
            partial(own_writer, self._file, (self.address, self.address + self.size), self._alone),
            tuple if self._door is None else self._door.new_writers,
        )
        weakref.finalize(self, log.close).atexit = False
        return log

    def close(self) -> None:
        """Tracks no more. The bytes stay until the last array over them is gone, and so do their contents. May be
        called twice."""
        if not self._closed:
            self._closed = True
            if self._fan is not None:
                self._fan.close()
                if isinstance(self._fan.log, SharedMemoryLog):
                    self._fan.log.close()
            if self._door is not None:
                self._door.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else ", ".join(self._fan.consumers) if self._fan is not None else ""
        return f"<Memory of {self.size} bytes at {self.address:#x}{state and f', {state}'}>"

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> memoryview: ...
    def __getitem__(self, index: int | slice) -> int | memoryview:
        return self.view[index]

    def __setitem__(self, index: int | slice, value: Any) -> None:
        self.view[index] = value

    def __iter__(self) -> Iterator[int]:
        return iter(self.view)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise UsageError(
            "a precopy.Memory cannot be pickled or copied, because its bytes are this process's; send bytes(memory), "
            "or share them (multiprocessing.shared_memory) and adopt that on the other side"
        )

    def __len__(self) -> int:
        return self.size

    def _need_open(self) -> None:
        if self._closed:
            raise UsageError("the memory is closed; adopt its bytes anew (Memory.adopt), or make another one")


def _never() -> bool:
    return False
