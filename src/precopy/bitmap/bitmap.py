"""A bitmap of pages over 64-bit words.

Laws (tests/property/test_bitmap.py holds them against a Python set):

- A bit at or above ``size`` is never set, so whole-array operations need no masks.
- A range outside ``[0, size)`` is a `BitmapRangeError`, never cut to fit.
- A view shares the words of its parent and starts on a word, so it has the same bit phase.

Nothing here is atomic: a bitmap that another thread or the kernel writes is harvested into one of these first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from precopy.bitmap.runs import NO_RUNS, Runs
from precopy.bitmap.words import (
    ALL_ONES,
    BITS_PER_WORD,
    CHUNK_WORDS,
    Indexes,
    Words,
    any_set,
    clear_count,
    edges,
    head_mask,
    or_count_new,
    or_counts,
    or_into,
    popcount,
    shifted_up,
    split,
    tail_mask,
    take_over,
    words_for,
)
from precopy.errors import BitmapRangeError

_FEW_RUNS, _LONG_RUN = 16, 1 << 14
"""Runs up to which, and pages of a run from which on, a loop over runs is faster than one numpy operation over all."""


class Bitmap:
    """``size`` bits, one a page, all clear at first. ``words`` is the uint64 array that holds them."""

    __slots__ = ("size", "words")

    def __init__(self, size: int, words: Words | None = None) -> None:
        """Over ``words`` where given (shared, not copied): uint64, exactly as many as ``size`` bits need.

        Raises `ValueError` where the words do not fit or hold a bit at or above ``size``.
        """
        if words is None:
            words = np.zeros(words_for(size), np.uint64)
        elif words.dtype != np.uint64 or words.shape != (words_for(size),):
            raise ValueError(f"{size} bits need {words_for(size)} uint64 words, not {words.dtype}{words.shape}")
        elif size % BITS_PER_WORD and words[-1] & ~tail_mask(size):
            raise ValueError(f"a bit at or above {size} is set")
        self.size = size
        self.words = words

    @classmethod
    def from_indexes(cls, size: int, indexes: npt.ArrayLike) -> Bitmap:
        """With the bits of ``indexes`` set. Raises `BitmapRangeError` where one lies outside."""
        bitmap = cls(size)
        bitmap.set_indexes(np.asarray(indexes, np.int64))
        return bitmap

    def view(self, start: int, count: int) -> Bitmap:
        """The ``count`` bits from ``start`` (a multiple of 64), sharing words. The view must end on a word of its
        own: bits between its end and the next multiple of 64 have to be clear and stay so (RAM blocks do that)."""
        self._check(start, count)
        if start % BITS_PER_WORD:
            raise ValueError(f"a view starts at a multiple of {BITS_PER_WORD}, not at {start}")
        first = start // BITS_PER_WORD
        return Bitmap(count, self.words[first : first + words_for(count)])

    def copy(self) -> Bitmap:
        return Bitmap(self.size, self.words.copy())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Bitmap):
            return NotImplemented
        return self.size == other.size and np.array_equal(self.words, other.words)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __len__(self) -> int:
        return self.size

    def __contains__(self, index: int) -> bool:
        self._check(index, 1)
        return bool(self.words[index // BITS_PER_WORD] >> np.uint64(index % BITS_PER_WORD) & np.uint64(1))

    def any(self) -> bool:
        """Whether any bit is set."""
        return any_set(self.words)

    def count(self, start: int = 0, count: int | None = None) -> int:
        """Number of set bits in a range (default: all)."""
        if start == 0 and count is None:
            return popcount(self.words)
        return popcount(self.masked(start, self.size - start if count is None else count)[1])

    def counts(self, parts: int) -> tuple[int, ...]:
        """How many bits are set in each of ``parts`` parts of equal length, to within a word; fewer parts where there
        are fewer words."""
        if not self.words.size:
            return ()
        bounds = np.unique(np.arange(parts) * self.words.size // parts)
        return tuple(np.add.reduceat(np.bitwise_count(self.words), bounds, dtype=np.int64).tolist())

    def masked(self, start: int, count: int) -> tuple[int, Words]:
        """(index of the first word, copy of the words) of a range, with every bit outside the range cleared."""
        self._check(start, count)
        first, last = start // BITS_PER_WORD, words_for(start + count)
        words = self.words[first:last].copy() if count else np.empty(0, np.uint64)
        if words.size:
            words[0] &= head_mask(start)
            words[-1] &= tail_mask(start + count)
        return first, words

    def set_range(self, start: int, count: int) -> None:
        """Sets ``count`` bits from ``start``."""
        self._check(start, count)
        if not count:
            return
        first, last = start // BITS_PER_WORD, (start + count - 1) // BITS_PER_WORD
        head, tail = head_mask(start), tail_mask(start + count)
        if first == last:
            self.words[first] |= head & tail
            return
        self.words[first] |= head
        self.words[first + 1 : last] = ALL_ONES
        self.words[last] |= tail

    def clear_range(self, start: int, count: int) -> None:
        """Clears ``count`` bits from ``start``."""
        self._check(start, count)
        if not count:
            return
        first, last = start // BITS_PER_WORD, (start + count - 1) // BITS_PER_WORD
        head, tail = head_mask(start), tail_mask(start + count)
        if first == last:
            self.words[first] &= ~(head & tail)
            return
        self.words[first] &= ~head
        self.words[first + 1 : last] = 0
        self.words[last] &= ~tail

    def set_indexes(self, indexes: Indexes) -> None:
        """Sets the bits of ``indexes``, in any order, repeats allowed."""
        if not indexes.size:
            return
        low, high = int(indexes.min()), int(indexes.max())
        self._check(low, high - low + 1)
        bits = np.uint64(1) << (indexes % BITS_PER_WORD).astype(np.uint64)
        np.bitwise_or.at(self.words, indexes // BITS_PER_WORD, bits)

    def set_runs(self, runs: Runs) -> None:
        """Sets every page of ``runs``."""
        if not len(runs):
            return
        low, high = int(runs.starts.min()), int(runs.ends.max())
        self._check(low, high - low)  # all of them before the first is set
        if len(runs) <= _FEW_RUNS or runs.pages > _LONG_RUN * len(runs) or not runs.lengths.all():
            for start, length in runs:
                self.set_range(start, length)
        elif runs.pages < 2 * len(runs):  # mostly single pages
            self.set_indexes(runs.indexes())
        else:
            self._set_many(runs)

    def _set_many(self, runs: Runs) -> None:
        """As a call of `set_range` for each of ``runs``, in a few operations on whole arrays."""
        first, last = runs.starts // BITS_PER_WORD, (runs.ends - 1) // BITS_PER_WORD
        head = ALL_ONES << (runs.starts % BITS_PER_WORD).astype(np.uint64)
        tail = ALL_ONES >> (-runs.ends % BITS_PER_WORD).astype(np.uint64)
        within = first == last
        np.bitwise_or.at(self.words, first, np.where(within, head & tail, head))
        np.bitwise_or.at(self.words, last[~within], tail[~within])
        more = last - first > 1
        whole = Runs(first[more] + 1, (last - first)[more] - 1)  # of words, here
        self.words[whole.indexes()] = ALL_ONES

    def clear_all(self) -> None:
        self.words.fill(0)

    def set_all(self) -> None:
        self.set_range(0, self.size)

    def union(self, other: Bitmap, at: int = 0) -> int:
        """``self |= other``, with bit 0 of ``other`` at bit ``at`` here; returns how many bits that newly set.

        Any ``at`` is allowed; one that is no multiple of 64 costs a shift in chunks, not a loop over bits.
        """
        self._check(at, other.size)
        first, shift = divmod(at, BITS_PER_WORD)
        if not shift:
            return or_count_new(self.words[first : first + other.words.size], other.words)
        return sum(
            or_count_new(self.words[first + lo : first + lo + words.size], words)
            for lo, words in shifted_up(other.words, other.size, shift)
        )

    def merge(self, other: Bitmap) -> tuple[int, int]:
        """``self |= other``, for bitmaps of one size: how many bits are set in ``other``, and how many of these that
        newly set. Raises `ValueError`."""
        self._check_same(other)
        return or_counts(self.words, other.words)

    def add(self, other: Bitmap, at: int = 0) -> None:
        """As `union`, without counting."""
        self._check(at, other.size)
        first, shift = divmod(at, BITS_PER_WORD)
        if shift:
            self.union(other, at)
        else:
            or_into(self.words[first : first + other.words.size], other.words)

    def difference(self, other: Bitmap) -> None:
        """``self &= ~other``, for bitmaps of one size. Raises `ValueError`."""
        self._check_same(other)
        self.words &= ~other.words

    def intersects(self, runs: Runs) -> bool:
        """Whether any page of ``runs`` is set."""
        return any(any_set(self.masked(start, length)[1]) for start, length in runs)

    def take(self, start: int = 0, count: int | None = None) -> Runs:
        """The runs of set bits in a range (default: all), which are cleared: take-and-clear."""
        count = self.size - start if count is None else count
        runs = self.runs(start, count)
        self.clear_range(start, count)
        return runs

    def take_count(self, start: int = 0, count: int | None = None) -> int:
        """How many bits of a range (default: all) were set, which are cleared: `take` without making runs."""
        count = self.size - start if count is None else count
        self._check(start, count)
        parts, rest = split(start, count, self.size)
        taken = clear_count(self.words[rest])
        for at, mask in parts:
            here = self.words.item(at)
            if here & mask:
                self.words[at] = here & ~mask
                taken += (here & mask).bit_count()
        return taken

    def move_into(self, dest: Bitmap, start: int = 0, count: int | None = None) -> int:
        """Moves the set bits of a range (default: all) to the same places of ``dest``; returns how many were new there.

        Bits outside the range stay as they are in both. Where the range begins and ends does not matter: no more than
        two words are covered in part. No other thread may read ``dest`` meanwhile (see `words.take_over`).

        Raises `ValueError` where the sizes differ or the bitmaps share words, `BitmapRangeError`.
        """
        self._check_same(dest)
        if np.may_share_memory(self.words, dest.words):
            raise ValueError("a bitmap cannot be moved into itself")
        count = self.size - start if count is None else count
        self._check(start, count)
        parts, rest = split(start, count, self.size)
        new = take_over(dest.words[rest], self.words[rest])
        for at, mask in parts:
            here, there = self.words.item(at), dest.words.item(at)
            if here & mask:
                dest.words[at] = there | (here & mask)
                self.words[at] = here & ~mask
                new += (here & mask & ~there).bit_count()
        return new

    def runs(self, start: int = 0, count: int | None = None) -> Runs:
        """The runs of set bits in a range (default: all), cut at the range's ends."""
        first, words = self.masked(start, self.size - start if count is None else count)
        if not words.size:
            return NO_RUNS
        at = edges(np.append(words, np.uint64(0)), 0) + first * BITS_PER_WORD
        return Runs(at[0::2], at[1::2] - at[0::2])

    def windows(self, chunk: int) -> Iterator[tuple[int, int]]:
        """(start, count) of each aligned window of ``chunk`` pages (a multiple of 64) that has a bit set now."""
        if chunk <= 0 or chunk % BITS_PER_WORD:
            raise ValueError(f"chunks are multiples of {BITS_PER_WORD} pages, not {chunk}")
        step = chunk // BITS_PER_WORD
        stride = max(CHUNK_WORDS // step, 1) * step
        for lo in range(0, self.words.size, stride):
            index = np.flatnonzero(self.words[lo : lo + stride] != 0)
            for window in np.unique((index + lo) // step).tolist():
                start = window * chunk
                yield start, min(chunk, self.size - start)

    def indexes(self) -> Indexes:
        """Every set bit's index, ascending."""
        return self.runs().indexes()

    def _check(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.size:
            raise BitmapRangeError(start, count, self.size)

    def _check_same(self, other: Bitmap) -> None:
        if other.size != self.size:
            raise ValueError(f"sizes differ: {self.size} and {other.size}")
