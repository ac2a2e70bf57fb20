"""Estimates when a recorded guest wrote each page, from its dirty bitmaps, and so what a sync of any interval would
find.

Time here is the guest's own, in seconds since its first round was armed: a second in which a third of it was taken
counts two thirds.

What is known: a round and its mid-round samples cut time into *slices*, and a page that is dirty in a round was first
written in one of its slices, after it was armed when the round began. What is not known: when in the slice, and whether
it was written again before the round's end. So a page has a rate of writes, which is fitted to all rounds, and is taken
to be written at random times at this rate, under the condition of what is known:

- A round that lies in the interval counts all its pages; a slice that does, its pages.
- Of a round that lies in it in part, a page counts with the probability that its first write, or a later one, does.
  Later ones are then scaled so that a stretch within a round finds as many pages as one as long from the round's
  beginning, which is what the round really saw: so a guest that goes round its memory in order, and comes to no page
  twice, is not mistaken for one that writes at random.
- Pages that no round has found dirty are not written.

Behind the recording's end, it begins again with its second round: the first has no bits of what was written before
pages were armed, where clears are deferred. An interval over the end is one just as long before it, since what is found
there and at the beginning need not fit together. An interval longer than all of it finds more than all its pages:
each further half of the recording as much less than the half before as its second half found less than its first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precopy.bitmap import BITS_PER_WORD, Bitmap
from precopy.planning.model.trace import Trace, TraceRound

MOST_PAGES = 1 << 21
"""Pages that are looked at: of more, a sample, chosen by a hash of their numbers."""
_BINS = 256
"""Steps in which write rates are distinguished."""
_ITERATIONS = 12
"""Steps of the fit of write rates."""
_SHORTEST_S = 1e-6
"""Seconds. Shorter intervals count as this, so that no rate is infinite."""
_HALVINGS = 20
"""Bisection steps, to a millionth of the interval."""

Codes = npt.NDArray[np.uint16]
Places = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Round:
    """``pages``: which of the timeline's pages were found dirty between ``begin`` and ``end``; ``slices``: in which of
    the slices between ``edges`` (from 0 to the length) each was first; ``codes``: that and the page's rate, as one
    number; ``counts``: how many pages have each, as an array (slice, rate)."""

    begin: float
    end: float
    edges: Floats
    pages: Places
    slices: npt.NDArray[np.uint8]

    @property
    def length(self) -> float:
        return self.end - self.begin


class Timeline:
    """``trace`` has at least one round. ``dirtied`` gives the same answer each time; it may be asked by one thread."""

    def __init__(self, trace: Trace) -> None:
        self.page_size = trace.layout.page_size
        self._ram_pages = trace.layout.pages
        ever = Bitmap(trace.layout.end_page)
        for round_ in trace.rounds:
            ever.add(round_.dirty)
        total = ever.count()
        chosen = _chosen(ever) if total > MOST_PAGES else ever
        places = _Places(chosen)
        self._pages = places.count
        self._scale = total / self._pages if self._pages else 0.0
        self._rounds: list[_Round] = []
        at = 0.0
        for round_ in trace.rounds:
            made = _round_of(round_, at, chosen, places)
            self._rounds.append(made)
            at = made.end
        self.length = at
        self._again = self._rounds[0].end if len(self._rounds) > 1 else 0.0
        self._ends = np.array([round_.end for round_ in self._rounds])
        fit = _Fit(self._rounds, self._pages)
        self._rates = fit.rates
        self._codes: list[Codes] = [
            round_.slices * np.uint16(_BINS) + bins for round_, bins in zip(self._rounds, fit.fitted(), strict=True)
        ]
        self._counts = [
            np.bincount(codes, minlength=(round_.edges.size - 1) * _BINS).reshape(-1, _BINS).astype(np.float64)
            for codes, round_ in zip(self._codes, self._rounds, strict=True)
        ]
        self._whole: tuple[int, int, npt.NDArray[np.float32]] = (0, 0, np.ones(self._pages, np.float32))
        self._fall = self._fall_of_halves()

    def dirtied(self, start: float, end: float) -> float:
        """Bytes of the pages written between two moments, ``0 <= start <= end``, in guest seconds."""
        interval = end - start
        if interval >= self.length:
            return self._beyond(interval) * self.page_size
        if start >= self.length:
            again = self._again
            start = again + (start - again) % (self.length - again)
        start = min(start, self.length - interval)
        return self._count(start, start + interval) * self.page_size

    def _count(self, start: float, end: float) -> float:
        """Pages written in an interval that lies in the recording."""
        stretches = self._stretches(start, end)
        whole = [number for number, begin, stop in stretches if stop - begin >= self._rounds[number].length]
        clean = self._clean(whole)
        for number, begin, stop in stretches:
            if number not in whole:
                missed = 1 - self._found(number, begin, stop)
                clean[self._rounds[number].pages] *= missed.astype(np.float32).ravel()[self._codes[number]]
        return (self._pages - float(clean.sum(dtype=np.float64))) * self._scale

    def _stretches(self, start: float, end: float) -> list[tuple[int, float, float]]:
        """(round, begin, end) since the round's beginning, of each round that lies between two moments, in part at
        least."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        found = []
        for number in range(first, len(self._rounds)):
            round_ = self._rounds[number]
            if round_.begin >= end:
                break
            # The very ends are kept as they are, so that a round that lies in the interval as a whole is seen to.
            begin = 0.0 if start <= round_.begin else start - round_.begin
            found.append((number, begin, round_.length if end >= round_.end else end - round_.begin))
        return found

    def _clean(self, whole: Sequence[int]) -> npt.NDArray[np.float32]:
        """1 for each page that none of these rounds, which follow each other, has found, else 0."""
        if not whole:
            return np.ones(self._pages, np.float32)
        first, end, clean = self._whole
        if first != whole[0] or not first < end <= whole[-1] + 1 or whole[-1] - whole[0] != len(whole) - 1:
            first, end, clean = whole[0], whole[0], np.ones(self._pages, np.float32)
            for number in whole:
                clean[self._rounds[number].pages] = 0
        else:
            for number in range(end, whole[-1] + 1):
                clean[self._rounds[number].pages] = 0
        self._whole = (whole[0], whole[-1] + 1, clean)
        return clean.copy()

    def _found(self, number: int, begin: float, end: float) -> Floats:
        """Probability that a page which round ``number`` found was written in a stretch of it, by slice and rate."""
        round_, counts = self._rounds[number], self._counts[number]
        before = self._first_by(round_, begin)
        first = self._first_by(round_, end) - before
        again = before * counts
        wanted = float((self._first_by(round_, end - begin) * counts).sum()) - float((first * counts).sum())
        if wanted <= 0 or begin <= 0:
            return first
        low, high = 0.0, 1.0
        while high < 1e6 and float((again * _hit(self._rates * high * (end - begin))).sum()) < wanted:
            low, high = high, 8 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if float((again * _hit(self._rates * middle * (end - begin))).sum()) < wanted:
                low = middle
            else:
                high = middle
        return first + before * _hit(self._rates * high * (end - begin))

    def _first_by(self, round_: _Round, when: float) -> Floats:
        """Probability that the first write was before ``when`` (since the round's beginning), by slice and rate."""
        lo, hi = round_.edges[:-1, None], round_.edges[1:, None]
        return np.asarray(_hit(self._rates * np.clip(when - lo, 0, hi - lo)) / _hit(self._rates * (hi - lo)))

    def _beyond(self, interval: float) -> float:
        """Pages written in an interval at least as long as the recording."""
        pages, half = self._pages * self._scale, self.length / 2
        if self._fall >= 1:
            pages += pages * (interval / self.length - 1)
        elif self._fall > 0:
            # A geometric series: n halves find first * (1 - fall^n) / (1 - fall), and two of them all that was found.
            pages *= (1 - self._fall ** (interval / half)) / (1 - self._fall**2)
        return min(pages, self._ram_pages)

    def _fall_of_halves(self) -> float:
        """How much less that is new the second half of the recording has than the first."""
        first = self._count(0.0, self.length / 2)
        return min(max(self._pages * self._scale - first, 0.0) / first, 1.0) if first > 0 else 0.0


