"""A sync's merge in one step against sets: every way has the same bits, counts and marks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Bitmap
from precopy.bitmap import taking as taking_module
from precopy.bitmap.taking import ChunkMarks
from precopy.dirty.merge import Merge
from support.ways import ways

way = ways(scope="module")

PAGES = 64 * 1300 + 17
"""More than two stretches of compiled code, and a word that is filled in part."""
near = [0, 1, 63, 64, 64 * 512 - 1, 64 * 512, 64 * 1024, 64 * 1299 + 63, PAGES - 1]
pages = st.sets(st.sampled_from(near) | st.integers(0, PAGES - 1), max_size=12)
stretches = st.lists(st.tuples(st.integers(0, PAGES - 1), st.integers(1, 5000)), max_size=2)


@st.composite
def found(draw: st.DrawFn) -> set[int]:
    """Single pages, and runs of them."""
    runs = draw(stretches)
    return draw(pages) | {page for start, length in runs for page in range(start, min(start + length, PAGES))}


def bitmap_of(pages: set[int]) -> Bitmap:
    return Bitmap.from_indexes(PAGES, sorted(pages))


def pages_of(bitmap: Bitmap) -> set[int]:
    return set(bitmap.indexes().tolist())


@pytest.fixture(scope="module", params=["whole", "in chunks"])
def chunks(request: pytest.FixtureRequest) -> object:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in chunks":
            for name, words in (("SMALL_WORDS", 50), ("CHUNK_WORDS", 128), ("FEW_WORDS", 6)):
                patch.setattr(taking_module, name, words)
        yield


@pytest.mark.usefixtures("way", "chunks")
class TestTake:
    @given(
        syncs=st.lists(st.tuples(found(), pages, st.booleans()), min_size=1, max_size=4),
        pending=found(),
        shift=st.sampled_from([6, 7, 15, 31]),
        marked=st.booleans(),
    )
    def test_any_row_of_syncs_agrees_with_sets(
        self, syncs: list[tuple[set[int], set[int], bool]], pending: set[int], shift: int, marked: bool
    ) -> None:
        """Each sync fetches some, beside what devices wrote meanwhile; now and then one is merged elsewhere."""
        waiting = bitmap_of(pending)
        marks = ChunkMarks.over(PAGES, shift) if marked else None
        merge = Merge(waiting, marks)
        spare, chunks = Bitmap(PAGES), set[int]()
        for fetched, devices, elsewhere in syncs:
            source = bitmap_of(fetched)
            into, total = spare, fetched | devices
            into.add(bitmap_of(devices))
            if elsewhere:
                merge.emptied()
                into.add(source)
                spare = merge.dirty
                merge.replace_unknown(into)
                assert pages_of(merge.dirty) == total
                assert not spare.any()
                continue
            done = merge.take(into, source, empty=not devices)
            spare = merge.replace(into)
            assert done[:2] == (len(total), len(total - pending))
            assert done.merge_s >= 0
            pending |= total
            chunks |= {page >> shift for page in total}
            assert pages_of(source) == fetched
            assert pages_of(merge.dirty) == total
            assert not spare.any()
            assert pages_of(waiting) == pending
        if marks is not None:
            assert set(np.flatnonzero(marks.marked).tolist()) == chunks

    def test_a_bitmap_taken_from_itself(self) -> None:
        """What a log does that has put it all there before."""
        merge, into = Merge(bitmap_of({3, 70}), None), bitmap_of({3, 5, PAGES - 1})
        assert merge.take(into, into, empty=False)[:2] == (3, 2)
        assert pages_of(merge.pending) == {3, 5, 70, PAGES - 1}
