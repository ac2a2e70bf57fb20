"""The one receiver of pages against a model that keeps a page as a number, straight into the memory and staged."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Bitmap, Runs
from precopy.errors import PeerProtocolError
from precopy.memory import GuestMemory, RamLayout
from precopy.migration.page_sink import PageSink, Straight
from precopy.replication.point_sink import PointSink
from precopy.replication.room import Room
from precopy.units import PAGE_SIZE
from precopy.wire.events import Point, RoundEnd
from precopy.wire.native import PageBatch as NativeBatch
from support.scripted import ScriptedStream

PAGES = 70
"""More than one word of a bitmap, and no multiple of one."""
HOLES = RamLayout.of_blocks([("ram", 40 * PAGE_SIZE), ("rom", 30 * PAGE_SIZE)])
ONE = RamLayout.of_blocks([("memory", PAGES * PAGE_SIZE)])


@dataclass(frozen=True)
class Batch:
    """What is sent for each page: its value (0: a zero page), and whether the content is damaged on its way."""

    values: dict[int, int]
    torn: bool

    @property
    def pages(self) -> int:
        return len(self.values)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    pages = draw(st.sets(st.integers(0, PAGES - 1), min_size=1, max_size=PAGES))
    values = {page: draw(st.integers(0, 3)) for page in sorted(pages)}
    return Batch(values, draw(st.booleans()) and any(values.values()))


rounds = st.lists(st.lists(batches(), max_size=4), min_size=1, max_size=4)


def ram_addr(layout: RamLayout) -> list[int]:
    """The ram_addr page of each page, counted without holes."""
    return [page for block in layout.blocks for page in range(block.first_page, block.first_page + block.pages)]


class Sent:
    """A stream to ``sink`` with the batches of one layout on it."""

    def __init__(self, layout: RamLayout) -> None:
        self.near, self.far = ScriptedStream.pair()
        self._at = ram_addr(layout)
        self._layout = layout
        self._ids = itertools.count()

    def put(self, batch: Batch) -> NativeBatch:
        """Puts the content on the stream; returns what its frame says."""
        runs = [
            Runs.concatenate(
                [
                    Bitmap.from_indexes(
                        self._layout.end_page,
                        np.array(
                            [
                                self._at[page]
                                for page, value in batch.values.items()
                                if bool(value) is content
                                and block.first_page <= self._at[page] < block.first_page + block.pages
                            ],
                            np.int64,
                        ),
                    ).runs()
                    for block in self._layout.blocks
                ]
            )
            for content in (True, False)
        ]
        back = {self._at[page]: value for page, value in batch.values.items()}
        content = b"".join(bytes([back[page]]) * PAGE_SIZE for page in runs[0].indexes().tolist())
        parts, at = [], 0
        for _, length in runs[0]:
            parts.append(memoryview(content)[at : at + length * PAGE_SIZE])
            at += length * PAGE_SIZE
        made = NativeBatch.of(next(self._ids), runs[0], runs[1], parts)
        if batch.torn:
            content = bytes([content[0] ^ 0x40]) + content[1:]
        self.near.send([content])
        return made


class Model:
    """What the memory is, which pages never came, and which are in doubt."""

    def __init__(self) -> None:
        self.values = dict.fromkeys(range(PAGES), 0)
        self.missing = set(range(PAGES))
        self.doubtful: set[int] = set()

    def take(self, batch: Batch) -> None:
        self.values.update(batch.values)
        self.missing -= batch.values.keys()
        self.doubtful -= batch.values.keys()
        if batch.torn:
            self.doubtful |= batch.values.keys()

    @property
    def whole(self) -> bool:
        return not self.missing and not self.doubtful


def content_of(memory: GuestMemory) -> list[int]:
    """The last byte of each page: a damaged batch differs in a first one."""
    return [int(row.view(np.uint8)[-1]) for block in memory.layout.blocks for row in memory.pages(block)]


def is_whole(check: Callable[[], None]) -> bool:
    try:
        check()
    except PeerProtocolError:
        return False
    return True


@given(rounds, st.sampled_from([HOLES, ONE]))
def test_straight_into_the_memory(sent: list[list[Batch]], layout: RamLayout) -> None:
    memory, model, stream = GuestMemory(layout), Model(), Sent(layout)
    straight = Straight(memory)
    sink = PageSink(layout, stream.far, straight)
    for number, batches_of_round in enumerate(sent, 1):
        ids = []
        for batch in batches_of_round:
            made = stream.put(batch)
            sink.take(made)
            model.take(batch)
            ids.append(made.id)
        ack = sink.end_round(
            RoundEnd(number, len(batches_of_round), sum(batch.pages for batch in batches_of_round), False)
        )
        assert ack.torn == tuple(id for id, batch in zip(ids, batches_of_round, strict=True) if batch.torn)
        assert content_of(memory) == list(model.values.values())
        assert sink.missing == len(model.missing)
        assert is_whole(lambda: sink.check_whole(missing="{}", doubtful="{}")) == model.whole
    every = [batch for batches_of_round in sent for batch in batches_of_round]
    assert sink.received_pages == sum(batch.pages for batch in every)
    assert sink.zero_pages == sum(not value for batch in every for value in batch.values.values())
    # What is written nowhere takes no memory: nothing is marked that has no content.
    at = ram_addr(layout)
    assert [bool(straight.written[page]) for page in at] == [bool(value) for value in model.values.values()]


@given(st.lists(st.lists(batches(), max_size=4), min_size=1, max_size=4))
def test_a_point_is_applied_whole_or_not_at_all(points: list[list[Batch]]) -> None:
    memory, stream = GuestMemory(ONE), Sent(ONE)
    sink = PointSink(memory, stream.far, Room(None, None))
    first = Batch({page: 1 + page % 3 for page in range(PAGES)}, False)
    sink.pages(stream.put(first))
    sink.end_point(Point(1, 1, PAGES))
    sink.apply()
    shown = list(first.values.values())
    for number, point in enumerate(points, 2):
        came: dict[int, int] = {}
        for batch in point:
            refused = batch.torn or came.keys() & batch.values.keys()
            made = stream.put(batch)
            if refused:
                with pytest.raises(PeerProtocolError, match=r"comes twice|link damages data"):
                    sink.pages(made)
                assert content_of(memory) == shown
                return
            sink.pages(made)
            came |= batch.values
            assert content_of(memory) == shown
        sink.end_point(Point(number, len(point), sum(batch.pages for batch in point)))
        assert content_of(memory) == shown
        sink.apply()
        shown = [came.get(page, value) for page, value in enumerate(shown)]
        assert content_of(memory) == shown
        assert sink.staged_bytes == 0


@given(
    st.lists(st.booleans(), max_size=5),
    st.integers(0, 9) | st.integers(0, (1 << 64) - 1),
    st.booleans(),
)
def test_a_batch_that_repeats_goes_back_or_leaves_one_out_is_refused_before_a_byte_is_read(
    ends: list[bool], id: int, zero: bool
) -> None:
    """``ends``: of each batch before it, whether its round ends with it; ids count on."""
    memory, stream = GuestMemory(ONE), Sent(ONE)
    sink = PageSink(ONE, stream.far, Straight(memory))
    for number, round_ends in enumerate(ends):
        sink.take(stream.put(Batch({number: 1}, False)))
        if round_ends:
            sink.end_round(RoundEnd(sink.round + 1, sink.batches, sink.pages, False))
    before = content_of(memory)
    made = replace(stream.put(Batch({60: 0 if zero else 3}, False)), id=id)
    if id == len(ends):
        sink.take(made)
        assert content_of(memory)[60] == (0 if zero else 3)
        return
    with pytest.raises(PeerProtocolError, match=f"^the source sends batch {id} where batch {len(ends)} is due$"):
        sink.take(made)
    assert content_of(memory) == before
    stream.near.send([b"unread"])
    left = bytearray((0 if zero else PAGE_SIZE) + 6)
    stream.far.receive_into([left])
    assert left.endswith(b"unread")


CLAIMS = [(2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2), (0, 1, 1)]


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_what_is_claimed_has_to_be_what_came(claim: tuple[int, int, int]) -> None:
    stream = Sent(ONE)
    sink = PageSink(ONE, stream.far, Straight(GuestMemory(ONE)))
    sink.take(stream.put(Batch({3: 1}, False)))
    with pytest.raises(PeerProtocolError, match="round 1 had 1 with 1"):
        sink.end_round(RoundEnd(*claim, False))
    with pytest.raises(PeerProtocolError, match="point 1 had 1 with 1"):
        sink.end_point(Point(*claim), 1)


@pytest.mark.parametrize("runs", [(PAGES, 1), (PAGES - 1, 2), (0, PAGES + 1), (1 << 40, 1)], ids=str)
@pytest.mark.parametrize("zero", [False, True])
def test_a_run_outside_of_the_memory_is_refused_before_a_byte_is_read(runs: tuple[int, int], zero: bool) -> None:
    memory, stream = GuestMemory(ONE), Sent(ONE)
    sink = PageSink(ONE, stream.far, Straight(memory))
    outside, none = Runs.of(runs), Runs.of()
    content = bytes(runs[1] * PAGE_SIZE)
    made = NativeBatch.of(0, none, outside, []) if zero else NativeBatch.of(0, outside, none, [memoryview(content)])
    stream.near.send([b"unread"])
    with pytest.raises(PeerProtocolError, match="the source sends"):
        sink.take(made)
    left = bytearray(6)
    stream.far.receive_into([left])
    assert bytes(left) == b"unread"
    assert not any(content_of(memory))
