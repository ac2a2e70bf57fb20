"""The files that make up one snapshot: its own, and those that it follows, down to a full one; and which page shows
from which of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from precopy.bitmap import NO_RUNS, Bitmap, Runs
from precopy.bitmap.words import Indexes
from precopy.errors import SnapshotDamaged, SnapshotError, UsageError
from precopy.memory.guest import Pages
from precopy.store.directory import Directory
from precopy.store.format import GROUP_PAGES
from precopy.store.reading import StoredFile

_OPEN_FILES = 200
"""Longer chains open their files as they are read: a process may have 1024 by default."""
_TRIES = 5


@dataclass(frozen=True)
class Layer:
    """A file, the runs of its content that no later one hides, and where in the file's order each of them begins."""

    file: StoredFile
    visible: Runs
    at: Indexes


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
        size = self.newest.header.pages
        if len(self.files) == 1:
            base = self.files[0]
            return Composition([Layer(base, base.table.content, base.table.before)], NO_RUNS)
        covered, zeros = Bitmap(size), Bitmap(size)
        layers: list[Layer] = []
        for file in reversed(self.files[1:]):
            content, zero = _bitmap(size, file.table.content), _bitmap(size, file.table.zero)
            hides = content.copy()
            hides.add(zero)
            content.difference(covered)
            zero.difference(covered)
            zeros.add(zero)
            covered.add(hides)
            layers.append(_layer(file, content.runs()))
            if len(self.files) > _OPEN_FILES:
                file.release()
        base = self.files[0]
        shown = _bitmap(size, base.table.content)
        zeros.words &= shown.words
        shown.difference(covered)
        layers.append(_layer(base, shown.runs()))
        return Composition(layers[::-1], zeros.runs())


@dataclass(frozen=True)
class Composition:
    """Layers, the full one first; ``zeroed`` are pages of its content that are zero by now."""

    layers: list[Layer]
    zeroed: Runs

    def content(self) -> Runs:
        """All pages that are not zero. (Pages that were saved before they became zero by chance count as content.)"""
        if len(self.layers) == 1:
            return self.layers[0].visible
        bitmap = Bitmap(self.layers[0].file.header.pages)
        for layer in self.layers:
            bitmap.set_runs(layer.visible)
        return bitmap.runs()

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
    for attempt in range(_TRIES):
        numbers = directory.numbers()
        if not numbers:
            raise UsageError(f"{directory.path} has no snapshot")
        if at is not None and at not in numbers:
            raise UsageError(f"{directory.path} has no snapshot {at}; there {_there_are(numbers)}")
        try:
            return Chain(directory, numbers[-1] if at is None else at)
        except (SnapshotDamaged, SnapshotError, FileNotFoundError) as error:
            if attempt == _TRIES - 1 or directory.numbers() == numbers:
                if isinstance(error, FileNotFoundError):
                    raise SnapshotError(f"{directory.path} changes faster than it can be read; try again") from error
                raise
    raise AssertionError("unreachable")


def _there_are(numbers: Sequence[int]) -> str:
    return f"is {numbers[0]}" if len(numbers) == 1 else f"are {len(numbers)}, from {numbers[0]} to {numbers[-1]}"


def _bitmap(size: int, runs: Runs) -> Bitmap:
    bitmap = Bitmap(size)
    bitmap.set_runs(runs)
    return bitmap


def _layer(file: StoredFile, visible: Runs) -> Layer:
    content = file.table.content
    run = np.searchsorted(content.starts, visible.starts, side="right") - 1
    return Layer(file, visible, file.table.before[run] + visible.starts - content.starts[run])
