"""Shared memory of this process: which file it is, how this process writes it, and which others may."""

from __future__ import annotations

import contextlib
import os

from precopy.abi.mapping_watch import MappingWatch, counted
from precopy.abi.shared_maps import open_maps, shared_at, who_maps
from precopy.errors import UsageError
from precopy.trackers.shared_views import ProcessView, SharedPages, Writer
from precopy.trackers.write_protection import WriteProtection
from precopy.units import PAGE_SIZE


def shared_pages(address: int, size: int) -> SharedPages | None:
    """What shared memory ``size`` bytes of this process at ``address`` are, or None where they are private. Raises
    `UsageError` where they are of several files, `Unsupported`."""
    mappings = shared_at(address, address + size)
    if not mappings:
        return None
    first = mappings[0]
    at = address
    for mapping in mappings:
        if (
            mapping.start != at
            or mapping.file != first.file
            or mapping.offset - first.offset != mapping.start - first.start
        ):
            break
        at = mapping.end
    if at != address + size:
        raise UsageError("the buffer is made up of several mappings, of which one is shared; adopt each on its own")
    return SharedPages(first.file, first.offset, size // PAGE_SIZE, first.anonymous)


def own_writer(pages: SharedPages, skip: tuple[int, int], alone: Alone | None) -> Writer:
    """This process as a writer of ``pages`` through other mappings than at the addresses from and to ``skip``. Raises
    `Unsupported`, `KernelCallError`."""
    with contextlib.ExitStack() as undo:
        watch = MappingWatch(pages.file.inode)
        undo.callback(watch.close)
        protection = WriteProtection()
        undo.callback(protection.close)
        maps = open_maps()
        undo.callback(os.close, maps)
        view = ProcessView(pages, protection, maps, skip=skip)
        undo.pop_all()
    return Writer(view, lambda: (alone.forked() if alone else b"") + counted(watch.fd), lambda: None, watch.close)


_forks = [0]


def _count_fork() -> None:
    _forks[0] += 1


os.register_at_fork(after_in_parent=_count_fork)


class Alone:
    """Anonymous shared memory that no other process has, as far as can be seen: only a child can come to have it."""

    def __init__(self, pages: SharedPages) -> None:
        self._file, self._first = pages.file, _forks[0]
        self._seen, self._others = self._first, who_maps(pages.file)

    def forked(self) -> bytes:
        """Another value after each fork: what a child wrote that is gone again is not known. Raises `UsageError` where
        another process has the memory."""
        if self._seen != _forks[0]:
            self._seen = _forks[0]
            self._others = self._others or who_maps(self._file)
        if self._others:
            raise who_writes(f"process {self._others[0]} has it, too")
        return b"" if self._seen == self._first else self._seen.to_bytes(8, "little")


def who_writes(why: str) -> UsageError:
    """What is said where it is not known."""
    return UsageError(
        f'this memory is shared ({why}), so say who writes it: Memory.adopt(buffer, writers="this process"), '
        f'writers="attached" where each process that writes calls precopy.attach(buffer), or writers="any", which '
        f"finds every write by comparing contents"
    )
