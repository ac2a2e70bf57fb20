"""Random trees of regions, changed at random, against a model that looks up each half page by walking the tree; and
what a listener is told against what is there.

Half a page is the unit, so that ranges begin and end within pages too.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

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

from precopy.errors import LayoutError
from precopy.memory import (
    NO_CLIENTS,
    AddressSpace,
    DirtyClient,
    FlatRange,
    MemoryRegion,
    RamBlock,
    RegionKind,
    smram,
    transaction,
)
from precopy.units import PAGE_SIZE, RamPage

UNIT = PAGE_SIZE // 2
UNITS = 24
"""Units in the root region."""
MAX_REGIONS = 12

units = st.integers(0, UNITS + 2)
sizes = st.integers(0, UNITS)
picks = st.integers(0, MAX_REGIONS - 1)
holders = st.one_of(st.just(0), picks)
mostly = st.sampled_from([True, True, True, False])
makings = st.tuples(st.sampled_from(list(RegionKind)), st.integers(1, UNITS), st.integers(0, 4), picks)
additions = st.tuples(holders, picks, st.integers(0, UNITS // 2), st.integers(-1, 1))
clients = st.sampled_from(list(DirtyClient))


class Seen(NamedTuple):
    """What a unit of an address space is."""

    region: int
    offset: int
    readonly: bool
    romd: bool
    nonvolatile: bool
    unmergeable: bool
    log_mask: DirtyClient
    drawn_by: tuple[int, ...] = ()
    """Of an unmergeable one in the model: the regions that lead to it, which have a range of their own together."""


@dataclass
class Child:
    at: int
    priority: int
    turn: int
    """When it was added or moved, for those of one priority."""


@dataclass
class Model:
    """A region as the model has it; sizes, offsets and addresses in units."""

    kind: RegionKind
    size: int
    target: int | None = None
    offset: int = 0
    enabled: bool = True
    readonly: bool = False
    romd: bool = True
    nonvolatile: bool = False
    unmergeable: bool = False
    log_mask: DirtyClient = NO_CLIENTS
    children: dict[int, Child] = field(default_factory=dict)


BACKED = (RegionKind.RAM, RegionKind.ROM, RegionKind.ROM_DEVICE, RegionKind.RAM_DEVICE)


class Replay:
    """A listener that only keeps what it is told; it notices at once if two ranges overlap."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ranges: dict[int, FlatRange] = {}
        self.open = False
        self.last_added = -1
        self.updates = 0

    def begin(self) -> None:
        assert not self.open
        self.open, self.last_added = True, -1

    def commit(self) -> None:
        assert self.open
        self.open = False
        self.updates += 1

    def region_add(self, added: FlatRange) -> None:
        assert self.open
        assert added.address > self.last_added, "in ascending order"
        assert added.size > 0
        assert all(added.end <= one.address or one.end <= added.address for one in self.ranges.values())
        self.last_added = added.address
        self.ranges[added.address] = added

    def region_del(self, removed: FlatRange) -> None:
        assert self.open
        assert self.last_added == -1, "what is gone comes first"
        assert self.ranges.pop(removed.address) == removed

    def log_start(self, logged: FlatRange, old_mask: DirtyClient, new_mask: DirtyClient) -> None:
        assert new_mask & ~old_mask
        assert self.ranges[logged.address].log_mask == old_mask
        if not old_mask & ~new_mask:
            self._logged(logged, new_mask)

    def log_stop(self, logged: FlatRange, old_mask: DirtyClient, new_mask: DirtyClient) -> None:
        assert old_mask & ~new_mask
        assert self.ranges[logged.address].log_mask == old_mask
        self._logged(logged, new_mask)

    def _logged(self, logged: FlatRange, new_mask: DirtyClient) -> None:
        assert self.open
        assert logged.log_mask == new_mask
        assert self.ranges[logged.address].same_place(logged)
        self.ranges[logged.address] = logged


