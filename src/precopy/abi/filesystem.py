"""What can be a path, from where, and which file system a file is on: fstatfs(2), where Python has but fstatvfs.

Source: include/uapi/linux/magic.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from precopy.errors import Unsupported, UsageError, system_call

TMPFS = "tmpfs"

_NAMES = {
    0x01021994: TMPFS,
    0x0000EF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x794C7630: "overlayfs",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0x00006969: "nfs",
    0x65735546: "fuse",
    0x01021997: "9p",
    0x858458F6: "ramfs",
}
_STATFS_BYTES = 256  # struct statfs has 120 on 64-bit machines


@cache
def _fstatfs() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None, use_errno=True).fstatfs
    function.argtypes = (ctypes.c_int, ctypes.c_void_p)
    return function


def file_system(fd: int) -> str:
    """The name of the file system of ``fd``, its magic number where it is not known here, ``?`` where the system does
    not say."""
    buffer = (ctypes.c_uint64 * (_STATFS_BYTES // 8))()
    if _fstatfs()(fd, buffer) != 0:
        return "?"
    return _NAMES.get(buffer[0], f"{buffer[0]:#x}")


def usable_path(path: str | os.PathLike[str]) -> str:
    """``path``, where it can name a file at all. Raises `UsageError` for what the system has no way to be asked for:
    Python's own functions raise ValueError for it, each in words of its own."""
    try:
        name = os.fsdecode(path)
        encoded = os.fsencode(name)
    except TypeError:
        raise UsageError(f"a path is a str or a pathlib.Path, not a {type(path).__name__}") from None
    except UnicodeError:
        raise UsageError(f"{name[:200]!r} is no path: it holds a character that no path can hold") from None
    if not encoded:
        raise UsageError("an empty path names no file")
    if b"\0" in encoded:
        raise UsageError(f"{name[:200]!r} is no path: it holds a NUL character")
    return name


def absolute_path(path: str | os.PathLike[str]) -> str:
    """``path`` for a process with another working directory. Raises `UsageError`, also where this process's own is
    gone, so that nothing relative has a place."""
    name = usable_path(path)
    try:
        # os.path.abspath takes .. away, to which a link gives another meaning.
        return str(Path(name).absolute())
    except OSError as error:
        raise UsageError(
            f"{name!r} is in the working directory, which is not there any more ({error.strerror}); give a path that "
            f"begins with /, or begin in another directory"
        ) from None


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory of this process's own, which is removed at the end. Raises `Unsupported`, `KernelCallError`."""
    try:
        with system_call("mkdir", tempfile.gettempdir()):
            path = tempfile.mkdtemp(prefix="precopy-")
    except FileNotFoundError as error:  # which tempfile raises whatever the reason is
        raise Unsupported(
            "there is no directory for temporary files", "set TMPDIR, or raise the limit on open files (ulimit -n)"
        ) from error
    try:
        yield Path(path)
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(path)  # takes no descriptor, and a process may have none left
        shutil.rmtree(path, ignore_errors=True)