def _hit(expected: Floats) -> Floats:
    """Probability of at least one write where this many are expected (Poisson)."""
    return np.asarray(-np.expm1(-expected))


class _Places:
    """Which place each page has among those that are looked at: by set bits before it."""

    def __init__(self, chosen: Bitmap) -> None:
        counts = np.bitwise_count(chosen.words).astype(np.int64)
        self._words = chosen.words
        self._before = np.cumsum(counts) - counts
        self.count = int(counts.sum())

    def of(self, pages: Places) -> Places:
        word, bit = pages // BITS_PER_WORD, (pages % BITS_PER_WORD).astype(np.uint64)
        below = self._words[word] & ((np.uint64(1) << bit) - np.uint64(1))
        return np.asarray(self._before[word] + np.bitwise_count(below), np.int64)


def _chosen(ever: Bitmap) -> Bitmap:
    """About `MOST_PAGES` of these pages, whichever way the guest writes them."""
    pages = ever.indexes()
    mixed = _mixed(pages.astype(np.uint64))
    kept = pages[mixed < np.uint64(2**64 * (MOST_PAGES / pages.size))]
    return Bitmap.from_indexes(ever.size, kept)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A hash of each (splitmix64's last steps: Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def _round_of(round_: TraceRound, begin: float, chosen: Bitmap, places: _Places) -> _Round:
    speed, interval = 1 - round_.sample.throttled_share, max(round_.sample.interval_s, _SHORTEST_S)
    samples = [sample for sample in round_.mid_round if sample.interval_s < interval][: _BINS - 2]
    pages = Bitmap(chosen.size, round_.dirty.words & chosen.words).indexes()
    slices = np.full(pages.size, len(samples), np.uint8)
    for number in range(len(samples) - 1, -1, -1):
        words = samples[number].dirty.words
        seen = words[pages // BITS_PER_WORD] >> (pages % BITS_PER_WORD).astype(np.uint64) & np.uint64(1)
        slices[seen != 0] = number
    edges = np.array([0.0, *(sample.interval_s for sample in samples), interval]) * speed
    end = begin + max(float(edges[-1]), _SHORTEST_S)
    edges[-1] = end - begin
    return _Round(begin, end, edges, places.of(pages), slices)


class _Fit:
    """Rates of writes, page by page: times found dirty over the time until then (maximum likelihood where times are
    known to within a slice, by expectation maximisation). Pages with the same history are one."""

    def __init__(self, rounds: Sequence[_Round], pages: int) -> None:
        self._rounds = rounds
        history = np.zeros(pages, np.uint64)
        found = np.zeros(pages, np.float64)
        for number, round_ in enumerate(rounds):
            which = np.uint64((number + 1) << 8) + round_.slices.astype(np.uint64)
            history[round_.pages] ^= _mixed(which * np.uint64(0x9E3779B97F4A7C15))
            found[round_.pages] += 1
        _, first, self._inverse = np.unique(history, return_index=True, return_inverse=True)
        self._found = found[first]
        self._slices = np.empty((len(rounds), first.size), np.uint8)
        for number, round_ in enumerate(rounds):
            slices = np.full(pages, round_.edges.size - 1, np.uint8)  # one past the last: not found
            slices[round_.pages] = round_.slices
            self._slices[number] = slices[first]
        lengths = [round_.length for round_ in rounds]
        shortest = min(float(np.diff(round_.edges).min()) for round_ in rounds)
        slowest, fastest = 0.1 / sum(lengths), 100 / max(shortest, _SHORTEST_S)
        self.rates = np.geomspace(slowest, fastest, _BINS)
        self._step = np.log(fastest / slowest) / (_BINS - 1)

    def fitted(self) -> Iterator[Codes]:
        """For each round, which of the rates each of the pages that it found has, as all other rounds have it: that it
        was found in this one would make every page look busier than it is."""
        until = [self._until(round_) for round_ in self._rounds]
        bins = self._nearest(np.full(self._found.size, 1 / sum(round_.length for round_ in self._rounds)))
        for _ in range(_ITERATIONS):
            time = self._time(until, bins)
            bins = self._nearest(self._found / time)
        time = self._time(until, bins)
        for round_, table, slices in zip(self._rounds, until, self._slices, strict=True):
            elsewhere = np.maximum(time - table[slices, bins], _SHORTEST_S)
            yield self._nearest((self._found - 1) / elsewhere)[self._inverse[round_.pages]]

    def _time(self, until: list[Floats], bins: Codes) -> Floats:
        """Expected time until each page was found, in all rounds together."""
        time = np.zeros(self._found.size)
        for table, slices in zip(until, self._slices, strict=True):
            time += table[slices, bins]
        return time

    def _nearest(self, rates: Floats) -> Codes:
        steps = np.rint(np.log(np.maximum(rates / self.rates[0], 1.0)) / self._step)
        return np.asarray(np.clip(steps, 0, _BINS - 1), np.uint16)

    def _until(self, round_: _Round) -> Floats:
        """Expected time until a page was found: by slice, not found at all being the last, and by rate."""
        lo, length = round_.edges[:-1, None], np.diff(round_.edges)[:, None]
        expected = self.rates * length
        with np.errstate(over="ignore"):
            mean = np.where(
                expected < 1e-3, length * (0.5 - expected / 12), 1 / self.rates - length / np.expm1(expected)
            )
        return np.concatenate((lo + mean, np.full((1, _BINS), round_.length)))
