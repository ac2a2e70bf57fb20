"""Whole replications without a kernel: every frame harmed in every way, every order of frames; the laws hold after
each. The same is done to real programs in tests/integration/test_replication_faults.py."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.errors import OutcomeUnknown, PeerError, PeerLost, PeerProtocolError, PeerRefused, UsageError
from precopy.replication.primary import Primary
from precopy.replication.primary_staging import PrimaryStaging
from precopy.replication.standby_staging import StandbyStaging
from precopy.wire.events import Commit, PageBatch, PointAck
from precopy.wire.native import Frame
from support.frame_faults import (
    HARMS,
    flip_a_byte_of_each_frame,
    harm_each_frame_of_the_receiver,
    harm_each_frame_of_the_sender,
    insert_before_each_answer,
    plant_a_log_that_loses_a_page,
    plant_torn_batches_that_are_forgotten,
    some_run_shows_it,
)
from support.frames import SAMPLES, encoded
from support.scripted import Fault, Harm
from support.scripted_replication import Replicated, content, replicate


def lawful(run: Replicated) -> Replicated:
    """A standby never shows half a point; it has every point that it acknowledged; at most one side has the memory."""
    assert run.half == []
    shown = run.standby.point
    assert shown >= run.primary.points.number
    if run.memory is None:
        assert shown == 0
        assert (run.standby.error is None) == run.waits
    else:
        assert np.array_equal(content(run.memory), run.sealed[shown])
    if run.given:
        assert run.error is None
        assert run.was_given
        assert run.memory is not None
        assert np.array_equal(content(run.memory), run.program.pages)
    elif run.unknown:
        assert isinstance(run.error, OutcomeUnknown)
        assert run.error.session == run.primary.session
        assert run.memory is not None
        assert np.array_equal(content(run.memory), run.program.pages)
    else:
        assert isinstance(run.error, PeerError)
        assert not run.was_given
    assert not run.program.consumer("").started
    return run


def frames() -> tuple[int, int]:
    """How many frames each side sends where nothing goes wrong."""
    near, far = lawful(replicate()).streams
    return near.sent, far.sent


def test_a_replication_gives_its_memory_away() -> None:
    run = lawful(replicate())
    assert run.given
    assert run.program.steps > 20
    assert len(run.sealed) >= 3
    assert not np.array_equal(run.sealed[1], run.sealed[2])
    # All that was written since the last of the points that it made by itself went in the last one.
    assert run.standby.point == run.primary.points.number


@given(
    points=st.integers(0, 4),
    rounds=st.integers(0, 4),
    hot=st.integers(1, 150),
    seed=st.integers(0, 999),
    every=st.integers(1, 9),
    tears=st.booleans(),
    exact=st.booleans(),
)
def test_whatever_the_program_writes(**script: Any) -> None:
    assert lawful(replicate(**script)).given


def test_what_is_not_armed_is_looked_at_exactly_before_the_memory_is_given_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = lawful(replicate(points=2, exact=False))
    assert run.given
    assert run.primary.points.number <= 4
    monkeypatch.setattr(Primary, "exactly", lambda _: contextlib.nullcontext())
    run = replicate(points=2, exact=False)
    assert not run.given
    assert isinstance(run.error, UsageError)  # it looks as if the program wrote on


@pytest.mark.parametrize("tears", [False, True])
@pytest.mark.parametrize("harm", HARMS)
def test_every_frame_of_the_primary_harmed(harm: Harm, tears: bool) -> None:
    many = lawful(replicate(tears=tears)).streams[0].sent
    harm_each_frame_of_the_sender(harm, many, lambda fault: lawful(replicate(tears=tears, source_fault=fault)))


@pytest.mark.parametrize("harm", HARMS)
def test_every_frame_of_the_standby_harmed(harm: Harm) -> None:
    _, many = frames()
    harm_each_frame_of_the_receiver(harm, many, lambda fault: lawful(replicate(standby_fault=fault)))


@pytest.mark.parametrize("at", [0.0, 0.02, 0.3, 0.999])
def test_a_flipped_byte_anywhere_in_a_frame(at: float) -> None:
    many, answers = frames()
    flip_a_byte_of_each_frame(at, many, lambda fault: lawful(replicate(source_fault=fault)))
    flip_a_byte_of_each_frame(at, answers, lambda fault: lawful(replicate(standby_fault=fault)))


@pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
def test_every_frame_at_every_place(frame: Frame) -> None:
    """Out of its order, with a right checksum and the right number: the other side refuses it or what follows it."""
    many, answers = frames()
    for nth in range(1, many):
        run = replicate(source_fault=Fault(Harm.INSERT, nth, frame=encoded(frame)))
        assert run.half == []
        if isinstance(frame, Commit) and run.was_given:
            # A primary that commits at a point has given away that point: the standby has exactly it.
            assert run.memory is not None
            assert np.array_equal(content(run.memory), run.sealed[run.standby.point])
            continue
        lawful(run)
        assert not run.given
        assert isinstance(run.standby.error, PeerProtocolError | PeerRefused)

    def answered(fault: Fault) -> Replicated:
        run = replicate(standby_fault=fault)
        assert run.half == []
        return run

    insert_before_each_answer(frame, answers, answered)


def test_promoted_at_every_step() -> None:
    """The program at the standby takes the memory while more is coming: it has its last point, and no more comes."""
    steps = 0

    def count(_: Replicated) -> None:
        nonlocal steps
        steps += 1

    lawful(replicate(on_receive=count))
    promoted = 0
    for nth in range(steps):
        step = 0

        def promote(run: Replicated, nth: int = nth) -> None:
            nonlocal step
            step += 1
            if step == nth + 1 and run.standby.point:
                run.standby.promote()

        run = replicate(on_receive=promote)
        assert run.half == []
        assert run.memory is not None
        assert np.array_equal(content(run.memory), run.sealed[run.standby.point])
        if not run.given:
            promoted += 1
            assert isinstance(run.error, PeerRefused | PeerLost | OutcomeUnknown)
    assert promoted > 10


def test_planted_a_point_applied_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    landed = StandbyStaging.landed

    def at_once(staged: StandbyStaging, batch: PageBatch, matches: bool) -> None:
        landed(staged, batch, matches)
        staged._put(batch.content, staged._coming)

    monkeypatch.setattr(StandbyStaging, "landed", at_once)
    some_run_shows_it(lambda seed: lawful(replicate(seed=seed)), "at point")


def test_planted_a_log_that_loses_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_a_log_that_loses_a_page(monkeypatch)
    # Only a page that is not written again shows it, so a program that writes other pages all the time.
    some_run_shows_it(lambda seed: lawful(replicate(hot=150, seed=seed)))


def test_planted_torn_batches_that_are_forgotten_are_refused_by_the_standby(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_torn_batches_that_are_forgotten(monkeypatch)
    run = lawful(replicate(source_fault=Fault(Harm.FLIP, 2, 0.7)))
    assert isinstance(run.standby.error, PeerProtocolError)
    assert "not again" in str(run.standby.error)


def test_planted_staging_that_is_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that was staged before and is written again keeps what was staged first: the point is no moment's."""
    copy = PrimaryStaging.copy

    def once(staging: PrimaryStaging, *arguments: Any) -> None:
        if not staging.pages:
            copy(staging, *arguments)

    monkeypatch.setattr(PrimaryStaging, "copy", once)
    some_run_shows_it(lambda seed: lawful(replicate(seed=seed)))


def test_an_answer_to_another_point_is_refused() -> None:
    answers = frames()[1]
    for nth in range(1, answers):
        run = replicate(standby_fault=Fault(Harm.INSERT, nth, frame=encoded(PointAck(99))))
        assert isinstance(run.error, PeerProtocolError | OutcomeUnknown)
