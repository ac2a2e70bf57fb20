"""`Bitmap` and `Runs` against Python's sets of ints, with small chunks so that their seams lie everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from precopy.bitmap import BITS_PER_WORD, Bitmap, Runs
from precopy.bitmap import bitmap as bitmap_module
from precopy.bitmap import words as words_module
from precopy.errors import BitmapRangeError
from support.ways import native_kernels, ways

way = ways(scope="module")

SMALL_CHUNK = 4
MAX_BITS = 20 * BITS_PER_WORD

sizes = st.one_of(
    st.integers(0, MAX_BITS),
    st.sampled_from([0, 1, 63, 64, 65, SMALL_CHUNK * 64 - 1, SMALL_CHUNK * 64, SMALL_CHUNK * 64 + 1, MAX_BITS]),
)
edges = st.one_of(
    st.integers(0, MAX_BITS), st.builds(lambda n, by: 64 * n + by, st.integers(0, 20), st.integers(-1, 1))
)


@pytest.fixture(
    scope="module", params=["small chunks", "real chunks", pytest.param("numba", marks=pytest.mark.needs("numba"))]
)
def chunks(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numba":
            patch.setattr(words_module, "native", native_kernels())
        if request.param == "small chunks":
            patch.setattr(words_module, "CHUNK_WORDS", SMALL_CHUNK)
            patch.setattr(bitmap_module, "CHUNK_WORDS", SMALL_CHUNK)
            patch.setattr(words_module, "SPARSE", 2)
        yield


def pages_of(runs: Runs) -> list[int]:
    return [page for start, length in runs for page in range(start, start + length)]


def runs_of(pages: set[int]) -> list[tuple[int, int]]:
    """Maximal runs of a set, by looking at each page."""
    starts = sorted(page for page in pages if page - 1 not in pages)
    ends = sorted(page for page in pages if page + 1 not in pages)
    return [(start, end - start + 1) for start, end in zip(starts, ends, strict=True)]


def raw_bits(bitmap: Bitmap) -> set[int]:
    """All bits that stand in the words, also any that lies above the size."""
    digits = f"{int.from_bytes(bitmap.words.tobytes(), 'little'):b}"[::-1]
    return {at for at, digit in enumerate(digits) if digit == "1"}


@st.composite
def bitmaps(draw: st.DrawFn, min_size: int = 0, size: int | None = None) -> tuple[Bitmap, set[int]]:
    size = draw(sizes.filter(lambda n: n >= min_size)) if size is None else size
    bitmap, model = Bitmap(size), set[int]()
    for start, end in draw(st.lists(st.tuples(edges, edges), max_size=6)):
        lo, hi = sorted((min(max(start, 0), size), min(max(end, 0), size)))
        bitmap.set_range(lo, hi - lo)
        model |= set(range(lo, hi))
    if size:
        for page in draw(st.lists(st.integers(0, size - 1), max_size=12)):
            bitmap.set_range(page, 1)
            model.add(page)
    return bitmap, model


@st.composite
def bitmaps_with_range(draw: st.DrawFn) -> tuple[Bitmap, set[int], int, int]:
    bitmap, model = draw(bitmaps())
    lo, hi = sorted(draw(st.tuples(*[edges.map(lambda n: min(max(n, 0), bitmap.size))] * 2)))
    return bitmap, model, lo, hi - lo


@st.composite
def run_lists(draw: st.DrawFn, max_page: int = 10**6) -> Runs:
    """Disjoint ascending runs, some of which touch."""
    pairs, at = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 200)), max_size=30)):
        if at + gap + length > max_page:
            break
        pairs.append((at + gap, length))
        at += gap + length
    return Runs.of(*pairs)


class BitmapMachine(RuleBasedStateMachine):
    """One bitmap, changed by every method, beside a set."""

    @initialize(size=sizes)
    def make(self, size: int) -> None:
        self.bitmap, self.model = Bitmap(size), set[int]()

    def clip(self, a: int, b: int) -> tuple[int, int]:
        lo, hi = sorted((min(max(a, 0), self.bitmap.size), min(max(b, 0), self.bitmap.size)))
        return lo, hi - lo

    @rule(a=edges, b=edges)
    def set_range(self, a: int, b: int) -> None:
        start, count = self.clip(a, b)
        self.bitmap.set_range(start, count)
        self.model |= set(range(start, start + count))

    @rule(a=edges, b=edges)
    def clear_range(self, a: int, b: int) -> None:
        start, count = self.clip(a, b)
        self.bitmap.clear_range(start, count)
        self.model -= set(range(start, start + count))

    @precondition(lambda self: self.bitmap.size)
    @rule(data=st.data())
    def set_indexes(self, data: st.DataObject) -> None:
        indexes = data.draw(st.lists(st.integers(0, self.bitmap.size - 1), max_size=40))
        self.bitmap.set_indexes(np.array(indexes, np.int64))
        self.model |= set(indexes)

    @rule(data=st.data())
    def set_runs(self, data: st.DataObject) -> None:
        runs = data.draw(run_lists(self.bitmap.size))
        self.bitmap.set_runs(runs)
        self.model |= set(pages_of(runs))

    @rule(a=edges, b=edges)
    def take(self, a: int, b: int) -> None:
        start, count = self.clip(a, b)
        taken = self.model & set(range(start, start + count))
        assert list(self.bitmap.take(start, count)) == runs_of(taken)
        self.model -= taken

    @rule(a=edges, b=edges)
    def take_count(self, a: int, b: int) -> None:
        start, count = self.clip(a, b)
        taken = self.model & set(range(start, start + count))
        assert self.bitmap.take_count(start, count) == len(taken)
        self.model -= taken

    @rule(data=st.data(), a=edges, b=edges)
    def move_into(self, data: st.DataObject, a: int, b: int) -> None:
        start, count = self.clip(a, b)
        other, pages = data.draw(bitmaps(size=self.bitmap.size))
        moved = self.model & set(range(start, start + count))
        assert self.bitmap.move_into(other, start, count) == len(moved - pages)
        assert raw_bits(other) == pages | moved
        self.model -= moved

    @rule(data=st.data())
    def union(self, data: st.DataObject) -> None:
        other, pages = data.draw(bitmaps().filter(lambda pair: pair[0].size <= self.bitmap.size))
        at = data.draw(st.integers(0, self.bitmap.size - other.size))
        moved = {page + at for page in pages}
        assert self.bitmap.union(other, at) == len(moved - self.model)
        assert raw_bits(other) == pages
        self.model |= moved

    @precondition(lambda self: self.bitmap.size)
    @rule(data=st.data())
    def difference(self, data: st.DataObject) -> None:
        indexes = data.draw(st.sets(st.sampled_from(range(self.bitmap.size)), max_size=40))
        self.bitmap.difference(Bitmap.from_indexes(self.bitmap.size, sorted(indexes)))
        self.model -= indexes

    @rule()
    def clear_all(self) -> None:
        self.bitmap.clear_all()
        self.model.clear()

    @rule()
    def set_all(self) -> None:
        self.bitmap.set_all()
        self.model = set(range(self.bitmap.size))

    @precondition(lambda self: self.bitmap.size)
    @rule(data=st.data())
    def write_through_a_view(self, data: st.DataObject) -> None:
        word = data.draw(st.integers(0, (self.bitmap.size - 1) // 64))
        view = self.bitmap.view(64 * word, self.bitmap.size - 64 * word)
        start, count = self.clip(data.draw(edges), data.draw(edges))
        lo, hi = max(start - 64 * word, 0), max(start + count - 64 * word, 0)
        view.set_range(lo, hi - lo)
        self.model |= set(range(lo + 64 * word, hi + 64 * word))

    @invariant()
    def holds_the_same_pages(self) -> None:
        assert raw_bits(self.bitmap) == self.model
        assert self.bitmap.count() == len(self.model)
        assert self.bitmap.any() == bool(self.model)
        assert self.bitmap.indexes().tolist() == sorted(self.model)
        assert list(self.bitmap.runs()) == runs_of(self.model)


@pytest.mark.usefixtures("chunks")
def test_every_sequence_of_changes_agrees_with_a_set() -> None:
    run_state_machine_as_test(BitmapMachine, settings=settings(stateful_step_count=20))


@pytest.mark.usefixtures("chunks")
class TestReading:
    @given(bitmaps_with_range())
    def test_count_of_a_range(self, case: tuple[Bitmap, set[int], int, int]) -> None:
        bitmap, model, start, count = case
        assert bitmap.count(start, count) == len(model & set(range(start, start + count)))
        assert bitmap.count(start) == len(model & set(range(start, bitmap.size)))

    @given(bitmaps_with_range())
    def test_runs_of_a_range_are_cut_at_its_ends(self, case: tuple[Bitmap, set[int], int, int]) -> None:
        bitmap, model, start, count = case
        assert list(bitmap.runs(start, count)) == runs_of(model & set(range(start, start + count)))
        assert raw_bits(bitmap) == model

    @given(bitmaps_with_range())
    def test_masked_words_hold_the_range_and_nothing_else(self, case: tuple[Bitmap, set[int], int, int]) -> None:
        bitmap, model, start, count = case
        first, words = bitmap.masked(start, count)
        found = {page + 64 * first for page in raw_bits(Bitmap(64 * words.size, words))}
        assert found == model & set(range(start, start + count))
        words[:] = 0
        assert raw_bits(bitmap) == model

    @given(bitmaps(min_size=1), st.data())
    def test_membership(self, case: tuple[Bitmap, set[int]], data: st.DataObject) -> None:
        bitmap, model = case
        page = data.draw(st.integers(0, bitmap.size - 1))
        assert (page in bitmap) == (page in model)

    @given(bitmaps(), st.data())
    def test_intersects(self, case: tuple[Bitmap, set[int]], data: st.DataObject) -> None:
        bitmap, model = case
        runs = data.draw(run_lists(bitmap.size))
        assert bitmap.intersects(runs) == bool(model & set(pages_of(runs)))

    @given(bitmaps(), st.integers(1, 8))
    def test_windows_are_the_aligned_ones_with_a_set_bit(self, case: tuple[Bitmap, set[int]], words: int) -> None:
        bitmap, model = case
        chunk = 64 * words
        expected = sorted({page // chunk for page in model})
        assert list(bitmap.windows(chunk)) == [(n * chunk, min(chunk, bitmap.size - n * chunk)) for n in expected]

    @given(bitmaps(), st.integers(1, 8))
    def test_the_runs_of_its_windows_are_all_pages(self, case: tuple[Bitmap, set[int]], words: int) -> None:
        bitmap, model = case
        chunk = 64 * words
        parts = [bitmap.runs(start, count) for start, count in bitmap.windows(chunk)]
        by_chunk = [{page for page in model if page // chunk == n} for n in sorted({page // chunk for page in model})]
        assert [list(part) for part in parts] == [runs_of(pages) for pages in by_chunk]

    @given(bitmaps(), st.integers(1, 8))
    def test_taking_while_iterating_gives_each_page_once(self, case: tuple[Bitmap, set[int]], words: int) -> None:
        bitmap, model = case
        taken = [page for start, count in bitmap.windows(64 * words) for page in pages_of(bitmap.take(start, count))]
        assert taken == sorted(model)
        assert not bitmap.any()

    @pytest.mark.parametrize("chunk", [0, -64, 1, 63, 65, 100])
    def test_windows_need_a_multiple_of_64(self, chunk: int) -> None:
        bitmap = Bitmap(1000)
        bitmap.set_all()
        with pytest.raises(ValueError, match="multiples of 64"):
            list(bitmap.windows(chunk))

    @given(bitmaps())
    def test_a_copy_is_equal_and_independent(self, case: tuple[Bitmap, set[int]]) -> None:
        bitmap, model = case
        copy = bitmap.copy()
        assert copy == bitmap
        copy.set_all()
        assert raw_bits(bitmap) == model

    @given(bitmaps(min_size=1), st.data())
    def test_equality_is_of_size_and_bits(self, case: tuple[Bitmap, set[int]], data: st.DataObject) -> None:
        bitmap, model = case
        page = data.draw(st.integers(0, bitmap.size - 1))
        other = Bitmap.from_indexes(bitmap.size, sorted(model ^ {page}))
        assert bitmap == Bitmap.from_indexes(bitmap.size, sorted(model))
        assert bitmap != other
        assert Bitmap(bitmap.size) != Bitmap(bitmap.size + 1)
        assert bitmap != "bitmap"


class TestViews:
    @given(bitmaps(min_size=1), st.data())
    def test_a_view_shares_its_pages_both_ways(self, case: tuple[Bitmap, set[int]], data: st.DataObject) -> None:
        bitmap, model = case
        start = 64 * data.draw(st.integers(0, (bitmap.size - 1) // 64))
        whole_words = data.draw(st.integers(0, (bitmap.size - start) // 64))
        count = data.draw(st.sampled_from([64 * whole_words, bitmap.size - start]))
        view = bitmap.view(start, count)
        assert view.size == count
        assert {page + start for page in raw_bits(view)} == model & set(range(start, start + count))
        view.clear_all()
        assert raw_bits(bitmap) == model - set(range(start, start + count))
        bitmap.set_range(start, count)
        assert view.count() == count

    def test_a_view_of_a_view_shares_too(self) -> None:
        bitmap = Bitmap(640)
        bitmap.view(64, 512).view(128, 100).set_all()
        assert raw_bits(bitmap) == set(range(192, 292))

    def test_a_view_that_ends_inside_a_word_needs_a_clear_rest(self) -> None:
        bitmap = Bitmap(128)
        bitmap.set_range(70, 1)
        with pytest.raises(ValueError, match="at or above 6"):
            bitmap.view(64, 6)
        assert bitmap.view(64, 7).count() == 1

    @pytest.mark.parametrize("start", [1, 32, 63, 65])
    def test_a_view_starts_on_a_word(self, start: int) -> None:
        with pytest.raises(ValueError, match="multiple of 64"):
            Bitmap(640).view(start, 64)


@pytest.mark.usefixtures("chunks")
class TestUnion:
    @given(bitmaps(), bitmaps(), st.integers(0, 300))
    def test_counts_what_it_newly_sets_at_any_offset(
        self, into: tuple[Bitmap, set[int]], other: tuple[Bitmap, set[int]], at: int
    ) -> None:
        bitmap, model = Bitmap(max(into[0].size, other[0].size + at)), into[1]
        bitmap.set_indexes(np.array(sorted(model), np.int64))
        moved = {page + at for page in other[1]}
        assert bitmap.union(other[0], at) == len(moved - model)
        assert raw_bits(bitmap) == model | moved

    @given(bitmaps(), st.data())
    def test_merging_one_of_the_same_size_counts_all_and_new(
        self, case: tuple[Bitmap, set[int]], data: st.DataObject
    ) -> None:
        bitmap, model = case
        other, pages = data.draw(bitmaps(size=bitmap.size))
        assert bitmap.merge(other) == (len(pages), len(pages - model))
        assert raw_bits(bitmap) == model | pages
        assert raw_bits(other) == pages

    @given(bitmaps())
    def test_with_itself_sets_nothing_new(self, case: tuple[Bitmap, set[int]]) -> None:
        bitmap, model = case
        assert bitmap.union(bitmap) == 0
        assert raw_bits(bitmap) == model

    @given(st.integers(1, 63), st.integers(0, 63))
    def test_carries_over_the_seam_of_chunks(self, shift: int, tail: int) -> None:
        other = Bitmap(SMALL_CHUNK * 64 * 2 + tail)
        other.set_all()
        bitmap = Bitmap(other.size + shift)
        assert bitmap.union(other, shift) == other.size
        assert raw_bits(bitmap) == set(range(shift, other.size + shift))


@pytest.mark.usefixtures("chunks")
class TestMove:
    @given(bitmaps_with_range(), st.data())
    def test_counts_what_is_new_and_leaves_the_rest(
        self, case: tuple[Bitmap, set[int], int, int], data: st.DataObject
    ) -> None:
        bitmap, model, start, count = case
        dest, pending = data.draw(bitmaps(size=bitmap.size))
        moved = model & set(range(start, start + count))
        assert bitmap.move_into(dest, start, count) == len(moved - pending)
        assert raw_bits(bitmap) == model - moved
        assert raw_bits(dest) == pending | moved
        assert bitmap.move_into(dest, start, count) == 0

    @given(bitmaps(), st.data())
    def test_whole_bitmaps_by_default(self, case: tuple[Bitmap, set[int]], data: st.DataObject) -> None:
        bitmap, model = case
        dest, pending = data.draw(bitmaps(size=bitmap.size))
        assert bitmap.move_into(dest) == len(model - pending)
        assert not bitmap.any()
        assert raw_bits(dest) == pending | model
        assert dest.take_count() == len(pending | model)
        assert not dest.any()

    @given(bitmaps_with_range())
    def test_take_count_leaves_the_rest(self, case: tuple[Bitmap, set[int], int, int]) -> None:
        bitmap, model, start, count = case
        taken = model & set(range(start, start + count))
        assert bitmap.take_count(start, count) == len(taken)
        assert raw_bits(bitmap) == model - taken

    @pytest.mark.parametrize("size", [64, 65, 127, 128, 130, 192])
    def test_every_range_of_a_few_words(self, size: int) -> None:
        for start in range(size + 1):
            for count in range(size - start + 1):
                bitmap, dest, inside = (
                    Bitmap(size),
                    Bitmap.from_indexes(size, range(0, size, 3)),
                    range(start, start + count),
                )
                bitmap.set_all()
                assert bitmap.move_into(dest, start, count) == sum(page % 3 != 0 for page in inside)
                assert bitmap.count() == size - count
                assert bitmap.count(start, count) == 0
                assert dest.count(start, count) == count
                assert dest.take_count(start, count) == count
                assert dest.count() == sum(page not in inside for page in range(0, size, 3))

    def test_into_itself(self) -> None:
        bitmap = Bitmap(640)
        bitmap.set_all()
        for dest, source in (
            (bitmap, bitmap),
            (bitmap, bitmap.view(0, 640)),
            (bitmap.view(64, 576), bitmap.view(0, 576)),
        ):
            with pytest.raises(ValueError, match="itself"):
                source.move_into(dest)
        assert bitmap.count() == 640
        assert bitmap.view(0, 320).move_into(bitmap.view(320, 320)) == 0
        assert list(bitmap.runs()) == [(320, 320)]


class TestLimits:
    """Every range outside is refused, and nothing has changed then."""

    @given(bitmaps(), st.integers(-200, MAX_BITS + 200), st.integers(-200, MAX_BITS + 200))
    @example((Bitmap(0), set()), 0, 1)
    @example((Bitmap(64), set()), 64, 1)
    @example((Bitmap(64), set()), 65, 0)
    @example((Bitmap(65), set()), 1, -1)
    def test_ranges(self, case: tuple[Bitmap, set[int]], start: int, count: int) -> None:
        bitmap, model = case
        if start >= 0 and count >= 0 and start + count <= bitmap.size:
            return
        calls = (
            bitmap.set_range,
            bitmap.clear_range,
            bitmap.count,
            bitmap.masked,
            bitmap.runs,
            bitmap.take,
            bitmap.take_count,
            bitmap.view,
            partial(bitmap.move_into, Bitmap(bitmap.size)),
        )
        for call in calls:
            with pytest.raises(BitmapRangeError) as caught:
                call(start, count)
            assert (caught.value.start, caught.value.count, caught.value.size) == (start, count, bitmap.size)
        assert raw_bits(bitmap) == model

    @given(bitmaps(), st.lists(st.integers(-100, MAX_BITS + 100), min_size=1, max_size=10))
    def test_indexes(self, case: tuple[Bitmap, set[int]], indexes: list[int]) -> None:
        bitmap, model = case
        if min(indexes) >= 0 and max(indexes) < bitmap.size:
            return
        with pytest.raises(BitmapRangeError):
            bitmap.set_indexes(np.array(indexes, np.int64))
        with pytest.raises(BitmapRangeError):
            Bitmap.from_indexes(bitmap.size, indexes)
        assert raw_bits(bitmap) == model

    @given(bitmaps(), run_lists(), st.integers(-100, MAX_BITS))
    def test_runs(self, case: tuple[Bitmap, set[int]], runs: Runs, by: int) -> None:
        bitmap, model = case
        runs = runs.shifted(by)
        if not len(runs) or (runs.starts[0] >= 0 and runs.ends[-1] <= bitmap.size):
            return
        with pytest.raises(BitmapRangeError):
            bitmap.set_runs(runs)
        assert raw_bits(bitmap) == model

    @pytest.mark.parametrize("last", [(1000, 1), (1000, 200), (639, 2)])
    def test_long_runs_of_which_only_the_last_lies_outside(self, last: tuple[int, int]) -> None:
        bitmap = Bitmap(640)
        with pytest.raises(BitmapRangeError):
            bitmap.set_runs(Runs.of((0, 300), last))
        assert not bitmap.any()

    @given(bitmaps(), bitmaps(min_size=1), st.integers(-100, MAX_BITS))
    def test_union(self, into: tuple[Bitmap, set[int]], other: tuple[Bitmap, set[int]], at: int) -> None:
        if at >= 0 and at + other[0].size <= into[0].size:
            return
        with pytest.raises(BitmapRangeError):
            into[0].union(other[0], at)
        assert raw_bits(into[0]) == into[1]

    @given(bitmaps(), st.integers(-100, MAX_BITS + 100))
    def test_membership_and_intersection(self, case: tuple[Bitmap, set[int]], page: int) -> None:
        bitmap, _ = case
        if 0 <= page < bitmap.size:
            return
        with pytest.raises(BitmapRangeError):
            _ = page in bitmap
        with pytest.raises(BitmapRangeError):
            bitmap.intersects(Runs.of((page, 1)))

    def test_difference_of_another_size(self) -> None:
        bitmap, other = Bitmap(65), Bitmap(66)
        bitmap.set_all()
        with pytest.raises(ValueError, match="65 and 66"):
            bitmap.difference(other)
        assert bitmap.count() == 65

    def test_merging_another_size(self) -> None:
        bitmap, other = Bitmap(65), Bitmap(66)
        other.set_all()
        with pytest.raises(ValueError, match=r"66 and 65|65 and 66"):
            bitmap.merge(other)
        assert not bitmap.any()

    def test_moving_into_another_size(self) -> None:
        bitmap, other = Bitmap(65), Bitmap(66)
        bitmap.set_all()
        with pytest.raises(ValueError, match="65 and 66"):
            bitmap.move_into(other)
        assert (bitmap.count(), other.count()) == (65, 0)

    @pytest.mark.parametrize(
        ("size", "words"),
        [
            (65, np.zeros(1, np.uint64)),
            (64, np.zeros(2, np.uint64)),
            (64, np.zeros(1, np.int64)),
            (64, np.zeros((1, 1), np.uint64)),
            (63, np.full(1, 1 << 63, np.uint64)),
            (1, np.full(1, 2, np.uint64)),
        ],
    )
    def test_words_that_do_not_fit(self, size: int, words: np.ndarray) -> None:
        with pytest.raises(ValueError, match=r"words|is set"):
            Bitmap(size, words)

    @pytest.mark.parametrize("size", [1, 63, 64, 65, 640])
    def test_given_words_are_shared(self, size: int) -> None:
        words = np.zeros(-(-size // 64), np.uint64)
        Bitmap(size, words).set_range(size - 1, 1)
        assert words[-1] == 1 << (size - 1) % 64


def test_a_bitmap_larger_than_a_real_chunk() -> None:
    size = 64 * words_module.CHUNK_WORDS * 2 + 77
    seam = 64 * words_module.CHUNK_WORDS
    bitmap = Bitmap(size)
    bitmap.set_range(seam - 100, 200)
    bitmap.set_range(size - 1, 1)
    assert bitmap.count() == 201
    assert list(bitmap.runs()) == [(seam - 100, 200), (size - 1, 1)]
    shifted = Bitmap(size + 5)
    assert shifted.union(bitmap, 5) == 201
    assert list(shifted.runs()) == [(seam - 95, 200), (size + 4, 1)]
    windows = [start for start, _ in shifted.windows(64)]
    assert windows == [seam - 128, seam - 64, seam, seam + 64, (size + 4) // 64 * 64]


@pytest.mark.parametrize("words", [1, words_module.FEW_WORDS, words_module.FEW_WORDS + 1, words_module.SMALL_WORDS])
@pytest.mark.usefixtures("way")
def test_merging_few_words_and_many(words: int) -> None:
    """On both sides of the number from which on a small bitmap's bits are counted in another way."""
    random = np.random.default_rng(words)
    dirty, pending = (Bitmap(64 * words, random.integers(1, 2**64, words, np.uint64)) for _ in range(2))
    expected = dirty.words | pending.words
    new = int(np.bitwise_count(expected).sum() - np.bitwise_count(pending.words).sum())
    assert pending.merge(dirty) == (int(np.bitwise_count(dirty.words).sum()), new)
    assert np.array_equal(pending.words, expected)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.04, 0.001, 0.0])
