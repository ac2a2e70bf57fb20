"""Law 1 for three clients and two listeners: a state machine that tries to have one of them miss a write.

A guest writes at any time, through either of two address spaces that see the same memory in part; each has a listener
with a log of its own, which hears only of what was written through it. A device of the VMM writes what no log hears of.
A migration, a display and a translator take their bits in every order that `DirtyMemory` allows, each with a copy of
memory as of its last read of each page. The machine is held against broken variants at the end of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from precopy.bitmap import Bitmap
from precopy.dirty import DirtyMemory, LogCounters, MigrationBitmap, clear_policy
from precopy.memory import AddressSpace, DirtyClient, MemoryRegion, RamBlock, RamLayout
from precopy.memory.topology.flat_view import FlatRange
from precopy.names import ALL_CLEAR_POLICIES
from precopy.units import PAGE_SIZE
from support.variants import assert_caught

MIGRATION, VGA, CODE = DirtyClient.MIGRATION, DirtyClient.VGA, DirtyClient.CODE
SHAPES = ((1,), (64,), (70, 3, 130), (65, 64, 63), (200, 1))
PAGES = 300
"""More than any shape has in its ram_addr space."""


class Listener:
    """KVM's dirty log with manual protect for one address space, over sets: a page is logged while a migration is under
    way or its region is; a harvest leaves bits set; a clear clears just what the last harvest reported."""

    name = "model"
    counters = LogCounters()

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.dirty: set[int] = set()
        self.harvested: set[int] = set()
        self.wanted: set[int] = set()
        self.migrating = False

    # As a listener of memory.

    @staticmethod
    def pages_of(one: FlatRange) -> set[int]:
        section = one.section
        return set() if section is None else set(range(section.first_page, section.first_page + section.pages))

    def begin(self) -> None: ...

    def commit(self) -> None: ...

    def region_add(self, added: FlatRange) -> None:
        self.seen |= self.pages_of(added)

    def region_del(self, removed: FlatRange) -> None:  # noqa: ARG002
        raise AssertionError("nothing is removed here")

    def log_start(self, logged: FlatRange, old_mask: DirtyClient, new_mask: DirtyClient) -> None:  # noqa: ARG002
        if not old_mask:
            self.wanted |= self.pages_of(logged)
            if not self.migrating:
                self.initially_set(self.pages_of(logged))

    def log_stop(self, logged: FlatRange, old_mask: DirtyClient, new_mask: DirtyClient) -> None:  # noqa: ARG002
        if not new_mask:
            self.wanted -= self.pages_of(logged)
            if not self.migrating:
                self.forget(self.pages_of(logged))

    def initially_set(self, pages: set[int]) -> None:
        self.dirty |= pages
        self.harvested -= pages

    def forget(self, pages: set[int]) -> None:
        self.dirty -= pages
        self.harvested -= pages

    # As a log.

    def wrote(self, page: int) -> None:
        if self.migrating or page in self.wanted:
            self.dirty.add(page)

    def start(self) -> None:
        self.migrating = True
        self.initially_set(self.seen - self.wanted)

    def stop(self) -> None:
        self.migrating = False
        self.forget(self.seen - self.wanted)
        self.harvested = set()

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        within = set(range(block.first_page, block.end_page)) if block else self.seen
        found = self.dirty & within
        self.harvested = self.harvested - within | found
        for page in found:
            dirty.set_range(page, 1)

    def clear(self, start: int, count: int) -> None:
        cleared = {page for page in self.harvested if start <= page < start + count}
        self.dirty -= cleared
        self.harvested -= cleared


class Interrupted:
    """A listener's log around which the guest gets to run: before and after each call, as the machine has planned."""

    name = "interrupted"
    counters = LogCounters()

    def __init__(self, log: Listener, guest: Callable[[], None]) -> None:
        self.log, self._guest = log, guest

    def around(self, call: Callable[[], None]) -> None:
        self._guest()
        call()
        self._guest()

    def start(self) -> None:
        self.around(self.log.start)

    def stop(self) -> None:
        self.around(self.log.stop)

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        self.around(lambda: self.log.harvest(dirty, block))

    def clear(self, start: int, count: int) -> None:
        self.around(lambda: self.log.clear(start, count))


Write = tuple[int, int]
writes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 7)), max_size=6)
"""What the guest does: the address space, and which of its eight pages."""
ranges = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES))
"""Where a range begins and how long it is, to be cut to what there is."""


