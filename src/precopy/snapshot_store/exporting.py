"""`export`: a snapshot as a file that other programs read."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from precopy.abi.file_io import write_at
from precopy.abi.filesystem import absolute_path
from precopy.bitmap.words import Indexes
from precopy.errors import PrecopyError, UsageError
from precopy.memory.ram import Pages
from precopy.report.kinds.snapshot_export import Exported
from precopy.snapshot_store.chain import Composition, chain_of
from precopy.snapshot_store.directory import Directory, failed, is_reserved
from precopy.snapshot_store.format import GROUP_PAGES
from precopy.units import PAGE_SIZE

_NOT_A_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG, errno.EOPNOTSUPP)
"""What the system says of a directory in which no file can be made, or not one of this name."""


def export(
    directory: str | os.PathLike[str], file: str | os.PathLike[str], at: int | None = None, *, npy: str | None = None
) -> Exported:
    """Writes the memory of snapshot ``at``, or of the newest, to ``file``: byte for byte, or as a numpy array of
    the one-dimensional type ``npy`` (such as ``float64``). What is read is checked. The file appears when it is
    whole, in place of one that is there.

    Raises `UsageError` where there is no such snapshot or type, and for a file that is called like a snapshot;
    `SnapshotDamaged`, `SnapshotError`.
    """
    path = Path(os.path.realpath(absolute_path(file)))  # a link's target is written, and the link stays
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{path} is there and is no regular file; name one, or one that is not there yet")
    if is_reserved(path.name):
        raise UsageError(f"{path} has the name of a snapshot, which it would replace; use another name")
    with Directory(directory) as store, chain_of(store, at) as chain:
        header = chain.newest.header
        head = b"" if npy is None else _npy_header(npy, header.size)
        composition = chain.compose()
        temporary = path.with_name(f".precopy-{secrets.token_hex(8)}.tmp")
        fd = _made(temporary, path)
        try:
            try:
                os.ftruncate(fd, len(head) + header.size)
                write_at(fd, memoryview(head), 0)
                _write(fd, composition, len(head))
                os.fsync(fd)
                stored = os.fstat(fd).st_blocks * 512
            finally:
                os.close(fd)
            os.replace(temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise failed("write", str(path), error) from error
            raise
    return Exported(header.number, str(path), len(head) + header.size, stored)


def _made(temporary: Path, path: Path) -> int:
    """A descriptor of the new file ``temporary``, which is to become ``path``. Raises `UsageError` where a file cannot
    be made there, `SnapshotError` for what is no fault of the path."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # its name may be longer than the temporary one
        return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> PrecopyError:
    """What to raise where the system refuses to write ``path``: `UsageError` where no such file can be made there."""
    if not os.path.isdir(path.parent):
        what = "no directory" if os.path.lexists(path.parent) else "not there"
        return UsageError(f"cannot write {path}: {path.parent} is {what}; name a file in a directory that is there")
    refused = failed("write", str(path), error)
    return UsageError(str(refused)) if error.errno in _NOT_A_PLACE else refused


def _write(fd: int, composition: Composition, offset: int) -> None:
    stage: Pages = np.empty((GROUP_PAGES, PAGE_SIZE // 8), np.uint64)
    for part in composition.content().batches(GROUP_PAGES):
        pages = stage[: part.pages]
        composition.fill(part, pages)
        index, data = part.indexes(), stage.data.cast("B")
        rows = np.flatnonzero(pages.any(axis=1))  # content may be zero by chance: that is a hole, too
        for first, length in _together(index, rows):
            page = int(index[first])
            write_at(fd, data[first * PAGE_SIZE : (first + length) * PAGE_SIZE], offset + page * PAGE_SIZE)


def _together(index: Indexes, rows: Indexes) -> Iterator[tuple[int, int]]:
    """First and number of those ``rows`` that follow each other and whose pages, ``index``, do so, too."""
    if rows.size:
        split = np.flatnonzero((np.diff(rows) != 1) | (np.diff(index[rows]) != 1)) + 1
        for part in np.split(rows, split):
            yield int(part[0]), part.size


def _npy_header(name: str, size: int) -> bytes:
    """The head of a file in numpy's format 1.0, filled up to a page, so that the array can be mapped and its zero pages
    stay holes. Source: numpy.lib.format."""
    try:
        kind = np.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        raise UsageError(f"{name!r} is no type of numpy's; write it like float64 or <i4") from None
    if kind.hasobject or not kind.itemsize or size % kind.itemsize or kind.shape or kind.fields:
        raise UsageError(f"{size} bytes are no whole number of {name}")
    record = f"{{'descr': {np.lib.format.dtype_to_descr(kind)!r}, 'fortran_order': False, "
    record += f"'shape': ({size // kind.itemsize},), }}"
    length = PAGE_SIZE - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + record.ljust(length - 1).encode("latin1") + b"\n"