def test_real_chunks_of_every_density(share: float) -> None:
    """Each way of merging a chunk, chosen by its density, against whole-array arithmetic."""
    random = np.random.default_rng(0)
    full = words_module.CHUNK_WORDS * 3 + 1001

    def some(share: float) -> Bitmap:
        words = random.integers(0, 2**64, full + 1, np.uint64)
        words[random.random(full + 1) >= share] = 0
        words[words_module.CHUNK_WORDS : 2 * words_module.CHUNK_WORDS] = 0
        words[-1] &= np.uint64(0x1FFF)
        return Bitmap(64 * full + 13, words)

    bitmap, dest = some(share), some(0.5)
    both = bitmap.words | dest.words
    new = int(np.bitwise_count(both).sum() - np.bitwise_count(dest.words).sum())
    merged = dest.copy()
    assert merged.union(bitmap) == new
    assert dest.copy().merge(bitmap) == (int(np.bitwise_count(bitmap.words).sum()), new)
    assert np.array_equal(merged.words, both)
    assert bitmap.copy().take_count() == int(np.bitwise_count(bitmap.words).sum())
    assert bitmap.move_into(dest) == new
    assert not bitmap.any()
    assert np.array_equal(dest.words, both)


class TestRuns:
    @given(run_lists())
    def test_indexes_and_from_indexes_are_inverse(self, runs: Runs) -> None:
        pages = pages_of(runs)
        assert runs.indexes().tolist() == pages
        assert list(Runs.from_indexes(np.array(pages, np.int64))) == runs_of(set(pages))
        assert runs.pages == len(pages)

    @given(st.sets(st.integers(0, 2**40), max_size=50))
    def test_from_indexes_of_far_pages(self, pages: set[int]) -> None:
        assert list(Runs.from_indexes(np.array(sorted(pages), np.int64))) == runs_of(pages)

    @given(run_lists(), st.integers(1, 300))
    def test_batches_hold_all_pages_in_order_and_are_full(self, runs: Runs, pages: int) -> None:
        batches = list(runs.batches(pages))
        assert [page for batch in batches for page in pages_of(batch)] == pages_of(runs)
        assert all(batch.pages == pages for batch in batches[:-1])
        assert all(0 < batch.pages <= pages and len(batch) <= pages for batch in batches)
        assert all((batch.lengths > 0).all() for batch in batches)

    @given(run_lists(), st.integers(1, 300))
    def test_batches_split_runs_only_where_a_batch_is_full(self, runs: Runs, pages: int) -> None:
        batches = list(runs.batches(pages))
        assert sum(map(len, batches)) <= len(runs) + max(len(batches) - 1, 0)

    @given(run_lists(), st.integers(0, 80))
    def test_merged_fills_exactly_the_short_gaps(self, runs: Runs, gap: int) -> None:
        pages = set(pages_of(runs))
        for (start, length), (after, _) in zip(list(runs), list(runs)[1:], strict=False):
            if after - (start + length) <= gap:
                pages |= set(range(start + length, after))
        merged = runs.merged(gap)
        assert list(merged) == runs_of(pages)

    @given(st.lists(run_lists(), max_size=5))
    def test_concatenate_keeps_order(self, parts: list[Runs]) -> None:
        assert list(Runs.concatenate(parts)) == [run for part in parts for run in part]

    @given(run_lists(), st.integers(0, 30), st.integers(0, 30), st.integers(-(10**9), 10**9))
    def test_slices_and_shifts(self, runs: Runs, lo: int, hi: int, by: int) -> None:
        assert list(runs[lo:hi]) == list(runs)[lo:hi]
        assert list(runs.shifted(by)) == [(start + by, length) for start, length in runs]
        assert runs.ends.tolist() == [start + length for start, length in runs]

    @given(run_lists(), run_lists())
    def test_equality(self, one: Runs, other: Runs) -> None:
        assert (one == other) == (list(one) == list(other))
        assert one != list(one)
