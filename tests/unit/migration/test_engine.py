"""Whole migrations without a kernel: every frame harmed in every way, every call of the guest failing, every order of
frames; the laws hold after each. The same is done to real guests in tests/integration/test_faults.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.errors import (
    Cancelled,
    GuestError,
    NotConverged,
    OutcomeUnknown,
    PeerLost,
    PeerProtocolError,
    PeerRefused,
    PrecopyError,
    VerificationFailed,
)
from precopy.migration import GuestIs, MigrationOptions, Source
from precopy.migration.results import Event, Verdict
from precopy.migration.switchover import Switchover
from precopy.planning.model.round import Round
from precopy.wire.events import Commit, Running
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
from support.scripted import OPTIONS, Fault, Harm, Run, ScriptedGuest, migrate

VERIFIED = replace(OPTIONS, verify=True)


def lawful(run: Run) -> Run:
    """Law 4 at every moment, law 1 where the guest went, and the source's word true of where it is."""
    assert run.world.broken == []
    there = run.destination.running
    if run.done is not None:
        assert there
        assert not run.source.running
        assert run.source_error is None
    elif isinstance(run.source_error, OutcomeUnknown):
        assert not run.source.running
        assert run.source_error.session == run.engine.session
    else:
        assert isinstance(run.source_error, PrecopyError | KeyboardInterrupt)
        assert run.source.running
        assert run.world.ran.count("destination") == 0
    if there:
        run.destination.pause()
        assert run.equal
        assert run.destination.self_check().broken == ()
    else:
        assert run.destination_error is not None
    assert not run.source.log.started
    return run


def frames(options: MigrationOptions = OPTIONS) -> tuple[int, int]:
    """How many frames each side sends where nothing goes wrong."""
    near, far = lawful(migrate(options)).streams
    return near.sent, far.sent


def test_a_migration_moves_the_guest_in_rounds() -> None:
    run = lawful(migrate())
    assert run.done is not None
    assert run.received is not None
    assert len(run.done.rounds) >= 3
    assert run.done.session == run.received.session
    assert run.source.steps > 20
    assert run.world.ran == ["source", "destination"]
    assert run.done.rounds[0].zero_pages > 0


@pytest.mark.parametrize("clear", ["per-page", "merged", "deferred"])
@pytest.mark.parametrize("tears", [False, True])
def test_every_clear_policy_also_where_batches_tear(clear: str, tears: bool) -> None:
    run = lawful(migrate(replace(VERIFIED, clear=clear), tears=tears))
    assert run.done is not None
    assert run.done.compared_pages > 0
    assert (sum(one.torn_batches for one in run.done.rounds) > 0) == tears


@given(st.integers(1, 150), st.floats(0, 40_000), st.integers(0, 1000), st.booleans())
def test_whatever_the_guest_writes(hot: int, per_s: float, seed: int, tears: bool) -> None:
    def script(source: ScriptedGuest, _: ScriptedGuest) -> None:
        source.hot, source.per_s, source.seed = hot, per_s, seed

    run = lawful(migrate(replace(OPTIONS, on_timeout="switch"), prepare=script, tears=tears))
    assert run.done is not None or isinstance(run.source_error, NotConverged)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("options", [OPTIONS, VERIFIED], ids=["plain", "verified"])
def test_every_frame_of_the_source_harmed(harm: Harm, options: MigrationOptions) -> None:
    many, _ = frames(options)
    harm_each_frame_of_the_sender(harm, many, lambda fault: lawful(migrate(options, source_fault=fault)))


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("options", [OPTIONS, VERIFIED], ids=["plain", "verified"])
def test_every_frame_of_the_destination_harmed(harm: Harm, options: MigrationOptions) -> None:
    _, many = frames(options)
    harm_each_frame_of_the_receiver(harm, many, lambda fault: lawful(migrate(options, destination_fault=fault)))


@pytest.mark.parametrize("at", [0.0, 0.02, 0.3, 0.999])
def test_a_flipped_byte_anywhere_in_a_frame(at: float) -> None:
    many, answers = frames()
    flip_a_byte_of_each_frame(at, many, lambda fault: lawful(migrate(source_fault=fault)))
    flip_a_byte_of_each_frame(at, answers, lambda fault: lawful(migrate(destination_fault=fault)))


