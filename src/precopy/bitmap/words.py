"""Arithmetic on arrays of 64-bit words: bit ``i`` of a bitmap is bit ``i % 64`` of word ``i // 64``.

This is the layout of Linux's ``unsigned long`` bitmaps on x86-64, so kernel output is used in place.

Work is done in chunks that stay in the second-level cache: measured with 64M-page bitmaps, whole arrays run at the
speed of memory, and chunks below 256 KiB lose to numpy's cost per call.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.int64]

BITS_PER_WORD = 64
CHUNK_WORDS = 512 * 1024 // 8
SPARSE = 16
"""A chunk with fewer than one in SPARSE non-zero words is worked on by gathering just those words."""

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
    total = 0
    for lo in range(0, words.size, CHUNK_WORDS):
        # bitwise_count gives uint8; numpy's default of summing it as uint64 costs about three times as much
        total += int(np.bitwise_count(words[lo : lo + CHUNK_WORDS]).sum(dtype=np.uint32))
    return total


def any_set(words: Words) -> bool:
    """Whether any bit is set; stops at the first chunk that has one."""
    return any(bool(words[lo : lo + CHUNK_WORDS].any()) for lo in range(0, words.size, CHUNK_WORDS))


def or_count_new(dest: Words, source: Words) -> int:
    """``dest |= source``, returning how many bits of ``source`` were not yet set in ``dest``."""
    new = 0
    for lo in range(0, source.size, CHUNK_WORDS):
        bits = source[lo : lo + CHUNK_WORDS]
        nonzero = bits != 0
        count = int(np.count_nonzero(nonzero))
        if count == 0:
            continue
        into = dest[lo : lo + CHUNK_WORDS]
        if count * SPARSE < bits.size:
            index = np.flatnonzero(nonzero)
            old = into[index]
            merged = old | bits[index]
            into[index] = merged
            new += int(np.bitwise_count(merged ^ old).sum(dtype=np.uint32))
        else:
            before = int(np.bitwise_count(into).sum(dtype=np.uint32))
            np.bitwise_or(into, bits, out=into)
            new += int(np.bitwise_count(into).sum(dtype=np.uint32)) - before
    return new


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
