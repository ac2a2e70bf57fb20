"""`precopy.ports.MemoryReader`, `MemoryWriter`, `MemoryCopier`: memory of every machine, and of a program."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from precopy import Memory
from precopy.bitmap import Runs
from precopy.errors import LayoutError
from precopy.memory import GuestMemory
from precopy.ports import MemoryCopier, MemoryWriter
from precopy.units import PAGE_SIZE
from support.machines import COPIED, EMULATED, KVM, RING, SCRIPTED, Booted, Kind
from support.scripted import CopiedMemory


@dataclass
class Held:
    """A memory in its role, the same one as it lies in this process, and what keeps it."""

    memory: Any
    inside: GuestMemory
    close: Callable[[], None]


def of_machine(kind: Kind) -> Callable[[], Held]:
    def make() -> Held:
        booted = Booted(kind)
        vm = booted.vm
        inside = vm._inner.memory if kind is COPIED else vm.memory
        return Held(vm.memory, inside, booted.close)

    return make


def of_program() -> Held:
    memory = Memory(3 << 20)
    return Held(memory.contents(), memory.contents(), memory.close)


MAPPED = [
    *(
        pytest.param(of_machine(kind), id=kind.name, marks=[pytest.mark.needs(kind.needs)] if kind.needs else [])
        for kind in (SCRIPTED, EMULATED, KVM, RING)
    ),
    pytest.param(of_program, id="a program's"),
]
COPIES = [pytest.param(of_machine(COPIED), id=COPIED.name)]


@pytest.fixture
def held(request: pytest.FixtureRequest) -> Iterator[Held]:
    held = request.param()
    first = held.inside.layout.blocks[0].first_page
    for page in (1, 2, 3, 5, 8, 9):
        held.inside.buffers(Runs.of((first + page, 1)))[0][:] = bytes([page]) * PAGE_SIZE
    held.inside.write_zero(Runs.of((first + 4, 1), (first + 6, 2)))
    held.inside.buffers(Runs.of((first + 6, 1)))[0][-1] = 1  # zero at first sight only
    yield held
    held.close()


mapped = pytest.mark.parametrize("held", MAPPED, indirect=True)
copies = pytest.mark.parametrize("held", COPIES, indirect=True)
every = pytest.mark.parametrize("held", [*MAPPED, *COPIES], indirect=True)


def runs_of(held: Held) -> Runs:
    """Some of the first block, out of order, and the last page of the last one."""
    first, last = held.inside.layout.blocks[0].first_page, held.inside.layout.blocks[-1]
    return Runs.of((first + 4, 6), (first + 1, 2), (last.first_page + last.pages - 1, 1))


def outside(held: Held) -> list[Runs]:
    """Runs that do not lie in a block."""
    last = held.inside.layout.blocks[-1]
    end = last.first_page + last.pages
    return [Runs.of((end, 1)), Runs.of((end - 1, 2)), Runs.of((0, 1), (1 << 40, 1))]


@every
def test_has_one_role(held: Held) -> None:
    assert isinstance(held.memory, MemoryCopier) == isinstance(held.memory, CopiedMemory)
    assert held.memory.layout is held.inside.layout


@mapped
def test_buffers_and_addresses_are_the_memory_itself(held: Held) -> None:
    runs = runs_of(held)
    views, addresses = held.memory.buffers(runs), held.memory.addresses(runs)
    assert [len(view) for view in views] == addresses[:, 1].tolist() == (runs.lengths * PAGE_SIZE).tolist()
    assert bytes(views[1]) == b"\1" * PAGE_SIZE + b"\2" * PAGE_SIZE
    held.inside.buffers(Runs.of((int(runs.starts[1]), 1)))[0][7] = 99
    assert views[1][7] == 99
    for view, (address, size) in zip(views, addresses.tolist(), strict=True):
        assert ctypes.string_at(address, size) == bytes(view)


@mapped
def test_zero_pages_are_told_from_others(held: Held) -> None:
    runs = runs_of(held)
    content, zero = held.memory.split_zero(runs)
    assert sorted([*content.indexes().tolist(), *zero.indexes().tolist()]) == sorted(runs.indexes().tolist())
    for part, expected in ((content, False), (zero, True)):
        for page in part.indexes().tolist():
            (view,) = held.inside.buffers(Runs.of((page, 1)))
            assert (not any(view)) == expected
        held.inside.layout.block_of(part)
    first = int(held.inside.layout.blocks[0].first_page)
    assert {first + 4, first + 7} <= set(zero.indexes().tolist())
    assert {first + page for page in (1, 2, 5, 6, 8, 9)} <= set(content.indexes().tolist())


@mapped
def test_pages_are_made_zero_and_no_others(held: Held) -> None:
    memory: MemoryWriter = held.memory
    first = int(held.inside.layout.blocks[0].first_page)
    memory.write_zero(Runs.of((first + 8, 1), (first + 2, 2)))
    left = [first + page for page in range(1, 10) if any(held.inside.buffers(Runs.of((first + page, 1)))[0])]
    assert left == [first + page for page in (1, 5, 6, 9)]


@copies
def test_copies_are_in_order_and_without_gaps(held: Held) -> None:
    runs = runs_of(held)
    buffer = bytearray(b"\xaa" * runs.pages * PAGE_SIZE)
    held.memory.copy_into(runs, memoryview(buffer))
    assert bytes(buffer) == b"".join(held.inside.buffers(runs))
    held.inside.buffers(runs)[0][0] ^= 1
    assert bytes(buffer[:1]) != bytes(held.inside.buffers(runs)[0][:1])  # a copy


@every
def test_what_is_outside_is_refused_and_nothing_is_changed(held: Held) -> None:
    before = [host.words.copy() for host in held.inside.hosts]
    calls: list[Callable[[Runs], object]] = (
        [lambda runs: held.memory.copy_into(runs, memoryview(bytearray(runs.pages * PAGE_SIZE)))]
        if isinstance(held.memory, MemoryCopier)
        else [held.memory.buffers, held.memory.addresses, held.memory.split_zero, held.memory.write_zero]
    )
    for call in calls:
        for runs in outside(held):
            with pytest.raises(LayoutError):
                call(runs)
    for host, then in zip(held.inside.hosts, before, strict=True):
        assert np.array_equal(host.words, then)
