"""Batches whose content does not match their checksum: the guest's doing is repaired, the link's is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from precopy.errors import PeerError, PeerProtocolError, PeerRefused
from precopy.machines.workload import Workload
from precopy.migration import MigrationOptions
from precopy.names import CLEAR_POLICIES
from support.live_guests import (
    ARRIVES,
    MIB,
    Pair,
    migrate,
    proxied_pair,
    runs_on,
    stands_still,
    stream_pair,
)
from support.wire_proxy import TABLE_AT, Fault, Frame, Harm

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.usefixtures("nothing_left")]


def with_content(frame: Frame) -> bool:
    return frame.has_content


def damaged(frame: str, nth: int = 1, at: int = -1) -> Fault:
    """A flipped byte in the content of the ``nth`` such frame that has any."""
    return Fault("source", frame, Harm.FLIP, nth, at, with_content)


class TestLinkThatDamagesData:
    """Nothing but the guest may change content, and what the guest writes is in the next sync."""

    @pytest.mark.parametrize("clear", CLEAR_POLICIES)
    @pytest.mark.parametrize(("nth", "at"), [(1, -1), (2, TABLE_AT + 16 * 1 + 8), (3, -4096)])
    def test_is_found_out_by_an_idle_guest(self, clear: str, nth: int, at: int) -> None:
        with Pair(Workload("idle"), ram=16 * MIB) as pair, proxied_pair(damaged("Pages", nth, at)) as ends:
            near, far, proxy = ends
            options = MigrationOptions(clear=clear, max_bandwidth=500_000_000)
            ended = migrate(pair.source, pair.destination, (near, far), options)

            assert proxy.struck.is_set()
            assert isinstance(ended.source.error, PeerProtocolError)
            assert "the link damages data: a batch of" in str(ended.source.error)
            assert "of round 1 arrived with a wrong checksum, and the guest wrote none of them" in str(
                ended.source.error
            )
            assert isinstance(ended.destination.error, PeerRefused)
            assert "the link damages data" in str(ended.destination.error)
            assert not pair.destination.ran
            runs_on(pair.source, idle=True)

    def test_is_found_out_in_the_table_of_runs(self) -> None:
        fault = Fault("source", "Pages", Harm.FLIP, 2, TABLE_AT, with_content)
        with Pair(Workload("idle"), ram=16 * MIB) as pair, proxied_pair(fault) as (near, far, _):
            ended = migrate(pair.source, pair.destination, (near, far))
            assert isinstance(ended.destination.error, PeerProtocolError)
            assert "(Pages) does not match its checksum" in str(ended.destination.error)
            assert isinstance(ended.source.error, PeerError)
            runs_on(pair.source, idle=True)

    def test_is_found_out_in_the_last_round(self) -> None:
        """With the guest paused nothing may tear, whether it wrote those pages before or not."""
        fault = Fault("source", "Pages", Harm.FLIP, only=with_content, rounds=1)
        # The first round takes 0.2 s, in which the guest writes some 400 pages for the last one.
        with Pair(Workload("random", 2000), ram=16 * MIB, fill=1.0) as pair, proxied_pair(fault) as (near, far, proxy):
            options = MigrationOptions(max_bandwidth=80_000_000, downtime_limit_s=5)
            ended = migrate(pair.source, pair.destination, (near, far), options)
            assert proxy.struck.is_set()
            assert proxy.counts()["RoundEnd"] == 2
            assert isinstance(ended.source.error, PeerProtocolError)
            assert "of the last round arrived with wrong checksums while the guest was paused" in str(
                ended.source.error
            )
            assert isinstance(ended.destination.error, PeerRefused)
            assert pair.source.watch().both == 0
            assert not pair.destination.ran
            runs_on(pair.source)

    def test_is_found_out_in_the_comparison(self) -> None:
        with Pair(Workload("random"), ram=16 * MIB) as pair, proxied_pair(damaged("Compare", 3)) as (near, far, _):
            ended = migrate(pair.source, pair.destination, (near, far), ARRIVES)
            assert isinstance(ended.destination.error, PeerProtocolError)
            assert "a batch sent for comparison does not match its checksum" in str(ended.destination.error)
            assert isinstance(ended.source.error, PeerError)
            assert not pair.destination.ran
            runs_on(pair.source)


class TestGuestThatWritesMeanwhile:
    @pytest.mark.parametrize("clear", CLEAR_POLICIES)
    @pytest.mark.parametrize("transport", ["unix", "tcp"])
    def test_tears_batches_which_are_sent_again(self, clear: str, transport: str) -> None:
        torn: list[int] = []
        while len(torn) < 10 and not any(torn):  # on a busy machine the guest may not get to run at the right moments
            with Pair(Workload("random", None), ram=32 * MIB, fill=1.0) as pair, stream_pair(transport) as streams:
                options = replace(ARRIVES, clear=clear, max_bandwidth=400_000_000)
                done = migrate(pair.source, pair.destination, streams, options).migrated()

                torn.append(sum(one.torn_batches for one in done.rounds))
                assert done.rounds[-1].torn_batches == 0
                assert done.compared_pages == 32 * MIB // 4096
                assert pair.destination.watch().unequal == []
                stands_still(pair.source)
                runs_on(pair.destination)
        assert any(torn)

    def test_hides_no_damage_of_the_link(self) -> None:
        """A batch that both the guest and the link changed is sent again like any torn one, and then is whole."""
        with Pair(Workload("random", None), ram=16 * MIB, fill=1.0) as pair, proxied_pair(damaged("Pages", 2)) as ends:
            near, far, proxy = ends
            options = replace(ARRIVES, max_bandwidth=200_000_000)
            ended = migrate(pair.source, pair.destination, (near, far), options)
            assert proxy.struck.is_set()
            done = ended.migrated()
            assert done.rounds[0].torn_batches > 0
            assert pair.destination.watch().unequal == []
            runs_on(pair.destination)
