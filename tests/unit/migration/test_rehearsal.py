"""When a switchover is rehearsed, and what a machine that fails then changes: nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.errors import GuestError
from precopy.migration.rehearsal import Rehearsal
from support.scripted import OPTIONS, ScriptedGuest, migrate


class _Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


class _Machine:
    """Rehearses for ``takes`` seconds, one after the other."""

    kind = machine = "timed"
    running = True

    def __init__(self, clock: _Clock, takes: list[float]) -> None:
        self.clock, self.takes, self.times = clock, list(takes), 0

    def pause(self) -> float:
        raise NotImplementedError

    resume = pause

    def rehearse(self) -> None:
        self.times += 1
        self.clock.at += self.takes.pop(0)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=40))
def test_it_takes_a_twentieth_of_the_time_unless_it_got_slower(rounds: list[tuple[float, float]]) -> None:
    clock = _Clock()
    machine = _Machine(clock, [takes for _, takes in rounds])
    rehearsal = Rehearsal(machine, clock)
    took = ended = 0.0
    for round_s, _ in rounds:
        clock.at += round_s
        before, began = machine.times, clock.at
        rehearsal.between_rounds()
        rehearsed = machine.times > before
        assert rehearsed == (took <= 0.05 * (began - ended))
        if rehearsed:
            took, ended = clock.at - began, clock.at


def test_both_sides_rehearse_between_rounds_and_not_after_the_last() -> None:
    run = migrate()
    assert run.done is not None
    calls = run.source._called, run.destination._called
    assert all(1 <= called["rehearse"] < len(run.done.rounds) for called in calls)


@pytest.mark.parametrize("side", ["source", "destination"])
def test_a_machine_that_fails_is_migrated_without(side: str) -> None:
    def fails(source: ScriptedGuest, destination: ScriptedGuest) -> None:
        {"source": source, "destination": destination}[side].fails["rehearse"] = 1

    run = migrate(OPTIONS, prepare=fails)
    assert run.done is not None
    assert run.equal
    failed = {"source": run.source, "destination": run.destination}[side]
    assert failed._called["rehearse"] == 1
    failed.fails["rehearse"] = 2
    with pytest.raises(GuestError):
        failed.rehearse()
