"""Atomic operations on shared words: what they do, that they are locked, and where they cannot be had."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.abi import atomic
from precopy.abi.assembler import assemble
from precopy.abi.atomic import clear_words, exchange_words, set_bits
from precopy.errors import BitmapRangeError, Unsupported

Words = npt.NDArray[np.uint64]

WORD = st.sampled_from([0, 0, 0, 1, 1 << 63, 0xFFFF_FFFF_FFFF_FFFF]) | st.integers(0, (1 << 64) - 1)
ROWS = st.integers(0, 40).flatmap(lambda size: st.tuples(*[st.lists(WORD, min_size=size, max_size=size)] * 2))


def words(values: list[int]) -> Words:
    return np.array(values, np.uint64)


class TestExchange:
    @given(ROWS)
    def test_all_bits_are_taken_and_added(self, rows: tuple[list[int], list[int]]) -> None:
        source, dest = map(words, rows)
        assert exchange_words(source, dest) == sum(word != 0 for word in rows[0])
        assert not source.any()
        assert dest.tolist() == [one | other for one, other in zip(*rows, strict=True)]

    def test_only_the_part_that_was_given(self) -> None:
        source, dest = np.full(30, 7, np.uint64), np.zeros(11, np.uint64)
        assert exchange_words(source[9:20], dest) == 11
        assert source.tolist() == [7] * 9 + [0] * 11 + [7] * 10
        assert dest.tolist() == [7] * 11


class TestClear:
    @given(ROWS)
    def test_bits_of_the_mask_are_cleared(self, rows: tuple[list[int], list[int]]) -> None:
        target, mask = map(words, rows)
        assert clear_words(target, mask) == sum(one & other != 0 for one, other in zip(*rows, strict=True))
        assert target.tolist() == [one & ~other for one, other in zip(*rows, strict=True)]
        assert mask.tolist() == rows[1]


class TestSet:
    @given(st.integers(-2, 321), st.integers(-1, 322), st.integers(-130, 130))
    def test_each_bit_of_a_row(self, first: int, count: int, stride: int) -> None:
        bits = {first + n * stride for n in range(max(count, 1))}
        target = np.zeros(5, np.uint64)
        if count < 0 or min(bits) < 0 or max(bits) >= 320:
            with pytest.raises(BitmapRangeError):
                set_bits(target, first, count, stride)
            bits = set()
        else:
            set_bits(target, first, count, stride)
        found = np.flatnonzero(np.unpackbits(target.view(np.uint8), bitorder="little"))
        assert found.tolist() == (sorted(bits) if count else [])

    def test_one_bit_unless_told_otherwise(self) -> None:
        target = np.zeros(5, np.uint64)
        set_bits(target, 319)
        assert target.tolist() == [0, 0, 0, 0, 1 << 63]


class TestArguments:
    def test_rows_of_different_length(self) -> None:
        with pytest.raises(ValueError, match="3 words and 4"):
            exchange_words(np.zeros(3, np.uint64), np.zeros(4, np.uint64))
        with pytest.raises(ValueError, match="3 words and 4"):
            clear_words(np.zeros(3, np.uint64), np.zeros(4, np.uint64))

    @pytest.mark.parametrize(
        "wrong",
        [
            np.zeros(8, np.int64),
            np.zeros(8, np.uint8),
            np.zeros((2, 4), np.uint64),
            np.zeros(16, np.uint64)[::2],
            np.zeros(72, np.uint8)[1:65].view(np.uint64),
            np.zeros(8, ">u8"),
            np.frombuffer(bytes(64), np.uint64),
        ],
        ids=["signed", "bytes", "two rows", "every other word", "unaligned", "big-endian", "read-only"],
    )
    def test_what_is_no_row_of_aligned_words(self, wrong: Words) -> None:
        right = np.zeros(8, np.uint64)
        for call in (
            lambda: exchange_words(wrong, right),
            lambda: exchange_words(right, wrong),
            lambda: clear_words(wrong, right),
            lambda: set_bits(wrong, 0),
        ):
            with pytest.raises(ValueError, match="aligned, writable uint64 words"):
                call()


@pytest.mark.parametrize(
    ("source", "locked"),
    [(atomic.EXCHANGE, "48 87 0f"), (atomic.CLEAR, "f0 48 21 0f"), (atomic.SET, "f0 48 0f ab 37")],
    ids=["xchg, which locks by itself", "lock and", "lock bts"],
)
def test_the_one_instruction_that_writes_shared_memory_is_locked(source: str, locked: str) -> None:
    """As Intel's manual encodes them (SDM volume 2), with the operands that the code uses."""
    assert bytes.fromhex(locked) in assemble(source)


