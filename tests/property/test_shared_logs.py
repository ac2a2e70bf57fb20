"""The logs of shared memory and of contents against a simple model: what was written and not cleared is reported, in
every harvest until it is cleared, and a clear forgets nothing that was not reported (laws 1 and 2)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.bitmap import Bitmap
from precopy.dirty.log import DirtyLog
from precopy.machines.process.sharing import own_writer, shared_pages
from precopy.memory import RamLayout
from precopy.trackers.content import ContentLog
from precopy.trackers.pagemap import PagemapLog
from precopy.trackers.shared_views import SharedMemoryLog
from precopy.units import PAGE_SIZE, HostAddress

PAGES = 130
LAYOUT = RamLayout.of_blocks([("memory", PAGES * PAGE_SIZE)])

page = st.integers(0, PAGES - 1)
operations = st.one_of(
    st.tuples(st.just("write"), page, st.just(0)),
    st.tuples(st.just("write elsewhere"), page, st.just(0)),
    st.tuples(st.just("harvest"), st.just(0), st.just(0)),
    st.tuples(st.just("clear"), page, st.integers(0, PAGES + 5)),
)


@contextmanager
def content_log() -> Iterator[tuple[DirtyLog, list[memoryview]]]:
    mapping = mmap.mmap(-1, PAGES * PAGE_SIZE)
    yield ContentLog(LAYOUT, memoryview(mapping)), [memoryview(mapping)] * 2


@contextmanager
def shared_log() -> Iterator[tuple[DirtyLog, list[memoryview]]]:
    """Of two mappings of the same memory, of which the second is the log's only by its file."""
    import os

    fd = os.memfd_create("test")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    one, other = mmap.mmap(fd, 0), mmap.mmap(fd, 0)
    os.close(fd)
    address = int(np.frombuffer(one, np.uint8).__array_interface__["data"][0])
    pages = shared_pages(address, PAGES * PAGE_SIZE)
    assert pages is not None
    end = address + PAGES * PAGE_SIZE
    log = SharedMemoryLog(
        pages, PagemapLog(LAYOUT, [HostAddress(address)]), lambda: own_writer(pages, (address, end), None)
    )
    yield log, [memoryview(one), memoryview(other)]
    log.close()


@pytest.mark.parametrize(
    "make", [content_log, pytest.param(shared_log, marks=pytest.mark.needs("pagemap"))], ids=["content", "shared"]
)
@settings(deadline=None, max_examples=max(6 * settings().max_examples // 10, 1))
@given(sequence=st.lists(operations, max_size=30))
def test_it_is_a_dirty_log(make: object, sequence: list[tuple[str, int, int]]) -> None:
    with make() as (log, views):  # type: ignore[operator]
        log.start()
        new: set[int] = set()
        reported: set[int] = set()
        for number, (what, start, count) in enumerate(sequence):
            if what == "harvest":
                dirty = Bitmap(PAGES)
                log.harvest(dirty)
                reported |= new
                new.clear()
                assert set(dirty.indexes().tolist()) == reported
            elif what == "clear":
                log.clear(start, count)
                reported -= set(range(start, start + count))
            else:
                views[what == "write elsewhere"][start * PAGE_SIZE + 8] = number + 1
                new.add(start)
        log.stop()
        dirty = Bitmap(PAGES)
        log.harvest(dirty)
        assert not dirty.any()


def test_a_content_log_reports_what_differs_from_its_copy_and_nothing_else() -> None:
    with content_log() as (log, views):
        assert isinstance(log, ContentLog)
        assert isinstance(log, DirtyLog)
        log.start()
        views[0][PAGE_SIZE : 2 * PAGE_SIZE] = bytes(PAGE_SIZE)  # written, and the same
        views[0][3 * PAGE_SIZE] = 3
        dirty = Bitmap(PAGES)
        assert log.copy[3 * PAGE_SIZE] == 0
        log.harvest(dirty)
        assert dirty.indexes().tolist() == [3]
        assert log.copy[3 * PAGE_SIZE] == 3
