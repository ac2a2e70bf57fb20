"""`snapshot`: saves what of a memory changed since the snapshot before.

Law 1 at a snapshot: the pages that changed are taken over from the log, and the log is armed again, before any of them
is read. What was found stays pending until the snapshot is committed; where that fails, the next one saves it.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import AbstractContextManager
from typing import Literal

from precopy.bitmap import NO_RUNS, Runs
from precopy.errors import KernelCallError, Unsupported, UsageError
from precopy.machines.process.locks import Held, check_lock
from precopy.machines.process.memory import Memory
from precopy.memory.packing import Compression, compression_of, compressor
from precopy.report.kinds.shared import Snapshot
from precopy.snapshot_store.directory import Directory
from precopy.snapshot_store.format import MAX_BYTES, Parent
from precopy.snapshot_store.series import Series, parent_of, series_of
from precopy.snapshot_store.writing import Content, Label, pages_of, write
from precopy.units import check_flag, check_integer

_LEFT = "the snapshots before are untouched, and the next one saves what this one should have"


def snapshot(
    memory: Memory,
    directory: str | os.PathLike[str],
    *,
    compress: Literal["zstd"] | None = None,
    level: int | None = None,
    full: bool = False,
    replace: bool = False,
    lock: AbstractContextManager[object] | None = None,
) -> Snapshot:
    """Saves ``memory`` in ``directory``, which is made where it is not there; returns when it is on disk.

    The first is full, the next ones hold what was written since. Full again is one with ``full=True``, and one after
    those before were lost.

    Only the successor of the newest snapshot there may go on: the memory that has saved it, or that `restore` or
    `open_memory` gave of it. Any memory may begin an empty directory. Another one is refused, unless it is to
    ``replace`` what is there: then its first snapshot is full, and is the newest from then on. Those before stay until
    `compact` removes them.

    A snapshot is of one moment only if no thread writes the memory meanwhile: call it where the program does not, or
    give the ``lock`` under which it writes; it is held until the pages are copied, and not while they are flushed to
    disk. A page that is written meanwhile all the same is in the next snapshot, too.

    ``compress="zstd"`` takes the extra ``snapshot``; ``level`` is zstd's. A compressed full snapshot cannot be mapped,
    so restoring it reads all of it.

    Raises `UsageError` for a directory or a ``lock`` that cannot be one, where another process writes, or where the
    memory is not the successor; `SnapshotError` where the system refuses (a full disk): the directory is then as
    before, and what changed is kept for the next call; `Unsupported` where the kernel cannot track the memory and
    ``full`` was not asked for;
    `MappingChanged` where something else is mapped in a part of the memory: then ``full=True`` begins anew, unless
    nothing is mapped there that could be read.
    """
    if not isinstance(memory, Memory):
        raise UsageError(f"snapshot saves a precopy.Memory, not a {type(memory).__name__}")
    if memory.size > MAX_BYTES:
        raise UsageError(f"a memory of {memory.size} bytes is more than a snapshot holds ({MAX_BYTES})")
    check_lock(lock, "take the snapshot between them")
    full, replace = check_flag("full", full), check_flag("replace", replace)
    if level is not None:
        level = check_integer("the level of zstd", level)
        if compress is None:
            raise UsageError('level is zstd\'s, and nothing is compressed; give compress="zstd", too, or no level')
    squeeze = None if compression_of(compress) is Compression.NONE else compressor(level)
    began = time.perf_counter()
    with Directory(directory, create=True) as store, store.locked():
        series, numbers = series_of(memory, store), store.numbers()
        parent = parent_of(memory, store, series, numbers, replace)
        tracked = _track(memory, series, full)
        label = Label(max(numbers, default=0) + 1, secrets.token_hex(8), None if full else parent, time.time())
        series.lineage.trying = label
        with store.writing(label.number, _LEFT) as fd:
            with Held(lock):
                content = _find(memory, series if tracked else None, label.parent)
                found = time.perf_counter()
                header = write(fd, content, label, squeeze)
            written = time.perf_counter()
            stored = os.fstat(fd).st_blocks * 512
        series.committed(label, tracked=tracked)
        done = time.perf_counter()
    return Snapshot(
        number=header.number,
        full=header.full,
        pages=header.content_pages,
        zero_pages=header.absent_pages if header.full else header.zero_pages,
        bytes=stored,
        find_s=found - began,
        write_s=written - found,
        commit_s=done - written,
    )


def _track(memory: Memory, series: Series, full: bool) -> bool:
    """Whether the memory is tracked from here on; False where the kernel cannot do it and it does not matter."""
    try:
        series.start(memory)
        return True
    except (Unsupported, KernelCallError) as error:
        if full:
            return False
        if isinstance(error, Unsupported):
            raise Unsupported(error.what, f"{error.remedy}; or save everything each time (full=True)") from error
        raise


def _find(memory: Memory, series: Series | None, parent: Parent | None) -> Content:
    """What to save: everything, or what was written since ``parent``."""
    if series is not None:
        series.find(anew=parent is None)
    contents = memory.contents()
    runs = Runs.of((0, memory.pages)) if parent is None or series is None else series.pending.runs()
    content, zero = contents.split_zero(runs) if len(runs) else (NO_RUNS, NO_RUNS)
    return Content(memory.size, content, zero, pages_of(contents.pages(memory.block)))
