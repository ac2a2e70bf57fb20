"""What a program is told of its replication: errors that reach it, locks that cannot be one, and what objects say."""

from __future__ import annotations

import asyncio
import copy
import logging
import mmap
import multiprocessing
import pickle
import subprocess
import sys
import threading
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import precopy
from precopy import Memory, Standby
from precopy.errors import PeerError, PeerLost, UsageError
from support.live_guests import until
from support.patience import IN_TIME_S
from support.replicas import MIB, filled, replicated

pytestmark = [pytest.mark.needs("pagemap"), pytest.mark.usefixtures("nothing_left")]

STANDBY = "import sys, time, precopy; s = precopy.Standby(sys.argv[1]); print(s.address, flush=True); time.sleep(60)"


class TestAStandbyThatIsGone:
    @pytest.mark.parametrize("scheme", ["tcp", "unix"])
    @pytest.mark.parametrize("interval", [None, 0.02, 1e9])
    def test_killed(
        self, interval: float | None, scheme: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The program hears of it in each of the ways there are, whether anything is being sent or not."""
        told: list[BaseException] = []
        there = threading.Event()

        def on_error(error: BaseException) -> None:
            told.append(error)
            handle.close()  # which may be called from everywhere
            there.set()

        address = "tcp:127.0.0.1:0" if scheme == "tcp" else f"unix:{tmp_path}/standby"
        command = [sys.executable, "-c", STANDBY, address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as standby:
            assert standby.stdout is not None
            address = standby.stdout.readline().strip()
            with precopy.replicate(filled(MIB), address, interval=interval, on_error=on_error) as handle:
                assert handle.wait(IN_TIME_S)
                standby.kill()
                assert there.wait(IN_TIME_S)
                assert isinstance(handle.error, PeerLost)
                assert told == [handle.error]
                with pytest.raises(PeerLost):
                    handle.wait()
                assert str(handle.error) in repr(handle)
        line = next(record for record in caplog.records if record.name == "precopy")
        assert line.levelno == logging.ERROR
        assert "ended" in line.getMessage()
        assert str(told[0]) in line.getMessage()
        assert told == [handle.error]

    def test_what_on_error_raises_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        def on_error(error: BaseException) -> None:
            raise ZeroDivisionError

        with replicated(filled(MIB), interval=0.02, on_error=on_error) as (standby, handle):
            handle.wait(IN_TIME_S)
            standby.close()
            until(lambda: any("on_error raised" in record.getMessage() for record in caplog.records))
            assert isinstance(handle.error, PeerError)

    def test_closing_is_no_error(self, caplog: pytest.LogCaptureFixture) -> None:
        told: list[BaseException] = []
        with replicated(filled(MIB), interval=0.02, on_error=told.append) as (_, handle):
            handle.wait(IN_TIME_S)
        assert not told
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


class TestLock:
    @pytest.mark.parametrize(
        "lock",
        [asyncio.Lock(), asyncio.Condition, threading.Lock, threading.RLock, object(), "lock", True],
        ids=lambda lock: getattr(lock, "__name__", type(lock).__name__),
    )
    def test_what_no_thread_can_hold_is_refused(self, lock: object) -> None:
        with pytest.raises(UsageError, match=r"threading\.Lock") as said:
            precopy.replicate(Memory(4096), "unix:/nowhere", interval=1, lock=lock)  # type: ignore[arg-type]
        assert "\n" not in str(said.value)

    @pytest.mark.parametrize(
        "lock",
        [threading.Lock(), threading.RLock(), threading.Condition(), threading.Semaphore(), multiprocessing.Lock()],
        ids=lambda lock: type(lock).__name__,
    )
    def test_what_a_thread_can_hold(self, lock: threading.Lock) -> None:
        with replicated(filled(MIB), interval=0.01, lock=lock) as (standby, handle):
            assert handle.wait(IN_TIME_S)
            until(lambda: standby.point >= 2)


class TestArguments:
    @pytest.mark.parametrize("name", ["on_error", "on_progress"])
    def test_what_cannot_be_called(self, name: str) -> None:
        options: dict[str, Any] = {name: 3}
        with pytest.raises(UsageError, match=f"{name} is a function that is called with one argument, not 3"):
            precopy.replicate(Memory(4096), "unix:/nowhere", **options)

    @pytest.mark.parametrize("address", [None, 3, b"tcp:127.0.0.1:0"])
    def test_what_is_no_address(self, address: Any) -> None:
        for call in (partial(precopy.replicate, Memory(4096)), Standby):
            with pytest.raises(UsageError, match="an address is a str such as tcp:host:port or unix:/path, not"):
                call(address)

    def test_what_is_no_point(self) -> None:
        with Standby("tcp:127.0.0.1:0") as standby:
            for point in ("1", 1.5, -1):
                with pytest.raises(UsageError, match="the number of a point is a whole number from 0 on, not"):
                    standby.wait(0, point=point)  # type: ignore[arg-type]  # that is what is tried

    @pytest.mark.parametrize("range_", [("a", 1), (0.5, 1), (0, "x"), (None, None)])
    def test_what_is_no_range(self, range_: Any) -> None:
        memory = Memory(4096)
        for call in (memory.touched, memory.writing, memory.io_buffer):
            with pytest.raises(UsageError, match="is a whole number of bytes"):
                call(*range_)

    def test_what_has_no_bytes_to_adopt(self) -> None:
        closed = mmap.mmap(-1, 4096)
        closed.close()
        with pytest.raises(UsageError, match=r"a mmap is no buffer \(mmap closed or invalid\); adopt an mmap"):
            Memory.adopt(closed)
        with pytest.raises(UsageError, match=r"a ndarray is no buffer \(cannot include dtype 'M' in a buffer\)"):
            Memory.adopt(np.zeros(512, "M8[ns]"))


class TestRepr:
    def test_of_a_replication_and_a_standby(self) -> None:
        memory = filled(MIB)
        with Standby("tcp:127.0.0.1:0") as standby:
            assert repr(standby) == f"<Standby at {standby.address}, point 0, waiting for a primary>"
            with precopy.replicate(memory, standby.address, interval=0.01) as handle:
                handle.wait(IN_TIME_S)
                assert repr(handle).startswith(f"<Replication to {standby.address}, points; ")
                assert "receiving" in repr(standby)
                assert "replicate" in repr(memory)
                with handle.cutover():
                    pass
            assert "cut over" in repr(handle)
            assert "the memory is its own" in repr(standby)
            assert "replicate" not in repr(memory)

    def test_of_one_that_failed(self) -> None:
        with replicated(filled(MIB), interval=0.01) as (standby, handle):
            handle.wait(IN_TIME_S)
            handle.close()
            until(lambda: standby.error is not None)
            assert "ended: the other side refused: the primary stopped" in repr(standby)
            assert "closed" in repr(handle)

    def test_of_changes(self) -> None:
        changes = Memory(2 * 4096).track()
        assert repr(changes) == "<Changes of a memory of 2 pages, not tracked>"
        with changes:
            assert repr(changes) == "<Changes of a memory of 2 pages, tracked>"

    @pytest.mark.parametrize("use", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
    def test_nothing_of_this_process_can_be_pickled_or_copied(self, use: object) -> None:
        memory = filled(MIB)
        with replicated(memory) as (standby, handle):
            for one in (memory, memory.track(), standby, handle):
                with pytest.raises(UsageError, match="cannot be pickled or copied") as said:
                    use(one)  # type: ignore[operator]
                assert "\n" not in str(said.value)

    def test_a_memory_as_an_argument_of_another_process_is_refused_in_a_sentence(self) -> None:
        with pytest.raises(UsageError, match="shared_memory"):
            ForkingPickler.dumps((Memory(4096),))


def test_a_memory_is_bytes_to_every_reader() -> None:
    memory = Memory(2 * 4096)
    view = memoryview(memory)
    view[3] = 200
    assert (view.format, view.itemsize, view.shape) == ("B", 1, (8192,))
    assert view[3] == memory[3] == memory.view[3] == np.asarray(memory)[3] == bytes(memory)[3] == 200
    memory[4:6] = b"ab"
    memory[6] = 7
    assert bytes(memory[3:7]) == b"\xc8ab\x07"
    assert list(memory)[:8] == [0, 0, 0, 200, 97, 98, 7, 0]
    assert 200 in memory
    assert memory[-1] == 0
    with pytest.raises(IndexError):
        memory[8192]
    assert np.asarray(memory).dtype == np.uint8
    assert np.frombuffer(memory, np.float64).size == 1024
