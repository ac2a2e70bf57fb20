"""The file of one snapshot, as bytes: a page with its header, the data, a table. No I/O here.

::

    offset 0                     magic 8 B, version u32, length of the record u32, xxh3_64 of what precedes and follows
                                 u64, the record (JSON), zeros up to the page's end
    offset 4096                  data: pages, as `Form` says
    offset 4096 + data_bytes     table: content runs, zero runs, a checksum for each group; compressed groups' lengths

All numbers are little-endian. The content runs, ascending, give the content pages their order; a *group* is
`GROUP_PAGES` consecutive ones in this order (the last has fewer), and is what is checksummed and compressed at once.
docs/snapshots.md specifies it for other readers.

Law 5 holds for files, too: a directory may be damaged, or another user's. Each field is checked against its bound, the
file's size and the others, before anything is allocated or mapped because of it. What fails is a `SnapshotDamaged`.
"""

from __future__ import annotations

import enum
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from precopy.bitmap import Runs
from precopy.errors import SnapshotDamaged, Unsupported
from precopy.memory.packing import Compression
from precopy.units import PAGE_SIZE

MAGIC = b"PRECOPYS"
VERSION = 1
HEADER_BYTES = PAGE_SIZE
GROUP_PAGES = 256
"""1 MiB: hashed, compressed and written at once; measured, smaller groups cost calls and larger ones the cache."""
MAX_BYTES = 1 << 42
"""4 TiB: the largest memory that a snapshot holds. Bitmaps of it take 128 MiB."""
MAX_NUMBER = 99_999_999
MAX_GROUP_BYTES = 2 * GROUP_PAGES * PAGE_SIZE
"""No compressed group is longer; zstd's own bound for what does not compress is 1.004 times its content."""

