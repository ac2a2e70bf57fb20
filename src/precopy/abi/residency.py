"""Which pages of this process's memory are there: mincore(2), /proc/self/maps, and what has come back from swap.

For memory without a file behind it, mincore tells of pages that this process has, and of those in the swap cache; for
shared memory (memfd, shm), of all that any process has put into it. It never reads a page. Source: mincore(2), proc(5),
mm/mincore.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from precopy.abi.filesystem import TMPFS, file_system
from precopy.abi.maps import MAPS, MapsEntry
from precopy.errors import KernelCallError, system_call

_SHM = "/dev/shm"
_SMAPS = "/proc/self/smaps"


@cache
def _mincore() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).mincore
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return function


def resident(address: int, pages: int) -> npt.NDArray[np.bool_]:
    """For each of ``pages`` pages from ``address`` on, whether it is in memory. Raises
    `KernelCallError`."""
    vector = np.empty(pages, np.uint8)
    if _mincore()(address, pages * mmap.PAGESIZE, vector.__array_interface__["data"][0]) != 0:
        raise KernelCallError("mincore", f"{pages} pages of this process", ctypes.get_errno())
    vector &= 1  # the other bits are not defined
    return vector.view(np.bool_)


@dataclass(frozen=True)
class Mapped:
    """A mapping of this process. ``zeros``: what is nowhere of it, neither in memory nor in swap, is zero. ``swapped``
    bytes of it are in swap (None: not asked)."""

    start: int
    end: int
    zeros: bool
    swapped: int | None = None


def mappings(start: int, end: int, *, swapped: bool) -> list[Mapped]:
    """What is mapped in ``[start, end)``, in ascending order; ``swapped`` asks for that, too, for which the kernel
    walks all page tables of the process. Raises `KernelCallError`."""
    path = _SMAPS if swapped else MAPS
    with system_call("open", path), open(path, "rb") as lines:
        found = _parsed(iter(lines), _shared_memory_devices())
        return [mapping for mapping in found if mapping.end > start and mapping.start < end]


def _parsed(lines: Iterator[bytes], shared: frozenset[str]) -> list[Mapped]:
    found: list[Mapped] = []
    for line in lines:
        field, *values = line.split(maxsplit=2)
        if field.endswith(b":"):  # of the mapping before
            if field == b"Swap:":
                before = found[-1]
                found[-1] = Mapped(before.start, before.end, before.zeros, int(values[0]) << 10)
            continue
        entry = MapsEntry.of(line)
        nameless = entry.name in ("", "[heap]") or entry.name.startswith("[anon")
        anonymous = not entry.shared and not entry.inode and nameless
        found.append(Mapped(entry.start, entry.end, anonymous or (entry.shared and entry.device in shared)))
    return found


def _shared_memory_devices() -> frozenset[str]:
    """The devices, as /proc/self/maps writes them, of memory that has no disk behind it: memfds, anonymous shared
    mappings and System V's, and /dev/shm where that is a tmpfs. Huge pages of hugetlbfs are on others."""
    devices = {_device_of_memfds()}
    with contextlib.suppress(OSError):
        fd = os.open(_SHM, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if file_system(fd) == TMPFS:
                devices.add(_device(fd))
        finally:
            os.close(fd)
    return frozenset(devices)


@cache
def _device_of_memfds() -> str:
    with system_call("memfd_create", "this process"):
        fd = os.memfd_create("precopy", os.MFD_CLOEXEC)
    try:
        return _device(fd)
    finally:
        os.close(fd)


def _device(fd: int) -> str:
    return _written(os.fstat(fd).st_dev)


def _written(device: int) -> str:
    return f"{os.major(device):02x}:{os.minor(device):02x}"


def is_nameless(device: int) -> bool:
    """Whether files of this device (as in st_dev) are memfds and the like, which are in no directory."""
    return _written(device) == _device_of_memfds()


def swap_devices() -> int | None:
    """How many this machine has, those included that are just being taken away; None where it does not say."""
    with contextlib.suppress(OSError), open("/proc/swaps", encoding="utf-8", errors="replace") as lines:
        return max(sum(1 for _ in lines) - 1, 0)
    return None


def has_swap() -> bool:
    """Whether this machine may swap, or does not say."""
    return swap_devices() != 0


def swapped_in() -> tuple[int, ...] | None:
    """Pages that the machine has read back from swap so far; None where it does not say."""
    with contextlib.suppress(OSError), open("/proc/vmstat", encoding="ascii") as lines:
        counts = dict(line.split() for line in lines)
        if "pswpin" in counts:
            return tuple(int(counts.get(name, 0)) for name in ("pswpin", "zswpin"))
    return None
