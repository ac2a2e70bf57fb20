"""The files that make up one snapshot: its own, and those that it follows, down to a full one; and which page shows
from which of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from precopy.bitmap import NO_RUNS, Runs
from precopy.bitmap.words import Indexes
from precopy.errors import SnapshotDamaged, SnapshotError, UsageError
from precopy.memory.ram import Pages
from precopy.snapshot_store.directory import Directory
from precopy.snapshot_store.format import GROUP_PAGES
from precopy.snapshot_store.reading import StoredFile
from precopy.units import check_count

_OPEN_FILES = 200
"""Longer chains open their files as they are read: a process may have 1024 by default."""
_TRIES = 5
"""Attempts at opening a chain while compactions remove its files; each takes milliseconds, a compaction longer."""


@dataclass(frozen=True)
class Layer:
    """A file, the runs of its content that no later one hides, and where in the file's order each of them begins."""

    file: StoredFile
    visible: Runs
    at: Indexes

    def groups(self) -> Indexes:
        """The groups of the file that have any visible page, ascending."""
        first = self.at // GROUP_PAGES
        last = (self.at + self.visible.lengths - 1) // GROUP_PAGES
        return np.unique(Runs(first, last - first + 1).indexes())


class Chain:
    """Snapshot ``number`` of ``directory`` with all that it needs, oldest first. Closed with `close`.

    Raises `UsageError` where there is no such snapshot, `SnapshotDamaged` where a file that it follows is gone or is
    another one, and what `StoredFile` raises.
    """

    def __init__(self, directory: Directory, number: int) -> None:
        self.files: list[StoredFile] = []
        try:
            self._follow(directory, number)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for file in self.files:
            file.release()

    @property
    def newest(self) -> StoredFile:
        return self.files[-1]

    @property
    def numbers(self) -> frozenset[int]:
        return frozenset(file.header.number for file in self.files)

    def _follow(self, directory: Directory, number: int) -> None:
        found = [StoredFile(directory, number)]
        self.files = found
        while (parent := found[-1].header.parent) is not None:
            child = found[-1]
            try:
                file = StoredFile(directory, parent.number)
            except FileNotFoundError:
                raise SnapshotDamaged(
                    child.path, f"it holds changes to snapshot {parent.number}, which is gone"
                ) from None
            found.append(file)
            if file.header.id != parent.id or file.header.size != child.header.size:
                raise SnapshotDamaged(
                    child.path, f"it holds changes to another snapshot {parent.number} than the one that is there"
                )
            if len(found) > _OPEN_FILES:
                file.release()
        self.files = found[::-1]

    def compose(self) -> Composition:
        """Which page shows from where. Raises `SnapshotDamaged`, `SnapshotError` for a table that cannot be read."""
        if len(self.files) == 1:
            base = self.files[0]
            return Composition([Layer(base, base.table.content, base.table.before)], NO_RUNS)
        tables: list[tuple[Runs, Runs]] = []
        for file in self.files:
            tables.append((file.table.content, file.table.zero))
            if len(self.files) > _OPEN_FILES:
                file.release()
        shown, zeroed = visible(tables)
        return Composition([_layer(file, runs) for file, runs in zip(self.files, shown, strict=True)], zeroed)


