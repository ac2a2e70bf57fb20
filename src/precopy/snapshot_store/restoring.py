"""`restore`: a snapshot as memory of this process, checked or at once.

The full snapshot's image is mapped privately, and so are the changed pages of those after it, over it: nothing is read
before it is touched, and what is written stays in this process. The kernel bounds how many mappings a process may have
(vm.max_map_count), and each costs about 5 us. So beyond a budget, the smallest runs are copied instead; and an image's
content is mapped together with small holes between, except on tmpfs, where reading a hole would take memory of the file
system.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from precopy.abi.filesystem import TMPFS, file_system
from precopy.abi.mapping import map_file, map_zeros, reserve
from precopy.abi.residency import has_swap
from precopy.bitmap import NO_RUNS, Runs
from precopy.bitmap.words import Indexes
from precopy.errors import OutOfMemory, SnapshotDamaged, UsageError
from precopy.machines.process.memory import Memory
from precopy.memory.ram import Pages
from precopy.memory.system_memory import available_memory
from precopy.snapshot_store.chain import Composition, Layer, chain_of
from precopy.snapshot_store.directory import Directory
from precopy.snapshot_store.format import GROUP_PAGES, HEADER_BYTES, Form
from precopy.snapshot_store.series import continues
from precopy.units import PAGE_SIZE, check_bytes, check_flag

IMAGE_MAPPINGS, INCREMENT_MAPPINGS = 4096, 8192
"""Runs that are mapped at most: of the image, where a mapping saves nothing but memory for holes, and of increments."""
CHECKED_BYTES = 256 << 20
"""Content that `restore` checks unless it is told not to: about a tenth of a second once the files are cached."""
_FEW = 4096
"""Pages (16 MiB) copied by a restore up to which it starts no tracker: they count as written, and saving them again
costs less than tracking all of the memory."""
_DENSE = 64
"""Ratio of a memory's size to what its files take on disk, up to which it is tracked at once where it has to be. For a
sparser one the next snapshot is full, which costs little, because untouched pages are not read."""
_SHORT = 2
"""Pages. Runs of up to this length are copied, which is faster than mapping them unless they are read from a disk."""


def restore(directory: str | os.PathLike[str], at: int | None = None, *, verify: bool | None = None) -> Memory:
    """The memory of snapshot ``at``, or of the newest, as a `Memory` of this process. What is written to it is private
    to this process; the snapshot stays what it is.

    A `snapshot` of it into the same directory goes on with increments, if this was the newest one there.

    All headers, tables and sizes are checked, and the content with ``verify=True``: every page that the memory shows is
    read and held against its checksum first. With ``verify=False`` the memory can be used at once, at any size: pages
    are read when they are touched, and damaged content shows as it is. Without either, up to `CHECKED_BYTES` of content
    are checked.

    The files may be removed (by `compact`) while the memory is used, but never be changed: as with all mapped files,
    a file that is cut, or a disk that fails, ends the process that touches the missing page (SIGBUS).

    Raises `UsageError` where there is no such snapshot, `SnapshotDamaged`, `SnapshotError`, `OutOfMemory`,
    `Unsupported` for a compressed one without the extra ``snapshot``.
    """
    verify = _checked(verify)
    with Directory(directory) as store, _named(store), chain_of(store, at) as chain:
        whole = reserve(chain.newest.header.size)
        target = _Target(whole)
        composition = chain.compose()
        if verify is None:
            verify = composition.content().pages * PAGE_SIZE <= CHECKED_BYTES
        if verify:
            composition.check()
        base, *increments = composition.layers
        target.base(base)
        if increments:
            target.overlay(composition.zeroed, increments)
        memory = Memory.over(whole)
        newest = chain.newest.header.number == max(store.numbers(), default=0)
        # Tracking takes page tables for all of the memory, 2 MiB a GiB: too much for a memory that is mostly empty.
        dense = memory.size <= _DENSE * sum(file.stored_bytes for file in chain.files)
        # Pages that were copied here count as written as long as no tracker is started.
        at_once = newest and dense and (target.copied > _FEW or has_swap())
        continues(memory, store, chain, exact=newest and (dense or not has_swap()), at_once=at_once)
        return memory


@contextlib.contextmanager
def _named(store: Directory) -> Iterator[None]:
    """Damage is told with what to do about it."""
    try:
        yield
    except SnapshotDamaged as error:
        raise SnapshotDamaged(
            error.path,
            f"{error.why}; precopy.verify({str(store.path)!r}) says which files are damaged, and at= restores a "
            f"snapshot that neither is one of them nor follows one, such as any before the first",
        ) from error


def open_memory(directory: str | os.PathLike[str], size: int, *, verify: bool | None = None) -> Memory:
    """The newest snapshot's memory, as `restore` gives it (``verify`` is its); where there is none yet, a new one of
    ``size`` bytes, which `snapshot` then begins the directory with. This is what a program that saves its state begins
    with.

    Raises `UsageError` where the memory there is of another size, and what `restore` and `Memory` raise: damage never
    makes it begin anew.
    """
    size, verify = check_bytes("the size of a memory", size), _checked(verify)
    with Directory(directory, create=True) as store:
        if not store.numbers():
            return Memory(size)
        memory = restore(directory, verify=verify)
        if size <= 0 or memory.size != -(-size // PAGE_SIZE) * PAGE_SIZE:
            raise UsageError(
                f"{store.path} holds a memory of {memory.size} bytes, and {size} were asked for; give that size, or "
                f"use another directory"
            )
        return memory


def _checked(verify: bool | None) -> bool | None:
    return None if verify is None else check_flag("verify", verify)


class _Target:
    """Memory that becomes a snapshot's."""

    def __init__(self, whole: mmap.mmap) -> None:
        self._whole = whole
        self._pages: Pages = np.frombuffer(whole, np.uint64).reshape(-1, PAGE_SIZE // 8)
        self.copied = 0
        self._address = int(self._pages.__array_interface__["data"][0])

    def base(self, layer: Layer) -> None:
        """The full snapshot. An image is mapped in few runs, also what increments hide of it."""
        table, budget = layer.file.table, _budget(IMAGE_MAPPINGS)
        if layer.file.header.form is not Form.IMAGE:
            self._copy(layer, layer.visible)
            return
        runs = table.content
        if file_system(layer.file.fd) == TMPFS:
            large = _largest(runs.lengths, budget, _SHORT)
            self._copy(Layer(layer.file, runs, table.before), _pick(runs, ~large))
            runs = _pick(runs, large)
        elif len(runs) > budget:
            gaps = runs.starts[1:] - runs.ends[:-1]
            runs = runs.merged(int(np.partition(gaps, -budget)[-budget]))
        for start, length in runs:
            self._map(layer, start, length, start)

    def overlay(self, zeroed: Runs, increments: list[Layer]) -> None:
        """What increments have changed, over the base."""
        parts = [zeroed, *(layer.visible for layer in increments)]
        large = _largest(np.concatenate([part.lengths for part in parts]), _budget(INCREMENT_MAPPINGS))
        masks = np.split(large, np.cumsum([len(part) for part in parts])[:-1])
        if not large.all():
            # A page that is copied over a mapped one is read from the file first: that one only, not its neighbours.
            self._whole.madvise(mmap.MADV_RANDOM)
        for start, length in _pick(zeroed, masks[0]):
            self._map_zeros(start, length)
        few = _pick(zeroed, ~masks[0])
        self._need(few.pages)
        for start, length in few:
            self._pages[start : start + length] = 0
            self.copied += length
        for layer, mask in zip(increments, masks[1:], strict=True):
            self._overlay(layer, mask)
            layer.file.release()
        if not large.all():
            self._whole.madvise(mmap.MADV_NORMAL)

    def _overlay(self, layer: Layer, large: npt.NDArray[np.bool_]) -> None:
        """One increment, of which ``large`` runs are worth a mapping."""
        mapped = _pick(layer.visible, large)
        if layer.file.header.compressed:
            for start, length in mapped:  # so that nothing below is read to be written over
                self._map_zeros(start, length)
            self._copy(layer, layer.visible)
            return
        for (start, length), at in zip(mapped, layer.at[large].tolist(), strict=True):
            self._map(layer, start, length, at)
        self._copy(layer, _pick(layer.visible, ~large))

    def _map(self, layer: Layer, start: int, length: int, at: int) -> None:
        """Page ``at`` of the file's data, and those after it, at page ``start``."""
        address, offset = self._address + start * PAGE_SIZE, HEADER_BYTES + at * PAGE_SIZE
        map_file(address, length * PAGE_SIZE, layer.file.fd, offset, layer.file.path)

    def _map_zeros(self, start: int, length: int) -> None:
        map_zeros(self._address + start * PAGE_SIZE, length * PAGE_SIZE, "the memory of a snapshot")

    def _copy(self, layer: Layer, runs: Runs) -> None:
        """Reads pages of a layer, and checks them. Holes of a file that count as content take no memory."""
        self._need(runs.pages)
        only = Composition([layer], NO_RUNS)
        stage = np.empty((GROUP_PAGES, PAGE_SIZE // 8), np.uint64)
        for part in runs.batches(GROUP_PAGES):
            pages, index = stage[: part.pages], part.indexes()
            only.fill(part, pages)
            some = pages.any(axis=1)
            self._pages[index[some]] = pages[some]
            zero = index[~some]
            zero = zero[self._pages[zero].any(axis=1)]
            self._pages[zero] = 0
            self.copied += part.pages - int(np.count_nonzero(~some)) + zero.size

    def _need(self, pages: int) -> None:
        """Raises `OutOfMemory` before ``pages`` pages are copied: a file may claim more than it takes, and a compressed
        one may unpack to more than there is."""
        size, available = pages * PAGE_SIZE, available_memory()
        if available is not None and size > available:
            raise OutOfMemory("the memory of a snapshot", size, available, "restore it on a larger machine")


def _budget(most: int) -> int:
    """At most ``most`` mappings, and fewer where the system allows few."""
    with contextlib.suppress(OSError, ValueError):
        return max(min(most, int(Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii")) // 8), 2)
    return most


def _largest(lengths: Indexes, most: int, short: int = 0) -> npt.NDArray[np.bool_]:
    """Which of the runs are among the ``most`` longest, and longer than ``short``."""
    if len(lengths) <= most:
        return lengths > short
    mask = np.zeros(len(lengths), np.bool_)
    mask[np.argpartition(lengths, -most)[-most:]] = True
    return mask & (lengths > short)


def _pick(runs: Runs, mask: npt.NDArray[np.bool_]) -> Runs:
    return Runs(runs.starts[mask], runs.lengths[mask])
