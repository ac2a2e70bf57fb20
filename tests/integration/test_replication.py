"""A program's memory replicated while the program writes it: to a cutover, and point by point."""

from __future__ import annotations

import contextlib
import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import precopy
from precopy import Memory, Replication, Standby
from precopy.errors import HelloMismatch, PeerError, PeerLost, PeerRefused, UsageError
from precopy.replication.progress import CutOver, Phase, ReplicationProgress, StandbyProgress
from support import replicas
from support.live_guests import Ending, until
from support.patience import IN_TIME_S
from support.replicas import MIB, WORDS, Steps, Writers, filled, replicated, same, stepping, words

pytestmark = [pytest.mark.needs("pagemap"), pytest.mark.usefixtures("nothing_left")]
SILENT_S = 3.0
"""A time-out, in seconds, within which a peer that is there says so, also on a busy machine: twelve signs of life."""


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "tcp:127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/standby"


def write_and_return_zero(memory: Memory) -> int:
    words(memory)[17] += np.uint64(1)
    return 0


class TestCutover:
    @pytest.mark.parametrize("threads", [0, 1, 3])
    @pytest.mark.parametrize("size", [1, 4096, 3 * 4096, 65 * 4096, MIB, 24 * MIB])
    def test_the_copy_is_exact(self, address: str, size: int, threads: int) -> None:
        memory = filled(size)
        with replicated(memory, address) as (standby, handle), Writers(memory, threads) as writers:
            assert handle.wait(IN_TIME_S)
            time.sleep(0.05)
            writers.stop()
            with handle.cutover() as done:
                assert same(memory, standby.memory)  # type: ignore[arg-type]
                assert not done.given
            assert done.given
            assert same(memory, standby.promote())
            assert done.rounds >= 1
            assert done.points >= 1
            assert handle.progress.phase is Phase.CUT_OVER
            assert handle.error is None
            assert standby.error is None
            assert standby.wait(0)

    @pytest.mark.parametrize("seed", range(12))
    def test_at_any_moment(self, address: str, seed: int) -> None:
        chance = random.Random(seed)
        memory = filled(chance.randrange(1, 2000) * 4096, seed)
        with replicated(memory, address) as (standby, handle), Writers(memory, 2) as writers:
            time.sleep(chance.random() * 0.2)
            writers.stop()
            with handle.cutover():
                assert same(memory, standby.memory)  # type: ignore[arg-type]
            assert same(memory, standby.promote())

    def test_more_than_is_staged_is_left(self) -> None:
        """At once, with 96 MiB to send and a program that stands still for it."""
        memory = filled(96 * MIB)
        with replicated(memory) as (standby, handle):
            with handle.cutover() as done:
                assert same(memory, standby.memory)  # type: ignore[arg-type]
            assert done.sent_bytes < memory.size * 1.2
            assert same(memory, standby.promote())

    def test_receive_memory_gives_it(self, tmp_path: Path) -> None:
        memory, received = filled(MIB), []
        address = f"unix:{tmp_path}/standby"
        thread = threading.Thread(target=lambda: received.append(precopy.receive_memory(address)))
        thread.start()
        until((tmp_path / "standby").exists)
        with precopy.replicate(memory, address) as handle:
            with handle.cutover():
                pass
            thread.join(IN_TIME_S)
            assert same(memory, received[0])
        words(received[0])[:] = 1  # it is this side's own
        assert not same(memory, received[0])

    def test_a_program_that_does_not_stand_still_is_told_and_goes_on(self) -> None:
        memory = filled(8 * MIB)
        with replicated(memory) as (standby, handle):
            with Writers(memory, 2, pause=0) as writers:
                handle.wait(IN_TIME_S)
                with pytest.raises(UsageError, match="is written while it is cut over"), handle.cutover():
                    pass
                assert handle.error is None
                writers.stop()
            with handle.cutover():
                assert same(memory, standby.memory)  # type: ignore[arg-type]
            assert same(memory, standby.promote())

    def test_what_comes_afterwards_stays_on_its_side(self) -> None:
        memory = filled(MIB)
        with replicated(memory) as (standby, handle):
            with handle.cutover():
                pass
            copy = standby.promote()
            before = words(copy).copy()
            words(memory)[:] = 5
            for call in (handle.checkpoint, lambda: handle.cutover().__enter__()):
                with pytest.raises(UsageError):
                    call()
            assert handle.wait()
            assert np.array_equal(words(copy), before)

    def test_an_error_in_the_block_is_the_programs(self) -> None:
        memory = filled(MIB)
        with replicated(memory) as (standby, handle):
            for _ in range(2):
                with pytest.raises(ZeroDivisionError), handle.cutover():
                    words(memory)[17] = 1 // write_and_return_zero(memory)
                assert handle.progress.phase is Phase.POINTS
                assert handle.error is None
                assert not standby.wait(0)  # it is no more than a standby
            with handle.cutover():
                pass
            assert handle.progress.phase is Phase.CUT_OVER
            assert same(memory, standby.promote())

    @pytest.mark.parametrize("interval", [None, 0.02])
    @pytest.mark.parametrize("pages", [1, 3, 5000])
    def test_what_the_block_writes_is_in_the_copy(self, address: str, pages: int, interval: float | None) -> None:
        memory = filled(24 * MIB)
        with replicated(memory, address, interval=interval) as (standby, handle):
            with handle.cutover() as done:
                words(memory)[: pages * WORDS : WORDS] = 77
                time.sleep(0.1)  # several intervals
                words(memory)[5 : (pages + 1) * WORDS : WORDS] = 78
            assert done.given
            assert done.block_s >= 0.1
            assert done.copy_s > 0
            assert same(memory, standby.promote())

    def test_a_long_block_does_not_lose_the_standby(self) -> None:
        memory = filled(MIB)
        with (
            Standby("tcp:127.0.0.1:0", timeout=SILENT_S) as standby,
            precopy.replicate(memory, standby.address, timeout=SILENT_S) as handle,
        ):
            with handle.cutover():
                time.sleep(1.5 * SILENT_S)
                words(memory)[3] = 4
            assert same(memory, standby.promote())

    def test_a_standby_promoted_in_the_block_is_no_cutover(self) -> None:
        memory = filled(MIB)
        with replicated(memory) as (standby, handle):
            before = words(memory).copy()
            with contextlib.ExitStack() as block:
                done = block.enter_context(handle.cutover())
                copy = standby.promote()
                words(memory)[9] += np.uint64(1)
                with pytest.raises(PeerError, match="the standby was promoted"):
                    block.close()
            assert not done.given
            assert handle.progress.phase is Phase.FAILED
            assert np.array_equal(words(copy), before)

    @pytest.mark.parametrize("same_thread", [True, False])
    def test_a_cutover_in_the_block_is_refused_and_the_outer_one_decides(self, same_thread: bool) -> None:
        memory = filled(MIB)
        refused: list[UsageError] = []

        def nested() -> None:
            try:
                with handle.cutover():
                    refused.clear()
            except UsageError as error:
                refused.append(error)

        with replicated(memory) as (standby, handle):
            with handle.cutover() as done:
                if same_thread:
                    nested()
                else:
                    thread = threading.Thread(target=nested)
                    thread.start()
                    thread.join(IN_TIME_S)
                assert "is inside a cutover already" in str(refused[0])
                assert not done.given
                assert handle.progress.phase is not Phase.CUT_OVER
                words(memory)[9] = 1
            assert done.given
            assert same(memory, standby.promote())
            with pytest.raises(UsageError, match="was given to the standby"), handle.cutover():
                pass

    @pytest.mark.parametrize("call", ["checkpoint", "close", "cutover"])
    def test_calls_in_the_block(self, call: str) -> None:
        memory = filled(MIB)
        with replicated(memory, interval=0.01) as (standby, handle):
            said = {"checkpoint": "", "close": "is closed", "cutover": "inside a cutover already"}[call]
            with pytest.raises(UsageError, match=said) if said else contextlib.nullcontext(), handle.cutover() as done:
                words(memory)[9] = 1
                if call == "checkpoint":
                    handle.checkpoint(wait=True)
                elif call == "close":
                    handle.close()
                else:
                    with handle.cutover():
                        words(memory)[10] = 1
            assert done.given == (not said)
            if call == "cutover":  # refused, so nothing was given away and the replication goes on
                handle.checkpoint(wait=True)
            if call != "close":
                assert same(memory, standby.promote())

    def test_writes_that_come_too_late_are_told(self) -> None:
        """Between the last sync and the standby's answer: given away, and said."""
        memory = filled(MIB)
        with replicated(memory) as (standby, handle):
            primary = handle._background.primary
            commit = primary.commit

            def meanwhile() -> None:
                words(memory)[::WORDS][:3] += np.uint64(1)
                commit()

            primary.commit = meanwhile  # type: ignore[method-assign]
            with pytest.raises(UsageError, match="3 pages of it were written here"), handle.cutover() as done:
                pass
            assert done.given
            assert handle.progress.phase is Phase.CUT_OVER
            assert not same(memory, standby.promote())

    def test_adopted_memory(self) -> None:
        array = np.frombuffer(Memory(MIB), np.uint64)
        array[:] = 7
        memory = Memory.adopt(array)
        with replicated(memory) as (standby, handle):
            with handle.cutover():
                pass
            assert same(memory, standby.promote())

    def test_bandwidth_limit(self) -> None:
        memory = Memory(4 * MIB)
        words(memory)[:] = 1
        began = time.perf_counter()
        with replicated(memory, max_bandwidth=10_000_000) as (standby, handle):
            with handle.cutover():
                assert time.perf_counter() - began > 0.9 * 4 * MIB / 10e6
            assert same(memory, standby.promote())


