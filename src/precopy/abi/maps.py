"""What is mapped where in this process: PROCMAP_QUERY (Linux 6.11), or the text of /proc/self/maps before it.

Source: Documentation/filesystems/proc.rst, include/uapi/linux/fs.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from ctypes import c_uint32, c_uint64
from dataclasses import dataclass
from io import FileIO

from precopy.abi.ioctl import iowr
from precopy.errors import KernelCallError, system_call

MAPS = "/proc/self/maps"

_MS_ASYNC = 1
_MADV_POPULATE_READ = 22
_READABLE, _SHARED, _OR_NEXT = 0x01, 0x08, 0x10


@dataclass(frozen=True)
class Vma:
    """One mapping: the addresses ``[start, end)``. ``device`` (as in st_dev) and ``inode`` are 0 without a file; at
    ``start`` it shows the file from byte ``offset`` on."""

    start: int
    end: int
    readable: bool
    shared: bool
    device: int
    inode: int
    offset: int


@dataclass(frozen=True, slots=True)
class MapsEntry:
    """A line of /proc/PID/maps, or a mapping's first one in smaps: addresses ``[start, end)``, ``permissions``
    (``rwxp``, or ``s`` at the end), ``device`` as the kernel writes it (``00:01``), ``name`` empty without one."""

    start: int
    end: int
    permissions: str
    offset: int
    device: str
    inode: int
    name: str

    @classmethod
    def of(cls, line: bytes) -> MapsEntry:
        where, permissions, offset, device, inode, *name = line.split(maxsplit=5)
        start, _, end = where.partition(b"-")
        said = name[0].rstrip(b"\n").decode(errors="replace") if name else ""
        return cls(
            int(start, 16), int(end, 16), permissions.decode(), int(offset, 16), device.decode(), int(inode), said
        )

    @property
    def readable(self) -> bool:
        return self.permissions[0] == "r"

    @property
    def writable(self) -> bool:
        return self.permissions[1] == "w"

    @property
    def shared(self) -> bool:
        return self.permissions[3] == "s"


class Query(ctypes.Structure):
    """``struct procmap_query``."""

    _fields_ = (
        ("size", c_uint64), ("query_flags", c_uint64), ("query_addr", c_uint64), ("vma_start", c_uint64),
        ("vma_end", c_uint64), ("vma_flags", c_uint64), ("vma_page_size", c_uint64), ("vma_offset", c_uint64),
        ("inode", c_uint64), ("dev_major", c_uint32), ("dev_minor", c_uint32), ("vma_name_size", c_uint32),
        ("build_id_size", c_uint32), ("vma_name_addr", c_uint64), ("build_id_addr", c_uint64),
    )  # fmt: skip


PROCMAP_QUERY = iowr("PROCMAP_QUERY", ord("f"), 17, Query)


def vmas(start: int, end: int, limit: int | None = None) -> list[Vma]:
    """The mappings of addresses from ``[start, end)``, ascending; at most ``limit`` of them. Raises
    `KernelCallError`."""
    found: list[Vma] = []
    for vma in _all_from(start):
        if vma.start >= end or len(found) == limit:
            break
        found.append(vma)
    return found


def all_mapped(address: int, length: int) -> bool:
    """Whether no page of a range is missing, in one call however many mappings there are."""
    libc = ctypes.CDLL(None, use_errno=True)
    # MS_ASYNC does nothing else (msync(2), "Since Linux 2.6.19").
    return not libc.msync(ctypes.c_void_p(address), ctypes.c_size_t(length), _MS_ASYNC)


def touchable(address: int, length: int) -> bool:
    """Whether every page of a range can be read, without a signal where one cannot (MADV_POPULATE_READ, Linux 5.14)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_POPULATE_READ):
        return True
    return ctypes.get_errno() not in (errno.EFAULT, errno.ENOMEM)


def _all_from(address: int) -> Iterator[Vma]:
    """The mappings that end above ``address``."""
    with _opened() as maps:
        query = Query(size=ctypes.sizeof(Query), query_flags=_OR_NEXT, query_addr=address)
        while True:
            try:
                fcntl.ioctl(maps.fileno(), PROCMAP_QUERY.number, query)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return
                if error.errno != errno.ENOTTY:
                    raise KernelCallError(PROCMAP_QUERY.name, MAPS, error.errno or 0) from error
                break
            yield Vma(
                query.vma_start,
                query.vma_end,
                bool(query.vma_flags & _READABLE),
                bool(query.vma_flags & _SHARED),
                os.makedev(query.dev_major, query.dev_minor),
                query.inode,
                query.vma_offset,
            )
            query.query_addr = query.vma_end
    yield from _parsed(address)


def _parsed(address: int) -> Iterator[Vma]:
    with _opened() as maps, system_call("read", MAPS):
        lines = maps.readlines()
    for line in lines:
        entry = MapsEntry.of(line)
        if entry.end > address:
            major, minor = (int(digits, 16) for digits in entry.device.split(":"))
            device = os.makedev(major, minor)
            yield Vma(entry.start, entry.end, entry.readable, entry.shared, device, entry.inode, entry.offset)


def _opened() -> FileIO:
    with system_call("open", MAPS):
        return open(MAPS, "rb", 0)
