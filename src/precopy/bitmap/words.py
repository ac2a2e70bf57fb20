"""Arithmetic on arrays of 64-bit words: bit ``i`` of a bitmap is bit ``i % 64`` of word ``i // 64``.

This is the layout of Linux's ``unsigned long`` bitmaps on x86-64, so kernel output is used in place.

Work is done in chunks that stay in the second-level cache: measured with 64M-page bitmaps, whole arrays run at the
speed of memory, and chunks below 256 KiB lose to numpy's cost per call. `precopy bench bitmap` measures `take_over`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.int64]
Counts = npt.NDArray[np.uint8]

BITS_PER_WORD = 64
CHUNK_WORDS = 512 * 1024 // 8
"""Words worked on in one numpy operation: 512 KiB, which stay in a CPU's second-level cache from one operation to the
next."""
SPARSE = 20
"""A chunk is sparse where fewer than one of this many words is non-zero: its non-zero words are then gathered first."""
IDLE_CHUNKS = 4
"""Chunks tested for any set bit in one numpy call: where nothing is set, the cost per call dominates."""
SMALL_WORDS = 8192
"""Words (of 2 GiB of memory) up to which numpy's calls cost more than the words, so whole arrays take the fewest
calls."""
FEW_WORDS = 1024
"""Words up to which Python's own integers count bits in less time than numpy, whose calls cost more than the words."""
SAMPLES = 64
"""Words of a chunk that are sampled to find out whether it is dense."""


class Native(Protocol):
    """Compiled code for the same: each function does what its namesake here does."""

    def popcount(self, words: Words, /) -> int: ...

    def or_counts(self, dest: Words, source: Words, /) -> tuple[int, int]: ...

    def take_over(self, dest: Words, source: Words, /) -> int: ...

    def take(  # noqa: PLR0917 - compiled code is called with positional arguments
        self,
        found: Words,
        pending: Words,
        spare: Words,
        source: Words,
        marked: npt.NDArray[np.bool_],
        word_shift: int,
        empty: bool,
        /,
    ) -> tuple[int, int]:
        """As `precopy.bitmap.taking.take`, which also clears ``spare`` and marks the chunks of what was found."""
        ...


native: Native | None = None
"""What is used in place of numpy, see kernels.py."""

ALL_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_ONE = np.uint64(1)


def words_for(bits: int) -> int:
    """Number of words that hold ``bits`` bits."""
    return (bits + BITS_PER_WORD - 1) // BITS_PER_WORD


def head_mask(bit: int) -> np.uint64:
    """Mask of the bits at and above ``bit % 64``: what of its word a range starting at ``bit`` covers."""
    return np.uint64((0xFFFF_FFFF_FFFF_FFFF << (bit % BITS_PER_WORD)) & 0xFFFF_FFFF_FFFF_FFFF)


def tail_mask(bit: int) -> np.uint64:
    """Mask of the bits below ``bit % 64``, all of them where that is 0: what a range ending at ``bit`` covers."""
    return np.uint64(0xFFFF_FFFF_FFFF_FFFF >> (-bit % BITS_PER_WORD))


def popcount(words: Words) -> int:
    """Number of set bits."""
    if native is not None:
        return native.popcount(words)
    return sum(_count(words[lo : lo + CHUNK_WORDS]) for lo in range(0, words.size, CHUNK_WORDS))


def clear_count(words: Words) -> int:
    """Clears all bits; returns how many were set."""
    total = 0
    for lo in range(0, words.size, CHUNK_WORDS):
        chunk = words[lo : lo + CHUNK_WORDS]
        if not is_zero(chunk):
            total += _count(chunk)
            chunk.fill(0)
    return total


def any_set(words: Words) -> bool:
    """Whether any bit is set; stops at the first chunk that has one."""
    return not all(is_zero(words[lo : lo + CHUNK_WORDS]) for lo in range(0, words.size, CHUNK_WORDS))