class Watching:
    """Called with progress; keeps it."""

    def __init__(self) -> None:
        self.told: list[ReplicationProgress | StandbyProgress] = []

    def __call__(self, progress: ReplicationProgress | StandbyProgress) -> None:
        self.told.append(progress)


class TestProgress:
    def test_at_the_primary(self) -> None:
        memory, lock, watching = filled(8 * MIB), threading.Lock(), Watching()
        with replicated(memory, interval=0.02, lock=lock, on_progress=watching) as (_, handle):
            with Writers(memory, 1, lock=lock):
                assert handle.wait(IN_TIME_S)
                until(lambda: handle.progress.points >= 10)
                # Of the last round or point: on a busy machine one may have found nothing, and sent nothing.
                seen: list[ReplicationProgress] = []
                until(lambda: bool(seen.append(handle.progress) or seen[-1].dirty_rate_bytes_per_s))
            progress = seen[-1]
        assert progress.phase is Phase.POINTS
        assert progress.rounds >= 1
        assert progress.sent_bytes > 5 * MIB
        assert 0 <= progress.remaining_bytes <= memory.size
        assert progress.dirty_rate_bytes_per_s > 0
        assert progress.bandwidth_bytes_per_s > 0
        assert progress.last_point_age_s is not None
        assert progress.lock_held_s is not None
        assert 0 <= progress.last_point_age_s < progress.elapsed_s
        assert 0 < progress.lock_held_s < progress.elapsed_s
        assert watching.told[-1].phase is Phase.CLOSED  # type: ignore[union-attr]
        last = watching.told[-1]
        assert isinstance(last, ReplicationProgress)
        assert len(watching.told) < 10 * last.elapsed_s + 5  # which ten times a second are, whenever it was closed

    def test_at_the_standby(self) -> None:
        memory, watching = filled(8 * MIB), Watching()
        with (
            Standby("tcp:127.0.0.1:0", on_progress=watching) as standby,
            precopy.replicate(memory, standby.address, interval=math.inf) as handle,
        ):
            handle.checkpoint(wait=True)
            # What was told before the point came says nothing of it.
            until(lambda: any(told.point and not told.staged_bytes for told in watching.told))  # type: ignore[union-attr]
            last = watching.told[-1]
        assert isinstance(last, StandbyProgress)
        assert (last.memory_bytes, last.point, last.staged_bytes) == (memory.size, 1, 0)
        assert last.received_bytes >= 5 * MIB

    def test_a_callback_that_raises_ends_it(self) -> None:
        def fail(_: object) -> None:
            raise ZeroDivisionError

        memory = filled(MIB)
        with replicated(memory, on_progress=fail) as (standby, handle):
            until(lambda: handle.error is not None)
            assert isinstance(handle.error, ZeroDivisionError)
            with pytest.raises(ZeroDivisionError):
                handle.wait()
            until(lambda: standby.error is not None)
            assert "internal error at the primary: ZeroDivisionError" in str(standby.error)

    def test_a_callback_may_call_back(self) -> None:
        handles: list[Replication] = []
        memory = filled(MIB)

        def call(progress: ReplicationProgress) -> None:
            if handles and progress.points < 3:
                handles[0].checkpoint(wait=True)
            elif handles:
                handles[0].close()

        with replicated(memory, interval=math.inf, on_progress=call) as (standby, handle):
            handles.append(handle)
            until(lambda: handle.progress.phase is Phase.CLOSED)
            assert handle.error is None
            assert standby.point == 3

    def test_a_callback_may_take_the_programs_lock(self) -> None:
        memory, lock = filled(MIB), threading.Lock()

        def call(_: object) -> None:
            with lock:
                pass

        with replicated(memory, interval=0.005, lock=lock, on_progress=call) as (_, handle), stepping(memory, lock):
            for _ in range(60):
                with lock:
                    time.sleep(0.005)
                    handle.checkpoint()


