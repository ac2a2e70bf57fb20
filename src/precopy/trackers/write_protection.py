"""Write protection of this process's memory by the kernel: userfaultfd registers it, PAGEMAP_SCAN finds what was
written since it was protected, and protects it again. What pagemap.py makes a dirty log of.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from precopy.abi import pagemap, userfaultfd
from precopy.abi.ioctl import call
from precopy.bitmap import Bitmap, Runs
from precopy.errors import KernelCallError, Unsupported
from precopy.memory.layout import RamBlock

REGIONS = 65536
"""Ranges that one scan can return, 1.5 MiB; where there are more, the next one goes on from there."""

FEATURES = (
    userfaultfd.FEATURE_PAGEFAULT_FLAG_WP
    | userfaultfd.FEATURE_WP_HUGETLBFS_SHMEM
    | userfaultfd.FEATURE_WP_UNPOPULATED
    | userfaultfd.FEATURE_WP_ASYNC
)

_MISSING = {"UFFDIO_API": "UFFD_FEATURE_WP_ASYNC", "PAGEMAP_SCAN": "PAGEMAP_SCAN"}


@dataclass(frozen=True)
class Mapping:
    """A block, and the address where it is mapped in this process."""

    block: RamBlock
    address: int

    @property
    def end_address(self) -> int:
        return self.address + self.block.pages * mmap.PAGESIZE

    @property
    def target(self) -> str:
        """What errors call it."""
        return f"block {self.block.name!r}"

    @property
    def range(self) -> userfaultfd.UffdioRange:
        return userfaultfd.UffdioRange(self.address, self.end_address - self.address)


class WriteProtection:
    """What the kernel holds for one log: a userfaultfd with its registered memory, and this process's page map.

    Ranges are in pages, counted from a mapping's first one. ``ioctls`` counts scans and protections; ``page_map`` is a
    descriptor. Raises `Unsupported` where the kernel cannot do it, or this process may not.

    ``descriptors`` are a userfaultfd and a page map of another process, which that has made in the same way and sent
    here: then all of this is about its memory, for as long as that is there (errno ESRCH says that it is gone).
    """

    def __init__(self, descriptors: tuple[int, int] | None = None) -> None:
        self.ioctls = 0
        self._process = os.getpid()
        self._registered: list[Mapping] = []
        self._regions = np.zeros(REGIONS, pagemap.PAGE_REGION)
        self._scan = pagemap.scan_argument(self._regions, pagemap.PAGE_IS_WRITTEN)
        self._uffd, self.page_map = descriptors or _open(self._scan)

    def register(self, mapping: Mapping) -> None:
        """Has the kernel look after writes to it; it is not protected yet. Registered memory stays so. Raises
        `Unsupported` where another userfaultfd has the memory, `KernelCallError`."""
        self._need_own_process()
        if mapping in self._registered:
            return
        argument = userfaultfd.Register(mapping.range, userfaultfd.REGISTER_MODE_WP, 0)
        try:
            call(self._uffd, userfaultfd.UFFDIO_REGISTER, argument, target=mapping.target)
        except KernelCallError as error:
            if error.errno != errno.EBUSY:
                raise
            raise Unsupported(
                f"the memory of {mapping.target} has another userfaultfd already",
                "stop the log that tracks it, or share that one",
            ) from error
        self._registered.append(mapping)

    @property
    def descriptors(self) -> tuple[int, int]:
        """The userfaultfd and the page map."""
        return self._uffd, self.page_map

    def adopt(self, mapping: Mapping) -> None:
        """It is registered already, by the process whose it is."""
        self._registered.append(mapping)

    def forget(self, mapping: Mapping) -> None:
        """It is not mapped any more, or not as it was registered."""
        if mapping in self._registered:
            self._registered.remove(mapping)

    def present(self, mapping: Mapping) -> Iterator[Runs]:
        """Runs of the pages that the process has touched, as far as its page table still shows it. Raises as `written`
        does."""
        return _pages_of(self.page_map, mapping, pagemap.PAGE_IS_PRESENT)

    def huge(self, mapping: Mapping) -> Iterator[Runs]:
        """Runs of the pages that huge pages map now. Raises as `written` does."""
        return _pages_of(self.page_map, mapping, pagemap.PAGE_IS_HUGE)

    def close(self) -> None:
        """Takes all protection away. May be called twice; in a child process it only closes the child's descriptors."""
        if os.getpid() != self._process:
            self._registered.clear()  # these are the parent's
        # Closing alone does not do it where a child process has a copy of the descriptor.
        while self._registered:
            mapping = self._registered.pop()
            with contextlib.suppress(KernelCallError):  # unmapped meanwhile
                call(self._uffd, userfaultfd.UFFDIO_UNREGISTER, mapping.range, target=mapping.target)
        for descriptor in (self._uffd, self.page_map):
            if descriptor >= 0:
                os.close(descriptor)
        self._uffd = self.page_map = -1

    def protect(self, mapping: Mapping, start: int, count: int) -> None:
        """Protects a range, whether it was written or not, in one call. Raises `KernelCallError`."""
        self._protect(mapping, start, count, userfaultfd.WRITEPROTECT_MODE_WP)

    def unprotect(self, mapping: Mapping, start: int, count: int) -> None:
        """Takes the protection of a range away, whose pages then count as written. Raises `KernelCallError`."""
        self._protect(mapping, start, count, 0)

    def _protect(self, mapping: Mapping, start: int, count: int, mode: int) -> None:
        self._need_own_process()
        where = userfaultfd.UffdioRange(mapping.address + start * mmap.PAGESIZE, count * mmap.PAGESIZE)
        argument = userfaultfd.WriteProtect(where, mode)
        call(self._uffd, userfaultfd.UFFDIO_WRITEPROTECT, argument, target=mapping.target)
        self.ioctls += 1

    def _need_own_process(self) -> None:
        """The descriptors speak of the memory of the process that opened them: in a child, of its parent's, whose pages
        would be protected again and never reported there (law 1)."""
        if os.getpid() != self._process:
            raise Unsupported(
                "this memory is tracked by the parent process",
                "track it there, or use a precopy.Memory made in the child",
            )

    def written(self, mapping: Mapping, start: int, count: int, *, protect: bool) -> Iterator[Runs]:
        """Runs of the pages of a range that were written since they were protected, counted from its ``start``; with
        ``protect``, each is protected when it is returned: a caller that stops early has to treat all as written.

        Raises `KernelCallError`, `Unsupported`.
        """
        self._need_own_process()
        scan, base = self._scan, mapping.address + start * mmap.PAGESIZE
        scan.start, scan.end = base, base + count * mmap.PAGESIZE
        scan.flags = pagemap.PM_SCAN_CHECK_WPASYNC | (pagemap.PM_SCAN_WP_MATCHING if protect else 0)
        # Where it finds more than 512 runs, the kernel may return all of them and still name an earlier ``walk_end``;
        # what the next call then finds again does no harm, and only ``walk_end`` is documented to say how far it came.
        while scan.start < scan.end:
            found = call(self.page_map, pagemap.PAGEMAP_SCAN, scan, target=mapping.target)
            self.ioctls += 1
            if found:
                yield runs_of(self._regions[:found], base)
            elif scan.walk_end <= scan.start:
                raise Unsupported(
                    f"{mapping.target} has huge pages that cannot be protected in part", "track it in one step"
                )
            scan.start = scan.walk_end


