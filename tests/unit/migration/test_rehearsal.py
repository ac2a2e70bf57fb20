"""When a switchover is rehearsed, and what a machine that fails then changes: nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.errors import GuestError
from precopy.migration.rehearsal import Rehearsal
from support.scripted import OPTIONS, Clock, ScriptedGuest, World, migrate


class _Slow(ScriptedGuest):
    """Rehearses for ``takes`` seconds, one after the other."""

    def __init__(self, clock: Clock, takes: list[float]) -> None:
        super().__init__(World(), "slow")
        self.clock, self.takes = clock, list(takes)

    def rehearse(self) -> None:
        super().rehearse()
        self.clock.sleep(self.takes.pop(0))


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=40))
def test_it_takes_a_twentieth_of_the_time_unless_it_got_slower(rounds: list[tuple[float, float]]) -> None:
    clock = Clock(step_s=0.0)
    machine = _Slow(clock, [takes for _, takes in rounds])
    rehearsal = Rehearsal(machine, clock)
    took, ended = 0.0, clock.time
    for round_s, _ in rounds:
        clock.sleep(round_s)
        left, began = len(machine.takes), clock.time
        rehearsal.between_rounds()
        rehearsed = len(machine.takes) < left
        assert rehearsed == (took <= 0.05 * (began - ended))
        if rehearsed:
            took, ended = clock.time - began, clock.time


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
