"""Which memory may go on in a directory of snapshots, and what the others are told."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import precopy
from precopy import Memory, compact, open_memory, restore, snapshot, snapshots
from precopy.errors import SnapshotDamaged, Unsupported, UsageError
from precopy.snapshot_store import directory as directory_module
from precopy.units import PAGE_SIZE
from support.patience import IN_TIME_S
from support.scripted_log import ScriptedLog
from support.snapshots import Written, content, files

PAGES = 64


def damage_header(directory: Path, number: int) -> None:
    with open(directory / f"{number:08d}.snapshot", "r+b") as file:
        file.seek(30)
        file.write(b"!")


@pytest.mark.parametrize("full", [False, True])
def test_a_program_that_did_not_restore_replaces_nothing(tmp_path: Path, full: bool) -> None:
    good = Written(PAGES)
    good.write([1, 2], 5)
    snapshot(good.memory, tmp_path)
    fresh = Written(PAGES)
    with pytest.raises(UsageError) as refused:
        snapshot(fresh.memory, tmp_path, full=full)
    assert str(refused.value) == (
        f"{tmp_path} has snapshot 1, which this memory does not go on from; begin with "
        f"precopy.open_memory(directory, size), which restores it, or give replace=True to begin anew with this memory"
    )
    assert files(tmp_path) == ["00000001.snapshot"]
    compact(tmp_path)
    assert np.array_equal(content(restore(tmp_path)), good.rows)
    assert snapshot(fresh.memory, tmp_path, replace=True).full
    with pytest.raises(UsageError, match="has got snapshot 2 of another memory since this one's 1"):
        snapshot(good.memory, tmp_path, full=full)


@pytest.mark.needs("pagemap")
def test_open_memory_begins_and_then_restores(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    with open_memory(directory, PAGES * PAGE_SIZE - 5) as memory:
        assert memory.size == PAGES * PAGE_SIZE
        assert not content(memory).any()
        np.frombuffer(memory, np.uint64)[7] = 3
        assert snapshot(memory, directory).full
    with open_memory(directory, PAGES * PAGE_SIZE - 5) as memory:
        assert content(memory)[0, 7] == 3
        np.frombuffer(memory, np.uint64)[8] = 4
        assert not snapshot(memory, directory).full
    for size in (PAGES * PAGE_SIZE + 1, PAGE_SIZE, 0, -1):
        with pytest.raises(UsageError, match=rf"holds a memory of {PAGES * PAGE_SIZE} bytes, and {size} were asked"):
            open_memory(directory, size)


def test_open_memory_never_begins_over_damage(tmp_path: Path) -> None:
    snapshot(Written(PAGES).memory, tmp_path)
    damage_header(tmp_path, 1)
    with pytest.raises(SnapshotDamaged):
        open_memory(tmp_path, PAGES * PAGE_SIZE)
    with pytest.raises(UsageError, match="more than 0 bytes"):
        open_memory(tmp_path / "new", 0)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no directory"):
        open_memory(tmp_path / "file", PAGE_SIZE)


def test_a_directory_with_only_damaged_snapshots(tmp_path: Path) -> None:
    one, other = Written(PAGES), Written(PAGES)
    snapshot(one.memory, tmp_path)
    damage_header(tmp_path, 1)
    with pytest.raises(UsageError, match="no snapshot that can be restored"):
        compact(tmp_path)
    with pytest.raises(UsageError, match=r"cannot be told .*is damaged.*; give replace=True to save all"):
        snapshot(other.memory, tmp_path)
    assert files(tmp_path) == ["00000001.snapshot"]
    one.write([3], 3)
    again = snapshot(one.memory, tmp_path)  # what it had saved itself
    assert (again.number, again.full) == (2, True)
    assert np.array_equal(content(restore(tmp_path)), one.rows)
    assert compact(tmp_path).removed == 1


def test_compact_keeps_the_only_good_one(tmp_path: Path) -> None:
    one = Written(PAGES)
    one.write([1], 1)
    snapshot(one.memory, tmp_path)
    good = one.copy()
    for number in (2, 3):
        one.write([1], number)
        snapshot(one.memory, tmp_path, full=True)
        damage_header(tmp_path, number)
    for keep in (1, 2, 5):
        compact(tmp_path, keep)
        assert np.array_equal(content(restore(tmp_path, at=1)), good)
    assert [entry.number for entry in snapshots(tmp_path)] == [1, 2, 3]


def test_a_successor_goes_on_where_newer_ones_were_lost(tmp_path: Path) -> None:
    one = Written(PAGES)
    for number in (1, 2, 3):
        one.write([number], number)
        snapshot(one.memory, tmp_path)
    (tmp_path / "00000003.snapshot").unlink()
    stranger = Written(PAGES)
    with pytest.raises(UsageError, match="which this memory does not go on from"):
        snapshot(stranger.memory, tmp_path)
    saved = snapshot(one.memory, tmp_path)
    assert (saved.number, saved.full) == (3, True)
    assert np.array_equal(content(restore(tmp_path)), one.rows)


@pytest.mark.needs("pagemap")
def test_a_copy_of_the_directory_is_gone_on_with_too(tmp_path: Path) -> None:
    with Memory(PAGES * PAGE_SIZE) as memory:
        rows = np.frombuffer(memory.view, np.uint64).reshape(PAGES, -1)
        rows[1] = 1
        snapshot(memory, tmp_path / "a")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "00000001.snapshot").write_bytes((tmp_path / "a" / "00000001.snapshot").read_bytes())
        rows[2] = 2
        assert snapshot(memory, tmp_path / "b").full
        assert not snapshot(memory, tmp_path / "a").full
        for name in ("a", "b"):
            assert np.array_equal(content(restore(tmp_path / name)), rows)


def test_what_was_written_untracked_is_not_taken_for_known(tmp_path: Path) -> None:
    """The kernel could not track the memory at first: the increments begin after a full snapshot that it did track."""
    one = Written(PAGES)
    failing = True

    class Sometimes(ScriptedLog):
        def start(self) -> None:
            if failing:
                raise Unsupported("this kernel cannot", "use another")
            super().start()

    log = Sometimes(one.memory.layout.end_page)
    one.memory.consumer = lambda _: log  # type: ignore[method-assign,assignment,return-value]
    snapshot(one.memory, tmp_path, full=True)
    one.rows[9] = 9
    failing = False
    assert snapshot(one.memory, tmp_path).full
    assert np.array_equal(content(restore(tmp_path)), one.rows)
    assert not snapshot(one.memory, tmp_path).full


@pytest.mark.needs("pagemap")
def test_a_forked_child_goes_on_in_place_of_its_parent(tmp_path: Path) -> None:
    """Whichever of the two saves first is the successor."""
    with Memory(PAGES * PAGE_SIZE) as memory:
        snapshot(memory, tmp_path)
        child = os.fork()
        if not child:
            try:
                np.frombuffer(memory.view, np.uint64)[0] = 5
                first, second = (snapshot(memory, tmp_path, full=True) for _ in range(2))
                os._exit(0 if first.full and second.full else 2)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(UsageError, match="has got snapshot 3 of another memory since this one's 1"):
            snapshot(memory, tmp_path)
        assert content(restore(tmp_path))[0, 0] == 5


RACER = textwrap.dedent(
    """
    import sys
    import numpy as np
    import precopy

    memory = precopy.open_memory(sys.argv[1], 1 << 20)
    state = np.frombuffer(memory, np.uint64)
    print("open", flush=True)
    sys.stdin.readline()
    state[0] = int(sys.argv[2])
    try:
        print(precopy.snapshot(memory, sys.argv[1]).number)
    except precopy.errors.UsageError as error:
        print("refused")
    """
)


@pytest.mark.needs("pagemap")
@pytest.mark.parametrize("begun", [False, True])
def test_of_two_programs_that_open_a_directory_one_goes_on(tmp_path: Path, begun: bool) -> None:
    if begun:
        snapshot(Memory(1 << 20), tmp_path)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), str(value)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for value in (1, 2)
    ]
    for one in racers:
        assert one.stdout is not None
        assert one.stdout.readline() == "open\n"
    for one in racers:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    said = [one.communicate(timeout=IN_TIME_S)[0].strip() for one in racers]
    assert sorted(said) == [str(1 + begun), "refused"]
    assert content(restore(tmp_path))[0, 0] == 1 + said.index(str(1 + begun))


def test_one_that_was_committed_unheard_is_the_memorys_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Written(PAGES)

    def fail(name: str) -> None:
        if name == "renamed":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(directory_module, "step", fail)
        patched.setattr(os, "unlink", lambda *_args, **_options: None)
        with pytest.raises(KeyboardInterrupt):
            snapshot(one.memory, tmp_path)
    one.write([4], 8)
    assert snapshot(one.memory, tmp_path).number == 2
    assert np.array_equal(content(restore(tmp_path)), one.rows)


def test_the_python_api_has_what_the_commands_have(tmp_path: Path) -> None:
    one = Written(PAGES)
    snapshot(one.memory, tmp_path)
    (stored,) = precopy.snapshots(tmp_path)
    assert isinstance(stored, precopy.Stored)
    assert (stored.number, stored.full, stored.size, stored.damage) == (1, True, PAGES * PAGE_SIZE, None)
    verified = precopy.verify(tmp_path)
    assert isinstance(verified, precopy.Verified)
    assert verified.snapshots == 1
    assert not verified.damage
    assert verified
    damage_header(tmp_path, 1)
    assert not precopy.verify(tmp_path)
    assert "is damaged" in (precopy.snapshots(tmp_path)[0].damage or "")
    assert {"snapshots", "verify", "open_memory"} <= set(dir(precopy))
