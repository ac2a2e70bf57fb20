"""Arithmetic on arrays of 64-bit words: bit ``i`` of a bitmap is bit ``i % 64`` of word ``i // 64``.

This is the layout of Linux's ``unsigned long`` bitmaps on x86-64, so kernel output is used in place.

Work is done in chunks that stay in the second-level cache: measured with 64M-page bitmaps, whole arrays run at the
speed of memory, and chunks below 256 KiB lose to numpy's cost per call. `precopy bench bitmap` measures `take_over`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.int64]
Counts = npt.NDArray[np.uint8]

BITS_PER_WORD = 64
CHUNK_WORDS = 512 * 1024 // 8
BLOCK_WORDS = 256 * 1024 // 8
"""Where most words are worked on several times, two arrays have to stay in the cache: half a chunk of each."""
SPARSE = 20
"""A chunk with fewer than one in SPARSE non-zero words is worked on by gathering just those words."""
SAMPLES = 64
"""So many words of a chunk are looked at for whether it is dense."""

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
    counts = np.empty(min(words.size, CHUNK_WORDS), np.uint8)
    return sum(_count(words[lo : lo + CHUNK_WORDS], counts) for lo in range(0, words.size, CHUNK_WORDS))


def clear_count(words: Words) -> int:
    """Clears all bits; returns how many were set."""
    counts = np.empty(min(words.size, CHUNK_WORDS), np.uint8)
    total, idle = 0, False
    for lo in range(0, words.size, CHUNK_WORDS):
        chunk = words[lo : lo + CHUNK_WORDS]
        if idle and not chunk.max():
            continue
        found = _count(chunk, counts)
        idle = not found
        if found:
            chunk.fill(0)
            total += found
    return total


def any_set(words: Words) -> bool:
    """Whether any bit is set; stops at the first chunk that has one."""
    return any(bool(words[lo : lo + CHUNK_WORDS].any()) for lo in range(0, words.size, CHUNK_WORDS))


def or_count_new(dest: Words, source: Words) -> int:
    """``dest |= source``, returning how many bits of ``source`` were not yet set in ``dest``.

    Bits of ``dest`` are only ever added, so who stops this half-way has lost none.
    """
    return _merge(dest, source, move=False)


def take_over(dest: Words, source: Words) -> int:
    """``dest |= source; source = 0``, returning how many bits of ``source`` were not yet set in ``dest``.

    The arrays share no memory. Every bit stands in one of them all the time, so who stops this half-way has lost none;
    but ``dest`` alone lacks some for a moment, and no other thread may read it meanwhile.
    """
    return _merge(dest, source, move=True)


def _merge(dest: Words, source: Words, move: bool) -> int:
    """One pass, chunk by chunk: how many bits are set is looked at first, and chooses how they are merged."""
    merge_all = _move_all if move else _or_all
    counts = np.empty(min(source.size, BLOCK_WORDS), np.uint8)
    new, idle = 0, False
    for lo in range(0, source.size, CHUNK_WORDS):
        bits = source[lo : lo + CHUNK_WORDS]
        # Faster than comparing every word, but of no use where bits are found: asked where the last chunk had none.
        if idle and not bits.max():
            continue
        idle = False
        into = dest[lo : lo + CHUNK_WORDS]
        if not _looks_dense(bits):
            nonzero = bits != 0
            found = int(np.count_nonzero(nonzero))
            if found == 0:
                idle = True
                continue
            if found * SPARSE < bits.size:
                index = np.flatnonzero(nonzero)
                new += _or_at(into, bits, index)
                if move:
                    bits[index] = 0
                continue
        for at in range(0, bits.size, BLOCK_WORDS):
            new += merge_all(into[at : at + BLOCK_WORDS], bits[at : at + BLOCK_WORDS], counts)
    return new


def _looks_dense(bits: Words) -> bool:
    """Whether more than one in eight of a few words all over ``bits`` is not zero: a guess, for speed only."""
    few = bits[:: max(bits.size // SAMPLES, 1)]
    return int(np.count_nonzero(few)) * 8 > few.size


def _or_at(into: Words, bits: Words, index: Indexes) -> int:
    """``into |= bits`` at ``index`` only."""
    old = into.take(index)
    merged = old | bits.take(index)
    into[index] = merged
    merged ^= old
    return _count(merged, np.empty(index.size, np.uint8))


def _or_all(into: Words, bits: Words, counts: Counts) -> int:
    """``into |= bits``."""
    before = _count(into, counts)
    np.bitwise_or(into, bits, out=into)
    return _count(into, counts) - before


def _move_all(into: Words, bits: Words, counts: Counts) -> int:
    """``into |= bits; bits = 0``. As ``bits`` may be overwritten, new bits are counted alone, not all of them twice."""
    np.bitwise_or(bits, into, out=bits)
    np.bitwise_xor(into, bits, out=into)
    new = _count(into, counts)
    np.copyto(into, bits)
    bits.fill(0)
    return new


def _count(words: Words, counts: Counts) -> int:
    """Number of set bits; ``counts`` is room for a byte a word."""
    each = np.bitwise_count(words, out=counts[: words.size])
    # At most 64 each, so two fit a byte; and numpy's default of summing bytes as uint64 costs about three times as much
    half = (each.size + 1) // 2
    each[: each.size - half] += each[half:]
    return int(np.add.reduce(each[:half], dtype=np.uint32))


def split(start: int, count: int, size: int) -> tuple[list[tuple[int, np.uint64]], slice]:
    """Words that a range of a bitmap of ``size`` bits covers: (index, mask) of up to two in part, a slice of the rest.

    The last word counts as a whole where the range ends at ``size``: there are no bits above.
    """
    end = start + count
    first, last = words_for(start), (words_for(end) if end == size else end // BITS_PER_WORD)
    if first > last:  # inside one word
        return [(last, head_mask(start) & tail_mask(end))], slice(0, 0)
    parts = [(first - 1, head_mask(start))] if start % BITS_PER_WORD else []
    if last < words_for(end):
        parts.append((last, tail_mask(end)))
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
