"""The shared memory that vhost devices log to, and which devices do.

Page ``p`` of guest-physical memory (4 KiB each) is bit ``p % 8`` of byte ``p / 8``, which on little-endian machines is
bit ``p % 64`` of word ``p / 64``. Each device is a process of its own and has the memory by its descriptor. The log is
there for as long as its owner or a device needs it.

Source: linux/vhost.h (VHOST_SET_LOG_BASE, VHOST_LOG_PAGE); the vhost-user protocol, section "Migration".
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat

import numpy as np

from precopy.bitmap import Words
from precopy.bitmap.words import words_for
from precopy.errors import (
    KernelCallError,
    LayoutError,
    LocalProtocolError,
    OutOfMemory,
    PeerProtocolError,
    raise_without_descriptor,
    system_call,
)
from precopy.memory import RamLayout
from precopy.memory.system_memory import available_memory

VHOST_LOG_PAGE = 0x1000
"""Bytes of guest-physical memory that a bit of the log stands for (linux/vhost.h)."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedLog:
    """Shared memory with a bit for each of at least ``pages`` guest-physical pages, and the devices that log to it.

    Without ``fd`` the memory is made: all clear, and sealed, so that no process can cut it short under another. With
    ``fd``, which stays the caller's, it is what another process has made; nothing is believed of it that was not
    looked up. Raises `OutOfMemory`, `KernelCallError` (``fd`` is no descriptor), `PeerProtocolError` (no such log).

    ``words`` are the log itself: others set bits in them at any time, so only `precopy.abi.atomic` may change them.
    ``fd`` is the descriptor to hand to a device, and ``size`` the bytes that it is to map.
    """

    def __init__(self, pages: int, fd: int | None = None) -> None:
        self.size = words_for(pages) * 8
        self._devices: dict[str, None] = {}  # a set that keeps the order
        self._owned = True
        self.fd = _made(self.size) if fd is None else _checked(fd, self.size)
        try:
            self.words: Words = np.frombuffer(mmap.mmap(self.fd, self.size), np.uint64)
        except OSError as error:
            os.close(self.fd)
            raise_without_descriptor("mmap", "the vhost log", error)
            raise OutOfMemory("the vhost log", self.size, available_memory()) from error

    @classmethod
    def for_layout(cls, layout: RamLayout) -> SharedLog:
        """Made as large as the highest guest-physical address of ``layout`` asks for. Raises `LayoutError`."""
        return cls(guest_pages(layout))

    def __enter__(self) -> SharedLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pages(self) -> int:
        """Guest-physical pages that have a bit."""
        return self.size * 8

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices that log here, in the order in which they came."""
        return tuple(self._devices)

    def attach(self, name: str) -> None:
        """Device ``name`` logs here from now on. Raises `LocalProtocolError` where it does already."""
        if name in self._devices:
            raise LocalProtocolError(f"vhost device {name!r} is attached to this log already")
        if self.fd < 0:
            raise LocalProtocolError(f"vhost device {name!r} cannot be attached: the log is closed")
        self._devices[name] = None

    def detach(self, name: str) -> None:
        """Device ``name`` has stopped; what it has logged stays. Raises `LocalProtocolError` where it was not there."""
        if name not in self._devices:
            known = ", ".join(self._devices) or "none"
            raise LocalProtocolError(f"vhost device {name!r} is not attached to this log; attached: {known}")
        del self._devices[name]
        self._release()

    def close(self) -> None:
        """The owner needs the log no more: it goes with the last device, at once where none is attached. May be called
        twice."""
        self._owned = False
        self._release()

    def _release(self) -> None:
        if not self._owned and not self._devices and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.words = np.empty(0, np.uint64)  # the mapping goes with the last reference to it


def guest_pages(layout: RamLayout) -> int:
    """One past the last guest-physical page that ``layout`` maps."""
    if layout.page_size != VHOST_LOG_PAGE:
        raise LayoutError(
            f"a vhost log has a bit for {VHOST_LOG_PAGE} bytes; the layout's pages have {layout.page_size}"
        )
    if not layout.sections:
        raise LayoutError("the layout maps nothing that a vhost device could write")
    return max(section.end_gpa for section in layout.sections) // VHOST_LOG_PAGE


def _made(size: int) -> int:
    """Descriptor of new shared memory of ``size`` bytes, all zero, sealed against resizing."""
    try:
        fd = os.memfd_create("vhost-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise KernelCallError("memfd_create", "the vhost log", error.errno or 0) from error
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except (OSError, OverflowError) as error:
        os.close(fd)
        raise OutOfMemory("the vhost log", size, available_memory()) from error
    return fd


def _checked(fd: int, size: int) -> int:
    """A descriptor of our own for what another process says is a log of ``size`` bytes."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise KernelCallError("fstat", f"descriptor {fd}, the vhost log", error.errno or 0) from error
    if not stat.S_ISREG(status.st_mode) or status.st_size < size:
        raise PeerProtocolError(
            f"descriptor {fd} cannot be the vhost log: {status.st_size} bytes of shared memory are there, "
            f"{size} are needed"
        )
    # Memory that is truncated after it was mapped kills a process that touches it (SIGBUS). So the size has to be
    # sealed.
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    except OSError:
        sealed = 0
    if not sealed:
        raise PeerProtocolError(f"descriptor {fd} cannot be the vhost log: it is not sealed against shrinking")
    with system_call("dup", f"descriptor {fd}, the vhost log"):
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
