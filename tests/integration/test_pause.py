"""Stopping and starting a guest, as fast as its host can."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from precopy.errors import GuestError
from precopy.machines.workload import Workload
from support.live_guests import Pair, runs_on, steps, until

pytestmark = [pytest.mark.usefixtures("nothing_left")]

KINDS = [
    pytest.param("kvm", marks=pytest.mark.needs("kvm")),
    pytest.param("emulated", marks=pytest.mark.needs("unicorn")),
]


@pytest.fixture
def restless() -> Iterator[None]:
    """Has Python change threads after every few instructions, so that each order of events comes up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workload", ["random", "idle"])
@pytest.mark.usefixtures("restless")
def test_guest_stops_even_where_it_was_only_just_told_to_run(kind: str, workload: str) -> None:
    with Pair(Workload(workload), kind=kind) as pair:
        guest = pair.source
        guest.other = None
        for _ in range(20_000):
            guest.pause()
            guest.resume()
        runs_on(guest, idle=workload == "idle")


@pytest.mark.parametrize("kind", KINDS)
def test_paused_guest_takes_no_step_and_may_be_paused_again(kind: str) -> None:
    with Pair(Workload("sequential", None), kind=kind) as pair:
        until(lambda: steps(pair.source) > 0)
        pair.source.pause()
        before = steps(pair.source)
        pair.source.pause()
        assert pair.source.self_check().ok
        assert steps(pair.source) == before
        pair.source.resume()
        runs_on(pair.source)


@pytest.mark.parametrize("kind", KINDS)
def test_running_guest_gives_away_no_state(kind: str) -> None:
    with Pair(kind=kind) as pair:
        for what in (pair.source.save_state, pair.source.self_check, lambda: pair.source.load_state(b"")):
            with pytest.raises(GuestError, match="a guest that runs"):
                what()


@pytest.mark.needs("kvm")
def test_guest_that_crashes_says_why_and_stays_down() -> None:
    with Pair(Workload("random")) as pair:
        guest = pair.source
        guest.pause()
        guest.memory.host(guest.memory.layout.blocks[0]).view[0x1000:0x1200] = b"\xf4" * 512  # hlt: not for user code
        guest.resume()
        until(lambda: any(vcpu.error for vcpu in guest._vcpus))
        with pytest.raises(GuestError, match=r"vCPU 0 left the guest for reason 8 \(shutdown \(triple fault\)\)"):
            guest.raise_failure()
        with pytest.raises(GuestError, match="vCPU 0 left the guest"):
            guest.pause()
        with pytest.raises(GuestError, match="vCPU 0 left the guest"):
            guest.resume()