def test_no_bit_is_lost_between_threads() -> None:
    """One sets every other bit, one after the other. One sets those between, in sweeps that overtake it again and
    again. Meanwhile a third takes them: each has to be taken exactly once."""
    log, size, rounds, found = np.zeros(1 << 15, np.uint64), 1 << 21, 10, 0
    begin, end = threading.Barrier(3), threading.Barrier(3)

    def walk() -> None:
        set_bits(log, 0, size // 2, 2)

    def sweeps() -> None:
        for first in range(1, 128, 2):
            set_bits(log, first, size // 128, 128)

    def device(sets: Callable[[], None]) -> None:
        for _ in range(rounds):
            begin.wait()
            sets()
            end.wait()

    for sets in (walk, sweeps):
        threading.Thread(target=device, args=(sets,), daemon=True).start()
    for _ in range(rounds):
        begin.wait()
        while end.n_waiting < 2:
            found += taken(log)
        end.wait()
        found += taken(log)
    assert found == rounds * size


def test_no_bit_is_lost_to_a_clear_beside_it() -> None:
    """One sets every other bit. Meanwhile a second sets and clears those between."""
    odd = np.full(1 << 15, 0xAAAA_AAAA_AAAA_AAAA, np.uint64)
    for _ in range(10):
        log = odd.copy()
        setter = threading.Thread(target=set_bits, args=(log, 0, log.size * 32, 2), daemon=True)
        setter.start()
        while setter.is_alive():
            clear_words(log, odd)
            set_bits(log, 1, log.size, 64)
        clear_words(log, odd)
        assert (log == odd >> np.uint64(1)).all()


def taken(log: Words) -> int:
    """Bits of ``log`` that an exchange takes."""
    dest = np.zeros_like(log)
    exchange_words(log, dest)
    return int(np.bitwise_count(dest).sum(dtype=np.int64))


@pytest.fixture
def anew() -> Iterator[None]:
    atomic._made.cache_clear()
    yield
    atomic._made.cache_clear()


class TestTheCode:
    def test_it_cannot_be_written_once_it_can_be_executed(self) -> None:
        page = atomic._operations().page
        address = int(np.frombuffer(page, np.uint8).__array_interface__["data"][0])
        with open("/proc/self/maps", encoding="ascii") as maps:
            (mapping,) = [line for line in maps if line.startswith(f"{address:x}-")]
        assert mapping.split()[1] == "r-xp"

    @pytest.mark.usefixtures("anew")
    def test_it_is_made_once(self) -> None:
        """Threads may come first together, and the page of a second one would be unmapped with a thread in it."""
        together, found = threading.Barrier(8), set[int]()

        def first() -> None:
            together.wait()
            found.add(id(atomic._operations()))

        threads = [threading.Thread(target=first) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {id(atomic._operations())}

    @pytest.mark.usefixtures("anew")
    def test_another_processor(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
        with pytest.raises(Unsupported, match="not there for aarch64; use 64-bit Python on x86-64"):
            set_bits(np.zeros(1, np.uint64), 0)

    def test_a_process_that_may_not_make_memory_executable(self) -> None:
        """prctl(PR_SET_MDWE), Linux 6.3, is what systemd's MemoryDenyWriteExecute uses."""
        source = (
            "import ctypes, sys, numpy as np\n"
            "from precopy.abi.atomic import set_bits\n"
            "from precopy.errors import Unsupported\n"
            "if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0): sys.exit(77)\n"
            "try: set_bits(np.zeros(1, np.uint64), 0)\n"
            "except Unsupported as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
        if done.returncode == 77:
            pytest.skip("this kernel cannot deny executable memory")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("this process may not make memory executable (Permission denied)")
        assert done.stdout.count("\n") == 1


def test_importing_it_does_not_load_the_assembler() -> None:
    source = "import sys, precopy.trackers.vhost_log; sys.exit('keystone' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