class Regions(RuleBasedStateMachine):
    """Regions beside their models; region 0 is the root of an address space, and another one has an alias of it."""

    def __init__(self) -> None:
        super().__init__()
        self.regions: list[MemoryRegion] = [MemoryRegion.container("root", UNITS * UNIT)]
        self.models: list[Model] = [Model(RegionKind.CONTAINER, UNITS)]
        self.turn = 0
        self.space, self.above = AddressSpace("memory", self.regions[0]), smram(self.regions[0])
        self.replay, self.second, self.through_alias = Replay("always"), Replay("at times"), Replay("smram")
        self.space.add_listener(self.replay)
        self.above.add_listener(self.through_alias)
        self.second_listens = False
        self.stack = ExitStack()
        self.in_transaction = 0
        self.before = self.space.view

    def teardown(self) -> None:
        self.stack.close()
        self.space.close()
        assert self.replay.ranges == {}

    def pick(self, number: int) -> int:
        return number % len(self.regions)

    # What there is

    @initialize(making=st.lists(makings, min_size=5, max_size=8), adding=st.lists(additions, min_size=5, max_size=16))
    def start(self, making: list[tuple[RegionKind, int, int, int]], adding: list[tuple[int, int, int, int]]) -> None:
        """A tree to begin with, so that few steps are spent on views of nothing."""
        for kind, size, offset, target in making:
            if kind is RegionKind.ALIAS:
                self.make_alias(target, offset, size)
            else:
                self.make(kind, size, 1 + size % 6)
        for addition in adding:
            self.add(*addition)

    @precondition(lambda self: len(self.regions) < MAX_REGIONS)
    @rule(
        kind=st.sampled_from([kind for kind in RegionKind if kind is not RegionKind.ALIAS]),
        size=sizes,
        pages=st.integers(1, 6),
    )
    def make(self, kind: RegionKind, size: int, pages: int) -> None:
        name = f"region {len(self.regions)}"
        if kind in BACKED:
            block = RamBlock(name, RamPage(64 * len(self.regions)), pages)
            makers = {
                RegionKind.RAM: MemoryRegion.ram,
                RegionKind.ROM: MemoryRegion.rom,
                RegionKind.ROM_DEVICE: MemoryRegion.rom_device,
                RegionKind.RAM_DEVICE: lambda name, block: MemoryRegion.ram_device(
                    name, block.pages * PAGE_SIZE, block
                ),
            }
            self.regions.append(makers[kind](name, block))
            self.models.append(Model(kind, 2 * pages, readonly=kind is RegionKind.ROM))
        else:
            unbacked = {
                RegionKind.IO: MemoryRegion.io,
                RegionKind.UNMIGRATED: MemoryRegion.unmigrated_ram,
                RegionKind.CONTAINER: MemoryRegion.container,
            }
            self.regions.append(unbacked[kind](name, size * UNIT))
            self.models.append(Model(kind, size))

    @precondition(lambda self: len(self.regions) < MAX_REGIONS)
    @rule(number=picks, offset=units, size=sizes)
    def make_alias(self, number: int, offset: int, size: int) -> None:
        target = self.pick(number)
        name = f"region {len(self.regions)}"
        self.regions.append(MemoryRegion.alias(name, self.regions[target], offset * UNIT, size * UNIT))
        self.models.append(Model(RegionKind.ALIAS, size, target, offset))

    # Changes

    @rule(where=holders, number=picks, at=units, priority=st.integers(-1, 1))
    def add(self, where: int, number: int, at: int, priority: int) -> None:
        into, index = self.pick(where), self.pick(number)
        possible = (
            self.models[into].kind is not RegionKind.ALIAS
            and self.parent(index) is None
            and into not in self.reachable(index)
        )
        if not possible:
            with pytest.raises(LayoutError):
                self.regions[into].add_subregion(self.regions[index], at * UNIT, priority)
            return
        self.regions[into].add_subregion(self.regions[index], at * UNIT, priority)
        self.turn += 1
        self.models[into].children[index] = Child(at, priority, self.turn)

    @rule(number=picks, at=units)
    def move(self, number: int, at: int) -> None:
        index = self.pick(number)
        parent = self.parent(index)
        if parent is None:
            with pytest.raises(LayoutError):
                self.regions[index].address = at * UNIT
            return
        self.regions[index].address = at * UNIT
        child = self.models[parent].children[index]
        if child.at != at:
            self.turn += 1
            self.models[parent].children[index] = Child(at, child.priority, self.turn)

    @rule(number=picks, on=mostly)
    def enable(self, number: int, on: bool) -> None:
        index = self.pick(number)
        self.regions[index].enabled = self.models[index].enabled = on

    @rule(number=picks, on=st.booleans())
    def make_readonly(self, number: int, on: bool) -> None:
        index = self.pick(number)
        if self.models[index].kind is not RegionKind.ROM:
            self.regions[index].readonly = self.models[index].readonly = on

    @rule(number=picks, on=st.booleans())
    def make_nonvolatile(self, number: int, on: bool) -> None:
        index = self.pick(number)
        self.regions[index].nonvolatile = self.models[index].nonvolatile = on

    @rule(number=picks, on=st.booleans())
    def make_unmergeable(self, number: int, on: bool) -> None:
        index = self.pick(number)
        self.regions[index].unmergeable = self.models[index].unmergeable = on

    @rule(number=picks, on=st.booleans())
    def set_romd_mode(self, number: int, on: bool) -> None:
        index = self.pick(number)
        if self.models[index].kind is RegionKind.ROM_DEVICE:
            self.regions[index].romd_mode = self.models[index].romd = on

    @rule(number=picks, client=clients, on=st.booleans())
    def set_log(self, number: int, client: DirtyClient, on: bool) -> None:
        index = end = self.pick(number)
        while (target := self.models[end].target) is not None:
            end = target
        model = self.models[end]
        if model.kind not in BACKED:
            with pytest.raises(LayoutError):
                self.regions[index].set_log(client, on)
            return
        self.regions[index].set_log(client, on)
        model.log_mask = model.log_mask | client if on else model.log_mask & ~client

    # Listeners and transactions

    @rule()
    def second_comes_or_goes(self) -> None:
        if self.second_listens:
            self.space.remove_listener(self.second)
            assert self.second.ranges == {}
        else:
            self.space.add_listener(self.second)
        self.second_listens = not self.second_listens

    @rule()
    def begin(self) -> None:
        if not self.in_transaction:
            self.before, self.updates_before = self.space.view, self.replay.updates
        self.stack.enter_context(transaction())
        self.in_transaction += 1

    @precondition(lambda self: self.in_transaction)
    @rule()
    def commit(self) -> None:
        self.stack.close()
        self.in_transaction = 0
        assert self.replay.updates == self.updates_before + (self.space.view != self.before)

    # What must hold

    @invariant()
    def the_view_is_the_models(self) -> None:
        if self.in_transaction:
            assert self.space.view == self.before
            return
        expected = [found and found._replace(drawn_by=()) for found in map(self.resolve_unit, range(UNITS))]
        assert self.units_of(self.space) == expected
        assert self.units_of(self.above) == expected

    @invariant()
    def ranges_are_ascending_disjoint_and_as_long_as_they_can_be(self) -> None:
        for before, after in pairwise(self.space.view):
            assert before.end <= after.address
            one_region = after.region is before.region and after.offset == before.offset + before.size
            same = (before.readonly, before.romd_mode, before.nonvolatile, before.log_mask) == (
                *(after.readonly, after.romd_mode, after.nonvolatile, after.log_mask),
            )
            apart = before.unmergeable or after.unmergeable
            assert apart or not (before.end == after.address and one_region and same)

    @invariant()
    def listeners_know_what_there_is(self) -> None:
        assert tuple(self.replay.ranges[at] for at in sorted(self.replay.ranges)) == self.space.view.ranges
        assert (
            tuple(self.through_alias.ranges[at] for at in sorted(self.through_alias.ranges)) == self.above.view.ranges
        )
        if self.second_listens:
            assert self.second.ranges == self.replay.ranges

    @invariant()
    def lookup_finds_the_range_of_each_byte(self) -> None:
        view = self.space.view
        for address in (at * UNIT + by for at in range(UNITS) for by in (0, UNIT - 1)):
            holds = [one for one in view if one.address <= address < one.end]
            assert view.lookup(address) == (holds[0] if holds else None)

    @invariant()
    def sections_are_the_whole_pages_that_are_read_from_ram(self) -> None:
        if self.in_transaction:
            return
        mapped = {
            section.gpa // PAGE_SIZE + page: (section.block, section.offset + page)
            for section in self.space.view.sections
            for page in range(section.pages)
        }
        assert mapped == {page: found for page in range(UNITS // 2) if (found := self.whole_page(page))}

    # The model

    def parent(self, index: int) -> int | None:
        return next((at for at, model in enumerate(self.models) if index in model.children), None)

    def reachable(self, index: int) -> set[int]:
        model = self.models[index]
        below = set(model.children) | ({model.target} if model.target is not None else set())
        return {index}.union(*(self.reachable(one) for one in below))

    def resolve_unit(self, at: int) -> Seen | None:
        """What unit ``at`` of the address space is."""
        return self.resolve(0, at, (False, False, False), ())

    def resolve(
        self, index: int, offset: int, inherited: tuple[bool, bool, bool], path: tuple[int, ...]
    ) -> Seen | None:
        """What is to be seen ``offset`` units into a region, to which the regions of ``path`` lead.

        ``inherited`` is whether any of these is read-only, nonvolatile, unmergeable.
        """
        model = self.models[index]
        if not model.enabled or not 0 <= offset < model.size:
            return None
        readonly, nonvolatile = inherited[0] or model.readonly, inherited[1] or model.nonvolatile
        unmergeable, path = inherited[2] or model.unmergeable, (*path, index)
        inherited = (readonly, nonvolatile, unmergeable)
        if model.target is not None:
            return self.resolve(model.target, offset + model.offset, inherited, path)
        covering = sorted(model.children.items(), key=lambda item: (-item[1].priority, -item[1].turn))
        for below, child in covering:
            if found := self.resolve(below, offset - child.at, inherited, path):
                return found
        if model.kind is RegionKind.CONTAINER:
            return None
        romd = model.kind is RegionKind.ROM_DEVICE and model.romd
        drawn_by = path if unmergeable else ()
        return Seen(index, offset, readonly, romd, nonvolatile, unmergeable, model.log_mask, drawn_by)

    def units_of(self, space: AddressSpace) -> list[Seen | None]:
        """What the view says of each unit, and that it says nothing of what lies beyond."""
        found: list[Seen | None] = [None] * UNITS
        for one in space.view:
            assert one.address % UNIT == one.size % UNIT == one.offset % UNIT == 0
            index = next(at for at, region in enumerate(self.regions) if region is one.region)
            for unit in range(one.size // UNIT):
                at, offset = one.address // UNIT + unit, one.offset // UNIT + unit
                assert found[at] is None
                seen = (one.readonly, one.romd_mode, one.nonvolatile, one.unmergeable, one.log_mask)
                found[at] = Seen(index, offset, *seen)
        return found

    def whole_page(self, page: int) -> tuple[RamBlock, int] | None:
        """The block and its page that both halves of a page of the address space are read from."""
        first, second = map(self.resolve_unit, (2 * page, 2 * page + 1))
        if first is None or second != first._replace(offset=first.offset + 1) or first.offset % 2:
            return None
        block, kind = self.regions[first.region].block, self.models[first.region].kind
        if block is None or (kind is RegionKind.ROM_DEVICE and not first.romd):
            return None
        return block, first.offset // 2


def test_any_sequence_of_changes() -> None:
    run_state_machine_as_test(Regions, settings=settings(stateful_step_count=30, deadline=None))  # type: ignore[no-untyped-call]
