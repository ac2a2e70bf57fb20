"""What was closed says so, in one form: ``the <thing> is closed; <what to do instead>``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import precopy
from precopy import Changes, Memory, Replication, Standby, UsageError
from support.patience import IN_TIME_S
from support.replicas import MIB, filled

pytestmark = pytest.mark.needs("pagemap")

REFUSES = {
    Memory: ["contents", "consumer", "touched", "writing", "io_buffer", "track"],
    Changes: ["sync"],
    Replication: ["wait", "checkpoint", "cutover"],
    Standby: ["wait", "promote"],
}
"""Methods that need what is closed. A closed memory's bytes stay, so the rest of it goes on."""
STAYS = {Memory: ["adopt", "over", "close"], Changes: [], Replication: ["close"], Standby: ["close"]}
ARGUMENTS = {"consumer": ("a test",)}


def says_closed(what: str, call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as said:
        call()
    sentence = str(said.value)
    assert sentence.startswith(f"the {what} is closed; ")
    assert sentence.isprintable()
    assert len(sentence) < 200
    return sentence


def refuses(kind: type, what: str, thing: Any) -> None:
    methods = {
        name
        for name, member in vars(kind).items()
        if not name.startswith("_") and not isinstance(member, property) and callable(getattr(kind, name))
    }
    assert methods == {*REFUSES[kind], *STAYS[kind]}
    said = set()
    for name in REFUSES[kind]:

        def call(name: str = name) -> None:
            done = getattr(thing, name)(*ARGUMENTS.get(name, ()))
            if hasattr(done, "__enter__"):
                with done:
                    pass

        said.add(says_closed(what, call))
    assert len(said) == 1


def test_a_memory(tmp_path: Path) -> None:
    memory = filled(MIB)
    memory.close()
    refuses(Memory, "memory", memory)
    says_closed("memory", lambda: precopy.snapshot(memory, tmp_path))
    says_closed("memory", lambda: precopy.replicate(memory, "unix:/nowhere"))
    # What it says to do works.
    again = Memory.adopt(memory)
    with again.track() as changes:
        changes.sync()
        again[5 * 4096] = 1
        assert changes.sync().indexes.tolist() == [5]
    assert memory[5 * 4096] == 1


def test_changes() -> None:
    memory = filled(MIB)
    changes = memory.track()
    with pytest.raises(UsageError, match="the tracking has not begun; nothing is found outside"):
        changes.sync()
    with changes:
        assert changes.sync()
    refuses(Changes, "tracking", changes)
    with changes:  # what it says to do
        assert changes.sync()
        memory.close()
        says_closed("memory", changes.sync)


def test_a_replication_and_its_standby() -> None:
    memory = filled(MIB)
    with Standby("tcp:127.0.0.1:0") as standby:
        with precopy.replicate(memory, standby.address, interval=math.inf) as handle:
            assert handle.wait(IN_TIME_S)
            handle.checkpoint(wait=True)
        refuses(Replication, "replication", handle)
        with pytest.raises(precopy.PeerRefused):
            standby.wait(IN_TIME_S)
        assert bytes(standby.promote()) == bytes(memory)


def test_a_replication_that_was_cut_over_is_over() -> None:
    with Standby("tcp:127.0.0.1:0") as standby, precopy.replicate(filled(MIB), standby.address) as handle:
        with handle.cutover():
            pass
        with pytest.raises(UsageError, match="is over, because the memory was given to the standby; begin another"):
            handle.cutover().__enter__()


def test_a_standby_without_a_point() -> None:
    standby = Standby("tcp:127.0.0.1:0")
    with pytest.raises(UsageError, match="there is no point yet that could be promoted; wait for one"):
        standby.promote()
    standby.close()
    refuses(Standby, "standby", standby)
    assert "no point" in says_closed("standby", standby.wait)


def test_a_standby_with_a_point() -> None:
    memory = filled(MIB)
    with Standby("tcp:127.0.0.1:0") as standby:
        with precopy.replicate(memory, standby.address, interval=math.inf) as handle:
            handle.wait(IN_TIME_S)
            handle.checkpoint(wait=True)
            standby.close()
            assert standby.wait(point=1)
            assert "promote() gives its last point" in says_closed("standby", standby.wait)
        assert bytes(standby.promote()) == bytes(memory)
