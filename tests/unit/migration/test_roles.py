"""What the engine asks of a machine: to be paused, read and tracked, and nothing else unless an option needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from precopy.errors import GuestError, NotConverged, PeerProtocolError, PeerRefused, Unsupported
from precopy.migration import MigrationOptions
from precopy.names import ThrottleMode
from precopy.ports import SourceVm, Throttled
from precopy.ports.vm import MAX_THROTTLE
from precopy.units import PAGE_SIZE
from support.scripted import OPTIONS, BareGuest, ScriptedGuest, migrate


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


@pytest.mark.parametrize("seen", [BareGuest, lambda guest: guest], ids=["bare", "throttleable"])
def test_a_dirty_limit_needs_a_role_of_its_own(seen: Callable[[ScriptedGuest], SourceVm]) -> None:
    run = migrate(replace(OPTIONS, throttle_mode="dirty-limit"), source_as=seen)
    assert isinstance(run.source_error, Unsupported)
    assert "is not DirtyLimiting, which --throttle dirty-limit needs" in str(run.source_error)
    assert "use --throttle auto-converge, or a KVM guest with --tracker dirty-ring" in str(run.source_error)
    assert run.source.running
    assert run.world.ran == ["source"]


class LimitedGuest(ScriptedGuest):
    """One that lets each vCPU dirty so much and no more; ``limits`` are those that were set."""

    limits: tuple[float | None, ...] = ()

    def limit_dirtying(self, bytes_per_s: float | None, max_share: float = MAX_THROTTLE) -> None:
        self.limits += (bytes_per_s,)
        self._share = 0.0
        if bytes_per_s is not None:
            self._share = min(max(1 - bytes_per_s / (self.per_s * PAGE_SIZE), 0.0), max_share)


def limited(guest: ScriptedGuest) -> SourceVm:
    guest.__class__ = LimitedGuest
    return guest


BUSY = replace(OPTIONS, max_bandwidth=20_000_000, downtime_limit_s=0.002, max_rounds=30)
"""A link that is slower than the guest writes."""


@pytest.mark.parametrize(
    ("mode", "source_as"), [("auto-converge", lambda guest: guest), ("dirty-limit", limited)], ids=["share", "limit"]
)
def test_a_guest_that_is_slowed_down_converges_and_is_let_go(
    mode: ThrottleMode, source_as: Callable[[ScriptedGuest], SourceVm]
) -> None:
    assert isinstance(migrate(replace(BUSY, max_rounds=8)).source_error, NotConverged)
    run = migrate(replace(BUSY, throttle_mode=mode), source_as=source_as)
    assert run.done is not None
    assert 0 < run.done.throttled.share < MAX_THROTTLE + 1e-9
    assert run.done.throttled == run.source.throttled()
    assert any(done.throttled_share > 0 for done in run.done.rounds)
    assert run.source._share == 0
    if isinstance(run.source, LimitedGuest):
        assert run.source.limits[0] is None  # asked before anything was sent
        assert any(limit is not None for limit in run.source.limits)


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
