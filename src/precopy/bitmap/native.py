"""The arithmetic of words.py compiled by numba (extra ``fast``): one pass over the words, without the interpreter's
lock. Importing this imports numba (some 0.3 s and 100 MB), and compiles what is not yet in numba's cache on disk; only
`precopy.bitmap.kernels` imports it.

Words go by stretches of a constant length, in whose loops nothing branches: of these LLVM makes vector instructions,
the count of set bits included, also with AVX2. A stretch that holds nothing is looked at and not written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types as numba_types
from numba.extending import intrinsic

from precopy.bitmap.words import Words

types: Any = numba_types  # it has no types of its own, or wrong ones

STRETCH = 512
"""Words (of 128 MiB of memory) that are looked at before any is written. In the second-level cache, best of 200 on a
machine that did other things as well, GB/s dense and idle: 24 and 65 with 64 words, 31 and 124 with 512, 33 and 32
without a look."""

WORDS, READ_WORDS = types.uint64[::1], types.Array(types.uint64, 1, "C", readonly=True)
FLAGS, NUMBERS = types.boolean[::1], types.int64[::1]


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def ctpop(_context: Any, _word: Any) -> Any:
    """Number of set bits of one word."""
    return types.uint64(types.uint64), lambda _context, builder, _signature, arguments: builder.ctpop(arguments[0])


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiles now, from the cache on disk where that has it; releases the interpreter's lock while it runs."""

    def compile_(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(signature, nogil=True, cache=True, error_model="numpy")(function)
        except RuntimeError as error:  # no folder that a cache could be in
            logging.getLogger(__name__).info("compiled without a cache: %s", error)
            return numba.njit(signature, nogil=True, error_model="numpy")(function)

    return compile_


@compiled(types.uint64(READ_WORDS))
def popcount(words: Words) -> int:
    """`precopy.bitmap.words.popcount`."""
    found: Any = np.uint64(0)
    for at in range(words.size):
        found += ctpop(words[at])
    return found  # type: ignore[no-any-return]  # numba makes a Python number of it


@compiled(types.uint64(WORDS, WORDS))
def take_over(dest: Words, source: Words) -> int:
    """`precopy.bitmap.words.take_over`."""
    new: Any = np.uint64(0)
    for lo in range(0, source.size, STRETCH):
        bits, into = source[lo : lo + STRETCH], dest[lo : lo + STRETCH]
        if bits.size == STRETCH:  # a constant number of turns: vector instructions without a rest
            some = np.uint64(0)
            for at in range(STRETCH):
                some |= bits[at]
            if some:
                for at in range(STRETCH):
                    here, there = bits[at], into[at]
                    new += ctpop(here & ~there)
                    into[at] = here | there
                    bits[at] = 0
        else:
            for at in range(bits.size):
                here, there = bits[at], into[at]
                new += ctpop(here & ~there)
                into[at] = here | there
                bits[at] = 0
    return new  # type: ignore[no-any-return]  # as above


@compiled(types.UniTuple(types.uint64, 2)(WORDS, READ_WORDS))
def or_counts(dest: Words, source: Words) -> tuple[int, int]:
    """`precopy.bitmap.words.or_counts`."""
    found: Any = np.uint64(0)
    new: Any = np.uint64(0)
    for lo in range(0, source.size, STRETCH):
        bits, into = source[lo : lo + STRETCH], dest[lo : lo + STRETCH]
        if bits.size == STRETCH:
            some = np.uint64(0)
            for at in range(STRETCH):
                some |= bits[at]
            if some:
                for at in range(STRETCH):
                    here, there = bits[at], into[at]
                    found += ctpop(here)
                    new += ctpop(here & ~there)
                    into[at] = here | there
        else:
            for at in range(bits.size):
                here, there = bits[at], into[at]
                found += ctpop(here)
                new += ctpop(here & ~there)
                into[at] = here | there
    return found, new


@compiled(types.void(READ_WORDS, FLAGS, types.int64, types.int64))
def mark(words: Words, marked: npt.NDArray[np.bool_], word_shift: int, first: int) -> None:
    """Marks the chunks of those words that have a bit set; ``first`` is the index of ``words[0]``."""
    step, end = 1 << word_shift, first + words.size
    for chunk in range(first >> word_shift, ((end - 1) >> word_shift) + 1):
        if not marked[chunk]:
            some = np.uint64(0)
            for at in range(max(first, chunk * step) - first, min(end, chunk * step + step) - first):
                some |= words[at]
            if some:
                marked[chunk] = True


@compiled(types.UniTuple(types.uint64, 2)(WORDS, WORDS, WORDS, READ_WORDS, FLAGS, types.int64, types.boolean))
def take(  # noqa: C901 - one pass: what it is cut into costs another look at the words
    found: Words,
    pending: Words,
    spare: Words,
    source: Words,
    marked: npt.NDArray[np.bool_],
    word_shift: int,
    empty: bool,
) -> tuple[int, int]:
    """`precopy.bitmap.taking.take`, with chunks marked (no ``marked``: none are), and ``spare`` cleared."""
    pages: Any = np.uint64(0)
    new: Any = np.uint64(0)
    for lo in range(0, source.size, STRETCH):
        bits, kept = source[lo : lo + STRETCH], spare[lo : lo + STRETCH]
        into, wait = found[lo : lo + STRETCH], pending[lo : lo + STRETCH]
        some = stale = held = np.uint64(0)
        if bits.size == STRETCH:
            for at in range(STRETCH):
                some |= bits[at]
                stale |= kept[at]
            if not empty:
                for at in range(STRETCH):
                    held |= into[at]
            if stale:
                for at in range(STRETCH):
                    kept[at] = 0
            if some | held:
                for at in range(STRETCH):
                    here, there = bits[at] | into[at], wait[at]
                    pages += ctpop(here)
                    new += ctpop(here & ~there)
                    into[at] = here
                    wait[at] = here | there
        else:
            for at in range(bits.size):
                here, there = bits[at] | into[at], wait[at]
                some |= here
                pages += ctpop(here)
                new += ctpop(here & ~there)
                kept[at] = 0
                into[at] = here
                wait[at] = here | there
        if marked.size and some | held:
            mark(into, marked, word_shift, lo)
    return pages, new