class Machine(RuleBasedStateMachine):
    """A guest, a device, and the three clients. Each client's copy is what it would show if all that is to come of
    what it knows came now."""

    policy = "merged"
    make_memory: type[DirtyMemory] = DirtyMemory
    make_listener: type[Listener] = Listener

    @initialize(
        shape=st.sampled_from(SHAPES),
        near=st.integers(0, 60),
        alias=ranges,
        shift=st.sampled_from((6, 7, 31)),
        clients=st.tuples(st.integers(0, 2), st.booleans()),
    )
    def begin(
        self, shape: tuple[int, ...], near: int, alias: tuple[int, int], shift: int, clients: tuple[int, bool]
    ) -> None:
        self.layout = RamLayout.of_blocks((f"b{n}", pages * PAGE_SIZE) for n, pages in enumerate(shape))
        self.shift = shift
        regions = {block.name: MemoryRegion.ram(block.name, block) for block in self.layout.blocks}
        every = [page for start, count in self.layout.runs for page in range(start, start + count)]
        self.listeners = [self.make_listener(), self.make_listener()]
        self.spaces = self.address_spaces(regions, alias)
        for space, listener in zip(self.spaces, self.listeners, strict=True):
            space.add_listener(listener)
        assert self.listeners[0].seen == set(every)
        seams = {0, 64, 128, *self.layout.runs.starts.tolist(), *self.layout.runs.ends.tolist()}
        near_seams = sorted(set(every) & {seam + by for seam in seams for by in (-2, -1, 0, 1)})
        self.pages = [near_seams[(near + n) % len(near_seams)] for n in range(8)]
        self.content = dict.fromkeys(every, 0)
        self.clock = 0
        self.plan: list[Write] = []
        self.memory = self.make_memory(
            self.layout, [Interrupted(log, self.run_guest) for log in self.listeners], regions
        )
        self.bitmap: MigrationBitmap | None = None
        self.sent: dict[int, int] = {}
        self.to_send: list[int] = []
        self.shown: dict[int, int] = {}
        self.to_draw: list[int] = []
        self.translated: dict[int, int] = {}
        self.announced: list[int] = []
        displays, migrating = clients
        for index in range(displays):
            self.display_starts([], index)
            self.display_takes_a_snapshot([], index, True)
        if migrating:
            self.migration_starts([])
            self.migration_takes([], None, True)

    def address_spaces(self, regions: dict[str, MemoryRegion], alias: tuple[int, int]) -> list[AddressSpace]:
        """All of memory, and a part of it: as with kvm-memory and kvm-smram, though that one sees more."""
        system = MemoryRegion.container("system")
        for block in self.layout.blocks:
            system.add_subregion(regions[block.name], block.first_page * PAGE_SIZE)
        start, count = self.cut(alias)
        other = MemoryRegion.container("other")
        other.add_subregion(MemoryRegion.alias("part", system, start * PAGE_SIZE, count * PAGE_SIZE), 0)
        return [AddressSpace("memory", system), AddressSpace("other", other)]

    def cut(self, pages: tuple[int, int]) -> tuple[int, int]:
        """A range that lies in the ram_addr space."""
        start = pages[0] % (self.layout.end_page + 1)
        return start, min(pages[1], self.layout.end_page - start)

    # What writes memory.

    def store(self, page: int) -> None:
        self.clock += 1
        self.content[page] = self.clock

    def guest_writes_page(self, write: Write) -> None:
        """The CPU that runs translated code tells of a page that it is made of; it waits for the lock, which whoever is
        interrupted holds."""
        space, page = write[0], self.pages[write[1]]
        listener = self.listeners[space if page in self.listeners[space].seen else 0]
        self.store(page)
        listener.wrote(page)
        self.announced.append(page)

    def run_guest(self) -> None:
        if self.plan:
            self.guest_writes_page(self.plan.pop())

    def during(self, plan: list[Write], call: Callable[[], Any]) -> Any:
        """Calls, while the guest does what is planned."""
        self.plan = plan
        result = call()
        self.plan = []
        self.announce()
        return result

    def announce(self) -> None:
        pages, self.announced = self.announced, []
        for page in pages:
            self.memory.set_range(page, 1, CODE)
            self.translated.pop(page, None)

    @rule(plan=writes)
    def guest_runs(self, plan: list[Write]) -> None:
        for write in plan:
            self.guest_writes_page(write)
        self.announce()

    @rule(number=st.integers(0, 7), count=st.integers(1, 3), as_bitmap=st.booleans())
    def device_writes(self, number: int, count: int, as_bitmap: bool) -> None:
        """Content first, bits second; some devices have a bitmap of their own."""
        first = self.pages[number]
        written = [page for page in range(first, first + count) if page in self.content]
        for page in written:
            self.store(page)
        if as_bitmap:
            size = written[-1] + 1 - first
            self.memory.set_from(Bitmap.from_indexes(size, [page - first for page in written]), at=first)
        else:
            for page in written:
                self.memory.set_range(page, 1)
        for page in written:
            if self.is_set(CODE, page):
                self.translated.pop(page, None)

    def is_set(self, client: DirtyClient, page: int) -> bool:
        return self.memory.count(client, page, 1) == 1

    # What the migration does.

    @precondition(lambda self: self.bitmap is None)
    @rule(plan=writes)
    def migration_starts(self, plan: list[Write]) -> None:
        self.during(plan, self.memory.start)
        self.bitmap = MigrationBitmap(self.memory, clear_policy(self.policy, self.layout, self.shift))
        self.bitmap.mark_all()
        self.sent, self.to_send = dict.fromkeys(self.content, -1), []

    @precondition(lambda self: self.bitmap is not None)
    @rule(plan=writes)
    def migration_ends(self, plan: list[Write]) -> None:
        self.during(plan, self.memory.stop)
        self.bitmap, self.sent, self.to_send = None, {}, []

    @precondition(lambda self: self.bitmap is not None)
    @rule(plan=writes)
    def migration_syncs(self, plan: list[Write]) -> None:
        assert self.bitmap is not None
        self.during(plan, self.bitmap.sync)

    @precondition(lambda self: self.bitmap is not None)
    @rule(plan=writes, index=st.none() | st.integers(0, 5), send=st.booleans())
    def migration_takes(self, plan: list[Write], index: int | None, send: bool) -> None:
        bitmap = self.bitmap
        assert bitmap is not None
        windows = list(bitmap.windows(64))
        for window in windows if index is None else windows[index % max(len(windows), 1) :][:1]:
            self.to_send += self.during(plan, partial(bitmap.take, *window)).indexes().tolist()
        if send:
            self.migration_sends(len(self.to_send))

    @precondition(lambda self: self.to_send)
    @rule(count=st.integers(1, PAGES))
    def migration_sends(self, count: int) -> None:
        for page in self.to_send[:count]:
            self.sent[page] = self.content[page]
        del self.to_send[:count]

    @precondition(lambda self: self.bitmap is not None)
    @rule(plan=writes, pages=ranges, into_pending=st.booleans())
    def migration_tests_and_clears(self, plan: list[Write], pages: tuple[int, int], into_pending: bool) -> None:
        """As QEMU takes an unaligned block's bits, page by page or in a range."""
        assert self.bitmap is not None
        start, count = self.cut(pages)
        bits = {page for page in range(start, start + count) if page in self.content and self.is_set(MIGRATION, page)}
        pending = set(self.bitmap.pending.indexes().tolist())
        dest = self.bitmap.pending if into_pending else None
        new = self.during(plan, lambda: self.memory.test_and_clear(MIGRATION, start, count, dest))
        assert new == len(bits - pending if into_pending else bits)
        if not into_pending:
            self.to_send += sorted(bits)

    # What the display does.

    @rule(plan=writes, index=st.integers(0, 2))
    def display_starts(self, plan: list[Write], index: int) -> None:
        block = self.block(index)
        self.during(plan, lambda: self.memory.start_display(block))
        for page in range(block.first_page, block.end_page):
            self.shown.setdefault(page, -1)

    @rule(plan=writes, index=st.integers(0, 2))
    def display_stops(self, plan: list[Write], index: int) -> None:
        block = self.block(index)
        self.during(plan, lambda: self.memory.stop_display(block))
        for page in range(block.first_page, block.end_page):
            self.shown.pop(page, None)
        self.to_draw = [page for page in self.to_draw if page in self.shown]

    @rule(plan=writes, index=st.integers(0, 2), draw=st.booleans())
    def display_takes_a_snapshot(self, plan: list[Write], index: int, draw: bool) -> None:
        block = self.block(index)
        snapshot = self.during(plan, lambda: self.memory.snapshot_and_clear(VGA, block))
        self.takes(block.first_page + page for page in snapshot.pages.indexes().tolist())
        if draw:
            self.display_draws(len(self.to_draw))

    @rule(plan=writes, index=st.integers(0, 2), pages=ranges)
    def display_resets(self, plan: list[Write], index: int, pages: tuple[int, int]) -> None:
        """It draws the range now, whatever it was told of it."""
        block = self.block(index)
        start = pages[0] % block.pages
        count = min(pages[1], block.pages - start)
        self.during(plan, lambda: self.memory.reset(VGA, block, start, count))
        self.takes(range(block.first_page + start, block.first_page + start + count))
        self.display_draws(len(self.to_draw))

    def takes(self, pages: Iterable[int]) -> None:
        self.to_draw += [page for page in pages if page in self.shown]

    @rule(count=st.integers(1, PAGES))
    def display_draws(self, count: int) -> None:
        for page in self.to_draw[:count]:
            self.shown[page] = self.content[page]
        del self.to_draw[:count]

    # What the translator does.

    @rule(plan=writes, pages=ranges)
    def translates(self, plan: list[Write], pages: tuple[int, int]) -> None:
        start, count = self.cut(pages)
        within = [page for page in range(start, start + count) if page in self.content]
        set_before = sum(self.is_set(CODE, page) for page in within)
        assert self.memory.test_and_clear(CODE, start, count) == set_before
        self.translated |= {page: self.content[page] for page in within}
        self.guest_runs(plan)

    # What anybody does.

    @rule(plan=writes, index=st.integers(-3, 2))
    def syncs(self, plan: list[Write], index: int) -> None:
        self.during(plan, lambda: self.memory.sync(None if index < 0 else self.block(index)))

    def block(self, index: int) -> RamBlock:
        return self.layout.blocks[index % len(self.layout.blocks)]

    # What must hold.

    def to_be_harvested(self) -> set[int]:
        return self.listeners[0].dirty | self.listeners[1].dirty

    def missed(self, client: DirtyClient, copy: dict[int, int], known: Iterable[int]) -> set[int]:
        stale = {page for page, content in copy.items() if self.content[page] != content}
        return {page for page in stale.difference(known) if not self.is_set(client, page)}

    @invariant()
    def no_client_misses_a_write(self) -> None:
        if not hasattr(self, "memory"):
            return
        to_come = self.to_be_harvested()
        if self.bitmap is not None:
            pending = self.bitmap.pending.indexes().tolist()
            missed = self.missed(MIGRATION, self.sent, to_come.union(pending, self.to_send))
            assert not missed, f"the migration misses {missed}"
        missed = self.missed(VGA, self.shown, to_come.union(self.to_draw))
        assert not missed, f"the display misses {missed}"
        missed = self.missed(CODE, self.translated, ())
        assert not missed, f"the translator misses {missed}"

    @invariant()
    def only_pages_of_blocks_are_dirty(self) -> None:
        if hasattr(self, "memory"):
            within = sum(self.memory.count(MIGRATION, *run) for run in self.layout.runs)
            assert self.memory.count(MIGRATION) == within

    def teardown(self) -> None:
        """The guest stands still: each client gets what is left, and then there is nothing left to get."""
        if not hasattr(self, "memory"):
            return
        for block in self.layout.blocks:
            if block.first_page in self.shown:
                self.display_takes_a_snapshot([], self.layout.blocks.index(block), True)
        assert not self.missed(VGA, self.shown, ()), "the display misses something at the end"
        if self.bitmap is None:
            self.migration_starts([])
        assert self.bitmap is not None
        for _ in range(2):
            found = self.bitmap.sync().dirty_pages
            self.migration_takes([], None, True)
        assert not self.missed(MIGRATION, self.sent, ()), "the migration misses something at the end"
        assert found == 0, f"{found} pages are never armed again"


