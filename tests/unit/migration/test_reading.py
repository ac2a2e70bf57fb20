"""Memory that is not mapped here: what is copied of it, and whole migrations of a machine that is read by copies."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Runs
from precopy.errors import GuestError, PeerProtocolError, PeerRefused
from precopy.memory import GuestMemory, RamLayout
from precopy.migration import reading
from precopy.migration.channel import Content
from precopy.migration.reading import CopyingReader, MappedReader, reader_of
from precopy.ports import ByteStream, SourceVm
from precopy.transport import SocketStream
from precopy.units import PAGE_SIZE
from support.patience import IN_TIME_S
from support.scripted import (
    OPTIONS,
    BareGuest,
    CheckedCopiedGuest,
    CopiedGuest,
    CopiedMemory,
    Fault,
    Harm,
    LateStream,
    Run,
    ScriptedGuest,
    ScriptedStream,
    migrate,
)

SIDE_BY_SIDE = RamLayout.of_blocks([("a", 64 * PAGE_SIZE), ("b", 64 * PAGE_SIZE), ("c", 5 * PAGE_SIZE)])
"""No ram_addr page lies between the blocks."""

inside = st.integers(0, 2).flatmap(
    lambda block: st.builds(
        lambda start, length: (
            SIDE_BY_SIDE.blocks[block].first_page + start,
            min(length, SIDE_BY_SIDE.blocks[block].pages - start),
        ),
        st.integers(0, SIDE_BY_SIDE.blocks[block].pages - 1),
        st.integers(1, 64),
    )
)


@given(st.lists(inside, min_size=1, max_size=8), st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 40))
def test_copies_are_what_is_read_where_it_lies(runs: list[tuple[int, int]], seed: int, empty: float, most: int) -> None:
    random = np.random.default_rng(seed)
    with GuestMemory(SIDE_BY_SIDE) as memory:
        for host in memory.hosts:
            pages = host.words.reshape(-1, PAGE_SIZE // 8)
            kinds = random.random(len(pages))
            pages[kinds > empty, 0] = 7
            pages[kinds < empty / 2, 511] = 9  # zero at first sight only
        mapped = MappedReader(memory).read(Runs.of(*runs))
        copied = CopyingReader(CopiedMemory(memory)).read(Runs.of(*runs))
        assert copied.zero.indexes().tolist() == mapped.zero.indexes().tolist()
        assert copied.content.indexes().tolist() == mapped.content.indexes().tolist()
        SIDE_BY_SIDE.block_of(copied.content)  # each lies in one block
        SIDE_BY_SIDE.block_of(copied.zero)
        cut, _ = copied.content.cut(most)
        ours, theirs = copied.contents(cut), mapped.contents(cut)
        assert ours.runs == cut
        assert ours.views == theirs.views
        assert ours.addresses is None
        assert theirs.addresses is not None


def test_the_role_says_how_memory_is_read() -> None:
    with GuestMemory(SIDE_BY_SIDE) as memory:
        assert isinstance(reader_of(memory), MappedReader)
        assert isinstance(reader_of(CopiedMemory(memory)), CopyingReader)


# Whole migrations.


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many windows in a round, so that the buffer is used again before the round is acknowledged."""
    for module in ("rounds", "verification"):
        monkeypatch.setattr(f"precopy.migration.{module}.WINDOW_PAGES", 64)
    monkeypatch.setattr("precopy.migration.rounds.BATCH_PAGES", 8)
    monkeypatch.setattr("precopy.migration.rounds.LEAST_BATCH_PAGES", 4)


def arrives(run: Run) -> Run:
    assert run.source_error is None
    assert run.destination_error is None
    assert run.world.broken == []
    assert run.world.ran == ["source", "destination"]
    run.destination.pause()
    assert run.equal
    return run


def socket_pair(family: str) -> tuple[ByteStream, ByteStream]:
    if family == "unix":
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
    return SocketStream(near, "the destination", IN_TIME_S), SocketStream(far, "the source", IN_TIME_S)