class TestPointsUnderALock:
    @pytest.mark.parametrize("seed", range(10))
    def test_whatever_is_promoted_is_consistent(self, address: str, seed: int) -> None:
        memory, lock = Memory((2 + seed * 37) * 4096 + 4096), threading.Lock()
        with replicated(memory, address, interval=0.01, lock=lock) as (standby, handle), stepping(memory, lock):
            assert handle.wait(IN_TIME_S)
            time.sleep(random.Random(seed).random() * 0.3)
            copy = standby.promote()
            point = standby.point
            steps = Steps(copy)
            assert steps.consistent()
            made = steps.made
            until(lambda: handle.error is not None)
            assert isinstance(handle.error, PeerRefused)
            assert "the standby was promoted" in str(handle.error)
            assert (steps.made, standby.point) == (made, point)

    def test_several_threads_write(self) -> None:
        memory, lock = filled(16 * MIB), threading.RLock()
        with replicated(memory, interval=0.02, lock=lock) as (standby, handle):
            with Writers(memory, 3, lock=lock) as writers:
                handle.wait(IN_TIME_S)
                until(lambda: handle.progress.points >= 10)
                with lock:
                    handle.checkpoint(wait=True)
                    assert same(memory, standby.memory)  # type: ignore[arg-type]
                writers.stop()
            with handle.cutover():
                pass
            assert same(memory, standby.promote())

    def test_the_lock_is_free_while_a_point_is_sent(self) -> None:
        """At 200 kB/s a point of 128 pages takes more than two seconds; the lock is held for far less, also by a thread
        that waits for a core."""
        memory, lock = Memory(MIB), threading.Lock()
        with replicated(memory, interval=0.01, lock=lock, max_bandwidth=200_000) as (standby, handle):
            handle.wait(IN_TIME_S)
            with lock:
                words(memory)[: 128 * WORDS] = 1
            until(lambda: handle.progress.staged_bytes > 0)
            longest, sending = 0.0, time.perf_counter()
            while not words(standby.memory)[0]:  # type: ignore[arg-type]
                began = time.perf_counter()
                with lock:
                    longest = max(longest, time.perf_counter() - began)
                assert began - sending < IN_TIME_S
                time.sleep(0.01)
            assert longest < (time.perf_counter() - sending) / 2

    def test_a_lock_that_is_held_for_long_loses_nobody(self) -> None:
        memory, lock = filled(MIB), threading.Lock()
        with Standby("tcp:127.0.0.1:0", timeout=SILENT_S) as standby:
            with precopy.replicate(memory, standby.address, interval=0.02, lock=lock, timeout=SILENT_S) as handle:
                handle.wait(IN_TIME_S)
                with lock:
                    time.sleep(1.5 * SILENT_S)
                    before = handle.progress.points
                assert handle.error is None
                until(lambda: handle.progress.points > before)
            assert standby.point

    @pytest.mark.parametrize("call", ["checkpoint", "cutover", "close"])
    def test_every_call_may_be_made_with_the_lock_held(self, call: str) -> None:
        memory, lock = filled(MIB), threading.Lock()
        with replicated(memory, interval=0.005, lock=lock) as (standby, handle):
            handle.wait(IN_TIME_S)
            with lock:
                time.sleep(0.05)  # by now it waits for the lock
                words(memory)[3] = 99
                if call == "checkpoint":
                    handle.checkpoint(wait=True)
                elif call == "cutover":
                    with handle.cutover():
                        pass
                else:
                    handle.close()
                if call != "close":
                    assert words(standby.memory)[3] == 99  # type: ignore[arg-type]