@dataclass(frozen=True)
class Composition:
    """Layers, the full one first; ``zeroed`` are pages of its content that are zero by now."""

    layers: list[Layer]
    zeroed: Runs

    def content(self) -> Runs:
        """All pages that are not zero. (Pages that were saved before they became zero by chance count as content.)"""
        if len(self.layers) == 1:
            return self.layers[0].visible
        runs = Runs.concatenate([layer.visible for layer in self.layers])
        order = np.argsort(runs.starts)
        return Runs(runs.starts[order], runs.lengths[order]).merged(0)

    def check(self) -> None:
        """Reads all content that shows, and that what does not is zero. Raises `SnapshotDamaged`, `SnapshotError`.

        Compressed layers are left out: their pages are read by `fill` alone, which checks them.
        """
        for layer in self.layers:
            if not layer.file.header.compressed:
                layer.file.check_groups(layer.groups())
                if len(self.layers) > _OPEN_FILES:
                    layer.file.release()

    def fill(self, runs: Runs, out: Pages) -> None:
        """Puts the pages of ``runs``, all of which have content, into ``out``. They match their checksums.

        Fast for runs in ascending order over all calls: then each group is read once. Raises `SnapshotDamaged`,
        `SnapshotError`.
        """
        index = runs.indexes()
        for layer in self.layers:
            visible = layer.visible
            lo = int(np.searchsorted(visible.ends, index[0], side="right"))
            hi = int(np.searchsorted(visible.starts, index[-1], side="right"))
            if lo >= hi:
                continue
            run = np.searchsorted(visible.starts[lo:hi], index, side="right") + (lo - 1)
            mine = np.flatnonzero((run >= lo) & (index < visible.ends[run]))
            run = run[mine]
            self._copy(layer, mine, layer.at[run] + index[mine] - visible.starts[run], out)
            if len(self.layers) > _OPEN_FILES:
                layer.file.release()

    def _copy(self, layer: Layer, to: Indexes, positions: Indexes, out: Pages) -> None:
        """Copies the pages at ``positions`` of a layer's file, which ascend, to the rows ``to``."""
        group = positions // GROUP_PAGES
        for part in np.split(np.arange(to.size), np.flatnonzero(np.diff(group)) + 1):
            if part.size:
                pages = layer.file.group(int(group[part[0]]))
                out[to[part]] = pages[positions[part] % GROUP_PAGES]


def chain_of(directory: Directory, at: int | None) -> Chain:
    """The chain of snapshot ``at``, or of the newest. A compaction may take files away while they are opened: then it
    is looked again. Raises as `Chain` does."""
    if at is not None:
        at = check_count("the number of a snapshot", at, 0)
    for attempt in range(_TRIES):
        numbers = directory.numbers()
        if not numbers:
            raise UsageError(f"{directory.path} has no snapshot")
        if at is not None and at not in numbers:
            raise UsageError(f"{directory.path} has no snapshot {at}; there {there_are(numbers)}")
        try:
            return Chain(directory, numbers[-1] if at is None else at)
        except (SnapshotDamaged, SnapshotError, FileNotFoundError) as error:
            if attempt == _TRIES - 1 or directory.numbers() == numbers:
                if isinstance(error, FileNotFoundError):
                    raise SnapshotError(f"{directory.path} changes faster than it can be read; try again") from error
                raise
    raise AssertionError("unreachable")


def there_are(numbers: Sequence[int]) -> str:
    return f"is {numbers[0]}" if len(numbers) == 1 else f"are {len(numbers)}, from {numbers[0]} to {numbers[-1]}"


def visible(tables: Sequence[tuple[Runs, Runs]]) -> tuple[list[Runs], Runs]:
    """Of the (content, zero) runs of each snapshot of a chain, oldest first: which content none after it hides; and
    which content of the oldest is zero by now. Takes memory for the runs only, and none for the size of what they are
    of.

    All bounds of runs cut the memory into intervals, and each table in its turn paints those that it has.
    """
    parts = [runs for table in tables for runs in table]
    sides = np.sort(np.concatenate([side for runs in parts for side in (runs.starts, runs.ends)]))
    bounds = sides[np.diff(sides, prepend=-1) > 0]  # np.unique hashes, which takes ten times as long here
    painted = np.full(bounds.size, -1, np.int64)
    based = np.zeros(bounds.size, np.bool_)
    for number, runs in enumerate(parts):
        first = np.searchsorted(bounds, runs.starts)
        intervals = Runs(first, np.searchsorted(bounds, runs.ends) - first).indexes()
        painted[intervals] = number
        if not number:
            based[intervals] = True
    zeroed = based & (painted % 2 == 1)
    order = np.argsort(painted, kind="stable")
    cuts = np.searchsorted(painted[order], np.arange(len(parts) + 1))
    content = [order[cuts[number] : cuts[number + 1]] for number in range(0, len(parts), 2)]
    return [_intervals(bounds, runs) for runs in content], _intervals(bounds, np.flatnonzero(zeroed))


def _intervals(bounds: Indexes, which: Indexes) -> Runs:
    """Intervals of those that begin at ``bounds``, as runs."""
    return Runs(bounds[which], bounds[which + 1] - bounds[which]).merged(0)


def _layer(file: StoredFile, visible: Runs) -> Layer:
    content = file.table.content
    run = np.searchsorted(content.starts, visible.starts, side="right") - 1
    return Layer(file, visible, file.table.before[run] + visible.starts - content.starts[run])
