"""Reading one snapshot's file: checked header and table, and pages of it by group, checked, too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from functools import cached_property
from typing import Self

import numpy as np
import xxhash

from precopy.abi.file_io import read_at
from precopy.bitmap import Runs
from precopy.errors import OutOfMemory, SnapshotDamaged, SnapshotError
from precopy.memory.packing import Decompressor
from precopy.memory.ram import Pages
from precopy.snapshot_store.directory import Directory, failed
from precopy.snapshot_store.format import GROUP_PAGES, HEADER_BYTES, Form, Header, Table, has_zero_page
from precopy.units import PAGE_SIZE

_WORDS = PAGE_SIZE // 8
_CHUNK = 1 << 20
"""Bytes of a table that are read at once."""


class StoredFile:
    """An open snapshot, whose header was checked. Raises `FileNotFoundError` where ``directory`` has no such number,
    `SnapshotDamaged`, `SnapshotError`, `Unsupported`."""

    def __init__(self, directory: Directory, number: int) -> None:
        self.path = directory.file(number)
        self._directory, self._number = directory, number
        self._fd = directory.open(number)
        try:
            self.status = os.fstat(self._fd)
            self.header = Header.decode(self._read(HEADER_BYTES, 0), self.path, self.status.st_size)
            if self.header.number != number:
                raise SnapshotDamaged(self.path, f"it says that it is snapshot {self.header.number}")
        except BaseException:
            self.release()
            raise
        self._cached = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def fd(self) -> int:
        """Its descriptor, opened again where it was released. Raises `SnapshotError` where the file is another now."""
        if self._fd < 0:
            with contextlib.suppress(FileNotFoundError):
                self._fd = self._directory.open(self._number)
            if self._fd < 0 or not os.path.samestat(os.fstat(self._fd), self.status):
                self.release()
                raise SnapshotError(f"{self.path} was removed or compacted while it was read; try again")
        return self._fd

    def release(self) -> None:
        """Gives the descriptor back, for chains that have more files than a process may have open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def stored_bytes(self) -> int:
        """What the file takes of its file system, holes left out."""
        return self.status.st_blocks * 512

    @cached_property
    def table(self) -> Table:
        """Raises `SnapshotDamaged`, `SnapshotError`, `OutOfMemory`."""
        return Table.decode(self._read_table(), self.header, self.path)

    def _read_table(self) -> memoryview:
        """Takes no more memory than the file has content: what it merely claims ends with the first page of zeros,
        which no table has."""
        length = self.header.table_bytes
        try:
            table = np.empty(length, np.uint8)  # memory is given as it is filled
        except MemoryError:
            raise OutOfMemory(f"the table of {self.path}", length, None, "read it on a larger machine") from None
        for at in range(0, length, _CHUNK):
            part = table[at : at + _CHUNK]
            self._read_into(part.data, self.header.table_offset + at)
            if has_zero_page(part):
                raise SnapshotDamaged(self.path, "its table has a hole")
        return table.data

    @cached_property
    def _buffer(self) -> Pages:
        return np.empty((GROUP_PAGES, _WORDS), np.uint64)

    @cached_property
    def _decompressor(self) -> Decompressor:
        return Decompressor()

    def group(self, index: int) -> Pages:
        """The pages of one group, which match their checksum. They are good until the next call.

        Raises `SnapshotDamaged`, `SnapshotError`.
        """
        runs = self.table.group(index)
        pages = self._buffer[: runs.pages]
        if index == self._cached:
            return pages
        self._cached = -1
        if self.header.compressed:
            offset, length = int(self.table.offsets[index]), int(self.table.lengths[index])
            if not self._decompressor.into(self._read(length, HEADER_BYTES + offset), pages):
                raise SnapshotDamaged(self.path, f"group {index} cannot be decompressed")
        elif self.header.form is Form.IMAGE:
            at = 0
            for start, length in runs:
                self._read_into(pages[at : at + length].data.cast("B"), HEADER_BYTES + start * PAGE_SIZE)
                at += length
        else:
            self._read_into(pages.data.cast("B"), HEADER_BYTES + index * GROUP_PAGES * PAGE_SIZE)
        if xxhash.xxh3_64_intdigest(pages.data.cast("B")) != int(self.table.sums[index]):
            first, last = int(runs.starts[0]), int(runs.ends[-1]) - 1
            raise SnapshotDamaged(self.path, f"pages {first} to {last} do not match their checksum")
        self._cached = index
        return pages

    def check(self) -> None:
        """Reads all of it. Raises `SnapshotDamaged`, `SnapshotError`."""
        self.check_groups(range(self.header.groups))

    def check_groups(self, groups: Iterable[int]) -> None:
        """Reads these, and what an image has beside its content. Raises `SnapshotDamaged`, `SnapshotError`."""
        for index in groups:
            self.group(int(index))
        if self.header.form is Form.IMAGE:
            self._check_holes()

    def _check_holes(self) -> None:
        """Whether what an image has between its content is zero: mostly holes, which are not read."""
        content, end = self.table.content, self.header.pages
        starts = np.concatenate(([0], content.ends))
        gaps = Runs(starts, np.concatenate((content.starts, [end])) - starts)
        for start, length in self._data_pages():
            lo = int(np.searchsorted(gaps.starts + gaps.lengths, start, side="right"))
            hi = int(np.searchsorted(gaps.starts, start + length))
            for first, pages in gaps[lo:hi]:
                self._check_zero(max(first, start), min(first + pages, start + length))

    def _data_pages(self) -> Runs:
        """Runs of pages of an image of which the file system holds anything."""
        found: list[tuple[int, int]] = []
        at, end = HEADER_BYTES, self.header.table_offset
        while at < end:
            try:
                first = os.lseek(self.fd, at, os.SEEK_DATA)
                at = os.lseek(self.fd, first, os.SEEK_HOLE)
            except OSError:  # no data behind `at`
                break
            lo, hi = (first - HEADER_BYTES) // PAGE_SIZE, -(-(min(at, end) - HEADER_BYTES) // PAGE_SIZE)
            if lo < hi:
                found.append((lo, hi - lo))
        return Runs.of(*found)

    def _check_zero(self, start: int, end: int) -> None:
        for at in range(start, end, GROUP_PAGES):
            pages = np.empty((min(GROUP_PAGES, end - at), _WORDS), np.uint64)
            self._read_into(pages.data.cast("B"), HEADER_BYTES + at * PAGE_SIZE)
            if pages.any():
                raise SnapshotDamaged(self.path, f"a page from {at} on has content and should be zero")

    def _read(self, length: int, offset: int) -> bytes:
        """At most ``length`` bytes, which are few: fewer at the file's end."""
        data = bytearray(length)
        try:
            return bytes(data[: read_at(self.fd, memoryview(data), offset)])
        except OSError as error:
            raise failed("read", self.path, error) from error

    def _read_into(self, into: memoryview, offset: int) -> None:
        try:
            got = read_at(self.fd, into, offset)
        except OSError as error:
            raise failed("read", self.path, error) from error
        if got < into.nbytes:
            raise SnapshotDamaged(self.path, "it ends before its data does")
