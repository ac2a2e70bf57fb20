"""Law 6 over whole migrations: every figure of a result explains the others, whether verified or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from precopy.errors import NotConverged, VerificationFailed
from precopy.machines.workload import Workload
from precopy.migration import Attempt, Event, MigrationOptions, Progress
from precopy.ports import IoVec
from precopy.transport import SocketStream
from support.figures import attempt_adds_up, result_adds_up
from support.live_guests import MIB, Pair, migrate, stream_pair

pytestmark = [pytest.mark.usefixtures("nothing_left")]

KINDS = [
    pytest.param("kvm", marks=pytest.mark.needs("kvm")),
    pytest.param("emulated", marks=pytest.mark.needs("unicorn")),
]
OPTIONS = {
    "free": MigrationOptions(on_timeout="switch"),
    "capped": MigrationOptions(on_timeout="switch", max_bandwidth=100_000_000, downtime_limit_s=0.05),
    "per-page": MigrationOptions(on_timeout="switch", clear="per-page"),
}
"""Each arrives on a busy machine, too, where the guest may not converge."""
RAM = 16 * MIB


class Counting:
    """A stream that counts what it is given."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream, self.given = stream, 0

    def send(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        self.given += sum(map(len, buffers))
        self._stream.send(buffers)

    def send_pages(self, head: bytes, views: Sequence[memoryview], addresses: IoVec) -> None:
        self.given += len(head) + sum(map(len, views))
        self._stream.send_pages(head, views, addresses)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@pytest.mark.parametrize("verify", [False, True], ids=["", "verified"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("kind", KINDS)
def test_a_migration(kind: str, options: MigrationOptions, verify: bool) -> None:
    events: list[Event] = []
    with Pair(Workload("hotset", 20_000), kind=kind, ram=RAM) as pair, stream_pair() as (near, far):
        counting = Counting(near)
        options = dataclasses.replace(options, verify=verify)
        ended = migrate(pair.source, pair.destination, (counting, far), options, events.append)  # type: ignore[arg-type]
        done, received = ended.migrated(), ended.received()
    # A side's CPU time is that of one thread, without verification, so it is less than the time that passed meanwhile.
    # The kernel tells the parts to within a tick or two (4 ms each).
    assert 0 < done.source_cpu.total_s < done.total_s - done.verify_s + 0.02
    assert 0 < done.destination_cpu.total_s == received.cpu.total_s < received.moving_s + 0.02
    result_adds_up(done, counting.given)
    assert bool(done.verify_bytes) is verify
    sent = [one.sent_bytes for one in events if isinstance(one, Progress)]
    assert max(sent) <= done.sent_bytes  # also while the memories are compared
    assert received.verify_bytes == 0 or done.verify_bytes > received.verify_bytes > RAM // 4
    assert bool(received.verify_s) is bool(received.verify_bytes) is verify
    assert received.verify_s < received.total_s
    assert (received.received_pages - received.zero_pages) * 4096 == received.received_bytes
    assert received.received_pages == sum(one.sent_pages + one.zero_pages for one in done.rounds)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_does_not_converge_has_its_rounds(kind: str) -> None:
    options = MigrationOptions(max_bandwidth=8_000_000, downtime_limit_s=0.001, max_rounds=3)
    with Pair(Workload("random", None), kind=kind, ram=4 * MIB) as pair, stream_pair() as streams:
        ended = migrate(pair.source, pair.destination, streams, options)
    failure = ended.source.error
    assert isinstance(failure, NotConverged), failure
    attempt = failure.attempt
    assert isinstance(attempt, Attempt)
    attempt_adds_up(attempt)
    assert len(attempt.rounds) == failure.rounds
    assert attempt.remaining_bytes >= failure.remaining > 0
    assert len(attempt.verdicts) == len(attempt.rounds)


@pytest.mark.needs("kvm")
def test_one_whose_verification_fails_counts_none_of_it() -> None:
    with Pair(Workload("idle"), ram=RAM, fill=1.0) as pair, stream_pair() as streams:
        ram = pair.source.memory.layout.blocks[0]
        here, there = (guest.memory.host(ram).view for guest in (pair.source, pair.destination))

        def damage(event: Event) -> None:
            if isinstance(event, Progress) and event.phase == "switchover":
                there[-1] = here[-1] ^ 1

        ended = migrate(pair.source, pair.destination, streams, MigrationOptions(verify=True), damage)
    assert isinstance(ended.source.error, VerificationFailed), ended.source.error
    attempt = ended.source.error.attempt
    assert isinstance(attempt, Attempt)
    attempt_adds_up(attempt)
    assert 0.9 * RAM < attempt.sent_bytes < 1.5 * RAM
