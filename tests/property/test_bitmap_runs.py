"""Setting many runs at once: in whole arrays, where setting each by itself says what has to come out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Bitmap, Runs
from precopy.errors import BitmapRangeError

lengths = st.sampled_from([1, 2, 3, 63, 64, 65, 127, 128, 129, 200]) | st.integers(1, 700)
gaps = st.sampled_from([0, 1, 2, 62, 63, 64, 65, 128]) | st.integers(0, 300)


@given(pairs=st.lists(st.tuples(gaps, lengths), min_size=1, max_size=60), before=st.lists(st.integers(0, 999)))
def test_many_runs_are_each_of_them(pairs: list[tuple[int, int]], before: list[int]) -> None:
    ends = np.cumsum([gap + length for gap, length in pairs])
    length = np.array([length for _, length in pairs], np.int64)
    runs = Runs(ends - length, length)
    at_once = Bitmap.from_indexes(int(ends[-1]) + 1000, before)
    one_by_one = at_once.copy()
    at_once.set_runs(runs)
    for start, count in runs:
        one_by_one.set_range(start, count)
    assert at_once == one_by_one


@pytest.mark.parametrize("length", [1, 5, 200])
def test_none_is_set_where_one_lies_outside(length: int) -> None:
    starts = np.arange(40, dtype=np.int64) * 250
    bitmap = Bitmap(int(starts[-1]) + length - 1)
    with pytest.raises(BitmapRangeError):
        bitmap.set_runs(Runs(starts, np.full(40, length, np.int64)))
    assert not bitmap.any()


def test_a_run_of_no_pages_sets_none() -> None:
    starts, lengths = np.arange(40, dtype=np.int64) * 100, np.full(40, 3, np.int64)
    lengths[7] = 0
    bitmap = Bitmap(4000)
    bitmap.set_runs(Runs(starts, lengths))
    assert bitmap.count() == 39 * 3
    assert not bitmap.count(650, 100)


@given(
    pairs=st.lists(st.tuples(gaps, st.integers(1, 5) | lengths), max_size=60),
    pages=st.sampled_from([1, 2, 3, 64, 65, 512]) | st.integers(1, 2000),
)
def test_runs_are_cut_into_parts_of_as_many_pages(pairs: list[tuple[int, int]], pages: int) -> None:
    """Against the list of all pages, cut by Python; and no more runs than that takes."""
    ends = np.cumsum([gap + length for gap, length in pairs], dtype=np.int64)
    length = np.array([length for _, length in pairs], np.int64)
    runs = Runs(ends - length, length)
    cut, bounds = runs.cut(pages)
    every = runs.indexes().tolist()
    parts = [every[at : at + pages] for at in range(0, len(every), pages)]
    assert [cut[lo:hi].indexes().tolist() for lo, hi in pairwise(bounds)] == parts
    assert (bounds[0], bounds[-1]) == (0, len(cut))
    assert (cut.lengths > 0).all()
    begins = np.cumsum(length) - length
    assert len(cut) == len({*begins.tolist(), *range(pages, len(every), pages)})
    assert [part.indexes().tolist() for part in runs.batches(pages)] == parts
