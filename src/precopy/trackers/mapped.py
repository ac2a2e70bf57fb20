"""Checks that memory is still the memory whose tracking began: mapped, readable, and not longer than its files.

Reading what is not there would end the process (SIGSEGV, SIGBUS). So this is looked at before memory is read: at every
harvest, and whenever its content is asked for. What is unmapped or cut between the look and the reading is not found.
"""

from __future__ import annotations

import errno
import os

from precopy.abi.maps import Vma, all_mapped, touchable, vmas
from precopy.errors import KernelCallError, MappingChanged, system_call
from precopy.units import PAGE_SIZE

MANY = 64
"""Mappings of one memory that are looked at one by one at each harvest, which is a system call each. Restored
memory has thousands: of the others only whether they are there is looked at."""
_FILES = 16
"""Files whose descriptors are looked for."""
_DESCRIPTORS = "/proc/self/fd"


def check_mapped(address: int, pages: int, target: str) -> list[Vma]:
    """The mappings (at most `MANY`) of the memory from ``address`` on, which errors call ``target``. Raises
    `MappingChanged` where a part of it is not mapped, or cannot be read, and `KernelCallError`."""
    end = address + pages * PAGE_SIZE
    found = vmas(address, end, MANY)
    at = address
    for vma in found:
        if vma.start > at:
            break
        if not vma.readable:
            first, last = max(vma.start, address), min(vma.end, end)
            raise MappingChanged(
                target, "may not be read any more", (first - address) // PAGE_SIZE, (last - first) // PAGE_SIZE
            )
        at = vma.end
    if at < end and len(found) == MANY:
        if all_mapped(at, end - at):
            return found
        for vma in vmas(at, end):
            if vma.start > at:
                break
            at = vma.end
    if at < end:
        found = vmas(at, end)
        gap = min((vma.start for vma in found if vma.start > at), default=end) - at
        raise MappingChanged(target, "is not mapped any more", (at - address) // PAGE_SIZE, gap // PAGE_SIZE)
    return found


def check_touchable(address: int, pages: int, target: str) -> None:
    """As `check_mapped`, and that there is something behind each page: for memory that is read whole anyway, since
    the kernel touches every page for it. Raises `MappingChanged`."""
    check_mapped(address, pages, target)
    first, count = 0, pages
    if touchable(address, pages * PAGE_SIZE):
        return
    while count > 1:  # the first page that cannot be touched lies among these
        half = count // 2
        if touchable(address + first * PAGE_SIZE, half * PAGE_SIZE):
            first, count = first + half, count - half
        else:
            count = half
    raise MappingChanged(target, "lies beyond the end of its file now", first, pages - first)


def descriptors(wanted: set[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Of files (device, inode) that this process has open, a descriptor each, for the caller to close. Raises
    `KernelCallError`."""
    found: dict[tuple[int, int], int] = {}
    if not 0 < len(wanted) <= _FILES:
        return found
    with system_call("open", _DESCRIPTORS):
        numbers = os.listdir(_DESCRIPTORS)
    try:
        for fd in map(int, numbers):
            try:
                status = os.fstat(fd)
                key = (status.st_dev, status.st_ino)
                if key not in wanted or key in found:
                    continue
                mine = os.dup(fd)
            except OSError as error:
                if error.errno != errno.EBADF:  # closed meanwhile
                    raise KernelCallError("dup", f"descriptor {fd}", error.errno or 0) from error
                continue
            if os.path.samestat(os.fstat(mine), status):
                found[key] = mine
            else:  # another thread has closed it meanwhile, and its number is another file's
                os.close(mine)
    except BaseException:
        for fd in found.values():
            os.close(fd)
        raise
    return found
