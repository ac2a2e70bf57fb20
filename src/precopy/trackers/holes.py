"""Pages whose content goes without a write, which write protection does not find (law 1).

What is private and has no file is found by the kernel itself: pages that were given back (MADV_DONTNEED, MADV_FREE)
have no entry in the page table any more, and so none that is protected. Elsewhere the kernel puts a protected marker in
their place, or a protected page of the file, and calls them unwritten. Three looks find them:

- **Modifications.** A file that has a name (`SharedMemory`, any file on a disk) tells of every hole, truncation and
  ``write(2)``, by whatever process, and not of stores through a mapping (inotify). All its pages count as written then.
  It takes a descriptor of the file, which this process has if it mapped it with Python.
- **Residency.** Of other shared memory, a page that the system held at a look and does not hold any more was given back
  (MADV_REMOVE) or swapped out. What was given back and *touched again* before the next look is not found.
- **Private copies.** Of a private mapping of a file (`restore`), a page that was this process's own copy and is not any
  more shows the file again (MADV_DONTNEED).

A page that is found so counts as written in every sync until it is touched again: only then it is known what it is.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.abi import pagemap
from precopy.abi.filesystem import TMPFS, file_system
from precopy.abi.inotify import Inotify
from precopy.abi.ioctl import call
from precopy.abi.maps import Vma, vmas
from precopy.abi.residency import has_swap, resident
from precopy.bitmap import Bitmap, Runs
from precopy.errors import KernelCallError, MappingChanged, Unsupported
from precopy.trackers.mapped import descriptors
from precopy.trackers.write_protection import REGIONS, Mapping, runs_of
from precopy.units import PAGE_SIZE


class Holes:
    """Looks for such pages in ``mapping``. Make one before it is protected. Raises `Unsupported`,
    `KernelCallError`, `OSError`."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._files: list[_File] = []
        self._told: Inotify | None = None
        self._shared: list[_Resident] = []
        self._copies: _Copies | None = None
        filed = [vma for vma in vmas(mapping.address, mapping.end_address) if vma.inode]
        if not filed:
            return
        fds = descriptors({(vma.device, vma.inode) for vma in filed})
        private = Bitmap(mapping.block.pages)
        files: dict[tuple[int, int], list[_Part]] = {}
        try:
            told = self._watch(fds)
            for vma in filed:
                key, part = (vma.device, vma.inode), _part(vma, mapping)
                files.setdefault(key, []).append(part)
                if not vma.shared:
                    private.set_range(part.first, part.pages)
                # What lies on a disk may be dropped from memory and read again, but tells of its modifications.
                elif key not in told or file_system(fds[key]) == TMPFS:
                    self._shared.append(_Resident(mapping, part))
            self._files = [_File(os.dup(fd), files[key], told.get(key)) for key, fd in fds.items()]
        except BaseException:
            self.close()
            raise
        finally:
            for fd in fds.values():
                os.close(fd)
        if private.any():
            self._copies = _Copies(mapping, private)

    def _watch(self, fds: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
        """Watches the files, and returns what they are called then: those in memory only as far as the system lets this
        user watch more, because their residency tells, too."""
        told: dict[tuple[int, int], int] = {}
        for key, fd in fds.items():
            try:
                self._told = self._told or Inotify()
                told[key] = self._told.watch(fd, self._mapping.target)
            except KernelCallError as error:
                if file_system(fd) != TMPFS:
                    raise Unsupported(
                        f"{self._mapping.target} is a file that cannot be watched for what is written to it otherwise "
                        f"({error})",
                        "raise fs.inotify.max_user_instances and max_user_watches",
                    ) from error
        return told

    def check(self) -> None:
        """Raises `MappingChanged` where a file ends before its mapping does: to touch what is beyond is fatal."""
        for file in self._files:
            size = os.fstat(file.fd).st_size
            for part in file.parts:
                lost = min((part.offset + part.pages * PAGE_SIZE - size) // PAGE_SIZE, part.pages)
                if lost > 0:
                    what = "lies beyond the end of its file now"
                    raise MappingChanged(self._mapping.target, what, part.first + part.pages - lost, lost)

    def look(self, page_map: int, into: Bitmap) -> None:
        """Sets in ``into``, over the mapping's pages, those that have lost their content since the look before."""
        modified = self._told.modified() if self._told is not None else set()
        for file in self._files:
            if modified & {file.watch, -1}:
                for part in file.parts:
                    into.set_range(part.first, part.pages)
        for shared in self._shared:
            shared.look(into)
        if self._copies is not None:
            self._copies.look(page_map, into)

    def close(self) -> None:
        """Closes the descriptors. May be called twice."""
        while self._files:
            os.close(self._files.pop().fd)
        if self._told is not None:
            self._told.close()


@dataclass(frozen=True)
class _Part:
    """``pages`` of a mapping from ``first`` on, which show a file from byte ``offset`` on."""

    first: int
    pages: int
    offset: int


def _part(vma: Vma, mapping: Mapping) -> _Part:
    start, end = max(vma.start, mapping.address), min(vma.end, mapping.end_address)
    first = (start - mapping.address) // PAGE_SIZE
    return _Part(first, (end - start) // PAGE_SIZE, vma.offset + start - vma.start)


@dataclass(frozen=True)
class _File:
    """A file by a descriptor of ours, the parts of the mapping that show it, and what is told of it by."""

    fd: int
    parts: list[_Part]
    watch: int | None


class _Resident:
    """A part of shared memory whose file does not tell."""

    def __init__(self, mapping: Mapping, part: _Part) -> None:
        self._address, self._part = mapping.address + part.first * PAGE_SIZE, part
        # Without swap, what is not held now is a hole, and reads as zeros.
        self._held = np.ones(part.pages, np.bool_) if has_swap() else self._now()

    def _now(self) -> npt.NDArray[np.bool_]:
        return resident(self._address, self._part.pages)

    def look(self, into: Bitmap) -> None:
        now = self._now()
        lost = np.flatnonzero(self._held & ~now)
        into.set_indexes(lost + self._part.first)
        self._held |= now


class _Copies:
    """Which pages of private mappings of files are this process's own copies."""

    def __init__(self, mapping: Mapping, private: Bitmap) -> None:
        self._mapping, self._private = mapping, private
        self._regions = np.zeros(REGIONS, pagemap.PAGE_REGION)
        page_map = pagemap.open_pagemap()
        try:
            self._own = self._scan(page_map, pagemap.PAGE_IS_PRESENT, pagemap.PAGE_IS_FILE)
            # Before it is protected, what is swapped out is a copy; later it may be a marker.
            self._own.add(self._scan(page_map, pagemap.PAGE_IS_SWAPPED))
        finally:
            os.close(page_map)

    def look(self, page_map: int, into: Bitmap) -> None:
        now = self._scan(page_map, pagemap.PAGE_IS_PRESENT, pagemap.PAGE_IS_FILE)
        lost = self._own.copy()
        lost.difference(now)
        if lost.any():
            into.add(lost)
            # Those that show the file for certain are copies no more; others may be swapped out.
            shown = self._scan(page_map, pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_FILE)
            self._own.difference(shown)
        self._own.add(now)

    def _scan(self, page_map: int, has: int, lacks: int = 0) -> Bitmap:
        """The pages of private mappings of files that are all of ``has``, and none of ``lacks``."""
        argument = pagemap.scan_argument(self._regions, has)
        argument.category_anyof_mask, argument.category_mask, argument.category_inverted = 0, has | lacks, lacks
        argument.start, argument.end = self._mapping.address, self._mapping.end_address
        argument.size = ctypes.sizeof(argument)
        found = Bitmap(self._private.size)
        while argument.start < argument.end:
            count = call(page_map, pagemap.PAGEMAP_SCAN, argument, target=self._mapping.target)
            if count:
                found.set_runs(runs_of(self._regions[:count], self._mapping.address))
            argument.start = argument.walk_end
        found.words &= self._private.words
        return found


def replaced(page_map: int, mapping: Mapping) -> Runs:
    """Which pages of the mapping the kernel does not protect any more, because something else is mapped there."""
    regions = np.zeros(REGIONS, pagemap.PAGE_REGION)
    argument = pagemap.scan_argument(regions, pagemap.PAGE_IS_WPALLOWED)
    argument.category_anyof_mask = 0
    argument.category_mask = argument.category_inverted = pagemap.PAGE_IS_WPALLOWED
    argument.start, argument.end = mapping.address, mapping.end_address
    count = call(page_map, pagemap.PAGEMAP_SCAN, argument, target=mapping.target)
    return runs_of(regions[:count], mapping.address)
