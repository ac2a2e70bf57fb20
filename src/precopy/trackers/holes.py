"""Pages whose content goes without a write, which write protection does not find (law 1).

What is private and has no file is found by the kernel itself: pages that were given back (MADV_DONTNEED, MADV_FREE)
have no entry in the page table any more, and so none that is protected. Elsewhere the kernel puts a protected marker in
their place, or a protected page of the file, and calls them unwritten. Three looks find them:

- **Modifications.** A file that has a name (`SharedMemory`, any file on a disk) reports every hole, truncation and
  ``write(2)`` of any process, but no store through a mapping (inotify). All its pages count as written then.
  It takes a descriptor of the file, which this process has if it mapped it with Python.
- **Residency.** Of other shared memory, a page that the system held at a look and does not hold any more was given back
  (MADV_REMOVE) or swapped out. What was given back and *touched again* before the next look is not found.
- **Private copies.** Of a private mapping of a file (`restore`), a page that was this process's own copy and is not any
  more shows the file again (MADV_DONTNEED).

A page that is found so counts as written in every sync until it is touched again: only then its content is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.abi import pagemap
from precopy.abi.filesystem import TMPFS, file_system
from precopy.abi.inotify import Inotify
from precopy.abi.ioctl import call
from precopy.abi.maps import Vma, vmas
from precopy.abi.residency import has_swap, is_nameless, resident
from precopy.bitmap import Bitmap, Runs
from precopy.errors import KernelCallError, MappingChanged, Unsupported
from precopy.trackers.mapped import descriptors
from precopy.trackers.write_protection import REGIONS, Mapping, runs_of
from precopy.units import PAGE_SIZE

_WINDOW = 4096
"""Pages (16 MiB) that are looked at in one call, if there is a copy among them."""


class Holes:
    """Looks for such pages in ``mapping``. Make one before it is protected, and call `protected` when it is. Raises
    `Unsupported`, `KernelCallError`."""

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
                # What has a name tells of its modifications; memfds and the like do not since Linux 6.14.
                elif key not in told or is_nameless(vma.device):
                    self._shared.append(_Resident(mapping, part))
            if private.any():
                self._copies = _Copies(mapping, private)
        except BaseException:
            for fd in fds.values():
                os.close(fd)
            self.close()
            raise
        self._files = [_File(fd, files[key], told.get(key)) for key, fd in fds.items()]

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

    def protected(self, page_map: int) -> None:
        """Looks once more: what was written between the first look and the protection is known to no harvest."""
        for shared in self._shared:
            shared.protected()
        if self._copies is not None:
            self._copies.protected(page_map)

    def check(self) -> None:
        """Raises `MappingChanged` where a file ends before its mapping does: to touch what is beyond is fatal."""
        for file in self._files:
            size = os.fstat(file.fd).st_size
            for part in file.parts:
                lost = min((part.offset + part.pages * PAGE_SIZE - size) // PAGE_SIZE, part.pages)
                if lost > 0:
                    what = "lies beyond the end of its file now"
                    raise MappingChanged(self._mapping.target, what, part.first + part.pages - lost, lost)

    def look(self, page_map: int, written: Bitmap, into: Bitmap) -> None:
        """Sets in ``into``, over the mapping's pages, those that have lost their content since the look before, after
        all that were ``written`` since then were found."""
        modified = self._told.modified() if self._told is not None else set()
        for file in self._files:
            if modified & {file.watch, -1}:
                for part in file.parts:
                    into.set_range(part.first, part.pages)
        for shared in self._shared:
            shared.look(into)
        if self._copies is not None:
            self._copies.look(page_map, written, into)

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

    def protected(self) -> None:
        self._held |= self._now()

    def look(self, into: Bitmap) -> None:
        now = self._now()
        lost = np.flatnonzero(self._held & ~now)
        into.set_indexes(lost + self._part.first)
        self._held |= now


class _Copies:
    """Which pages of private mappings of files are this process's own copies."""

    def __init__(self, mapping: Mapping, private: Bitmap) -> None:
        self._mapping, self._private = mapping, private
        self._own = Bitmap(private.size)
        self._regions = np.zeros(REGIONS, pagemap.PAGE_REGION)
        page_map = pagemap.open_pagemap()
        try:
            # Before it is protected, what is swapped out is a copy; later it may be a marker.
            self._add(page_map, pagemap.PAGE_IS_PRESENT | pagemap.PAGE_IS_SWAPPED)
        finally:
            os.close(page_map)

    def protected(self, page_map: int) -> None:
        self._add(page_map, pagemap.PAGE_IS_PRESENT)

    def _add(self, page_map: int, categories: int) -> None:
        """Those that are in one of ``categories`` and show no file."""
        for regions in self._scan(page_map, categories, 0, self._own.size):
            self._own.set_runs(self._runs(regions[regions["categories"] & pagemap.PAGE_IS_FILE == 0]))
        self._own.words &= self._private.words

    def look(self, page_map: int, written: Bitmap, into: Bitmap) -> None:
        """A page becomes a copy by being written. Only where there are copies is looked at."""
        self._own.words |= written.words & self._private.words
        lost, shown = Bitmap(self._own.size), Bitmap(self._own.size)
        for start, count in self._own.windows(_WINDOW):
            for regions in self._scan(page_map, pagemap.PAGE_IS_FILE | pagemap.PAGE_IS_SWAPPED, start, count):
                lost.set_runs(self._runs(regions))
                shown.set_runs(self._runs(regions[regions["categories"] & pagemap.PAGE_IS_FILE != 0]))
        lost.words &= self._own.words
        into.add(lost)
        self._own.difference(shown)  # others may be swapped out, and copies yet

    def _scan(self, page_map: int, categories: int, start: int, count: int) -> Iterator[pagemap.PageRegions]:
        """Those pages of a range that are of any of ``categories``, with these and whether they show a file."""
        argument = pagemap.scan_argument(self._regions, categories)
        argument.return_mask = categories | pagemap.PAGE_IS_FILE
        argument.start = self._mapping.address + start * PAGE_SIZE
        argument.end = argument.start + count * PAGE_SIZE
        while argument.start < argument.end:
            found = call(page_map, pagemap.PAGEMAP_SCAN, argument, target=self._mapping.target)
            yield self._regions[:found]
            argument.start = argument.walk_end

    def _runs(self, regions: pagemap.PageRegions) -> Runs:
        return runs_of(regions, self._mapping.address)


def replaced(page_map: int, mapping: Mapping) -> Runs:
    """Which pages of the mapping the kernel does not protect any more, because something else is mapped there."""
    regions = np.zeros(REGIONS, pagemap.PAGE_REGION)
    argument = pagemap.scan_argument(regions, pagemap.PAGE_IS_WPALLOWED)
    argument.category_anyof_mask = 0
    argument.category_mask = argument.category_inverted = pagemap.PAGE_IS_WPALLOWED
    argument.start, argument.end = mapping.address, mapping.end_address
    count = call(page_map, pagemap.PAGEMAP_SCAN, argument, target=mapping.target)
    return runs_of(regions[:count], mapping.address)