class TestPointsWithoutALock:
    def test_a_point_is_the_memory_at_one_instant(self) -> None:
        """The program counts in one page and then in another, with pauses at any place: at every instant they are equal
        or one apart, however large the memory between them is."""
        memory = filled(16 * MIB)
        first, last = words(memory)[:1], words(memory)[-1:]
        first[0] = last[0] = 0
        stop = threading.Event()

        def count() -> None:
            chance = random.Random(1)
            while not stop.is_set():
                for counter in (first, last):
                    counter[0] += np.uint64(1)
                    if chance.random() < 0.01:
                        time.sleep(chance.random() * 0.05)

        for _ in range(5):
            with replicated(memory, interval=0.05) as (standby, handle):
                thread = threading.Thread(target=count)
                thread.start()
                try:
                    assert handle.wait(IN_TIME_S)
                    until(lambda: standby.point >= 2)
                    copy = standby.promote()
                finally:
                    stop.set()
                    thread.join()
                    stop.clear()
                assert int(words(copy)[0]) - int(words(copy)[-1]) in (0, 1)

    def test_a_program_that_never_pauses_has_no_points_but_checkpoints(self) -> None:
        memory = filled(2 * MIB)
        with replicated(memory, interval=0.05) as (standby, handle):
            with Writers(memory, 2, pause=0) as writers:
                until(lambda: handle.progress.quiet_misses >= 3)
                assert handle.progress.points == standby.point == 0
                assert standby.memory is None
                with pytest.raises(UsageError, match="no point yet"):
                    standby.promote()
                writers.stop()
                handle.checkpoint(wait=True)
            assert standby.point >= 1
            assert same(memory, standby.promote())

    def test_one_that_pauses_has_them_by_itself(self, address: str) -> None:
        memory = filled(4 * MIB)
        with replicated(memory, address, interval=0.02) as (standby, handle):
            with Writers(memory, 1, pause=0.04):
                handle.wait(IN_TIME_S)
                until(lambda: standby.point >= 5)
            point = standby.point
            until(lambda: standby.point > point + 1)
            assert same(memory, standby.promote())


