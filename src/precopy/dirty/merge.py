"""Where a migration's sync puts what it finds, in one step with finding it: see `precopy.dirty.log.MergingLog`."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precopy.bitmap import Bitmap, words
from precopy.bitmap.taking import ChunkMarks, Part, mark_parts, take, wipe

_NO_FLAGS = np.zeros(0, np.bool_), 0


class Merged(NamedTuple):
    """What a sync found: dirty ``pages``, how many of them were ``new`` in what is pending; the seconds that merging
    took."""

    pages: int
    new: int
    merge_s: float


class Merge:
    """Over a ram_addr space of as many pages as ``pending`` has: what is still to be sent. ``marks``, where there are
    any, get the chunks of what was found. ``dirty`` is what the last sync found."""

    def __init__(self, pending: Bitmap, marks: ChunkMarks | None) -> None:
        self.pending, self.marks = pending, marks
        self.dirty = Bitmap(pending.size)
        self._parts: list[Part] | None = []
        """Where ``dirty`` has bits set; None where that is not known."""

    def emptied(self) -> Bitmap:
        """The bitmap of the last sync, all clear, for the next one to fill."""
        if self._parts is None:
            self.dirty.clear_all()
        else:
            wipe(self.dirty.words, self._parts)
        self._parts = []
        return self.dirty

    def replace(self, dirty: Bitmap) -> Bitmap:
        """Takes what a sync found, and gives the emptied bitmap for it."""
        spare, self.dirty = self.dirty, dirty
        return spare

    def replace_unknown(self, dirty: Bitmap) -> None:
        """Takes what a sync found that was not merged here."""
        self.dirty, self._parts = dirty, None

    def forget(self) -> None:
        """Where bits are set is not known."""
        self._parts = None

    def take(self, found: Bitmap, source: Bitmap, *, empty: bool) -> Merged:
        """Takes ``source`` over into ``found``, which is ``empty`` or may hold bits, and all of that into what is
        pending, once `emptied` has done its part."""
        start = time.perf_counter()
        if words.native is not None:
            spare, (marked, word_shift) = self.dirty.words, self.flags
            self._parts = None
            pages, new = words.native.take(
                found.words, self.pending.words, spare, source.words, marked, word_shift, empty
            )
        else:
            self.emptied()
            pages, new, parts = take(found.words, self.pending.words, source.words, empty=empty)
            if self.marks is not None:
                mark_parts(self.marks, found.words, parts)
            self._parts = parts
        return Merged(pages, new, time.perf_counter() - start)

    @property
    def flags(self) -> tuple[npt.NDArray[np.bool_], int]:
        """The chunks' flags, none where there are no chunks, and what a word's index is shifted by to find its own."""
        return _NO_FLAGS if self.marks is None else (self.marks.marked, self.marks.word_shift)
