"""What a program may give to each public function, and what it may not: one clear sentence for everything else.

The signatures are walked, so that a new parameter is tried too: for one of a new kind this file has to say what is
wrong for it.
"""

from __future__ import annotations

import inspect
import math
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import precopy
from precopy import Memory, Standby, UsageError
from support.patience import IN_TIME_S
from support.public_api import INTERNAL, RESULTS, public
from support.replicas import MIB, filled

pytestmark = pytest.mark.needs("pagemap")

NOT_WHOLE = [True, np.True_, "3", b"3", 2.5, np.float64(3), math.nan, math.inf, Decimal(3), [], [3], np.zeros(2), -1]
AGES_S = 1e9
"""Longer than any socket or wait takes: it counts as the longest."""
NO_TIME = [True, np.True_, "3", b"3", math.nan, -1.0, -math.inf, 10**400, Decimal(3), 1j, [], np.zeros(2)]
NO_CHOICE = ["x", "", True, 3, b"zstd", [], {}, np.array(["zstd", "content"])]
NO_CALL = [3, "print", True, [], np.zeros(2)]
NO_SHARED_MEMORY = ["a\0b", "", "/", ".", "..", "/..", "../x", "a/b", "//a", "a/", "\ud800", "x" * 256, "x" * 10_000]
NO_BUFFER = [3, 1.5, True, [1], {}, np.zeros(1, "M8[ns]"), np.zeros(4096, np.uint8)[::2]]

WRONG: dict[str, list[Any]] = {
    "int": [*NOT_WHOLE, None],
    "int | None": NOT_WHOLE,
    "float": [*NO_TIME, None],
    "float | None": NO_TIME,
    "bool": [0, 1, "yes", "", None, [], 0.0, np.array([True])],
    "bool | None": [0, 1, "yes", "", [], 0.0, np.array([True])],
    "str | os.PathLike[str]": [True, 3, None, 1.5, [], "", b"", "a\0b", "/dev/null/x"],
    "str": [True, 3, None, b"tcp:127.0.0.1:0", Path("tcp:127.0.0.1:0"), "", "nowhere", "tcp:127.0.0.1", "unix:"],
    "Memory": [bytearray(4096), None, 3, True, "memory", np.zeros(4096, np.uint8), Memory],
    "Any": [*NO_BUFFER, None, b"bytes", "no such name", *NO_SHARED_MEMORY],
    "mmap.mmap": [*NO_BUFFER, None, b"bytes", "x", bytearray(4096)],
    "Writers | None": NO_CHOICE,
    "Literal['content'] | None": NO_CHOICE,
    "Literal['raise', 'promote']": [*NO_CHOICE, None],
    "Literal['zstd'] | None": NO_CHOICE,
    "AbstractContextManager[object] | None": [3, "lock", True, threading.Lock, object()],
    "Callable": NO_CALL,
}
"""By annotation, what is wrong for every parameter that has it."""


def parameters() -> Iterator[tuple[str, str, str]]:
    """(what is called, its parameter, the kind of it)."""
    for name, called in public():
        for parameter in inspect.signature(called).parameters.values():
            if parameter.name == "self":
                continue
            kind = str(parameter.annotation).replace('"', "'")
            yield name, parameter.name, "Callable" if kind.startswith("Callable[") else kind


CASES = [
    pytest.param(name, parameter, value, id=f"{name}-{parameter}-{number}")
    for name, parameter, kind in parameters()
    for number, value in enumerate(WRONG[kind])
    if not (parameter == "level" and value is NOT_WHOLE[-1])  # zstd has levels below 0
]


