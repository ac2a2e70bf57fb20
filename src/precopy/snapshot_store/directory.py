"""A directory of snapshots: names, the lock of its one writer, and the commit.

A snapshot is one file, ``00000007.snapshot``. It is written under another name (``.tmp``), flushed to disk, renamed,
and then the directory is flushed. So at every moment a name that ends in ``.snapshot`` is a whole file, and a process
or a machine that stops anywhere leaves the snapshots before it as they were. What is left under a temporary name is
garbage that the next writer removes. Files with other names are never touched.

One writer at a time: the lock (flock on ``.lock``) ends with its process, however that ends. Readers take none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from precopy.abi.filesystem import absolute_path
from precopy.errors import ADVICE, SnapshotError, UsageError, raise_without_descriptor
from precopy.snapshot_store.format import MAX_NUMBER

_NAME = re.compile(r"([0-9]{8})\.snapshot")  # \d would be the digits of all scripts
_TEMPORARY = re.compile(r"[0-9]{8}\.tmp")
_LOCK = ".lock"


def _no_step(_name: str) -> None:
    pass


step: Callable[[str], None] = _no_step
"""Called at each step of a commit with its name (``begun``, ``written``, ``flushed``, ``renamed``, ``committed``,
``removed``): tests stop the process there."""


def name_of(number: int) -> str:
    """The file of a snapshot."""
    return f"{number:08d}.snapshot"


def is_reserved(name: str) -> bool:
    """Whether a file called so is a directory's own: a snapshot, one that is being written, the lock."""
    return name == _LOCK or any(pattern.fullmatch(name) for pattern in (_NAME, _TEMPORARY))


class Directory:
    """An open directory of snapshots. Raises `UsageError` where ``path`` is none."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        self.path = Path(absolute_path(path))
        try:
            if create:
                _make(self.path)
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, FileExistsError, NotADirectoryError):
            raise UsageError(f"{self.path} is no directory of snapshots: {_why_none(self.path, create)}") from None
        except OSError as error:
            raise_without_descriptor("open", str(self.path), error)
            raise UsageError(str(failed("open", str(self.path), error))) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def numbers(self) -> list[int]:
        """Of all snapshot files, ascending. Raises `SnapshotError`."""
        return sorted(int(match[1]) for name in self._names() if (match := _NAME.fullmatch(name)))

    def file(self, number: int) -> str:
        """The path of a snapshot, for people."""
        return str(self.path / name_of(number))

    def open(self, number: int) -> int:
        """A descriptor of a snapshot's file. Raises `FileNotFoundError`, `SnapshotError`."""
        # A directory may be another user's: no link is followed, and opening a FIFO does not wait.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(name_of(number), flags, dir_fd=self.fd)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise failed("open", self.file(number), error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SnapshotError(f"{self.file(number)} is no regular file, so it is no snapshot; remove it")
        return fd

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock, and has removed what writers before have left half-done. Raises `UsageError` where another
        process writes here, `SnapshotError`."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            lock = os.open(_LOCK, flags, 0o600, dir_fd=self.fd)
        except OSError as error:
            raise failed("lock", str(self.path / _LOCK), error) from error
        try:
            if not stat.S_ISREG(os.fstat(lock).st_mode):
                raise SnapshotError(f"{self.path / _LOCK} is no regular file, so it is no lock; remove it")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{self.path} is being written by somebody else; wait until they are done, or use one directory "
                    f"for each memory"
                ) from None
            except OSError as error:
                raise failed("lock", str(self.path), error) from error
            for name in self._names():
                if _TEMPORARY.fullmatch(name):
                    self._unlink(name)
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def writing(self, number: int, left: str) -> Iterator[int]:
        """A descriptor to write snapshot ``number`` to, which is committed at the end, or gone after an error: then
        the directory is as it was. One with this number that is there already is replaced. The lock must be held.

        Raises `SnapshotError` for what the system refuses (a full disk), which says what that has ``left``.
        """
        if number > MAX_NUMBER:
            raise UsageError(f"{self.path} has no number left for another snapshot; use another directory")
        temporary, name = f"{number:08d}.tmp", name_of(number)
        replaces = number in self.numbers()
        renamed = False
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(temporary, flags, 0o600, dir_fd=self.fd)
            try:
                step("begun")
                yield fd
                step("written")
                os.fsync(fd)
            finally:
                os.close(fd)
            step("flushed")
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            renamed = True
            step("renamed")
            os.fsync(self.fd)
            step("committed")
        except BaseException as error:
            for unfinished in (temporary,) if replaces or not renamed else (temporary, name):
                with contextlib.suppress(OSError):
                    os.unlink(unfinished, dir_fd=self.fd)
            if isinstance(error, OSError):
                raise failed("write", self.file(number), error, left) from error
            raise

    def remove(self, numbers: list[int]) -> None:
        """Removes snapshots, in this order. Raises `SnapshotError`."""
        for number in numbers:
            self._unlink(name_of(number))
            step("removed")
        if numbers:
            try:
                os.fsync(self.fd)
            except OSError as error:
                raise failed("flush", str(self.path), error) from error

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.fd)
        except OSError as error:
            raise failed("read", str(self.path), error) from error

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise failed("remove", str(self.path / name), error) from error


_ADVICE = {
    **ADVICE,
    errno.ELOOP: "a symbolic link is not followed here; remove it",
    errno.EISDIR: "a directory is in the place of a file; remove it",
    errno.ENOSPC: "make room on its file system",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "make room: raise the limit on the size of files (ulimit -f), or use another file system",
    errno.EROFS: "its file system is mounted read-only; use another directory",
    errno.EACCES: "ask for the right to it, or use another directory",
    errno.EPERM: "ask for the right to it, or use another directory",
    errno.EIO: "the disk fails; what it still reads is told by precopy snapshot verify",
}


def failed(doing: str, path: str, error: OSError, left: str = "") -> SnapshotError:
    """One sentence of what the system refused, what to do, and what is ``left`` as it was."""
    advice = _ADVICE.get(error.errno or 0, "")
    said = "; ".join(filter(None, (error.strerror or str(error), advice, left)))
    return SnapshotError(f"cannot {doing} {path}: {said}")


def _why_none(path: Path, create: bool) -> str:
    if os.path.exists(path):
        return "it is no directory"
    if create and not path.is_symlink() and not path.parent.is_dir():
        return f"there is no such directory to make it in: {path.parent}"
    return "there is no such directory"


def _make(path: Path) -> None:
    """Makes a directory, whose name is on disk before anything in it is promised to be."""
    if path.is_dir():
        return
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return  # another process has made it meanwhile
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
