"""Writes, snapshots, failures, crashes and compactions in any order, against plain copies of all pages.

What must hold after each step: every snapshot that was reported, and that no compaction has taken away, can be restored
and holds what the memory held then; and a crash leaves at most one more, which holds what the memory held, too.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from precopy import Memory, compact, restore, snapshot
from precopy.errors import SnapshotError
from precopy.snapshot_store import directory as directory_module
from precopy.snapshot_store import restoring, snapshots, verify
from support.snapshots import Content, Written, content, dying

PAGES = 130
COMPRESS = [None, "zstd"] if importlib.util.find_spec("zstandard") else [None]
STEPS = 5
"""begun, written, flushed, renamed, committed."""

pages = st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=20)
ranges = st.tuples(st.integers(0, PAGES - 1), st.integers(1, PAGES)).map(lambda r: range(r[0], min(sum(r), PAGES)))
compress = st.sampled_from(COMPRESS)


class Store(RuleBasedStateMachine):
    """``saved`` has the content of each snapshot that there has to be."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.directory = Path(tempfile.mkdtemp(prefix="precopy-test-"))
        self.one = Written(PAGES)
        self.saved: dict[int, Content] = {}
        self.foreign = False
        self.most, self.few = restoring.INCREMENT_MAPPINGS, 1

    def teardown(self) -> None:
        shutil.rmtree(self.directory)

    @initialize(compress=compress)
    def first(self, compress: Any) -> None:
        self.saves(compress, full=False)

    @rule(index=pages | ranges, value=st.integers(0, 3))
    def writes(self, index: Any, value: int) -> None:
        self.one.write(index, value)

    @rule(compress=compress, full=st.booleans())
    def saves(self, compress: Any, full: bool) -> None:
        done = snapshot(self.one.memory, self.directory, compress=compress, full=full, replace=self.foreign)
        assert done.number not in self.saved
        self.saved[done.number] = self.one.copy()
        self.foreign = False

    @rule(at=st.integers(1, STEPS), compress=compress, full=st.booleans())
    def saves_onto_a_full_disk(self, at: int, compress: Any, full: bool) -> None:
        done = 0

        def step(_name: str) -> None:
            nonlocal done
            done += 1
            if done == at:
                raise OSError(errno.ENOSPC, "full")

        directory_module.step = step
        try:
            with pytest.raises(SnapshotError):
                snapshot(self.one.memory, self.directory, compress=compress, full=full, replace=self.foreign)
        finally:
            directory_module.step = directory_module._no_step

    @rule(at=st.integers(1, STEPS), compress=compress)
    def dies_while_it_saves(self, at: int, compress: Any) -> None:
        """A child does, because it is to be killed; to this process, it is another writer."""
        dying(lambda: snapshot(self.one.memory, self.directory, compress=compress, full=True, replace=self.foreign), at)
        self._take_what_is_there()

    @rule(keep=st.integers(1, 3), at=st.integers(1, 2 * STEPS))
    def dies_while_it_compacts(self, keep: int, at: int) -> None:
        dying(lambda: compact(self.directory, keep), at)
        kept = sorted(self.saved)[-keep:]
        there = {one.number for one in snapshots(self.directory)}
        assert there.issuperset(kept)
        self.saved = {number: rows for number, rows in self.saved.items() if number in there}

    @rule(keep=st.integers(1, 3))
    def compacts(self, keep: int) -> None:
        compact(self.directory, keep)
        self.saved = {number: self.saved[number] for number in sorted(self.saved)[-keep:]}

    @precondition(lambda self: not self.foreign)
    @rule()
    def starts_again_from_the_newest(self) -> None:
        memory: Memory = restore(self.directory)
        self.one = Written(PAGES, memory)
        assert np.array_equal(self.one.rows, self.saved[max(self.saved)])

    def _take_what_is_there(self) -> None:
        numbers = {one.number for one in snapshots(self.directory)}
        new = numbers - self.saved.keys()
        assert len(new) <= 1
        assert numbers >= self.saved.keys()
        self.foreign |= bool(new)
        self.saved |= {number: self.one.copy() for number in new}

    @invariant()
    def all_can_be_restored(self) -> None:
        there = snapshots(self.directory)
        assert [one.number for one in there] == sorted(self.saved)
        assert not [one.damage for one in there if one.damage]
        self.few = 3 - self.few  # with and without mappings for all runs
        restoring.INCREMENT_MAPPINGS = self.few if self.few == 1 else self.most
        for number, rows in self.saved.items():
            assert np.array_equal(content(restore(self.directory, at=number)), rows)
        restoring.INCREMENT_MAPPINGS = self.most

    @invariant()
    def nothing_is_damaged(self) -> None:
        if self.saved:
            assert not verify(self.directory).damage
            assert len(os.listdir("/proc/self/fd")) < self.descriptors + 100


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=max(settings.default.max_examples // 4, 5), stateful_step_count=20)
