"""``precopy bench bitmap``: the sync of a large guest's bitmap beside a C loop and beside a memory copy, in turn.

A sync takes a bitmap of dirty pages over into the bitmap of pending ones, counts which were new there and leaves the
first one clear: `Bitmap.move_into`. Half of all pages, at random, are pending before, so that what is new has to be
counted bit by bit. Each repeat measures all ways one after the other, each from the same state and with cold caches:
before each, a buffer larger than the last-level cache is written, as a busy guest would.

GB/s is bytes of one bitmap by the CPU time of the one thread that each way runs in, which never waits: so what else
runs on the machine counts for less. A sync reads and writes two bitmaps, a copy reads one and writes one. Every result
is compared with whole-array arithmetic. With the extra ``fast`` numpy and numba are measured, each by itself.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from precopy.bench.sync_loop import SOURCE, SyncLoop, compile_loop
from precopy.bitmap import BITS_PER_WORD, Bitmap, Words, kernels
from precopy.bitmap import words as arithmetic
from precopy.bitmap.words import Native, words_for
from precopy.errors import UsageError, VerificationFailed
from precopy.report.kinds.bench_bitmap import BitmapBench, BitmapCase
from precopy.units import PAGE_SIZE, format_size

PATTERNS = ("dense", "one-percent", "one-percent-runs", "idle")
"""Dirty pages: half of them at random and some in every word; 1 % of all, single pages at random; 1 % in runs of 2 MiB
at random; none."""

MIN_GUEST, MAX_GUEST = 16 << 20, 4 << 40
"""Bytes. At most about ten bitmaps are held at once, 128 MiB each for the largest guest."""

RUN_PAGES = 512
HEAD_PAGES, TAIL_PAGES = 13, 29
"""Pages that the unaligned range leaves out at its beginning and end."""

PER_PAGE = 1 << 24
"""Pages that the loop over single pages is measured with: all would take seconds."""

_SEED = 1


def measure(guests: Sequence[int], repeats: int, tell: Callable[[str], None], c_source: Path = SOURCE) -> BitmapBench:
    """Measures every pattern for guests of these sizes in bytes, ``repeats`` times. ``tell`` is called with the
    name of each measurement.

    Raises `UsageError` for a guest too small or too large, `Unsupported` without a C compiler, `VerificationFailed`
    where a way has another result than plain arithmetic.
    """
    for size in guests:
        if not MIN_GUEST <= size <= MAX_GUEST:
            limits = f"{format_size(MIN_GUEST)} to {format_size(MAX_GUEST)}"
            raise UsageError(f"a guest of {size} bytes cannot be measured; it has {limits}")
    loop = compile_loop(c_source)
    cold = np.zeros(_cold_bytes() // 8, np.uint64)
    cases: list[BitmapCase] = []
    with _native() as native:
        for size in guests:
            for pattern in PATTERNS:
                tell(f"{format_size(size)}, {pattern}")
                cases += _measure_pattern(size, pattern, repeats, loop=loop, cold=cold, native=native)
    ratios = [case.ratio_to_aligned for case in cases if case.ratio_to_aligned is not None]
    return BitmapBench(loop.compiler, tuple(cases), statistics.median(ratios))


@contextlib.contextmanager
def _native() -> Iterator[Native | None]:
    """What numba compiled, or None where it is not installed. What this process used before is in use again after."""
    before = arithmetic.native
    try:
        if kernels.missing() is None:
            kernels.load()
        yield arithmetic.native
    finally:
        kernels.use(before)


def dirty_bitmap(pattern: str, pages: int, random: np.random.Generator) -> Bitmap:
    """One of PATTERNS over a guest's pages."""
    bitmap = Bitmap(pages)
    if pattern == "dense":
        bitmap.words[:] = random.integers(1, 1 << 64, bitmap.words.size, np.uint64)
        if pages % BITS_PER_WORD:
            bitmap.words[-1] = 1
    elif pattern == "one-percent":
        bitmap.set_indexes(random.integers(0, pages, pages // 100))
    elif pattern == "one-percent-runs":
        runs = pages // RUN_PAGES
        for run in random.integers(0, runs, max(runs // 100, 1)).tolist():
            bitmap.set_range(run * RUN_PAGES, RUN_PAGES)
    return bitmap


@dataclass(frozen=True)
class _State:
    """Bitmaps as they are before each measurement, and two that are measured on."""

    dirty: Bitmap
    pending: Bitmap
    source: Bitmap
    dest: Bitmap
    cold: Words

    def reset(self) -> None:
        np.copyto(self.source.words, self.dirty.words)
        np.copyto(self.dest.words, self.pending.words)


@dataclass(frozen=True)
class _Range:
    """A range of pages, and the ``new`` pages and the bitmap ``after`` that moving it has to give."""

    start: int
    length: int
    new: int
    after: Bitmap

    @property
    def bytes(self) -> int:
        """Of the words that the range touches."""
        return 8 * (words_for(self.start + self.length) - self.start // BITS_PER_WORD)


Sync = Callable[[Bitmap, Bitmap, int, int], int]


def _copy(source: Bitmap, dest: Bitmap, start: int, count: int) -> int:
    first, last = start // BITS_PER_WORD, words_for(start + count)
    np.copyto(dest.words[first:last], source.words[first:last])
    return 0


def _move_with(native: Native | None) -> Sync:
    """`Bitmap.move_into` by what numba compiled, or by numpy (None)."""

    def move(source: Bitmap, dest: Bitmap, start: int, count: int) -> int:
        kernels.use(native)
        return source.move_into(dest, start, count)

    return move


@dataclass(frozen=True)
class _Speeds:
    """GB/s over one range in one repeat; ``native``: ours with numba, where there is one."""

    ours: float
    native: float | None
    c: float
    copy: float


def _measure_pattern(
    size: int, pattern: str, repeats: int, *, loop: SyncLoop, cold: Words, native: Native | None
) -> list[BitmapCase]:
    """The aligned and the unaligned case."""
    pages = size // PAGE_SIZE
    random = np.random.default_rng(_SEED)
    dirty, pending = dirty_bitmap(pattern, pages, random), dirty_bitmap("dense", pages, random)
    state = _State(dirty, pending, dirty.copy(), pending.copy(), cold)
    whole = _range(state, 0, pages // BITS_PER_WORD * BITS_PER_WORD)
    part = _range(state, HEAD_PAGES, pages - HEAD_PAGES - TAIL_PAGES)
    first = _range(state, HEAD_PAGES, min(part.length, PER_PAGE))
    of_whole, of_part, by_page = [], [], []
    for _ in range(repeats):
        of_whole.append(_speeds(state, whole, loop, native))
        of_part.append(_speeds(state, part, loop, native))
        by_page.append(_speed(state, first, loop.by_page, "the C loop by page"))
    return [
        _case(size, pattern, whole, of_whole),
        replace(
            _case(size, pattern, part, of_part),
            aligned=False,
            c_per_page_gb_per_s=statistics.median(by_page),
            ratio_to_aligned=_ratio([timed.ours for timed in of_part], [timed.ours for timed in of_whole]),
        ),
    ]


def _case(size: int, pattern: str, over: _Range, speeds: Sequence[_Speeds]) -> BitmapCase:
    ours, c, copy = ([getattr(timed, name) for timed in speeds] for name in ("ours", "c", "copy"))
    native = [timed.native for timed in speeds if timed.native is not None]
    return BitmapCase(
        guest_bytes=size,
        pages=size // PAGE_SIZE,
        pattern=pattern,
        aligned=True,
        start=over.start,
        length=over.length,
        bytes=over.bytes,
        new_pages=over.new,
        ours_gb_per_s=statistics.median(ours),
        c_gb_per_s=statistics.median(c),
        c_per_page_gb_per_s=None,
        copy_gb_per_s=statistics.median(copy),
        ratio_to_c=_ratio(ours, c),
        ratio_to_copy=_ratio(ours, copy),
        ratio_to_aligned=None,
        native_gb_per_s=statistics.median(native) if native else None,
        native_ratio_to_c=_ratio(native, c) if native else None,
    )


def _range(state: _State, start: int, length: int) -> _Range:
    """With what moving it has to give, by plain arithmetic."""
    first, moved = state.dirty.masked(start, length)
    after = state.pending.copy()
    after.words[first : first + moved.size] |= moved
    return _Range(start, length, after.count() - state.pending.count(), after)


def _speeds(state: _State, over: _Range, loop: SyncLoop, native: Native | None) -> _Speeds:
    return _Speeds(
        ours=_speed(state, over, _move_with(None), "precopy"),
        native=None if native is None else _speed(state, over, _move_with(native), "precopy with numba"),
        c=_speed(state, over, loop.by_word, "the C loop", whole_words=True),
        copy=_speed(state, over, _copy),
    )


def _speed(state: _State, over: _Range, sync: Sync, name: str | None = None, *, whole_words: bool = False) -> float:
    """GB/s of ``sync``, whose result is checked where it has a ``name``.

    ``whole_words``: it would move what lies outside the range as well, so that is cleared before.
    """
    state.reset()
    end = over.start + over.length
    if whole_words:
        state.source.clear_range(0, over.start)
        state.source.clear_range(end, state.source.size - end)
    outside = state.source.count() - state.source.count(over.start, over.length)
    np.add(state.cold, np.uint64(1), out=state.cold)
    begin = time.thread_time()
    new = sync(state.source, state.dest, over.start, over.length)
    seconds = time.thread_time() - begin
    if name and new != over.new:
        raise VerificationFailed(f"{name} counted {new} new pages where there are {over.new}")
    if name and state.dest != over.after:
        raise VerificationFailed(f"{name} made another bitmap of pending pages than plain arithmetic")
    if name and (state.source.count(over.start, over.length) or state.source.count() != outside):
        raise VerificationFailed(f"{name} did not clear exactly the pages that it took over")
    return over.bytes / seconds / 1e9


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def _cold_bytes() -> int:
    """Three times the last-level cache, from 96 to 512 MiB: some systems do not say how large it is, and some virtual
    machines are told the whole host's."""
    try:
        cache = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):
        cache = 0
    return min(max(3 * cache, 96 << 20), 512 << 20)