PAIRS: dict[str, Callable[[], tuple[ByteStream, ByteStream]]] = {
    "late": LateStream.pair,
    "unix": partial(socket_pair, "unix"),
    "tcp": partial(socket_pair, "tcp"),
}


each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@each_pair
@pytest.mark.parametrize("tears", [False, True])
@pytest.mark.usefixtures("small_windows")
def test_a_machine_that_is_paused_and_read_by_copies_arrives_whole(
    pair: Callable[[], tuple[ByteStream, ByteStream]], tears: bool
) -> None:
    run = arrives(migrate(source_as=partial(CopiedGuest, tears=tears), destination_as=BareGuest, pair=pair))
    assert run.done is not None
    assert len(run.done.rounds) > 2
    assert run.source.steps > 20  # it wrote while it was read
    assert sum(done.torn_batches for done in run.done.rounds) == 0
    assert sum(done.zero_pages for done in run.done.rounds) > 0


@each_pair
@pytest.mark.usefixtures("small_windows")
def test_it_is_verified(pair: Callable[[], tuple[ByteStream, ByteStream]]) -> None:
    run = arrives(migrate(replace(OPTIONS, verify=True), source_as=CheckedCopiedGuest, pair=pair))
    assert run.done is not None
    assert run.done.compared_pages == run.source.memory.layout.pages


@pytest.mark.usefixtures("small_windows")
def test_planted_copies_that_are_handed_out_as_if_they_stayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer is used again before the peer has the copies; the sink finds it, and the guest stays."""
    contents = reading._Copied.contents

    def handed_out(window: reading._Copied, cut: Runs) -> Content:
        made = contents(window, cut)
        addresses = np.array([[0, len(view)] for view in made.views], np.uint64).reshape(-1, 2)
        return replace(made, addresses=addresses)

    monkeypatch.setattr(reading._Copied, "contents", handed_out)
    run = migrate(source_as=CopiedGuest, destination_as=BareGuest, pair=LateStream.pair)
    assert isinstance(run.source_error, PeerProtocolError)
    assert "the link damages data" in str(run.source_error)
    assert run.source.running
    assert run.world.ran == ["source"]


@pytest.mark.parametrize("nth", range(1, 12))
@pytest.mark.usefixtures("small_windows")
def test_a_copy_that_the_link_changed_is_damage_at_once(nth: int) -> None:
    """However often the guest writes its pages: it is not written after its checksum was made."""
    fault = Fault(Harm.FLIP, nth, 0.99)  # in the content, where the frame has any
    run = migrate(
        source_as=partial(CopiedGuest, tears=True), destination_as=BareGuest, source_fault=fault, prepare=all_hot
    )
    near = run.streams[0]
    assert isinstance(near, ScriptedStream)
    assert near.struck
    assert isinstance(run.source_error, PeerProtocolError | PeerRefused)
    assert run.source.running
    assert run.world.ran == ["source"]


def all_hot(source: ScriptedGuest, _destination: ScriptedGuest) -> None:
    source.hot = source.memory.layout.pages


@pytest.mark.parametrize("nth", [1, 2, 7, 11])  # the last is in the last round
@pytest.mark.usefixtures("small_windows")
def test_memory_that_cannot_be_read_any_more_ends_it_and_the_guest_stays(nth: int) -> None:
    copied = 0

    class Going(CopiedMemory):
        def copy_into(self, runs: Runs, buffer: memoryview) -> None:
            nonlocal copied
            copied += 1
            if copied == nth:
                raise GuestError("process 7, whose memory this is, has ended")
            super().copy_into(runs, buffer)

    def going(guest: ScriptedGuest) -> SourceVm:
        seen = CopiedGuest(guest)
        seen.memory = Going(guest.memory)
        return seen

    run = migrate(source_as=going, destination_as=BareGuest)
    assert isinstance(run.source_error, GuestError)
    assert isinstance(run.destination_error, PeerRefused)
    assert "process 7, whose memory this is, has ended" in str(run.destination_error)
    assert run.source.running
    assert run.world.broken == []
    assert run.world.ran.count("destination") == 0
