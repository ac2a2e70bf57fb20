"""A program that takes snapshots and is killed, or whose disk is full: nothing that it was told of is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from precopy import Memory, compact, restore, snapshot
from precopy.errors import SnapshotError
from precopy.snapshot_store import snapshots, verify
from support.commands import called, precopy
from support.patience import IN_TIME_S
from support.snapshots import Content, content, files

PAGES = 512
PROGRAM = textwrap.dedent(
    """
    import os, sys
    import numpy as np
    import precopy
    from precopy.snapshot_store import directory as commit

    directory, keep, die_at = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    done = 0

    def step(_name):
        global done
        done += 1
        if done == die_at:
            os.kill(os.getpid(), 9)

    commit.step = step
    if os.path.isdir(directory) and any(name.endswith(".snapshot") for name in os.listdir(directory)):
        memory = precopy.restore(directory)
    else:
        memory = precopy.Memory(PAGES * 4096)
    rows = np.frombuffer(memory, np.uint64).reshape(-1, 512)
    while True:
        rows[0, 0] += 1
        now = int(rows[0, 0])
        order = np.random.default_rng(now)
        rows[order.integers(1, len(rows), 20), order.integers(0, 512, 20)] = now % 7
        if now % 5 == 0:
            rows[order.integers(1, len(rows), 40)] = 0
        saved = precopy.snapshot(memory, directory)
        print(now, saved.number, int(saved.full), flush=True)
        if keep and now % 4 == 0:
            precopy.compact(directory, keep)
    """
).replace("PAGES", str(PAGES))


def start(directory: Path, keep: int, die_at: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(directory), str(keep), str(die_at)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> list[tuple[int, int, int]]:
    """What it has said until it was killed: step, snapshot, whether full."""
    out, err = process.communicate(timeout=IN_TIME_S)
    assert process.returncode == -signal.SIGKILL, err
    assert not err
    lines = [line for line in out.splitlines(keepends=True) if line.endswith("\n")]
    return [tuple(map(int, line.split())) for line in lines]  # type: ignore[misc]


def expected(steps: int) -> Content:
    """The memory after so many steps."""
    rows = np.zeros((PAGES, 512), np.uint64)
    for now in range(1, steps + 1):
        order = np.random.default_rng(now)
        rows[order.integers(1, PAGES, 20), order.integers(0, 512, 20)] = now % 7
        if now % 5 == 0:
            rows[order.integers(1, PAGES, 40)] = 0
    rows[0, 0] = steps
    return rows


def check(directory: Path, at_least: int) -> int:
    """All complete snapshots hold what the memory held; the newest is not older than what was told. Returns its step.
    Each step makes one snapshot, so they have the same numbers."""
    there = snapshots(directory)
    assert not [one for one in there if one.damage]
    assert not verify(directory).damage
    for one in there[-3:]:
        assert np.array_equal(content(restore(directory, at=one.number)), expected(one.number))
    newest = there[-1].number if there else 0
    assert at_least <= newest <= at_least + 1
    return newest


@pytest.mark.needs("pagemap")
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_killed_at_random_moments(tmp_path: Path, keep: int) -> None:
    directory = tmp_path / "s"
    steps, order = 0, random.Random(keep)
    for run in range(4):
        process = start(directory, keep)
        assert process.stdout is not None
        first = process.stdout.readline()  # it is up
        time.sleep(order.random() * 0.3)
        process.kill()
        lines = told(process)
        begun = tuple(map(int, first.split()))
        assert begun[0] == steps + 1
        assert begun[2] == (run == 0)  # after a restore, increments go on
        steps = check(directory, (lines[-1] if lines else begun)[0])


@pytest.mark.needs("pagemap")
@pytest.mark.parametrize("die_at", range(1, 32))
def test_killed_at_each_step(tmp_path: Path, die_at: int) -> None:
    """Steps 1 to 20 are of four snapshots, 21 to 28 of the compaction that follows: it removes three."""
    directory = tmp_path / "s"
    lines = told(start(directory, 1, die_at))
    assert len(lines) == min((die_at - 1) // 5, 4) if die_at <= 28 else 4
    if die_at <= 5 and not (directory / "00000001.snapshot").exists():
        assert snapshots(directory) == []
        return
    check(directory, lines[-1][0] if lines else 0)
    before = files(directory)
    compact(directory)
    assert not [name for name in files(directory) if name.endswith(".tmp")], before
    check(directory, lines[-1][0] if lines else 0)


LIMITED = textwrap.dedent(
    """
    import resource, sys
    import numpy as np
    import precopy

    memory = precopy.Memory(512 * 4096)
    rows = np.frombuffer(memory, np.uint64).reshape(-1, 512)
    rows[:] = 1
    precopy.snapshot(memory, sys.argv[1])
    rows[:100] = 2
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50 * 4096, hard))
    for full in (False, True):
        try:
            precopy.snapshot(memory, sys.argv[1], full=full)
        except precopy.errors.SnapshotError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    rows[200] = 3
    saved = precopy.snapshot(memory, sys.argv[1])
    print(saved.number, saved.full, saved.pages)
    """
)


@pytest.mark.needs("pagemap")
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=IN_TIME_S
    )
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert first.startswith(f"cannot write {tmp_path}/00000002.snapshot: File too large; make room")
    assert last == "2 False 101"
    assert files(tmp_path) == ["00000001.snapshot", "00000002.snapshot"]
    rows = content(restore(tmp_path))
    assert (rows[99, 0], rows[100, 0], rows[200, 0]) == (2, 1, 3)
    assert (content(restore(tmp_path, at=1)) == 1).all()


@contextlib.contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A file system of ``size`` bytes, where we may mount one."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "precopy-test", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.needs("pagemap")
def test_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 3 << 20) as disk, Memory(PAGES * 4096) as memory:
        rows = np.frombuffer(memory.view, np.uint64).reshape(-1, 512)
        rows[:] = 1
        snapshot(memory, disk / "s")
        saved = {1: rows.copy()}
        why = ""
        for number in range(2, 30):
            rows[(number * 20) % 400 : (number * 20) % 400 + 40] = number
            try:
                snapshot(memory, disk / "s")
            except SnapshotError as error:
                why = str(error)
                break
            saved[number] = rows.copy()
        assert "No space left on device; make room" in why
        assert len(saved) > 3
        for number, old in saved.items():
            assert np.array_equal(content(restore(disk / "s", at=number)), old)
        assert not verify(disk / "s").damage
        with pytest.raises(SnapshotError, match="No space left on device"):
            compact(disk / "s")
        assert len(snapshots(disk / "s")) == len(saved)
        (disk / "s" / f"{max(saved):08d}.snapshot").unlink()  # somebody makes room, of all things so
        (disk / "s" / f"{max(saved) - 1:08d}.snapshot").unlink()
        restored = restore(disk / "s")
        assert np.array_equal(content(restored), saved[max(saved) - 2])


@pytest.mark.needs("pagemap")
def test_the_commands(tmp_path: Path) -> None:
    directory = str(tmp_path / "s")
    with Memory(PAGES * 4096) as memory:
        rows = np.frombuffer(memory.view, np.uint64).reshape(-1, 512)
        for value in range(1, 4):
            rows[value : 3 * value] = value
            snapshot(memory, directory)
        shown = precopy("snapshot", "list", directory)
        assert shown.code == 0
        assert "changes to 2" in shown.out
        assert shown.out.splitlines()[-1].startswith("3 snapshots, ")
        document = called("snapshot", "list", directory, "--json").document()
        assert document["schema"] == "precopy.snapshot-list/1"
        assert [one["parent"] for one in document["snapshots"]] == [None, 1, 2]
        document = called("snapshot", "verify", directory, "--json").document()
        assert (document["schema"], document["verified"], document["damage"]) == ("precopy.snapshot-verify/1", True, [])
        assert "are as they were written" in called("snapshot", "verify", directory).out
        document = called("snapshot", "export", directory, str(tmp_path / "raw"), "--at", "2", "--json").document()
        assert (document["schema"], document["number"]) == ("precopy.snapshot-export/1", 2)
        document = called("snapshot", "compact", directory, "--keep", "2", "--json").document()
        assert (document["schema"], document["number"], document["removed"]) == ("precopy.snapshot-compact/1", 2, 1)
        assert (tmp_path / "raw").read_bytes() == content(restore(directory, at=2)).tobytes()
        assert "is full now, of 2 files; 1 removed" in called("snapshot", "compact", directory).out
        assert np.array_equal(content(restore(directory)), rows)


@pytest.mark.needs("pagemap")
def test_commands_that_fail(tmp_path: Path) -> None:
    assert "no such directory" in called("snapshot", "list", str(tmp_path / "no")).sentence(2)
    assert "has no snapshot" in called("snapshot", "export", str(tmp_path), str(tmp_path / "x")).sentence(2)
    with Memory(PAGES * 4096) as memory:
        np.frombuffer(memory.view, np.uint64)[:] = 1
        snapshot(memory, tmp_path / "s")
    with open(tmp_path / "s" / "00000001.snapshot", "r+b") as file:
        file.seek(100 * 4096)
        file.write(b"\0")
    done = called("snapshot", "verify", str(tmp_path / "s"))
    assert done.sentence(7) == f"1 of 1 snapshots in {tmp_path / 's'} are damaged: 1"
    assert "do not match their checksum" in done.out
    done = called("snapshot", "verify", str(tmp_path / "s"), "--json")
    assert done.sentence(7)
    assert done.document()["verified"] is False
    assert "is damaged" in called("snapshot", "export", str(tmp_path / "s"), str(tmp_path / "x")).sentence(7)
    assert os.listdir(tmp_path) == ["s"]
