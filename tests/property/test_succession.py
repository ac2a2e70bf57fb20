"""Several memories save into one directory, which is compacted and loses files: who may go on, against a plain model.

The model knows of each memory which snapshots its content comes from, and of the directory which ones are there. A
memory may go on where the newest one there is among those that it comes from. What it saves is an increment exactly
where nothing lies between, and every snapshot holds what its memory held.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from precopy import compact, restore, snapshot, snapshots, verify
from precopy.errors import UsageError
from support.snapshots import Content, Written, content

PAGES = 40
MOST = 5

who = st.integers(0, MOST - 1)


@dataclass
class Known:
    """A memory, and the snapshots that its content comes from, the last one last."""

    one: Written
    comes_from: list[object] = field(default_factory=list)


@dataclass
class There:
    """A snapshot: whose content it has by now is told by its token, which it keeps for good."""

    token: object
    rows: Content
    needs: frozenset[int]


class Succession(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="precopy-test-"))
        self.known = [Known(Written(PAGES))]
        self.there: dict[int, There] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    @initialize()
    def begins(self) -> None:
        self.saves(0, full=False, replace=False)

    def add(self, known: Known) -> None:
        self.known = [*self.known, known][-MOST:]

    @rule(pages=st.sampled_from([PAGES, PAGES, PAGES + 7]))
    def a_program_starts_without_restoring(self, pages: int) -> None:
        self.add(Known(Written(pages)))

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def a_program_restores(self, data: st.DataObject) -> None:
        at = data.draw(st.sampled_from([None, *self.there]))
        number = max(self.there) if at is None else at
        if not self.there[number].needs <= self.there.keys():
            return
        memory = restore(self.directory, at)
        assert np.array_equal(content(memory), self.there[number].rows)
        chain = sorted(self.there[number].needs)
        self.add(Known(Written(0, memory), [self.there[one].token for one in chain]))

    @rule(which=who, index=st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=5), value=st.integers(0, 9))
    def writes(self, which: int, index: list[int], value: int) -> None:
        self.known[which % len(self.known)].one.write(index, value)

    @rule(which=who, full=st.booleans(), replace=st.booleans())
    def saves(self, which: int, full: bool, replace: bool) -> None:
        known = self.known[which % len(self.known)]
        newest = max(self.there, default=None)
        token = None if newest is None else self.there[newest].token
        successor = newest is None or token in known.comes_from
        if not successor and not replace:
            before = sorted(self.directory.iterdir())
            with pytest.raises(UsageError, match="replace=True"):
                snapshot(known.one.memory, self.directory, full=full)
            assert sorted(self.directory.iterdir()) == before
            return
        done = snapshot(known.one.memory, self.directory, full=full, replace=replace)
        at_last = newest is not None and known.comes_from[-1:] == [token]
        whole = newest is not None and self.there[newest].needs <= self.there.keys()
        assert done.full == (full or not at_last or not whole)
        assert done.number == (newest or 0) + 1
        needs = frozenset({done.number}) | (frozenset() if done.full or newest is None else self.there[newest].needs)
        made = There(object(), known.one.copy(), needs)
        self.there[done.number] = made
        known.comes_from.append(made.token)

    @rule(keep=st.integers(1, 3))
    def compacts(self, keep: int) -> None:
        whole = [number for number in sorted(self.there) if self.there[number].needs <= self.there.keys()]
        if not whole:
            with pytest.raises(UsageError, match="no snapshot that can be restored"):
                compact(self.directory, keep)
            return
        number = compact(self.directory, keep).number
        assert number == whole[-keep:][0]
        self.there = {one: held for one, held in self.there.items() if one >= number}
        for held in self.there.values():
            if number in held.needs:
                held.needs = frozenset(one for one in held.needs if one >= number)

    @precondition(lambda self: self.there)
    @rule(data=st.data())
    def a_file_is_lost(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.there)))
        (self.directory / f"{number:08d}.snapshot").unlink()
        del self.there[number]

    @invariant()
    def all_hold_what_was_saved(self) -> None:
        assert [one.number for one in snapshots(self.directory)] == sorted(self.there)
        whole = {number for number, held in self.there.items() if held.needs <= self.there.keys()}
        if self.there:
            assert verify(self.directory).damage.keys() == self.there.keys() - whole
        else:
            with pytest.raises(UsageError, match="no snapshot"):
                verify(self.directory)
        for number in whole:
            assert np.array_equal(content(restore(self.directory, number)), self.there[number].rows)


TestSuccession = Succession.TestCase
TestSuccession.settings = settings(max_examples=max(settings.default.max_examples // 4, 5), stateful_step_count=25)