def is_zero(words: Words) -> bool:
    """Whether no bit is set in ``words`` (at least one, side by side)."""
    return not np.maximum.reduce(words.view(np.uint32))  # 1.3 times as fast as of uint64, and as any()


def or_count_new(dest: Words, source: Words) -> int:
    """``dest |= source``, returning how many bits of ``source`` were not yet set in ``dest``.

    Bits of ``dest`` are only ever added, so an interruption half-way loses none.
    """
    if native is not None:
        return native.or_counts(dest, source)[1]
    if source.size <= SMALL_WORDS:
        fresh = np.bitwise_and(source, ~dest)
        np.bitwise_or(dest, fresh, out=dest)
        return int(np.add.reduce(np.bitwise_count(fresh), dtype=np.uint32))
    return _merge(dest, source, move=False)


def or_counts(dest: Words, source: Words) -> tuple[int, int]:
    """``dest |= source``: how many bits are set in ``source``, and how many of them were not yet set in ``dest``.

    Bits of ``dest`` are only ever added, so an interruption half-way loses none.
    """
    if native is not None:
        return native.or_counts(dest, source)
    if source.size > SMALL_WORDS:
        return popcount(source), _merge(dest, source, move=False)
    index = (source != 0).nonzero()[0]
    if index.size > FEW_WORDS:
        return _count(source), or_count_new(dest, source)
    if not index.size:
        return 0, 0
    bits, old = source[index], dest[index]
    merged = bits | old
    dest[index] = merged
    return count_few(bits), count_few(merged ^ old)


def or_into(dest: Words, source: Words) -> None:
    """``dest |= source`` without a count of the new bits. A chunk without any bit costs one test."""
    if source.size <= SMALL_WORDS:
        np.bitwise_or(dest, source, out=dest)
        return
    for lo in range(0, source.size, CHUNK_WORDS):
        bits = source[lo : lo + CHUNK_WORDS]
        if not is_zero(bits):
            into = dest[lo : lo + CHUNK_WORDS]
            np.bitwise_or(into, bits, out=into)


def take_over(dest: Words, source: Words) -> int:
    """``dest |= source; source = 0``, returning how many bits of ``source`` were not yet set in ``dest``.

    The arrays share no memory. Every bit stands in one of them all the time, so an interruption half-way loses none;
    but ``dest`` alone lacks some for a moment, and no other thread may read it meanwhile.
    """
    if native is not None:
        return native.take_over(dest, source)
    return _merge(dest, source, move=True)


def _merge(dest: Words, source: Words, move: bool) -> int:
    """One pass, chunk by chunk: how many bits are set is looked at first, and chooses how they are merged."""
    merge_all = _move_all if move else _or_all
    new, lo, idle = 0, 0, 1
    while lo < source.size:
        if idle:  # the chunk before held nothing, and so may the next ones: look for that first, and further at once
            stretch = source[lo : lo + idle * CHUNK_WORDS]
            if is_zero(stretch):
                lo, idle = lo + stretch.size, min(2 * idle, IDLE_CHUNKS)
                continue
        bits, into = source[lo : lo + CHUNK_WORDS], dest[lo : lo + CHUNK_WORDS]
        lo, idle = lo + CHUNK_WORDS, 0
        index = _nonzero_where_few(bits)
        if index is None:
            new += merge_all(into, bits)
        elif index.size:
            new += _or_at(into, bits, index)
            if move:
                bits[index] = 0
        else:
            idle = 1
    return new


