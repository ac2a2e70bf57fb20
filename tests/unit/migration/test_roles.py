"""What the engine asks of a machine: to be paused, read and tracked, and nothing else unless an option needs it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from precopy.errors import GuestError, PeerProtocolError, PeerRefused, Unsupported
from precopy.migration import MigrationOptions
from precopy.ports import DeviceStates, SelfChecking, SourceVm, Throttleable, Throttled, TrackerChoosing
from support.scripted import OPTIONS, BareGuest, ScriptedGuest, World, migrate

ROLES = (TrackerChoosing, Throttleable, DeviceStates, SelfChecking)


def test_a_bare_guest_has_none_of_the_optional_roles_and_a_scripted_one_has_all() -> None:
    guest = ScriptedGuest(World(), "source")
    assert [isinstance(guest, role) for role in ROLES] == [True] * 4
    assert [isinstance(BareGuest(guest), role) for role in ROLES] == [False] * 4


@pytest.mark.parametrize("tracker", ["", "auto"])
@pytest.mark.parametrize("tears", [False, True])
def test_a_machine_that_can_only_be_paused_and_read_is_migrated(tracker: str, tears: bool) -> None:
    run = migrate(replace(OPTIONS, tracker=tracker), source_as=BareGuest, destination_as=BareGuest, tears=tears)
    assert run.done is not None
    assert run.received is not None
    assert run.world.broken == []
    assert run.world.ran == ["source", "destination"]
    run.destination.pause()
    assert run.equal
    assert len(run.done.rounds) > 2
    assert run.done.tracker_why == "what the guest has"
    assert run.done.throttled == Throttled((), 0.0)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (replace(OPTIONS, throttle_mode="auto-converge"), ("Throttleable", "--throttle auto-converge")),
        (replace(OPTIONS, throttle_mode="dirty-limit"), ("Throttleable", "--throttle dirty-limit")),
        (replace(OPTIONS, tracker="dirty-ring"), ("TrackerChoosing", "--tracker dirty-ring")),
        (replace(OPTIONS, verify=True), ("SelfChecking", "--verify")),
    ],
)
def test_what_an_option_needs_and_a_machine_lacks_is_said_before_anything_is_sent(
    options: MigrationOptions, names: tuple[str, str]
) -> None:
    run = migrate(options, source_as=BareGuest, destination_as=BareGuest)
    assert isinstance(run.source_error, Unsupported)
    assert run.source_error.exit_code == 3
    assert str(run.source_error) == (
        f"this machine (bare) is not {names[0]}, which {names[1]} needs; leave out {names[1]}"
    )
    assert run.source.running
    assert run.world.ran == ["source"]
    assert isinstance(run.destination_error, PeerRefused)
    assert names[1] in str(run.destination_error)


class WithoutState(BareGuest):
    """A machine that takes no state, under the name of one that has a state."""

    machine = ScriptedGuest.machine


def test_a_state_goes_to_no_machine_that_takes_none() -> None:
    run = migrate(destination_as=WithoutState)
    assert isinstance(run.destination_error, PeerProtocolError)
    assert "it takes no state, and the source sends 24 bytes of one" in str(run.destination_error)
    assert isinstance(run.destination_error.__cause__, GuestError)
    assert run.source.running
    assert run.world.ran.count("destination") == 0


def test_no_state_goes_to_no_machine_that_needs_one() -> None:
    run = migrate(source_as=WithoutState)
    assert isinstance(run.destination_error, PeerProtocolError)
    assert "a state of 0 bytes does not fit this machine" in str(run.destination_error)
    assert run.source.running
    assert run.world.ran.count("destination") == 0


def test_what_throttling_costs_is_asked_only_where_it_is_wanted() -> None:
    asked: list[str] = []

    class Noting(ScriptedGuest):
        def throttled(self) -> Throttled:
            asked.append(self.name)
            return super().throttled()

    def noting(guest: ScriptedGuest) -> SourceVm:
        guest.__class__ = Noting
        return guest

    assert migrate(source_as=noting).done is not None
    assert asked == []
    assert migrate(replace(OPTIONS, throttle_mode="auto-converge"), source_as=noting).done is not None
    assert asked
