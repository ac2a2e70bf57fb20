"""Taking one bitmap over into two others in a single step: what a sync does with what it has fetched.

What was fetched goes into an empty bitmap, which from then on says what this sync found, and into the bitmap of what is
pending. Where little was fetched, only its words are looked at, and what is written down is which: so that the bitmap
of what was found can be emptied again, and chunks be marked, without another look at every word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.bitmap.words import (
    BITS_PER_WORD,
    CHUNK_WORDS,
    FEW_WORDS,
    SMALL_WORDS,
    Indexes,
    Words,
    count_few,
    is_zero,
    or_counts,
    words_for,
)


@dataclass
class ChunkMarks:
    """A flag for each chunk of ``2**shift`` pages (at least 64) of ``pages``: whether anything of it was found."""

    marked: npt.NDArray[np.bool_]
    word_shift: int
    """Of a word's index, to that of its chunk."""

    @classmethod
    def over(cls, pages: int, shift: int) -> ChunkMarks:
        word_shift = shift - (BITS_PER_WORD.bit_length() - 1)
        return cls(np.zeros(max(-(-words_for(pages) >> word_shift), 1), np.bool_), word_shift)

    def mark(self, index: Indexes) -> None:
        """The chunks of the words at ``index``."""
        self.marked[index >> self.word_shift] = True


Part = tuple[int, int, Indexes | None]
"""First word and end of a stretch in which something was found, and the indexes of all words that have a bit set, or
None where these are many."""


def take(found: Words, pending: Words, source: Words, *, empty: bool) -> tuple[int, int, list[Part]]:
    """``found |= source; pending |= found``: bits set in ``found`` then, how many of them were new in ``pending``, and
    where they are. ``empty`` says that no bit was set in ``found`` before.

    Bits are only ever added, to ``found`` first, so an interruption half-way loses none.
    """
    pages = new = 0
    parts: list[Part] = []
    chunk = source.size if source.size <= SMALL_WORDS else CHUNK_WORDS
    for lo in range(0, source.size, chunk):
        bits, into = source[lo : lo + chunk], found[lo : lo + chunk]
        if not empty:
            np.bitwise_or(into, bits, out=into)
            bits = into
        if bits.size > SMALL_WORDS and is_zero(bits):
            continue
        index = (bits != 0).nonzero()[0]
        if not index.size:
            continue
        there = pending[lo : lo + chunk]
        if index.size > FEW_WORDS:
            if empty:
                np.copyto(into, bits)
            counts = or_counts(there, bits)
            parts.append((lo, lo + bits.size, None))
        else:
            counts = _take_few(into, there, bits[index], index, empty=empty)
            parts.append((lo, lo + bits.size, index + lo if lo else index))
        pages, new = pages + counts[0], new + counts[1]
    return pages, new, parts


def _take_few(found: Words, pending: Words, bits: Words, index: Indexes, *, empty: bool) -> tuple[int, int]:
    if empty:
        found[index] = bits
    old = pending[index]
    merged = bits | old
    pending[index] = merged
    return count_few(bits), count_few(merged ^ old)


def wipe(words: Words, parts: list[Part]) -> None:
    """Clears what `take` found at ``parts``."""
    for first, end, index in parts:
        if index is None:
            words[first:end].fill(0)
        else:
            words[index] = 0


def mark_parts(marks: ChunkMarks, words: Words, parts: list[Part]) -> None:
    """Marks the chunks of what `take` found at ``parts`` of ``words``."""
    for first, end, index in parts:
        marks.mark((words[first:end] != 0).nonzero()[0] + first if index is None else index)