def _nonzero_where_few(bits: Words) -> Indexes | None:
    """Indexes of the words that are not zero, None where working on all words costs less."""
    few = bits[:: max(bits.size // SAMPLES, 1)]
    if int(np.count_nonzero(few)) * 8 > few.size:  # a guess that saves a look at every word
        return None
    nonzero = bits != 0
    return np.flatnonzero(nonzero) if int(np.count_nonzero(nonzero)) * SPARSE < bits.size else None


def _or_at(into: Words, bits: Words, index: Indexes) -> int:
    """``into |= bits`` at ``index`` only."""
    old = into.take(index)
    merged = old | bits.take(index)
    into[index] = merged
    merged ^= old
    return _count(merged)


def _or_all(into: Words, bits: Words) -> int:
    """``into |= bits``."""
    before = np.bitwise_count(into)
    np.bitwise_or(into, bits, out=into)
    return _total(np.bitwise_count(into) - before)


def _move_all(into: Words, bits: Words) -> int:
    """``into |= bits; bits = 0``. As ``bits`` may be overwritten, new bits are counted alone, not all of them twice."""
    third = -(-bits.size // 3)  # so that both stay in the cache for all five steps; and 3 * 64 fits a byte
    counts = np.zeros(third, np.uint8)
    for lo in range(0, bits.size, third):
        here, there = bits[lo : lo + third], into[lo : lo + third]
        np.bitwise_or(here, there, out=here)
        np.bitwise_xor(there, here, out=there)
        counts[: here.size] += np.bitwise_count(there)
        np.copyto(there, here)
        here.fill(0)
    return int(np.add.reduce(counts, dtype=np.uint32))


def _count(words: Words) -> int:
    """Number of set bits in a chunk."""
    return _total(np.bitwise_count(words))


def count_few(words: Words) -> int:
    """Number of set bits in at most `FEW_WORDS` words."""
    return int.from_bytes(words.tobytes(), "little").bit_count()


def _total(counts: Counts) -> int:
    """Sum of at most a chunk of counts of at most 64 each, of which two fit a byte; `counts` is overwritten.

    numpy's default of summing bytes as uint64 costs about three times as much.
    """
    half = (counts.size + 1) // 2
    counts[: counts.size - half] += counts[half:]
    return int(np.add.reduce(counts[:half], dtype=np.uint32))


def split(start: int, count: int, size: int) -> tuple[list[tuple[int, int]], slice]:
    """Words that a range of a bitmap of ``size`` bits covers: (index, mask) of up to two in part, a slice of the rest.

    The last word counts as a whole where the range ends at ``size``: there are no bits above.
    """
    end = start + count
    first, last = words_for(start), (words_for(end) if end == size else end // BITS_PER_WORD)
    if first > last:  # inside one word
        return [(last, int(head_mask(start) & tail_mask(end)))], slice(0, 0)
    parts = [(first - 1, int(head_mask(start)))] if start % BITS_PER_WORD else []
    if last < words_for(end):
        parts.append((last, int(tail_mask(end))))
    return parts, slice(first, last)


def shifted_up(source: Words, bits: int, shift: int) -> Iterator[tuple[int, Words]]:
    """``source`` (of ``bits`` bits) moved up by ``shift`` < 64 bits, as (index of the first word, words) chunks.

    Consecutive chunks share no word: the bits that a chunk pushes over its end come at the start of the next.
    """
    up, down = np.uint64(shift), np.uint64(BITS_PER_WORD - shift)
    total = words_for(bits + shift)
    for lo in range(0, total, CHUNK_WORDS):
        hi = min(lo + CHUNK_WORDS, total)
        here = source[lo : min(hi, source.size)]
        out = np.zeros(hi - lo, np.uint64)
        np.left_shift(here, up, out=out[: here.size])
        carry_from = source[max(lo - 1, 0) : hi - 1] >> down
        first = 1 if lo == 0 else 0
        out[first : first + carry_from.size] |= carry_from
        yield lo, out


def edges(words: Words, carry: int) -> Indexes:
    """Positions where a bit differs from the one below it, ascending; ``carry`` (0 or 1) stands below bit 0.

    Only words in which something changes are unpacked to bits.
    """
    changed = words << _ONE
    changed[1:] |= words[:-1] >> np.uint64(63)
    if changed.size:
        changed[0] |= np.uint64(carry)
    changed ^= words
    index = np.flatnonzero(changed != 0)
    bits = np.unpackbits(changed[index].view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
    row, column = np.nonzero(bits)
    return index[row] * BITS_PER_WORD + column