class World:
    """One of each thing, and valid arguments for each call."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.memory = folder, filled(MIB)
        precopy.snapshot(self.memory, folder / "saved")
        self.standby = Standby("tcp:127.0.0.1:0")
        self.replication = precopy.replicate(self.memory, self.standby.address, interval=math.inf)
        assert self.replication.wait(IN_TIME_S)
        self.replication.checkpoint(wait=True)

    def close(self) -> None:
        self.replication.close()
        self.standby.close()
        self.memory.close()

    def arguments(self, name: str) -> dict[str, Any]:
        """What is needed beside the argument that is tried."""
        saved = {"directory": self.folder / "saved"}
        return {
            "Memory": {"size": 4096},
            "Standby": {"address": "tcp:127.0.0.1:0"},
            "attach": {"memory": "none"},
            "compact": saved,
            "open_memory": {**saved, "size": MIB},
            "receive_memory": {"address": "tcp:127.0.0.1:0"},
            "replicate": {"memory": self.memory, "address": self.standby.address},
            "restore": saved,
            "snapshot": {"memory": self.memory, **saved},
            "snapshots": saved,
            "verify": saved,
            "Memory.adopt": {"buffer": mmap.mmap(-1, 4096)},
            "Memory.over": {"mapping": mmap.mmap(-1, 4096)},
        }.get(name, {})

    def call(self, name: str) -> Callable[..., object]:
        """It, bound to the thing that it is a method of."""
        of, _, method = name.partition(".")
        if not method or method in ("adopt", "over"):
            return dict(public())[name]
        thing = {"Memory": self.memory, "Standby": self.standby, "Replication": self.replication}[of]
        bound: Callable[..., object] = getattr(thing, method)
        return bound


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.close()


@pytest.mark.parametrize(("name", "parameter", "value"), CASES)
def test_what_cannot_be_meant_is_one_sentence(world: World, name: str, parameter: str, value: object) -> None:
    saved = sorted(path.name for path in (world.folder / "saved").iterdir())
    with pytest.raises(UsageError) as said:
        world.call(name)(**{**world.arguments(name), parameter: value})
    sentence = str(said.value)
    assert sentence.isprintable()  # on one line, too
    assert 10 < len(sentence) < 300
    assert sorted(path.name for path in (world.folder / "saved").iterdir()) == saved


def test_what_is_not_tried_is_there() -> None:
    assert set(INTERNAL) <= {f"{name}{dot}" for name in precopy.__all__ for dot in ("", ".consumer")}
    assert set(precopy.__all__) >= RESULTS
    assert len(CASES) > 300


WHOLE = [int, np.int64, np.uint32, np.int32]


@pytest.mark.parametrize("kind", WHOLE)
def test_numpys_whole_numbers_are_whole_numbers(world: World, tmp_path: Path, kind: Callable[[int], Any]) -> None:
    memory = Memory(kind(3 * 4096 + 1))
    assert (memory.size, type(memory.size)) == (4 * 4096, int)
    np.frombuffer(memory, np.uint8)[:] = 7
    with memory.track() as changes:
        changes.sync()
        memory.touched(kind(4096), kind(1))
        with memory.writing(kind(3 * 4096), kind(5)):
            pass
        assert changes.sync().indexes.tolist() == [1, 3]
    precopy.snapshot(memory, tmp_path, compress="zstd", level=kind(3))
    precopy.snapshot(memory, tmp_path, full=np.True_)  # type: ignore[arg-type] # what a comparison of arrays gives
    assert bytes(precopy.restore(tmp_path, kind(1))) == bytes(memory)
    assert not precopy.verify(tmp_path, kind(2)).damage
    assert bytes(precopy.open_memory(tmp_path, kind(4 * 4096), verify=np.True_)) == bytes(memory)  # type: ignore[arg-type] # as above
    assert precopy.compact(tmp_path, kind(1)).number == 2
    assert world.standby.wait(point=kind(1))


@pytest.mark.parametrize("kind", [int, float, np.int64, np.float32, np.float64, Fraction])
def test_any_number_is_a_time(kind: Callable[[int], Any]) -> None:
    memory = filled(MIB)
    with (
        Standby("tcp:127.0.0.1:0", timeout=kind(60), max_size=np.int64(MIB), max_staging=np.int32(MIB)) as standby,  # type: ignore[arg-type] # that is what is tried
        precopy.replicate(
            memory, standby.address, interval=kind(1000), timeout=kind(60), quiet=kind(0), max_bandwidth=kind(10**9)
        ) as handle,
    ):
        assert handle.wait(kind(100))
        assert standby.wait(kind(100), point=1)
        assert bytes(standby.promote()) == bytes(memory)


def test_an_infinity_waits_for_ever(world: World) -> None:
    assert world.replication.wait(math.inf)
    assert world.standby.wait(math.inf, point=1)
    assert world.standby.wait(AGES_S, point=1)


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_a_path_is_a_path(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    directory = kind(tmp_path / "saved")
    assert precopy.snapshot(filled(MIB), directory).number == 1
    assert [one.number for one in precopy.snapshots(directory)] == [1]
    assert bytes(precopy.restore(directory)) == bytes(filled(MIB))


def test_what_was_closed_before_it_is_handed_over() -> None:
    shared, mapping = SharedMemory(create=True, size=4096), mmap.mmap(-1, 4096)
    name = shared.name
    shared.close()
    mapping.close()
    try:
        for call in (Memory.adopt, precopy.attach):
            with pytest.raises(UsageError, match="this SharedMemory is closed; a"):
                call(shared)
            with pytest.raises(UsageError, match=r"is no buffer \(mmap closed or invalid\); a"):
                call(mapping)
        with pytest.raises(UsageError, match="no process of this user tracks"):
            precopy.attach(name)
    finally:
        SharedMemory(name).unlink()
