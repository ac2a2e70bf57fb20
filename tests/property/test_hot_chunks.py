"""Which chunks stay unarmed, over a kernel of sets: no write is missed, an exact harvest is exact, and what cools is
armed again, whatever is written, and wherever a harvest is interrupted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Bitmap, Runs
from precopy.trackers.hot_chunks import MOST_WAIT, HotChunks

CHUNK, FIRST, CHUNKS = 64, 64, 4
PAGES = FIRST + CHUNKS * CHUNK + 30


def pages_of(chunk: int) -> range:
    return range(FIRST + chunk * CHUNK, FIRST + (chunk + 1) * CHUNK)


class Interrupted(Exception):
    pass


class Kernel:
    """Write protection of memory whose pages have two words, as sets of pages; and its chunks under test."""

    def __init__(self, make: Callable[..., HotChunks] = HotChunks, pages: int = PAGES, first: int = FIRST) -> None:
        self.pages = pages
        self.rows = np.zeros((pages, 2), np.uint64)
        self.open: set[int] = set()
        self.found = Bitmap(pages)
        self.chunks = make(pages, self.rows, first=first, chunk=CHUNK)
        self.new: set[int] = set()
        """Written since they were reported last."""
        self.faults = 0
        self.exact_before = False
        self.fails_in: int | None = None
        self.written_between: list[int] = []
        """Written by another thread between two scans of the next harvest."""

    def write(self, pages: list[int] | range, value: int | None = None) -> None:
        """Stores another value into the pages, or ``value``."""
        self.faults += len(set(pages) - self.open)
        self.open |= set(pages)
        self.new |= set(pages)
        for page in pages:
            self.rows[page, 0] = self.rows[page, 0] + np.uint64(1) if value is None else value

    def scan(self, runs: Runs, protect: bool) -> None:
        for page in runs.indexes().tolist():
            if page in self.open:
                self.found.set_range(page, 1)
                if protect:
                    self.open.discard(page)
                    self.new.discard(page)
        if self.fails_in is not None:
            self.fails_in -= 1
            if self.fails_in < 0:
                self.found.set_runs(runs)
                raise Interrupted
        self.write(self.written_between)

    def harvest(self, *, exact: bool = False) -> set[int]:
        """Holds what a harvest reports against what was written."""
        self.found = Bitmap(self.pages)
        before = set(self.new)
        interrupted = False
        try:
            self.chunks.find(self.found, self.scan, exact=exact)
        except Interrupted:
            interrupted = True
        reported = set(self.found.indexes().tolist())
        counted = set(self.chunks.runs(self.chunks.counted).indexes().tolist())
        assert before <= reported | self.new  # what an interrupted one has not protected, the next one finds
        if not interrupted:
            assert before <= reported
            unarmed = set(self.chunks.runs(self.chunks.unarmed).indexes().tolist())
            between = set(self.written_between)
            assert reported <= before | counted | between
            assert not (self.exact_before and counted)
            # What is neither armed nor going to count was written since.
            assert self.open - unarmed <= between
            if not between:
                self.new -= unarmed  # they are read now, and count again in any case
        self.exact_before = exact and not interrupted
        return reported

    def relax(self) -> None:
        self.open |= set(self.chunks.relax().indexes().tolist())
        self.exact_before = False


some_pages = st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=5)
chunk = st.integers(0, CHUNKS - 1)
operations = st.one_of(
    st.tuples(st.just("write"), some_pages),
    st.tuples(st.just("stream"), chunk),
    st.tuples(st.just("stream all"), st.none()),
    st.tuples(st.just("store the same"), chunk),
    st.tuples(st.just("harvest"), st.none()),
    st.tuples(st.just("harvest exactly"), st.none()),
    st.tuples(st.just("relax"), st.none()),
    st.tuples(st.just("interrupted"), st.integers(0, 4)),
    st.tuples(st.just("written meanwhile"), some_pages),
)
sequences = st.lists(operations, max_size=40)


def play(kernel: Kernel, sequence: list[tuple[str, object]]) -> None:
    for what, argument in [*sequence, ("harvest", None), ("harvest exactly", None), ("harvest exactly", None)]:
        if what == "write":
            assert isinstance(argument, list)
            kernel.write(argument)
        elif what == "stream":
            assert isinstance(argument, int)
            kernel.write(pages_of(argument))
        elif what == "stream all":
            kernel.write(range(kernel.pages))
        elif what == "store the same":
            assert isinstance(argument, int)
            kernel.write(pages_of(argument), 7)
        elif what == "relax":
            kernel.relax()
        elif what == "interrupted":
            assert isinstance(argument, int)
            kernel.fails_in = argument
            kernel.harvest()
            kernel.fails_in = None
        elif what == "written meanwhile":
            assert isinstance(argument, list)
            kernel.written_between = argument
            kernel.harvest()
            kernel.written_between = []
        else:
            kernel.harvest(exact="exactly" in what)


@given(sequence=sequences)
def test_no_write_is_missed(sequence: list[tuple[str, object]]) -> None:
    play(Kernel(), sequence)


class ForgetsToCount(HotChunks):
    """Broken: an unarmed chunk counts only as far as it reads as written, and is protected without a word."""

    def find(self, found: Bitmap, scan: Callable[[Runs, bool], None], *, exact: bool) -> None:
        into, lost = found, Bitmap(found.size)

        def quietly(runs: Runs, protect: bool) -> None:
            scan(runs, protect)
            if protect and self.unarmed.any():
                lost.set_runs(self.runs(self.unarmed))

        super().find(into, quietly, exact=exact)
        into.difference(lost)


class ForgetsWhatIsUnarmed(HotChunks):
    """Broken: what is unprotected after an exact harvest is not noted."""

    def relax(self) -> Runs:
        runs = super().relax()
        self.unarmed[:] = False
        return runs


@pytest.mark.parametrize("broken", [ForgetsToCount, ForgetsWhatIsUnarmed])
def test_the_model_notices(broken: type[HotChunks]) -> None:
    hot: list[tuple[str, object]] = [("stream all", None), ("harvest", None)] * 3
    with pytest.raises(AssertionError):
        play(Kernel(broken), [*hot, ("stream", 1), ("harvest exactly", None), ("relax", None), ("harvest", None)])


class TestHotAndCold:
    def heated(self) -> Kernel:
        kernel = Kernel()
        for _ in range(3):
            kernel.write(range(PAGES))
            kernel.harvest()
        return kernel

    def test_two_harvests_running_make_a_chunk_hot(self) -> None:
        kernel = Kernel()
        for unarmed in (0, 4, 4, 4):
            kernel.write(range(PAGES))
            kernel.harvest()
            assert kernel.chunks.unarmed.sum() == unarmed

    @pytest.mark.parametrize("missing", [0, 31, 63])
    def test_a_chunk_with_a_page_that_is_not_written_stays_armed(self, missing: int) -> None:
        kernel = Kernel()
        for _ in range(5):
            kernel.write([page for page in pages_of(2) if page != pages_of(2)[missing]])
            kernel.harvest()
            assert not kernel.chunks.unarmed.any()

    def test_an_interruption_of_the_two_makes_none(self) -> None:
        kernel = Kernel()
        for _ in range(3):
            kernel.write(pages_of(1))
            kernel.harvest()
            kernel.harvest()
            assert not kernel.chunks.unarmed.any()

    def test_a_writer_of_a_hot_chunk_has_no_faults(self) -> None:
        kernel = self.heated()
        before = kernel.faults
        for _ in range(20):
            kernel.write(range(FIRST, FIRST + CHUNKS * CHUNK))
            kernel.harvest()
        assert kernel.faults == before

    def test_what_lies_outside_all_chunks_is_always_armed(self) -> None:
        kernel = self.heated()
        kernel.write([0, PAGES - 1])
        outside = {*range(FIRST), *range(FIRST + CHUNKS * CHUNK, PAGES)}
        assert kernel.harvest() & outside == {0, PAGES - 1}
        assert kernel.harvest() & outside == set()

    def test_a_chunk_that_is_not_written_any_more_counts_once_more_and_then_no_more(self) -> None:
        kernel = self.heated()
        assert set(pages_of(1)) <= kernel.harvest()  # the hint: what was sampled after the last write is the same
        assert kernel.harvest() == set()
        assert not kernel.chunks.unarmed.any()

    def test_others_stay_hot_meanwhile(self) -> None:
        kernel = self.heated()
        for _ in range(5):
            kernel.write(pages_of(0))
            kernel.harvest()
        assert kernel.chunks.unarmed.tolist() == [True, False, False, False]
        kernel.write([pages_of(3)[5]])
        assert kernel.harvest() == {*pages_of(0), pages_of(3)[5]}

    @pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
    def test_a_chunk_of_which_a_share_is_written_is_found_by_and_by(self, share: float) -> None:
        """Each harvest finds it with probability 1 - share."""
        kernel = self.heated()
        written = pages_of(2)[: int(share * CHUNK)]
        for _ in range(300):
            kernel.write(written)
            if not kernel.chunks.unarmed[2] and kernel.harvest() == set(written):
                break
            kernel.harvest()
        kernel.write(written)
        assert kernel.harvest() == set(written)

    def test_who_stores_what_is_there_already_pays_for_few_probes(self) -> None:
        """The hint is wrong each time, and each probe costs a fault a page; they become rare."""
        kernel, harvests = self.heated(), 40 * MOST_WAIT
        before = kernel.faults
        for _ in range(harvests):
            kernel.write(range(FIRST, FIRST + CHUNKS * CHUNK), 7)
            assert kernel.harvest() >= set(range(FIRST, FIRST + CHUNKS * CHUNK))
        probes = (kernel.faults - before) / (CHUNKS * CHUNK)
        assert harvests / (2 * MOST_WAIT) - 1 <= probes <= harvests / MOST_WAIT + 2 * MOST_WAIT.bit_length()

    def test_after_a_chunk_has_cooled_it_is_probed_at_once_again(self) -> None:
        kernel = self.heated()
        for _ in range(10 * MOST_WAIT):
            kernel.write(pages_of(0), 7)
            kernel.harvest()
        for _ in range(2 * MOST_WAIT + 2):
            kernel.harvest()
        assert not kernel.chunks.unarmed.any()
        assert kernel.harvest() == set()
        assert kernel.chunks._back_off.tolist() == [1, 1, 1, 1]


class TestExactMoments:
    def heated(self) -> Kernel:
        return TestHotAndCold().heated()

    def test_the_first_counts_what_was_unarmed_and_the_next_are_exact(self) -> None:
        kernel = self.heated()
        kernel.write([FIRST + 3])
        assert kernel.harvest(exact=True) >= set(range(FIRST, FIRST + CHUNKS * CHUNK))
        for written in ([FIRST + 3, FIRST + 70], [], [FIRST + 200]):
            kernel.write(written)
            assert kernel.harvest(exact=True) == set(written)

    def test_what_was_hot_before_is_hot_after_them(self) -> None:
        kernel = self.heated()
        kernel.write(range(PAGES))
        kernel.harvest(exact=True)
        kernel.write([FIRST])
        assert kernel.harvest(exact=True) == {FIRST}
        kernel.relax()
        assert kernel.chunks.unarmed.all()
        before = kernel.faults
        kernel.write(range(FIRST, FIRST + CHUNKS * CHUNK))
        assert kernel.faults == before
        assert kernel.harvest() >= set(range(FIRST, FIRST + CHUNKS * CHUNK))

    def test_where_all_harvests_are_made_at_exact_moments_chunks_become_hot_and_cool_all_the_same(self) -> None:
        """As where a replication makes a point each second, and nothing else syncs."""
        kernel = Kernel()
        for _ in range(3):
            kernel.write(range(PAGES))
            kernel.harvest(exact=True)
            kernel.harvest(exact=True)
            kernel.relax()
        assert kernel.chunks.unarmed.all()
        for _ in range(2):
            kernel.write(pages_of(0))
            kernel.harvest(exact=True)
            kernel.harvest(exact=True)
            kernel.relax()
        assert kernel.chunks.unarmed.tolist() == [True, False, False, False]

    def test_chunks_that_cooled_meanwhile_are_not_unarmed(self) -> None:
        kernel = self.heated()
        kernel.harvest(exact=True)  # nothing was written since the sample
        kernel.relax()
        assert not kernel.chunks.unarmed.any()
        assert kernel.harvest() == set()


@pytest.mark.parametrize(
    ("pages", "first", "count"),
    [(0, 0, 0), (63, 0, 0), (64, 0, 1), (200, 128, 1), (127, 64, 0), (200, 10, 3), (5, 64, 0)],
)
def test_where_chunks_lie(pages: int, first: int, count: int) -> None:
    """A chunk begins at a multiple of 64 pages, wherever huge pages do; shorter memory has none."""
    kernel = Kernel(pages=pages, first=first)
    assert kernel.chunks.count == count
    for _ in range(4):
        kernel.write(range(pages))
        assert kernel.harvest() == set(range(pages))
    assert kernel.chunks.unarmed.sum() == count
