"""The table of faults at every frame, for a migration and a replication alike: what must be known afterwards, and by
which side.

``run`` makes one whole conversation with a `Fault` at one side's stream, holds the laws against it and returns how it
ended. ``frames`` is how many that side sends where nothing goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest

from precopy.bitmap import Bitmap
from precopy.memory.layout import RamBlock
from precopy.migration.page_source import PageSource
from precopy.wire.events import Abort, PageBatch, Running
from precopy.wire.native import Frame
from support.frames import encoded
from support.scripted import Fault, Harm, ScriptedStream
from support.scripted_log import ScriptedLog

HARMS = [harm for harm in Harm if harm is not Harm.INSERT]


class Ended(Protocol):
    """A conversation that is over.

    ``given``: the sender knows that the receiver has the guest or the memory; ``unknown``: the sender said that it does
    not know; ``was_given``: the receiver has it. ``streams`` are the sender's and the receiver's.
    """

    @property
    def streams(self) -> tuple[ScriptedStream, ScriptedStream]: ...
    @property
    def given(self) -> bool: ...
    @property
    def unknown(self) -> bool: ...
    @property
    def was_given(self) -> bool: ...


def harm_each_frame_of_the_sender(harm: Harm, frames: int, run: Callable[[Fault], Ended]) -> None:
    unknown = 0
    for nth in range(frames):
        ended = run(Fault(harm, nth))
        assert ended.streams[0].struck
        unknown += ended.unknown
    # Only the commit, which is the last frame, leaves the outcome unknown; flipped, it is refused by name.
    assert unknown == (harm is not Harm.FLIP)


def harm_each_frame_of_the_receiver(harm: Harm, frames: int, run: Callable[[Fault], Ended]) -> None:
    for nth in range(frames):
        ended = run(Fault(harm, nth))
        assert ended.streams[1].struck
        # Its last frame says that it has what was moved; the one before it is what the sender answers with the commit.
        answers_commit, asks_for_commit = nth == frames - 1, nth == frames - 2
        assert ended.given == (answers_commit and harm is Harm.LAST)
        assert ended.unknown == ((asks_for_commit and harm is Harm.LAST) or (answers_commit and harm is not Harm.LAST))
        assert ended.was_given == answers_commit


def flip_a_byte_of_each_frame(at: float, frames: int, run: Callable[[Fault], Ended]) -> None:
    """``at``: which byte, as a share of the frame. Only the laws say what may come of it, and ``run`` holds them."""
    for nth in range(frames):
        run(Fault(Harm.FLIP, nth, at))


def insert_before_each_answer(frame: Frame, frames: int, run: Callable[[Fault], Ended]) -> None:
    """Out of its order, with a right checksum and the right number: the sender refuses it or what follows it."""
    for nth in range(1, frames):
        if isinstance(frame, Abort | Running) and nth == frames - 1:
            continue  # the first would be a lie that no protocol can find, the second is due
        assert not run(Fault(Harm.INSERT, nth, frame=encoded(frame))).given


def some_run_shows_it(run: Callable[[int], object], saying: str = "") -> None:
    """A planted fault breaks a law in one run of some seeds, at least: which pages are written, and how threads take
    turns, decide whether a page that was lost is written again before it is looked at."""

    def breaks_a_law(seed: int) -> bool:
        try:
            run(seed)
        except AssertionError as error:
            return saying in str(error)
        return False

    assert any(breaks_a_law(seed) for seed in range(1, 21))


def plant_a_log_that_loses_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first harvest forgets the last page that it found."""
    harvest = ScriptedLog.harvest

    def lose(log: ScriptedLog, dirty: Bitmap, block: RamBlock | None = None) -> None:
        if log.counters.get_calls == 1 and (found := log.dirty.indexes()).size:
            log.dirty.clear_range(int(found[-1]), 1)
        harvest(log, dirty, block)

    monkeypatch.setattr(ScriptedLog, "harvest", lose)


def plant_torn_batches_that_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender does not send them again."""
    end_round = PageSource.end_round

    def forget(source: PageSource, number: int, *, final: bool) -> list[PageBatch]:
        end_round(source, number, final=final)
        return []

    monkeypatch.setattr(PageSource, "end_round", forget)
