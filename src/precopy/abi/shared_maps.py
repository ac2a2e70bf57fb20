"""What a process has mapped (/proc/PID/maps): which mappings are shared, and of which file.

Shared memory is a file to the kernel, named or not: two mappings show the same memory where device and inode are the
same. Source: Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from precopy.abi.maps import MAPS, MapsEntry
from precopy.errors import KernelCallError, Unsupported, raise_without_descriptor, system_call

_PIECE = 1 << 20
"""Bytes of a file of /proc that are read in one call."""


@dataclass(frozen=True)
class SharedFile:
    """What shared mappings are of: ``device`` as the kernel writes it (``00:01``), and ``inode``."""

    device: str
    inode: int


@dataclass(frozen=True)
class SharedMapping:
    """A shared mapping of ``file`` from its byte ``offset`` on, at addresses ``[start, end)``. ``anonymous``: it has no
    name and never had a descriptor, so only children of the process that made it can have it."""

    start: int
    end: int
    offset: int
    file: SharedFile
    writable: bool
    anonymous: bool


def open_maps() -> int:
    """This process's mappings, to be read now or later, by this process or another that it is sent to. Raises
    `Unsupported`, `KernelCallError`."""
    try:
        return os.open(MAPS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise_without_descriptor("open", MAPS, error)
        raise Unsupported(f"{MAPS} cannot be opened ({error.strerror})", "mount /proc") from error


def read_maps(fd: int) -> bytes:
    """All of it; empty where the process's memory is gone, because it has ended or executes another program.
    Raises `KernelCallError`."""
    parts, at = [], 0
    try:
        while part := os.pread(fd, _PIECE, at):
            parts.append(part)
            at += len(part)
    except ProcessLookupError:
        return b""
    except OSError as error:
        raise KernelCallError("read", "what a process has mapped", error.errno or 0) from error
    return b"".join(parts)


def shared_mappings(maps: bytes, file: SharedFile | None = None) -> Iterator[SharedMapping]:
    """Those of ``file``, or all; ascending."""
    only = b"" if file is None else b" %s %d" % (file.device.encode(), file.inode)
    for line in maps.split(b"\n"):  # a name may hold any other line end
        if not line or only not in line:
            continue
        entry = MapsEntry.of(line)
        found = SharedFile(entry.device, entry.inode)
        if entry.shared and file in (None, found):
            anonymous = entry.name == "/dev/zero (deleted)"
            yield SharedMapping(entry.start, entry.end, entry.offset, found, entry.writable, anonymous)


def shared_at(start: int, end: int) -> list[SharedMapping]:
    """This process's shared mappings in ``[start, end)``, cut to it. Raises `Unsupported`, `KernelCallError`."""
    fd = open_maps()
    try:
        maps = read_maps(fd)
    finally:
        os.close(fd)
    return [
        replace(
            mapping,
            start=max(mapping.start, start),
            end=min(mapping.end, end),
            offset=mapping.offset + max(start - mapping.start, 0),
        )
        for mapping in shared_mappings(maps)
        if mapping.start < end and start < mapping.end
    ]


def who_maps(file: SharedFile) -> list[int]:
    """Other processes that have it mapped, as far as this one may look. Raises `KernelCallError`."""
    found = []
    with system_call("open", "/proc"):
        processes = list(filter(str.isdigit, os.listdir("/proc")))
    for pid in processes:
        if int(pid) == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/maps", "rb") as maps:
                if any(shared_mappings(maps.read(), file)):
                    found.append(int(pid))
        except OSError as error:  # it has ended, or is another user's
            raise_without_descriptor("open", f"/proc/{pid}/maps", error)
    return found