class TestCheckpoints:
    def test_each_is_what_the_memory_was(self, address: str) -> None:
        memory = Memory(64 * 4096)
        steps = Steps(memory)
        with replicated(memory, address, interval=math.inf) as (standby, handle):
            for _ in range(40):
                steps.step()
                handle.checkpoint()
                steps.step()  # while it is being sent
            handle.checkpoint(wait=True)
            assert standby.point == 41
            assert same(memory, standby.promote())

    @pytest.mark.parametrize("seed", range(8))
    def test_promoted_between_them(self, address: str, seed: int) -> None:
        memory = Memory(300 * 4096)
        steps, chance = Steps(memory), random.Random(seed)
        with replicated(memory, address, interval=math.inf) as (standby, handle):
            handle.checkpoint(wait=True)

            def promote() -> None:
                time.sleep(chance.random() * 0.05)
                standby.promote()

            thread = threading.Thread(target=promote)
            thread.start()
            with contextlib.suppress(PeerError):
                while True:
                    steps.step()
                    steps.step()
                    handle.checkpoint()
            thread.join()
            copy = Steps(standby.promote())
            assert copy.consistent()
            assert copy.made % 2 == 0

    def test_need_an_interval(self) -> None:
        with replicated(filled(4096)) as (_, handle), pytest.raises(UsageError, match="without an interval"):
            handle.checkpoint()

    def test_before_the_first_round_is_over(self) -> None:
        memory = filled(32 * MIB)
        with replicated(memory, interval=math.inf) as (standby, handle):
            handle.checkpoint(wait=True)
            assert standby.point == 1
            assert same(memory, standby.memory)  # type: ignore[arg-type]


