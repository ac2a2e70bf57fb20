"""A process whose mappings change while they are looked at: what cannot be tracked any more is gone, and the pages that
it may have written count as written."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from precopy.abi.shared_maps import open_maps, read_maps
from precopy.bitmap import Bitmap
from precopy.errors import Unsupported
from precopy.machines.process.sharing import shared_pages
from precopy.trackers import shared_views
from precopy.trackers.shared_views import ProcessView, SharedPages, Writer
from precopy.trackers.write_protection import WriteProtection
from precopy.units import PAGE_SIZE

PAGES = 16

pytestmark = pytest.mark.needs("pagemap")


class Racing:
    """Two mappings of one file by this process, and what happens right after the list of mappings was read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fd = os.memfd_create("test")
        os.ftruncate(self.fd, PAGES * PAGE_SIZE)
        self.first, self.second = mmap.mmap(self.fd, 0), mmap.mmap(self.fd, 0)
        self.then: list[Callable[[], object]] = []
        address = int(np.frombuffer(self.first, np.uint8).__array_interface__["data"][0])
        pages = shared_pages(address, PAGES * PAGE_SIZE)
        assert pages is not None
        self.pages: SharedPages = pages
        self.view = ProcessView(pages, WriteProtection(), open_maps())
        monkeypatch.setattr(shared_views, "read_maps", self._read)

    def _read(self, fd: int) -> bytes:
        maps = read_maps(fd)
        if self.then:
            self.then.pop(0)()
        return maps

    def writer(self) -> Writer:
        return Writer(self.view, lambda: b"", lambda: None, lambda: None)

    def close(self) -> None:
        self.view.close()
        for mapping in (self.first, self.second):
            mapping.close()
        os.close(self.fd)


@pytest.fixture
def racing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Racing]:
    racing = Racing(monkeypatch)
    yield racing
    racing.close()


def test_a_mapping_that_goes_between_the_list_and_the_call(racing: Racing) -> None:
    racing.view.harvest(Bitmap(PAGES))
    third = mmap.mmap(racing.fd, 0)
    racing.then = [third.close]
    found = Bitmap(PAGES)
    assert racing.writer().harvest(found)
    assert found.count() == PAGES  # the third mapping's writes are not known
    found = Bitmap(PAGES)
    racing.first[3 * PAGE_SIZE] = 1
    racing.writer().harvest(found)
    assert 3 in found.indexes()


def test_a_mapping_that_was_unregistered_and_goes_as_a_writer_does_at_its_end(racing: Racing) -> None:
    """The writer takes the protection away, and then unmaps; a harvest comes in between."""
    racing.view._protection.close()
    racing.view._protection = WriteProtection()
    racing.then = [racing.second.close]
    assert not racing.view.harvest(Bitmap(PAGES))
    assert racing.view.harvest(Bitmap(PAGES))  # of the mapping that is left
    found = Bitmap(PAGES)
    racing.first[5 * PAGE_SIZE] = 1
    racing.view.harvest(found)
    assert found.indexes().tolist() == [5]


def test_mappings_that_go_one_after_the_other_while_they_are_looked_at(racing: Racing) -> None:
    """Some of that is waited for; a process that does nothing else cannot hold a harvest up."""
    racing.view.harvest(Bitmap(PAGES))
    many = [mmap.mmap(racing.fd, 0) for _ in range(40)]
    racing.then = [mapping.close for mapping in reversed(many[-5:])]  # the lowest first, as they are tracked
    assert not racing.view.refresh()
    assert racing.view.refresh()

    many = many[:-5] + [mmap.mmap(racing.fd, 0) for _ in range(40)]
    racing.then = [mapping.close for mapping in reversed(many)]
    with pytest.raises(Unsupported, match="maps and unmaps shared memory all the time"):
        racing.view.refresh()
    racing.then = []
    assert not racing.view.refresh()
    assert racing.view.refresh()
    for mapping in many:
        mapping.close()


def test_memory_that_cannot_be_tracked_says_so(racing: Racing) -> None:
    """Something else tracks it: another look finds the same."""
    other = mmap.mmap(racing.fd, 0)
    address = int(np.frombuffer(other, np.uint8).__array_interface__["data"][0])
    taken = WriteProtection()
    part = racing.pages.part(address, address + PAGES * PAGE_SIZE, 0)
    assert part is not None
    taken.register(part)
    with pytest.raises(Unsupported, match="another userfaultfd"):
        racing.view.refresh()
    taken.close()
    racing.view.refresh()
    other.close()
