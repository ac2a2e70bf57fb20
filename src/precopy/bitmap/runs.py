"""Runs of consecutive pages, as two arrays: what a bitmap is turned into before memory is read or an ioctl made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from precopy.bitmap.words import Indexes


@dataclass(frozen=True)
class Runs:
    """Disjoint runs of pages in ascending order: ``starts[i]`` to ``starts[i] + lengths[i]`` (int64 arrays)."""

    starts: Indexes
    lengths: Indexes

    @classmethod
    def of(cls, *runs: tuple[int, int]) -> Runs:
        """From (start, length) pairs."""
        pairs = np.array(runs, np.int64).reshape(-1, 2)
        return cls(pairs[:, 0], pairs[:, 1])

    @classmethod
    def from_indexes(cls, indexes: npt.NDArray[np.integer]) -> Runs:
        """The runs that ascending, distinct page ``indexes`` form."""
        index = np.asarray(indexes, np.int64)
        if not index.size:
            return cls(index, index)
        first = np.flatnonzero(np.diff(index, prepend=index[0] - 2) != 1)
        return cls(index[first], np.diff(first, append=index.size))

    @classmethod
    def concatenate(cls, parts: Sequence[Runs]) -> Runs:
        """All runs of ``parts``, in that order."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return NO_RUNS
        return cls(np.concatenate([part.starts for part in parts]), np.concatenate([part.lengths for part in parts]))

    @property
    def pages(self) -> int:
        """Pages in all runs together."""
        return int(self.lengths.sum())

    @property
    def ends(self) -> Indexes:
        return self.starts + self.lengths

    def __len__(self) -> int:
        return self.starts.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts.tolist(), self.lengths.tolist(), strict=True)

    def __getitem__(self, part: slice) -> Runs:
        return Runs(self.starts[part], self.lengths[part])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Runs):
            return NotImplemented
        return np.array_equal(self.starts, other.starts) and np.array_equal(self.lengths, other.lengths)

    __hash__ = None  # type: ignore[assignment]  # holds arrays

    def shifted(self, by: int) -> Runs:
        """The same runs, ``by`` pages further up."""
        return Runs(self.starts + by, self.lengths)

    def indexes(self) -> Indexes:
        """Every page of every run, ascending."""
        before = np.cumsum(self.lengths) - self.lengths
        return np.repeat(self.starts - before, self.lengths) + np.arange(self.pages, dtype=np.int64)

    def batches(self, pages: int) -> Iterator[Runs]:
        """Cut into consecutive parts of exactly ``pages`` pages (the last may be smaller), splitting runs.

        A part holds at most ``pages`` runs, because a run has at least one page.
        """
        cut, bounds = self.cut(pages)
        for lo, hi in pairwise(bounds):
            yield cut[lo:hi]

    def cut(self, pages: int) -> tuple[Runs, list[int]]:
        """The same pages as runs that no multiple of ``pages`` pages, counted over all runs, lies inside; and where
        among them each part of ``pages`` pages begins, with the end: part ``i`` is ``[bounds[i]:bounds[i + 1]]``."""
        total = self.pages
        if total <= pages:
            return self, [0, len(self)] if total else [0]
        # Positions, counted in pages over all runs, at which a run begins, and at which a part does. Both ascend, so
        # that they can be merged, which is much faster than sorting them.
        begins = np.cumsum(self.lengths) - self.lengths
        cuts = np.arange(pages, total, pages, dtype=np.int64)
        at = np.searchsorted(begins, cuts)
        inside = begins[np.minimum(at, begins.size - 1)] != cuts  # of a run, which the part's begin splits
        before = at[inside]
        skipped = cuts[inside] - begins[before - 1]
        starts = np.insert(self.starts, before, self.starts[before - 1] + skipped)
        begins = np.insert(begins, before, cuts[inside])
        cut = Runs(starts, np.diff(begins, append=total))
        return cut, [0, *(at + np.cumsum(inside) - inside).tolist(), begins.size]

    def merged(self, gap: int) -> Runs:
        """Runs joined where at most ``gap`` pages lie between them (the gaps become part of the runs)."""
        if len(self) < 2:
            return self
        split = np.flatnonzero(self.starts[1:] - self.ends[:-1] > gap) + 1
        first = np.concatenate(([0], split))
        last = np.concatenate((split - 1, [len(self) - 1]))
        return Runs(self.starts[first], self.ends[last] - self.starts[first])


NO_RUNS = Runs.of()