class TestSeveralAtOnce:
    def test_two_standbys_of_one_memory(self, tmp_path: Path) -> None:
        memory, lock = filled(8 * MIB), threading.Lock()
        with (
            replicated(memory, interval=0.02, lock=lock) as (one, first),
            replicated(memory, f"unix:{tmp_path}/s") as (other, second),
            Writers(memory, 2, lock=lock) as writers,
        ):
            first.wait(IN_TIME_S)
            second.wait(IN_TIME_S)
            until(lambda: one.point >= 3)
            writers.stop()
            with second.cutover():
                pass
            assert same(memory, other.promote())
            words(memory)[::WORDS] += np.uint64(1)
            with first.cutover():
                pass
            assert same(memory, one.promote())
            assert not same(memory, other.promote())

    def test_tracked_by_the_program_too(self) -> None:
        memory = filled(MIB)
        with memory.track() as changes, replicated(memory, interval=math.inf) as (standby, handle):
            handle.checkpoint(wait=True)
            changes.sync()
            words(memory)[5 * WORDS] = 1
            handle.checkpoint(wait=True)
            assert list(changes.sync().runs) == [(5, 1)]
            assert same(memory, standby.promote())


class TestClosing:
    @pytest.mark.parametrize("seed", range(10))
    def test_at_any_time(self, address: str, seed: int) -> None:
        chance = random.Random(seed)
        memory, lock = filled(4 * MIB), threading.Lock()
        with Standby(address) as standby, stepping(memory, lock):
            points = chance.choice([{}, {"interval": 0.005, "lock": lock}, {"interval": 0.005, "lock": lock}])
            handle = precopy.replicate(memory, standby.address, timeout=IN_TIME_S, **points)  # type: ignore[arg-type]
            time.sleep(chance.random() * 0.15)
            began = time.perf_counter()
            handle.close()
            assert time.perf_counter() - began < IN_TIME_S
            handle.close()
            assert handle.error is None
            with pytest.raises(UsageError, match="the replication is closed"):
                handle.cutover().__enter__()
            until(lambda: standby.error is not None)
            assert "the primary stopped replicating" in str(standby.error)
            assert (standby.memory is None) == (standby.point == 0)

    def test_while_the_standby_takes_nothing(self) -> None:
        """It listens, and nobody accepts: the hello is sent, and not answered."""
        import socket

        with socket.create_server(("127.0.0.1", 0)) as server:
            began = time.perf_counter()
            with pytest.raises(PeerLost, match="silent"):
                precopy.replicate(filled(4096), f"tcp:127.0.0.1:{server.getsockname()[1]}", timeout=0.3)
            assert time.perf_counter() - began < IN_TIME_S

    def test_a_standby_that_closes_is_noticed(self) -> None:
        memory = filled(MIB)
        with replicated(memory, interval=0.02) as (standby, handle):
            handle.wait(IN_TIME_S)
            standby.close()
            until(lambda: handle.error is not None)
            assert isinstance(handle.error, PeerError)
            assert standby.error is None
            with pytest.raises(PeerError):
                handle.checkpoint()
            assert standby.promote() is standby.memory

    def test_a_standby_that_nobody_came_to(self, address: str) -> None:
        with Standby(address) as standby:
            assert not standby.wait(0.01)
            with pytest.raises(UsageError, match="no point yet"):
                standby.promote()
        with pytest.raises(UsageError, match="closed"):
            standby.wait()

    def test_memory_that_is_closed_is_not_taken_for_one_that_nobody_writes(self) -> None:
        memory = filled(MIB)
        with replicated(memory, interval=0.02) as (standby, handle):
            handle.wait(IN_TIME_S)
            memory.close()
            words(memory)[0] = 123456789
            until(lambda: handle.error is not None)
            assert "the memory is closed" in str(handle.error)
            assert words(standby.promote())[0] != 123456789