def variant(policy: str, **attributes: Any) -> type[Machine]:
    return type("Machine", (Machine,), {"policy": policy, **attributes})


@pytest.mark.parametrize("policy", ALL_CLEAR_POLICIES)
def test_no_client_misses_a_write(policy: str) -> None:
    examples = max(settings().max_examples // 2, 1)
    run_state_machine_as_test(variant(policy), settings=settings(max_examples=examples, stateful_step_count=30))


# The machine's teeth.


class OnlyTheFirstClient(DirtyMemory):
    """A harvest reaches the client that asked for it first, and nobody else."""

    def _distribute(self, found: Bitmap, displayed: list[RamBlock], block: RamBlock | None) -> None:
        if displayed:
            self._migrating, migrating = False, self._migrating
            super()._distribute(found, displayed, block)
            self._migrating = migrating
        else:
            super()._distribute(found, displayed, block)


class ForgetsADisplayOfTwo(DirtyMemory):
    """A harvest reaches no more than one display."""

    def _distribute(self, found: Bitmap, displayed: list[RamBlock], block: RamBlock | None) -> None:
        super()._distribute(found, displayed[:1], block)


class ClearsBeforeTakingOver(DirtyMemory):
    """Re-arms what a harvest found, and then harvests again for those that it is for."""

    def _harvest(self, dirty: Bitmap, block: RamBlock | None) -> None:
        super()._harvest(Bitmap(dirty.size), block)
        self.clear(0, dirty.size)
        super()._harvest(dirty, block)


class ClearsOneListener(DirtyMemory):
    """Re-arms a page in one listener's log. No write is lost: the other goes on reporting the page, for ever."""

    def clear(self, start: int, count: int) -> None:
        self.logs[0].clear(start, count)

    def clear_always(self, start: int, count: int) -> None:
        self.clear(start, count)


class HarvestsOneListener(DirtyMemory):
    """Does not know of the other."""

    def _harvest(self, dirty: Bitmap, block: RamBlock | None) -> None:
        self.logs[0].harvest(dirty, block)


class DeviceTellsOne(DirtyMemory):
    """What a device wrote is told to one client."""

    told = VGA | CODE

    def set_range(self, start: int, count: int, clients: DirtyClient = MIGRATION | VGA | CODE) -> None:
        super().set_range(start, count, clients & self.told)


class DeviceTellsTheMigration(DeviceTellsOne):
    told = MIGRATION | CODE


class TakesAfterClearing(DirtyMemory):
    """A snapshot of what a display's bits are once they were cleared."""

    def snapshot_and_clear(self, client: DirtyClient, block: RamBlock) -> Any:
        self.sync(block)
        self.test_and_clear(client, block.first_page, block.pages)
        return super().snapshot_and_clear(client, block)


class MarksAllHarvested(Listener):
    """Reports one block, and takes everything for reported."""

    def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
        super().harvest(dirty, block)
        self.harvested = set(self.dirty)


class ClearsUnharvested(Listener):
    """Clears whatever is dirty in a range."""

    def clear(self, start: int, count: int) -> None:
        self.harvested = set(self.dirty)
        super().clear(start, count)


class StopsForEverybody(Listener):
    """Forgets what a display has not heard of when a migration ends."""

    def stop(self) -> None:
        super().stop()
        self.dirty = set()


class DrawsFirst(Machine):
    """A display that reads what is dirty, and has it armed again only then."""

    def display_takes_a_snapshot(self, plan: list[Write], index: int, draw: bool) -> None:  # noqa: ARG002
        block = self.block(index)
        self.memory.sync(block)
        dirty = [page for page in range(block.first_page, block.end_page) if self.is_set(VGA, page)]
        self.takes(dirty)
        self.display_draws(len(self.to_draw))
        self.during(plan, lambda: self.memory.test_and_clear(VGA, block.first_page, block.pages))

    display_takes_a_snapshot = rule(plan=writes, index=st.integers(0, 2), draw=st.booleans())(display_takes_a_snapshot)


@pytest.mark.parametrize(
    ("machine", "symptom", "start"),
    [
        pytest.param(
            variant("merged", make_memory=OnlyTheFirstClient), "migration misses", 0, id="only the first client"
        ),
        pytest.param(variant("merged", make_memory=ForgetsADisplayOfTwo), "display misses", 1, id="one display of two"),
        pytest.param(
            variant("deferred", make_memory=ClearsBeforeTakingOver), "misses", 0, id="clears before taking over"
        ),
        pytest.param(
            variant("merged", make_memory=ClearsOneListener), "never armed again", 0, id="clears one listener"
        ),
        pytest.param(variant("merged", make_memory=HarvestsOneListener), "misses", 1, id="harvests one listener"),
        pytest.param(
            variant("merged", make_memory=DeviceTellsOne), "migration misses", 0, id="device tells the display"
        ),
        pytest.param(
            variant("merged", make_memory=DeviceTellsTheMigration), "display misses", 0, id="device tells the migration"
        ),
        pytest.param(variant("merged", make_memory=TakesAfterClearing), "display misses", 0, id="takes after clearing"),
        pytest.param(variant("merged", make_listener=MarksAllHarvested), "misses", 13, id="marks all harvested"),
        pytest.param(variant("deferred", make_listener=ClearsUnharvested), "misses", 0, id="clears unharvested"),
        pytest.param(variant("merged", make_listener=StopsForEverybody), "display misses", 0, id="stops for everybody"),
        pytest.param(DrawsFirst, "display misses", 0, id="draws first"),
    ],
)
def test_a_broken_variant_is_caught(machine: type[Machine], symptom: str, start: int) -> None:
    assert_caught(machine, symptom, start)