_HEAD = struct.Struct("<8sII")
_SUM = struct.Struct("<Q")
_ID = re.compile(r"[0-9a-f]{16}")
_UINT = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_PAGES = Annotated[int, msgspec.Meta(ge=0, le=MAX_BYTES // PAGE_SIZE)]
_NUMBER = Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]

Sums = npt.NDArray[np.uint64]
Lengths = npt.NDArray[np.int64]


class Form(enum.Enum):
    """Where the data has its pages."""

    IMAGE = "image"
    """Page i of the memory at ``4096 * i``; pages without content are holes. Full snapshots can be mapped like that."""
    PACKED = "packed"
    """Content pages side by side."""


@dataclass(frozen=True)
class Parent:
    """The snapshot whose pages show where an increment has none."""

    number: _NUMBER
    id: str


@dataclass(frozen=True)
class Header:
    """The header of a snapshot. Without a ``parent`` it is full, and pages in neither table are zero.

    ``id`` is of the content: folding a chain into one file keeps it. Sizes in bytes, ``created_s`` in seconds since
    1970.
    """

    number: _NUMBER
    id: str
    parent: Parent | None
    created_s: float
    size: Annotated[int, msgspec.Meta(ge=PAGE_SIZE, le=MAX_BYTES, multiple_of=PAGE_SIZE)]
    page_size: int
    form: Form
    compression: Compression
    content_runs: _PAGES
    content_pages: _PAGES
    zero_runs: _PAGES
    zero_pages: _PAGES
    data_bytes: _UINT
    table_bytes: _UINT
    table_checksum: Annotated[int, msgspec.Meta(ge=0)]

    @property
    def pages(self) -> int:
        """Pages of the memory."""
        return self.size // PAGE_SIZE

    @property
    def full(self) -> bool:
        return self.parent is None

    @property
    def absent_pages(self) -> int:
        """Pages without content here: in a full snapshot, those that are zero."""
        return self.pages - self.content_pages

    @property
    def compressed(self) -> bool:
        return self.compression is not Compression.NONE

    @property
    def groups(self) -> int:
        return -(-self.content_pages // GROUP_PAGES)

    @property
    def table_offset(self) -> int:
        return HEADER_BYTES + self.data_bytes

    @property
    def file_bytes(self) -> int:
        """Of the whole file, holes included."""
        return self.table_offset + self.table_bytes

    def encode(self) -> bytes:
        """The file's first page."""
        record = msgspec.json.encode(self)
        head = _HEAD.pack(MAGIC, VERSION, len(record))
        page = head + _SUM.pack(_checksum(head, record)) + record
        return page.ljust(HEADER_BYTES, b"\0")

    @classmethod
    def decode(cls, page: bytes, path: str, file_bytes: int) -> Header:
        """From the first page of the file ``path``, which has ``file_bytes``. Raises `SnapshotDamaged`, `Unsupported`
        for another version of the format."""
        if len(page) != HEADER_BYTES:
            raise SnapshotDamaged(path, f"it has {file_bytes} bytes, less than a header")
        magic, version, length = _HEAD.unpack_from(page)
        if magic != MAGIC:
            raise SnapshotDamaged(path, "it does not begin as a snapshot does")
        if version != VERSION:
            raise Unsupported(
                f"{path} is of version {version} of the snapshot format, and {VERSION} is known here",
                "use the precopy that wrote it",
            )
        at = _HEAD.size + _SUM.size
        record, rest = page[at : at + length], page[at + length :]
        if length > HEADER_BYTES - at or rest.strip(b"\0"):
            raise SnapshotDamaged(path, "its header is not as long as it says")
        if _SUM.unpack_from(page, _HEAD.size)[0] != _checksum(page[: _HEAD.size], record):
            raise SnapshotDamaged(path, "its header does not match its checksum")
        try:
            header = msgspec.json.decode(record, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise SnapshotDamaged(path, f"its header cannot be read: {error}") from error
        why = header.wrong(file_bytes)
        if why:
            raise SnapshotDamaged(path, why)
        return header

    def wrong(self, file_bytes: int) -> str | None:
        """What cannot be so, for a file of ``file_bytes``; None where all fits."""
        parent = self.parent
        ids = [self.id] if parent is None else [self.id, parent.id]
        image, full = self.form is Form.IMAGE, parent is None
        data = self.size if image else self.content_pages * PAGE_SIZE
        saved = self.content_pages + self.zero_pages
        wrong = (
            (not all(map(_ID.fullmatch, ids)), "its header has a malformed id"),
            (self.page_size != PAGE_SIZE, f"it has pages of {self.page_size} bytes, not {PAGE_SIZE}"),
            (parent is not None and parent.number >= self.number, "it says that it follows one that is not before it"),
            (full and self.zero_pages, "it is full and lists zero pages"),
            (saved > self.pages, f"it claims {saved} pages of a memory of {self.pages}"),
            (self.content_runs > self.content_pages or self.zero_runs > self.zero_pages, "it has more runs than pages"),
            (self.table_bytes != table_bytes(self), f"its table has {self.table_bytes} bytes, not {table_bytes(self)}"),
            (image and parent is not None, "it claims to be an image and not full"),
            (not image and full and not self.compressed, "it is full, and neither an image nor compressed"),
            (image and self.compressed, "it claims to be an image and compressed"),
            (not self.compressed and self.data_bytes != data, f"its data has {self.data_bytes} bytes, not {data}"),
            (file_bytes != self.file_bytes, f"it has {file_bytes} bytes, not {self.file_bytes}"),
        )
        return next((why for so, why in wrong if so), None)


def table_bytes(header: Header) -> int:
    """How long the table is that the header's counts need."""
    each = 12 if header.compressed else 8
    return 16 * (header.content_runs + header.zero_runs) + each * header.groups


@dataclass(frozen=True)
class Table:
    """Which pages a snapshot has, and of each group its xxh3_64 and (compressed) its length in bytes."""

    content: Runs
    zero: Runs
    sums: Sums
    lengths: Lengths

    @cached_property
    def before(self) -> Lengths:
        """Content pages before each content run: where in the order it begins."""
        return np.cumsum(self.content.lengths) - self.content.lengths

    @cached_property
    def offsets(self) -> Lengths:
        """Where each compressed group begins, in bytes from the beginning of the data."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def groups(self) -> tuple[Runs, list[int]]:
        """The content as runs that no group's end lies inside, and where among them each group begins, with the end."""
        return self.content.cut(GROUP_PAGES)

    def group(self, index: int) -> Runs:
        """The runs of one group."""
        runs, bounds = self.groups
        return runs[bounds[index] : bounds[index + 1]]

    def encode(self) -> bytes:
        runs = np.empty((len(self.content) + len(self.zero), 2), "<u8")
        for part, rows in ((self.content, slice(0, len(self.content))), (self.zero, slice(len(self.content), None))):
            runs[rows, 0], runs[rows, 1] = part.starts, part.lengths
        return runs.tobytes() + self.sums.astype("<u8").tobytes() + self.lengths.astype("<u4").tobytes()

    @classmethod
    def decode(cls, data: bytes | memoryview, header: Header, path: str) -> Table:
        """From the bytes behind the data of ``path``, whose header was checked. Raises `SnapshotDamaged`."""
        data = memoryview(data)
        if len(data) != header.table_bytes or xxhash.xxh3_64_intdigest(data) != header.table_checksum:
            raise SnapshotDamaged(path, "its table does not match its checksum")
        runs_end = 16 * (header.content_runs + header.zero_runs)
        sums_end = runs_end + 8 * header.groups
        runs = np.frombuffer(data[:runs_end], "<u8").reshape(-1, 2)
        table = cls(
            _runs(runs[: header.content_runs], header.content_pages, header.pages, path),
            _runs(runs[header.content_runs :], header.zero_pages, header.pages, path),
            np.frombuffer(data[runs_end:sums_end], "<u8").astype(np.uint64),
            np.frombuffer(data[sums_end:], "<u4").astype(np.int64),
        )
        if _overlap(table.content, table.zero):
            raise SnapshotDamaged(path, "its table has a page with content and as zero")
        if header.compressed and (
            int(table.lengths.sum()) != header.data_bytes or bool((table.lengths > MAX_GROUP_BYTES).any())
        ):
            raise SnapshotDamaged(path, "its groups are not as long as its data")
        return table


def _runs(table: npt.NDArray[np.uint64], pages: int, memory_pages: int, path: str) -> Runs:
    """Ascending, disjoint runs with ``pages`` pages of a memory of ``memory_pages``."""
    if len(table) and int(table.max()) > memory_pages:  # before anything is added, so that nothing can wrap
        raise SnapshotDamaged(path, "its table has a run outside the memory")
    runs = Runs(*np.ascontiguousarray(table.T.astype(np.int64)))
    ends = runs.ends
    if (
        not runs.lengths.all()
        or runs.pages != pages
        or bool((runs.starts[1:] < ends[:-1]).any())
        or (len(runs) and int(ends[-1]) > memory_pages)
    ):
        raise SnapshotDamaged(path, "the runs of its table overlap, are empty or are not as many pages as it says")
    return runs


def _overlap(one: Runs, other: Runs) -> bool:
    """Whether any page is in both. Takes no more memory than the runs do."""
    before = np.searchsorted(one.starts, other.ends)  # of each run of the other, how many of ours begin before its end
    some = before > 0
    return bool((one.ends[before[some] - 1] > other.starts[some]).any())


def has_zero_page(part: npt.NDArray[np.uint8]) -> bool:
    """Whether ``part`` of a table, which begins at a whole page of it, has a page of zeros. No table that was written
    has one: no run is empty, no compressed group either, and no 512 checksums are all 0. Holes of a file have."""
    whole = part[: part.size // PAGE_SIZE * PAGE_SIZE].view(np.uint64).reshape(-1, PAGE_SIZE // 8)
    return not bool(whole.any(axis=1).all())


def _checksum(head: bytes, record: bytes) -> int:
    return xxhash.xxh3_64_intdigest(head + record)