@pytest.mark.parametrize("frame", SAMPLES, ids=lambda frame: type(frame).__name__)
def test_every_frame_at_every_place(frame: Frame) -> None:
    """Out of its order, with a right checksum and the right number: the other side refuses it or what follows it."""
    many, answers = frames()
    for nth in range(1, many):
        run = lawful(migrate(source_fault=Fault(Harm.INSERT, nth, frame=encoded(frame))))
        if isinstance(frame, Commit) and nth == many - 1:
            assert run.done is not None  # it was due
            continue
        assert run.done is None
        assert isinstance(run.destination_error, PeerProtocolError | PeerRefused)
    insert_before_each_answer(frame, answers, lambda fault: lawful(migrate(destination_fault=fault)))


CALLS = [
    *(("source", method) for method in ("pause", "save_state")),
    *(("destination", method) for method in ("load_state", "resume", "check")),
]


@pytest.mark.parametrize(("side", "method"), CALLS)
def test_every_call_of_the_guest_that_fails(side: str, method: str) -> None:
    def script(source: ScriptedGuest, destination: ScriptedGuest) -> None:
        (source if side == "source" else destination).fails[method] = 1

    run = lawful(migrate(VERIFIED, prepare=script))
    expected = GuestError if side == "source" else PeerRefused
    assert isinstance(run.source_error, expected)
    assert "the script has" in str(run.source_error)


def test_memories_that_differ_are_never_run() -> None:
    def script(_: ScriptedGuest, destination: ScriptedGuest) -> None:
        destination.damages = True

    run = lawful(migrate(VERIFIED, prepare=script))
    assert isinstance(run.source_error, VerificationFailed)
    assert run.source_error.exit_code == 7


def _events() -> int:
    return len(migrate().events)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_at_every_event(raised: type[BaseException]) -> None:
    """Told of an event, the program raises: but for the last round, of which it is told when the guest is gone."""
    for nth in range(_events()):
        count = 0

        def interrupt(_: Source, event: Event, nth: int = nth) -> None:
            nonlocal count
            count += 1
            if count == nth + 1:
                raise raised

        run = migrate(on_event=interrupt)
        assert run.world.broken == []
        assert run.source.running != run.destination.running
        assert run.destination.running == (run.engine.guest_is is GuestIs.THERE)
        assert run.destination.running or run.done is None


def test_cancelled_at_every_event() -> None:
    cancelled = 0
    for nth in range(_events()):
        count = 0

        def cancel(engine: Source, event: Event, nth: int = nth) -> None:
            nonlocal count
            count += 1
            if count == nth + 1:
                engine.cancel()

        run = lawful(migrate(on_event=cancel))
        assert run.done is not None or isinstance(run.source_error, Cancelled)
        cancelled += run.done is None
    assert cancelled >= _events() - 2  # after the commit it is too late


def test_a_guest_that_does_not_converge_stays() -> None:
    def script(source: ScriptedGuest, _: ScriptedGuest) -> None:
        source.hot, source.per_s = 150, 400_000.0

    run = lawful(migrate(replace(OPTIONS, downtime_limit_s=0.0001), prepare=script))
    assert isinstance(run.source_error, NotConverged)
    assert [type(event) for event in run.events if not isinstance(event, Round)].count(Verdict) >= 1


def test_a_destination_that_is_gone_before_anything_was_said() -> None:
    run = lawful(migrate(source_fault=Fault(Harm.CUT, 0)))
    assert isinstance(run.source_error, PeerLost)


def test_planted_torn_batches_that_are_forgotten_are_refused_by_the_destination(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant_torn_batches_that_are_forgotten(monkeypatch)
    # A write that tears a batch is found by the next sync in any case; what is lost is a byte that the link changed.
    run = lawful(migrate(source_fault=Fault(Harm.FLIP, 2, 0.7)))
    assert isinstance(run.destination_error, PeerProtocolError)
    assert "again" in str(run.destination_error)


def test_planted_a_source_that_runs_on_without_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = Switchover._commit

    def forget(switchover: Switchover) -> Running:
        try:
            return commit(switchover)
        except PeerLost:
            switchover._handover.guest_is = GuestIs.HERE
            raise

    monkeypatch.setattr(Switchover, "_commit", forget)
    _, answers = frames()
    with pytest.raises(AssertionError, match="began to run while destination did"):
        lawful(migrate(destination_fault=Fault(Harm.CUT, answers - 1)))


def test_planted_a_log_that_loses_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    plant_a_log_that_loses_a_page(monkeypatch)
    # Only a page that is not written again shows it, so a guest that writes other pages all the time.
    some_run_shows_it(lambda seed: lawful(migrate(prepare=lambda source, _: vars(source).update(hot=150, seed=seed))))
