"""`precopy.Memory`: what it is as a buffer, what it adopts, and what it says of what it cannot."""

from __future__ import annotations

import gc
import mmap
import subprocess
import sys
from multiprocessing import shared_memory

import numpy as np
import pytest

import precopy
from precopy.bitmap import Runs
from precopy.errors import OutOfMemory, UsageError
from precopy.units import PAGE_SIZE
from support.patience import IN_TIME_S

MIB = 1 << 20


def aligned_array(pages: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """A numpy array that owns whole pages (over an anonymous mapping)."""
    return np.frombuffer(mmap.mmap(-1, pages * PAGE_SIZE), np.uint8)


class TestBuffer:
    def test_it_is_zero_and_a_buffer(self) -> None:
        memory = precopy.Memory(3 * PAGE_SIZE)
        array = np.frombuffer(memory, np.float64)
        assert array.nbytes == memory.size == len(memory) == 3 * PAGE_SIZE
        assert not array.any()
        array[-1] = 1.5
        assert bytes(memory.view[-8:]) == np.float64(1.5).tobytes()
        assert memory.address == array.__array_interface__["data"][0]
        assert memory.address % PAGE_SIZE == 0

    def test_it_has_whole_pages(self) -> None:
        assert precopy.Memory(1).size == PAGE_SIZE
        assert precopy.Memory(PAGE_SIZE + 1).pages == 2

    def test_it_is_a_memory(self) -> None:
        memory = precopy.Memory(PAGE_SIZE)
        assert isinstance(memory, precopy.Memory)
        assert "4096 bytes" in repr(memory)

    @pytest.mark.parametrize("size", [0, -1])
    def test_sizes_that_cannot_be(self, size: int) -> None:
        with pytest.raises(UsageError, match="more than 0 bytes"):
            precopy.Memory(size)

    def test_more_than_there_is(self) -> None:
        with pytest.raises(OutOfMemory, match="ask for fewer bytes"):
            precopy.Memory(1 << 50)

    def test_the_bytes_outlive_it(self) -> None:
        memory = precopy.Memory(PAGE_SIZE)
        array = np.frombuffer(memory, np.uint8)
        array[7] = 9
        memory.close()
        memory.close()
        del memory
        gc.collect()
        assert array[7] == 9
        array[8] = 10

    def test_closed_it_says_so(self) -> None:
        with precopy.Memory(PAGE_SIZE) as memory:
            pass
        with pytest.raises(UsageError, match="is closed"):
            memory.track()
        with pytest.raises(UsageError, match="is closed"):
            memory.contents()

    def test_the_engine_sees_the_same_bytes(self) -> None:
        memory = precopy.Memory(4 * PAGE_SIZE)
        np.frombuffer(memory, np.uint8)[2 * PAGE_SIZE] = 1
        content, zero = memory.contents().split_zero(Runs.of((0, 4)))
        assert (list(content), list(zero)) == ([(2, 1)], [(0, 2), (3, 1)])


class TestAdopt:
    def test_an_mmap(self) -> None:
        mapping = mmap.mmap(-1, 2 * PAGE_SIZE)
        memory = precopy.Memory.adopt(mapping, writers="this process")
        mapping[5] = 77
        assert memory.view[5] == 77
        with pytest.raises(BufferError):
            mapping.close()  # it is still in use here
        del memory
        gc.collect()
        mapping.close()

    def test_shared_memory_and_its_buffer(self) -> None:
        shared = shared_memory.SharedMemory(create=True, size=2 * PAGE_SIZE)
        try:
            for buffer in (shared, shared.buf):
                memory = precopy.Memory.adopt(buffer, writers="this process")
                shared.buf[9] = 3
                assert memory.view[9] == 3
                del memory
                gc.collect()
        finally:
            shared.close()
            shared.unlink()

    def test_an_array_that_owns_whole_pages(self) -> None:
        array = aligned_array(3)
        memory = precopy.Memory.adopt(array.view(np.uint64), writers="this process")
        array[0] = 5
        assert memory.view[0] == 5
        assert memory.pages == 3

    @pytest.mark.parametrize(
        ("buffer", "said"),
        [
            (bytes(PAGE_SIZE), "writable"),
            (aligned_array(2)[::2], "contiguous"),
            (aligned_array(2)[:100], "has 100 bytes"),
            (aligned_array(2)[16 : 16 + PAGE_SIZE], "begins 16 bytes into a page"),
            (bytearray(), "has 0 bytes"),
            ([1, 2], "is no buffer"),
        ],
    )
    def test_what_cannot_be_adopted_says_why(self, buffer: object, said: str) -> None:
        with pytest.raises(UsageError, match=said):
            precopy.Memory.adopt(buffer)


@pytest.mark.needs("pagemap")
class TestTrack:
    def test_what_was_written_since_the_last_sync(self) -> None:
        memory = precopy.Memory(64 * PAGE_SIZE)
        array = np.frombuffer(memory, np.uint8)
        with memory.track() as changes:
            changes.sync()
            array[5 * PAGE_SIZE] = 1
            array[6 * PAGE_SIZE + 4095] = 1
            array[63 * PAGE_SIZE] = 1
            found = changes.sync()
            assert found.indexes.tolist() == [5, 6, 63]
            assert list(found.runs) == [(5, 2), (63, 1)]
            assert found.pages == 3
            assert found.seconds > 0
            assert found.mask.shape == (64,)
            assert np.flatnonzero(found.mask).tolist() == [5, 6, 63]
            assert changes.sync().pages == 0

    def test_an_untouched_memory_has_no_changes(self) -> None:
        memory = precopy.Memory(64 * PAGE_SIZE)
        with memory.track() as changes:
            assert changes.sync().pages == 0

    def test_two_who_track_both_hear_of_a_write(self) -> None:
        memory = precopy.Memory(16 * PAGE_SIZE)
        array = np.frombuffer(memory, np.uint8)
        with memory.track() as one, memory.track() as other:
            one.sync()
            other.sync()
            array[3 * PAGE_SIZE] = 1
            assert one.sync().indexes.tolist() == [3]
            assert other.sync().indexes.tolist() == [3]

    def test_it_ends_and_begins_again(self) -> None:
        memory = precopy.Memory(16 * PAGE_SIZE)
        array = np.frombuffer(memory, np.uint8)
        for page in range(3):
            with memory.track() as changes:
                changes.sync()
                array[page * PAGE_SIZE] = 1
                assert changes.sync().indexes.tolist() == [page]
            array[15 * PAGE_SIZE] = page  # nobody asks

    def test_outside_the_block_it_does_not_say_that_nothing_was_written(self) -> None:
        changes = precopy.Memory(PAGE_SIZE).track()
        with pytest.raises(UsageError, match="outside"):
            changes.sync()
        with changes:
            assert repr(changes.sync()).startswith("<Changed: 0 of 1 pages")
        with pytest.raises(UsageError, match="outside"):
            changes.sync()

    def test_adopted_memory_is_tracked(self) -> None:
        shared = shared_memory.SharedMemory(create=True, size=4 * MIB)
        try:
            memory = precopy.Memory.adopt(shared, writers="this process")
            with memory.track() as changes:
                changes.sync()
                shared.buf[MIB] = 1
                assert changes.sync().indexes.tolist() == [MIB // PAGE_SIZE]
            memory.close()
            del memory, changes
            gc.collect()
        finally:
            shared.close()
            shared.unlink()


def test_the_public_names_are_there_and_cost_nothing_until_used() -> None:
    program = (
        "import sys, precopy; assert 'numpy' not in sys.modules; "
        "missing = [name for name in precopy.__all__ if not hasattr(precopy, name)]; print(missing)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=IN_TIME_S)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = precopy.nothing


def test_every_error_can_be_imported_from_precopy() -> None:
    from precopy import errors

    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    tree = {name for name, kind in kinds.items() if issubclass(kind, errors.PrecopyError)}
    assert tree - set(precopy.__all__) == set()
    for name in tree:
        assert getattr(precopy, name) is kinds[name]


def test_dir_lists_the_public_names() -> None:
    assert [name for name in dir(precopy) if not name.startswith("__")] == sorted(precopy.__all__)
    assert "__version__" in dir(precopy)