class TestWhatCannotBeMeant:
    @pytest.mark.parametrize(
        "options",
        [
            {"interval": 0},
            {"interval": -1},
            {"interval": math.nan},
            {"timeout": 0},
            {"quiet": -1},
            {"max_bandwidth": 9},
        ],
        ids=str,
    )
    def test_options(self, options: dict[str, float]) -> None:
        with pytest.raises(UsageError):
            precopy.replicate(filled(4096), "tcp:127.0.0.1:1", **options)  # type: ignore[arg-type]

    def test_nobody_there(self) -> None:
        with pytest.raises(PeerLost, match="cannot connect"):
            precopy.replicate(filled(4096), "unix:/nowhere/at/all")
        with pytest.raises(UsageError, match="is not an address"):
            precopy.replicate(filled(4096), "standby:7000")

    def test_on_loss(self) -> None:
        with pytest.raises(UsageError, match="on_loss"):
            precopy.receive_memory("tcp:127.0.0.1:0", on_loss="shrug")  # type: ignore[arg-type]

    def test_a_memory_larger_than_the_standby_takes(self) -> None:
        with Standby("tcp:127.0.0.1:0", max_size=MIB) as standby:
            with pytest.raises(PeerRefused, match=rf"has {MIB + 4096} bytes, this side takes {MIB} at most"):
                precopy.replicate(Memory(MIB + 4096), standby.address)
            until(lambda: standby.error is not None)
            assert isinstance(standby.error, HelloMismatch)

    def test_a_closed_memory(self) -> None:
        memory = Memory(4096)
        memory.close()
        with Standby("tcp:127.0.0.1:0") as standby, pytest.raises(UsageError, match="closed"):
            precopy.replicate(memory, standby.address)


@contextlib.contextmanager
def primary_process(address: str, size: int, interval: float) -> Iterator[subprocess.Popen[str]]:
    """A program of its own whose memory is replicated, once its standby has the first point; killed at the end."""
    command = [sys.executable, replicas.__file__, address, str(size), str(interval)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


class TestPrimaryThatIsKilled:
    @pytest.mark.parametrize("seed", range(6))
    def test_the_standby_is_promoted_to_one_of_its_states(self, tmp_path: Path, seed: int) -> None:
        address = "tcp:127.0.0.1:0" if seed % 2 else f"unix:{tmp_path}/standby"
        with Standby(address) as standby:
            with primary_process(standby.address, (500 + 300 * seed) * 4096, 0.01) as process:
                time.sleep(random.Random(seed).random() * 0.6)
                process.kill()
                with pytest.raises(PeerLost):
                    standby.wait(IN_TIME_S)
            steps = Steps(standby.promote())
            assert standby.point >= 1
            assert steps.made >= 1 or standby.point == 1
            assert steps.consistent()

    @pytest.mark.parametrize("on_loss", ["promote", "raise"])
    def test_receive_memory(self, tmp_path: Path, on_loss: str) -> None:
        address, endings = f"unix:{tmp_path}/standby", []
        thread = threading.Thread(
            target=lambda: endings.append(
                Ending.of(lambda: precopy.receive_memory(address, on_loss=on_loss))  # type: ignore[arg-type]
            )
        )
        thread.start()
        until((tmp_path / "standby").exists)
        with primary_process(address, MIB, 0.02) as process:
            time.sleep(0.2)
            process.kill()
        thread.join(IN_TIME_S)
        if on_loss == "raise":
            assert isinstance(endings[0].error, PeerLost)
        else:
            assert Steps(endings[0].result).consistent()


def test_what_a_cutover_took() -> None:
    took = CutOver(waited_s=0.5, copy_s=0.25, commit_s=0.125, rounds=3, points=1, sent_bytes=7)
    assert took.total_s == 0.875