def huge_bytes(mapping: Mapping) -> int:
    """Bytes of it that huge pages map now. It needs not be registered. Raises `Unsupported`, `KernelCallError`."""
    page_map = pagemap.open_pagemap()
    try:
        return sum(runs.pages for runs in _pages_of(page_map, mapping, pagemap.PAGE_IS_HUGE)) * mmap.PAGESIZE
    finally:
        os.close(page_map)


def _pages_of(page_map: int, mapping: Mapping, category: int) -> Iterator[Runs]:
    """Runs of the mapping's pages of a category."""
    regions = np.zeros(REGIONS, pagemap.PAGE_REGION)
    scan = pagemap.scan_argument(regions, category)
    scan.start, scan.end = mapping.address, mapping.end_address
    while scan.start < scan.end:
        found = call(page_map, pagemap.PAGEMAP_SCAN, scan, target=mapping.target)
        yield runs_of(regions[:found], mapping.address)
        scan.start = scan.walk_end


def scan_into(
    kernel: WriteProtection,
    mapping: Mapping,
    start: int,
    into: Bitmap,
    *,
    protect: bool,
    at: int = 0,
    count: int | None = None,
) -> None:
    """Sets the written pages from the mapping's page ``start`` on in ``into``, from bit ``at`` on: ``count`` pages, or
    as many as there is room for. Raises as `WriteProtection.written` does."""
    count = into.size - at if count is None else count
    try:
        for runs in kernel.written(mapping, start, count, protect=protect):
            into.set_runs(runs.shifted(at) if at else runs)
    except BaseException:
        # What is protected, and not noted yet, would be lost (law 1): a signal may end this anywhere.
        into.set_range(at, count)
        raise


def _open(scan: pagemap.PmScanArg) -> tuple[int, int]:
    """A userfaultfd that can write-protect asynchronously, and this process's page map, on which ``scan`` (of no memory
    at all) was tried."""
    with contextlib.ExitStack() as undo:
        uffd = userfaultfd.open_userfaultfd()
        undo.callback(os.close, uffd)
        page_map = pagemap.open_pagemap()
        undo.callback(os.close, page_map)
        try:
            userfaultfd.enable(uffd, FEATURES)
            call(page_map, pagemap.PAGEMAP_SCAN, scan, target=pagemap.PAGEMAP)
        except KernelCallError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTTY):
                raise
            raise Unsupported(
                f"this kernel cannot track writes to a process's memory: it has no {_MISSING[error.operation]}",
                "use Linux 6.7 or later",
            ) from error
        undo.pop_all()
    return uffd, page_map


def runs_of(regions: pagemap.PageRegions, base: int) -> Runs:
    """Regions as runs of pages, counted from address ``base``."""
    starts = (regions["start"].astype(np.int64) - base) // mmap.PAGESIZE
    return Runs(starts, (regions["end"].astype(np.int64) - base) // mmap.PAGESIZE - starts)
