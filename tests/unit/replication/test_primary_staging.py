"""What a point is sent from: pages as they were when they were last copied."""

from __future__ import annotations

import ctypes

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Runs
from precopy.memory import GuestMemory, RamLayout
from precopy.replication.primary_staging import PrimaryStaging
from precopy.wire.native.frames import MAX_BATCH_RUNS

PAGES = 96
WORDS = 512
copies = st.lists(
    st.tuples(
        st.sets(st.integers(0, PAGES - 1), max_size=20),  # written
        st.sets(st.integers(0, PAGES - 1), max_size=20),  # zeroed
        st.sets(st.integers(0, PAGES - 1), max_size=40),  # copied
    ),
    max_size=6,
)


def runs(pages: set[int]) -> Runs:
    return Runs.from_indexes(np.array(sorted(pages), np.int64))


def sent(staging: PrimaryStaging, pages: int) -> dict[int, bytes]:
    """The content of each page as a receiver would have it; checks every batch's form."""
    got: dict[int, bytes] = {}
    for content, zero in staging.batches(pages):
        assert content.runs.pages <= pages
        assert len(content.runs) <= MAX_BATCH_RUNS
        assert len(content.views) == len(content.addresses) == len(content.runs)
        for (start, length), view, (address, size) in zip(
            content.runs, content.views, content.addresses.tolist(), strict=True
        ):
            assert size == len(view) == length * 4096
            assert ctypes.string_at(address, size) == bytes(view)
            for page in range(length):
                assert start + page not in got
                got[start + page] = bytes(view[page * 4096 : (page + 1) * 4096])
                assert any(got[start + page])
        for start, length in zero:
            for page in range(start, start + length):
                assert page not in got
                got[page] = bytes(4096)
    return got


@given(copies, st.integers(1, 40))
def test_what_is_sent_is_what_was_copied_last(steps: list[tuple[set[int], set[int], set[int]]], pages: int) -> None:
    with GuestMemory(RamLayout.of_blocks([("memory", PAGES * 4096)])) as memory:
        words = memory.pages(memory.layout.blocks[0])
        staging, expected = PrimaryStaging(memory), {}
        for number, (written, zeroed, copied) in enumerate(steps, 1):
            for page in written:
                words[page, page * 5 % WORDS] = number * 1000 + page
            for page in zeroed:
                words[page] = 0
            staging.copy(runs(copied))
            expected.update({page: words[page].tobytes() for page in copied})
            assert staging.pages == len(expected) <= PAGES
        words[:] = 77  # no concern of what was copied
        assert sent(staging, pages) == expected
        staging.clear()
        assert staging.pages == 0
        assert sent(staging, pages) == {}
        del words


def test_all_of_a_large_memory_and_again() -> None:
    """More than is kept between points."""
    with GuestMemory(RamLayout.of_blocks([("memory", 80 << 20)])) as memory:
        words = memory.pages(memory.layout.blocks[0])
        staging = PrimaryStaging(memory)
        for value in (1, 2):
            words[:] = value
            staging.copy(memory.layout.runs)
            staging.copy(Runs.of((5, 3000)))
            assert staging.pages == 80 << 8
            got = np.concatenate(
                [np.frombuffer(view, np.uint64) for part, _ in staging.batches(512) for view in part.views]
            )
            assert got.size == words.size
            assert (got == value).all()
            staging.clear()
        del words
