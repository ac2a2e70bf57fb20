"""Several consumers of one log: none misses a write, whatever the others do, against a model of sets."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.bitmap import Bitmap, Runs
from precopy.dirty import DirtyLog, DirtyMemory, LogCounters, MigrationBitmap, clear_policy
from precopy.errors import Unsupported
from precopy.memory import GuestMemory, RamBlock, RamLayout
from precopy.names import ALL_CLEAR_POLICIES
from precopy.trackers.fanout import Consumer, FanOut
from precopy.trackers.pagemap import PagemapLog
from precopy.units import PAGE_SIZE
from support.scripted_log import ScriptedLog

LAYOUT = RamLayout.of_blocks([("a", 70 * PAGE_SIZE), ("b", PAGE_SIZE), ("c", 130 * PAGE_SIZE)])
PAGES = [page for start, count in LAYOUT.runs for page in range(start, start + count)]
NAMES = ("one", "two", "three")

Write = Callable[[list[int]], None]


class Scripted:
    """A scripted log and what its guest writes."""

    exact = True

    def __init__(self) -> None:
        self.log: DirtyLog = ScriptedLog(LAYOUT.end_page)

    def write(self, pages: list[int]) -> None:
        assert isinstance(self.log, ScriptedLog)
        self.log.wrote(Runs.from_indexes(np.unique(pages)))

    def close(self) -> None: ...


class Pagemap:
    """Memory of this process, and its log."""

    one_step = exact = True

    def __init__(self) -> None:
        self.memory = GuestMemory(LAYOUT)
        self.log: DirtyLog = PagemapLog(LAYOUT, [host.address for host in self.memory.hosts], one_step=self.one_step)

    def write(self, pages: list[int]) -> None:
        for page in pages:
            at = next(n for n, block in enumerate(LAYOUT.blocks) if block.first_page <= page < block.end_page)
            self.memory.hosts[at].words[(page - LAYOUT.blocks[at].first_page) * 512] += np.uint64(1)

    def close(self) -> None:
        self.log.stop()
        self.memory.close()


class TwoStepPagemap(Pagemap):
    one_step = False


class RelaxedPagemap(Pagemap):
    """With chunks that the blocks have some of; consumers need not be told exactly, but for a while."""

    exact = False

    def __init__(self) -> None:
        self.memory = GuestMemory(LAYOUT)
        self.log: DirtyLog = PagemapLog(LAYOUT, [host.address for host in self.memory.hosts], chunk=64)


GUESTS = [
    pytest.param(Scripted, id="scripted"),
    pytest.param(Pagemap, id="pagemap", marks=pytest.mark.needs("pagemap")),
    pytest.param(TwoStepPagemap, id="pagemap in two steps", marks=pytest.mark.needs("pagemap")),
    pytest.param(RelaxedPagemap, id="pagemap, not exact", marks=pytest.mark.needs("pagemap")),
]

some_pages = st.lists(st.sampled_from(PAGES), min_size=1, max_size=6)
bounds = st.tuples(st.integers(0, LAYOUT.end_page + 70), st.integers(0, LAYOUT.end_page + 70)).map(sorted)
operations = st.one_of(
    st.tuples(st.just("write"), st.none(), some_pages),
    st.tuples(st.just("write"), st.none(), st.sampled_from([PAGES[:64], PAGES])),
    st.tuples(st.just("exactly"), st.sampled_from(NAMES), st.none()),
    st.tuples(st.just("touch"), st.none(), some_pages),
    st.tuples(st.just("start"), st.sampled_from(NAMES), st.none()),
    st.tuples(st.just("stop"), st.sampled_from(NAMES), st.none()),
    st.tuples(st.just("harvest"), st.sampled_from(NAMES), st.none() | st.sampled_from(LAYOUT.blocks)),
    st.tuples(st.just("clear"), st.sampled_from(NAMES), bounds),
)


class Model:
    """What one consumer has to hear of: ``dirty`` for certain, ``perhaps`` once more; ``since`` is what was written
    after it was last told."""

    def __init__(self, consumer: Consumer) -> None:
        self.consumer, self.running = consumer, False
        self.exactly: AbstractContextManager[None] | None = None
        self.was_exact = False
        """Whether the harvest before was, so that this one counts nothing."""
        self.forget()

    def toggle(self) -> None:
        """Begins to want it exactly, or ends that."""
        if self.exactly is None:
            self.exactly = self.consumer.exactly()
            self.exactly.__enter__()
        else:
            self.exactly.__exit__(None, None, None)
            self.exactly, self.was_exact = None, False

    def forget(self) -> None:
        self.was_exact = False
        self.dirty: set[int] = set()
        self.told: set[int] = set()
        self.since: set[int] = set()
        self.perhaps: set[int] = set()

    def start(self) -> None:
        self.consumer.start()
        self.running = True
        self.forget()

    def stop(self) -> None:
        self.consumer.stop()
        self.running = False
        self.forget()

    def wrote(self, pages: list[int]) -> None:
        if self.running:
            self.dirty |= set(pages)
            self.since |= set(pages)

    def harvest(self, block: RamBlock | None) -> None:
        scope = set(range(block.first_page, block.end_page)) if block else set(range(LAYOUT.end_page))
        found = Bitmap(LAYOUT.end_page)
        self.consumer.harvest(found, block)
        pages, counted = set(found.indexes().tolist()), set(self.consumer.unarmed.indexes().tolist())
        assert self.dirty & scope <= pages <= (self.dirty | self.perhaps | counted) & scope
        if self.running and block is None:
            assert not (self.was_exact and counted - self.told)
            self.was_exact = self.consumer.wants_exact
        self.dirty |= pages
        self.told |= pages
        self.since -= scope
        self.perhaps -= scope

    def clear(self, start: int, end: int) -> None:
        self.consumer.clear(start, end - start)
        cleared = self.told & set(range(start, end))
        self.perhaps |= cleared & self.since
        self.dirty -= cleared
        self.told -= cleared


def play(guest: Scripted | Pagemap, fan_out: FanOut, sequence: list[tuple[str, str, object]]) -> None:
    """Has the consumers do as the sequence says; each is asked once more at the end."""
    models = {name: Model(fan_out.consumer(name)) for name in NAMES}
    fan_out.exact = guest.exact
    models["one"].start()
    for what, name, argument in sequence:
        if what in ("write", "touch"):
            assert isinstance(argument, list)
            if what == "write":
                guest.write(argument)
            else:
                fan_out.touched(Runs.from_indexes(np.unique(argument)))
            for model in models.values():
                model.wrote(argument)
        elif what == "clear":
            assert isinstance(argument, list)
            models[name].clear(*argument)
        elif what == "harvest":
            assert argument is None or isinstance(argument, RamBlock)
            models[name].harvest(argument)
        elif what == "exactly":
            models[name].toggle()
        else:
            getattr(models[name], what)()
        assert set(fan_out.consumers) == {name for name, model in models.items() if model.running}
    for model in models.values():
        model.harvest(None)
        model.stop()


@pytest.mark.parametrize("make", GUESTS)
@given(sequence=st.lists(operations, max_size=40))
def test_no_consumer_misses_a_write(make: type[Scripted | Pagemap], sequence: list[tuple[str, str, object]]) -> None:
    guest = make()
    try:
        play(guest, FanOut(guest.log, LAYOUT.end_page), sequence)
    finally:
        guest.close()


class ToOneOnly(FanOut):
    """Broken: only who harvests is told."""

    def _distribute(self, block: RamBlock | None) -> LogCounters:
        others, self._started = self._started[1:], self._started[:1]
        try:
            return super()._distribute(block)
        finally:
            self._started += others


class ForgetsWhatIsNew(Consumer):
    """Broken: a clear drops what this consumer was not told yet, too."""

    def clear(self, start: int, count: int) -> None:
        super().clear(start, count)
        self._new.clear_all()


@pytest.mark.parametrize("broken", ["one only", "forgets"])
def test_the_model_notices(broken: str) -> None:
    guest = Scripted()
    fan_out = (ToOneOnly if broken == "one only" else FanOut)(guest.log, LAYOUT.end_page)
    if broken == "forgets":
        fan_out.consumer = lambda name, **_: ForgetsWhatIsNew(fan_out, name)  # type: ignore[method-assign]
    sequence: list[tuple[str, str, object]] = [
        ("start", "two", None),
        ("write", "", [5]),
        ("harvest", "one", None),
        ("clear", "two", [0, 300]),
        ("harvest", "two", None),
    ]
    with pytest.raises(AssertionError):
        play(guest, fan_out, sequence)


class TestLifetime:
    class Noted(ScriptedLog):
        def __init__(self) -> None:
            super().__init__(LAYOUT.end_page)
            self.did: list[str] = []

        def start(self) -> None:
            self.did.append("start")
            super().start()

        def stop(self) -> None:
            self.did.append("stop")
            super().stop()

    def test_the_first_starts_the_log_and_the_last_stops_it(self) -> None:
        log = self.Noted()
        fan_out = FanOut(log, LAYOUT.end_page)
        one, two = fan_out.consumer("one"), fan_out.consumer("two")
        for step, did in (
            (one.stop, []),
            (one.start, ["start"]),
            (two.start, ["start"]),
            (one.start, ["start"]),
            (one.stop, ["start"]),
            (one.stop, ["start"]),
            (two.stop, ["start", "stop"]),
            (two.stop, ["start", "stop"]),
            (two.start, ["start", "stop", "start"]),
            (fan_out.close, ["start", "stop", "start", "stop"]),
            (fan_out.close, ["start", "stop", "start", "stop"]),
        ):
            step()
            assert log.did == did

    def test_a_log_that_does_not_start_has_no_consumer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        log = self.Noted()
        fan_out = FanOut(log, LAYOUT.end_page)

        def refuse() -> None:
            raise Unsupported("nothing works here", "go elsewhere")

        monkeypatch.setattr(log, "start", refuse)
        with pytest.raises(Unsupported):
            fan_out.consumer("one").start()
        assert fan_out.consumers == ()

    def test_it_is_a_dirty_log(self) -> None:
        consumer = FanOut(self.Noted(), LAYOUT.end_page).consumer("one")
        assert isinstance(consumer, DirtyLog)
        assert (consumer.name, consumer.consumer) == ("scripted", "one")

    def test_a_harvest_that_fails_half_way_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        log = self.Noted()
        fan_out = FanOut(log, LAYOUT.end_page)
        one, two = fan_out.consumer("one"), fan_out.consumer("two")
        one.start()
        two.start()
        log.wrote(Runs.of((5, 1)))
        harvest = log.harvest

        def fails(dirty: Bitmap, block: RamBlock | None = None) -> None:
            harvest(dirty, block)
            log.clear(0, 300)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(log, "harvest", fails)
            with pytest.raises(KeyboardInterrupt):
                one.harvest(Bitmap(LAYOUT.end_page))
        for consumer in (one, two):
            dirty = Bitmap(LAYOUT.end_page)
            consumer.harvest(dirty)
            assert list(dirty.indexes()) == [5]


@pytest.fixture
def quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Copier(threading.Thread):
    """A migration without a wire: it copies what it finds until it has found what was written before ``settled``."""

    def __init__(self, guest: Pagemap, consumer: Consumer, policy: str, settled: threading.Event) -> None:
        super().__init__(daemon=True)
        self._hosts, self._settled = guest.memory.hosts, settled
        self._dirty = DirtyMemory(LAYOUT, consumer)
        self._bitmap = MigrationBitmap(self._dirty, clear_policy(policy, LAYOUT, 6))
        self._copies = [np.zeros_like(host.words) for host in self._hosts]
        self.right = False

    def run(self) -> None:
        self._dirty.start()
        self._bitmap.mark_all()
        self._copy()
        last = False
        while not last:
            last = self._settled.is_set()
            self._bitmap.sync()
            self._copy()
        self._dirty.stop()
        pairs = zip(self._copies, self._hosts, strict=True)
        self.right = all(np.array_equal(copy, host.words) for copy, host in pairs)

    def _copy(self) -> None:
        for start, count in self._bitmap.windows(64):
            block = next(block for block in LAYOUT.blocks if block.first_page <= start < block.end_page)
            at = LAYOUT.blocks.index(block)
            for first, length in self._bitmap.take(start, count):
                part = slice((first - block.first_page) * 512, (first + length - block.first_page) * 512)
                self._copies[at][part] = self._hosts[at].words[part]


@pytest.mark.needs("pagemap")
@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("one_step", [True, False], ids=["one step", "two steps"])
@pytest.mark.parametrize("policy", ALL_CLEAR_POLICIES)
def test_migrations_of_one_memory_at_the_same_time(policy: str, one_step: bool) -> None:
    """Each consumer in a thread of its own, while another thread writes: all copies are right."""
    guest = Pagemap() if one_step else TwoStepPagemap()
    fan_out = FanOut(guest.log, LAYOUT.end_page)
    settled = threading.Event()
    copiers = [Copier(guest, fan_out.consumer(name), policy, settled) for name in NAMES]
    try:
        for copier in copiers:
            copier.start()
        random, end = np.random.default_rng(1), time.monotonic() + 0.15
        while time.monotonic() < end:
            guest.write([PAGES[n] for n in random.integers(0, len(PAGES), 8)])
            time.sleep(0.0002)
        settled.set()
        for copier in copiers:
            copier.join()
        assert all(copier.right for copier in copiers)
        assert fan_out.consumers == ()
    finally:
        guest.close()


@pytest.mark.needs("pagemap")
class TestNotExact:
    """Whole chunks that are written all the time, and consumers that do or do not want them exactly."""

    HOT = frozenset(range(64))  # the first chunk; the other one lies in block c

    @pytest.fixture
    def guest(self) -> Iterator[RelaxedPagemap]:
        guest = RelaxedPagemap()
        yield guest
        guest.close()

    @pytest.fixture
    def fan_out(self, guest: RelaxedPagemap) -> FanOut:
        fan_out = FanOut(guest.log, LAYOUT.end_page)
        fan_out.exact = False
        return fan_out

    def told(self, consumer: Consumer) -> set[int]:
        found = Bitmap(LAYOUT.end_page)
        consumer.harvest(found)
        consumer.clear(0, LAYOUT.end_page)
        return set(found.indexes().tolist())

    def heat(self, guest: RelaxedPagemap, consumer: Consumer) -> None:
        for _ in range(2):
            guest.write(list(self.HOT))
            assert self.told(consumer) == self.HOT

    def unarmed(self, consumer: Consumer) -> set[int]:
        return set(consumer.unarmed.indexes().tolist())

    def test_every_consumer_is_told_of_what_is_not_armed_whoever_harvests(
        self, guest: RelaxedPagemap, fan_out: FanOut
    ) -> None:
        one, two = fan_out.consumer("one"), fan_out.consumer("two")
        one.start()
        two.start()
        self.heat(guest, one)
        guest.write(list(self.HOT))
        assert self.told(two) == self.HOT
        assert self.unarmed(two) == set()  # they had been found to be written before
        assert self.told(one) == self.HOT
        assert self.unarmed(one) == self.HOT

    def test_what_one_of_them_wants_exactly_all_are_told_exactly(self, guest: RelaxedPagemap, fan_out: FanOut) -> None:
        one, strict = fan_out.consumer("one"), fan_out.consumer("strict", exact=True)
        one.start()
        self.heat(guest, one)
        strict.start()
        guest.write([3])
        assert self.told(strict) == {3}  # and nothing of what had been unarmed before it began
        assert self.told(one) == self.HOT
        assert self.told(one) == set()
        for _ in range(4):
            guest.write(list(self.HOT))
            assert self.told(strict) == self.HOT == self.told(one)
            assert self.unarmed(strict) == self.unarmed(one) == set()
        strict.stop()
        for _ in range(3):
            guest.write(list(self.HOT))
            assert self.told(one) == self.HOT
        assert self.unarmed(one) == self.HOT

    def test_a_moment_that_has_to_be_known_exactly(self, guest: RelaxedPagemap, fan_out: FanOut) -> None:
        one, two = fan_out.consumer("one"), fan_out.consumer("two")
        one.start()
        two.start()
        self.heat(guest, one)
        guest.write(list(self.HOT))
        self.told(two)
        guest.write(list(self.HOT))
        with one.exactly(), one.exactly():
            assert self.told(one) == self.HOT
            guest.write([5])
            assert self.told(one) == {5}
            assert self.told(one) == set()
            assert self.told(two) == self.HOT
        guest.write([7])
        assert self.told(one) in ({7}, self.HOT)
        assert 7 in self.told(two)

    def test_a_consumer_says_itself_whether_it_wants_it_exactly(self, fan_out: FanOut) -> None:
        assert [fan_out.consumer("", exact=exact).wants_exact for exact in (None, True, False)] == [False, True, False]
        fan_out.exact = True
        assert [fan_out.consumer("", exact=exact).wants_exact for exact in (None, True, False)] == [True, True, False]

    def test_a_log_that_is_always_exact_takes_no_part_in_it(self) -> None:
        guest = Scripted()
        fan_out = FanOut(guest.log, LAYOUT.end_page)
        consumer = fan_out.consumer("one", exact=False)
        consumer.start()
        for _ in range(4):
            guest.write(PAGES)
            assert self.told(consumer) == set(PAGES)
        with consumer.exactly():
            assert self.told(consumer) == set()
        assert self.unarmed(consumer) == set()
