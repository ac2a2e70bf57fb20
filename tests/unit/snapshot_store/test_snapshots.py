"""Snapshots of memories whose writes are known: what they hold, what they refuse, and what a failure leaves."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import resource
import stat
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from precopy import Memory, compact, open_memory, restore, snapshot
from precopy.bitmap import Bitmap, Runs
from precopy.errors import OutOfMemory, SnapshotDamaged, SnapshotError, Unsupported, UsageError
from precopy.memory.layout import RamBlock
from precopy.snapshot_store import directory as directory_module
from precopy.snapshot_store import export, restoring, snapshots, verify
from precopy.snapshot_store.directory import Directory
from precopy.snapshot_store.format import Header
from precopy.snapshot_store.reading import StoredFile
from precopy.units import PAGE_SIZE
from support.scripted_log import ScriptedLog
from support.snapshots import Written, content, files

PAGES = 300


def filled(pages: int = PAGES) -> Written:
    written = Written(pages)
    written.rows[: pages // 2] = np.arange(1, pages // 2 + 1, dtype=np.uint64)[:, None]
    return written


def test_the_first_is_full_and_the_next_holds_what_changed(tmp_path: Path) -> None:
    one = filled()
    first = snapshot(one.memory, tmp_path / "s")
    assert (first.number, first.full, first.pages, first.zero_pages) == (1, True, 150, 150)
    before = one.copy()
    one.write([3, 4, 200], 7)
    one.write([10], 0)
    second = snapshot(one.memory, tmp_path / "s")
    assert (second.number, second.full, second.pages, second.zero_pages) == (2, False, 3, 1)
    assert second.bytes <= 6 * PAGE_SIZE
    assert second.seconds == second.find_s + second.write_s + second.commit_s > 0
    assert np.array_equal(content(restore(tmp_path / "s")), one.rows)
    assert np.array_equal(content(restore(tmp_path / "s", at=1)), before)
    assert files(tmp_path / "s") == ["00000001.snapshot", "00000002.snapshot"]


def test_nothing_changed_is_a_snapshot_too(tmp_path: Path) -> None:
    one = filled()
    snapshot(one.memory, tmp_path)
    second = snapshot(one.memory, tmp_path)
    assert (second.full, second.pages, second.zero_pages) == (False, 0, 0)
    assert np.array_equal(content(restore(tmp_path)), one.rows)
    assert not verify(tmp_path).damage


def test_memory_that_is_all_zero(tmp_path: Path) -> None:
    snapshot(Written(PAGES).memory, tmp_path)
    assert not content(restore(tmp_path)).any()
    assert not verify(tmp_path).damage
    assert os.stat(tmp_path / "00000001.snapshot").st_size == (PAGES + 1) * PAGE_SIZE


def test_zero_pages_are_holes(tmp_path: Path) -> None:
    one = Written(4096)
    one.rows[5] = 1
    assert snapshot(one.memory, tmp_path).bytes < 64 * PAGE_SIZE


def test_a_page_written_while_it_is_saved_is_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 1: the log is armed before anything is read, so a write that comes after is found."""
    one = filled()
    snapshot(one.memory, tmp_path)
    one.write([7], 1234)

    def begun(name: str) -> None:
        if name == "written":
            one.write([7], 99)

    monkeypatch.setattr(directory_module, "step", begun)
    snapshot(one.memory, tmp_path)
    monkeypatch.setattr(directory_module, "step", lambda _: None)
    assert snapshot(one.memory, tmp_path).pages == 1
    assert content(restore(tmp_path))[7, 0] == 99
    assert content(restore(tmp_path, at=2))[7, 0] == 1234


def test_the_log_is_armed_before_the_memory_is_read(tmp_path: Path) -> None:
    one = filled()
    order: list[str] = []

    class Noting(ScriptedLog):
        def harvest(self, dirty: Bitmap, block: RamBlock | None = None) -> None:
            order.append("harvest")
            super().harvest(dirty, block)

        def clear(self, start: int, count: int) -> None:
            order.append("clear")
            super().clear(start, count)

    log = Noting(one.memory.layout.end_page)
    contents = one.memory.contents

    def read() -> Any:
        order.append("read")
        return contents()

    one.memory.consumer = lambda _: log  # type: ignore[method-assign,assignment,return-value]
    one.memory.contents = read  # type: ignore[method-assign]
    snapshot(one.memory, tmp_path)
    assert order == ["harvest", "clear", "read"]


def test_the_lock_is_held_until_the_pages_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, lock = filled(), threading.Lock()
    held: dict[str, bool] = {}
    monkeypatch.setattr(directory_module, "step", lambda name: held.update({name: lock.locked()}))
    snapshot(one.memory, tmp_path, lock=lock)
    assert held["written"] is False  # nobody waits for the disk
    assert not lock.locked()

    class Noting:
        def __enter__(self) -> None:
            assert list(tmp_path.glob("*.tmp"))

        def __exit__(self, *_: object) -> None:
            assert next(tmp_path.glob("*.tmp")).stat().st_size == PAGE_SIZE  # nothing has changed

    snapshot(one.memory, tmp_path, lock=Noting())  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["begun", "written", "flushed", "renamed", "committed"])
@pytest.mark.parametrize("first", [True, False])
def test_a_failure_anywhere_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, first: bool
) -> None:
    one = filled()
    if not first:
        snapshot(one.memory, tmp_path)
    before, old = files(tmp_path), one.copy()
    one.write([3, 250], 9)

    def fail(name: str) -> None:
        if name == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(directory_module, "step", fail)
    with pytest.raises(SnapshotError, match=r"cannot write .*No space left on device; make room"):
        snapshot(one.memory, tmp_path)
    monkeypatch.undo()
    assert files(tmp_path) == before
    if not first:
        assert np.array_equal(content(restore(tmp_path)), old)
    one.write([4], 0)
    saved = snapshot(one.memory, tmp_path)
    assert saved.full == first
    if not first:
        assert (saved.pages, saved.zero_pages) == (2, 1)
    assert np.array_equal(content(restore(tmp_path)), one.rows)


def test_an_interrupt_after_the_commit_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory could not be flushed, and what was renamed could not be removed either."""
    one = filled()
    snapshot(one.memory, tmp_path)
    one.write([3], 9)

    def fail(name: str) -> None:
        if name == "renamed":
            raise KeyboardInterrupt

    monkeypatch.setattr(directory_module, "step", fail)
    monkeypatch.setattr(os, "unlink", lambda *_args, **_options: None)
    with pytest.raises(KeyboardInterrupt):
        snapshot(one.memory, tmp_path)
    monkeypatch.undo()
    one.write([4], 8)
    third = snapshot(one.memory, tmp_path)
    assert (third.number, third.full, third.pages) == (3, False, 2)
    assert np.array_equal(content(restore(tmp_path)), one.rows)


def test_what_is_named_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is flushed after its last byte and before it gets its name, the directory after each change of names:
    what a machine keeps that loses its power."""
    one, order = filled(), []

    def noting(name: str) -> None:
        real = getattr(os, name)

        def call(target: Any, *arguments: Any, **options: Any) -> Any:
            what = name
            if name == "fsync":
                what += " directory" if os.path.isdir(f"/proc/self/fd/{target}") else " file"
            if order[-1:] != [what]:
                order.append(what)
            return real(target, *arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("pwrite", "ftruncate", "fsync", "rename", "unlink"):
        noting(name)
    commit = ["fsync file", "rename", "fsync directory"]
    snapshot(one.memory, tmp_path / "s")
    assert order == ["fsync directory", "pwrite", "ftruncate", "pwrite", *commit]
    order.clear()
    snapshot(one.memory, tmp_path / "s")
    assert order[-3:] == commit
    order.clear()
    compact(tmp_path / "s")
    assert order[-5:] == [*commit, "unlink", "fsync directory"]


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, pwrite = filled(), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1000], at))
    snapshot(one.memory, tmp_path)
    monkeypatch.undo()
    assert np.array_equal(content(restore(tmp_path)), one.rows)


@pytest.mark.parametrize("full", [False, True])
def test_zstd(tmp_path: Path, full: bool) -> None:
    pytest.importorskip("zstandard")
    one = filled()
    plain = snapshot(one.memory, tmp_path, compress="zstd" if full else None)
    one.write(range(20, 120), 5)
    one.write([1], 0)
    squeezed = snapshot(one.memory, tmp_path, compress="zstd", level=3)
    assert squeezed.pages == 100
    assert squeezed.bytes < 10 * PAGE_SIZE
    assert (plain.bytes < 50 * PAGE_SIZE) == full
    assert np.array_equal(content(restore(tmp_path)), one.rows)
    assert not verify(tmp_path).damage
    assert compact(tmp_path).folded == 2
    assert np.array_equal(content(restore(tmp_path)), one.rows)
    assert snapshots(tmp_path)[0].compression == ("zstd" if full else "none")


def test_what_is_no_way_to_compress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = filled()
    with pytest.raises(UsageError, match="'lz4' is no compression"):
        snapshot(one.memory, tmp_path, compress="lz4")  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(Unsupported, match=r'zstandard, which is not installed; pip install "precopy\[snapshot\]"'):
        snapshot(one.memory, tmp_path, compress="zstd")
    assert files(tmp_path) == []


def test_a_level_that_there_is_not(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    with pytest.raises(UsageError, match="99 is no level"):
        snapshot(filled().memory, tmp_path, compress="zstd", level=99)


def test_two_directories_do_not_take_pages_from_each_other(tmp_path: Path) -> None:
    one = Memory(PAGES * PAGE_SIZE)
    logs: dict[str, ScriptedLog] = {}
    one.consumer = lambda name: logs.setdefault(name, ScriptedLog(one.layout.end_page))  # type: ignore[method-assign,assignment,return-value]
    snapshot(one, tmp_path / "a")
    snapshot(one, tmp_path / "b")
    for log in logs.values():
        log.wrote(Runs.of((3, 2)))
    assert snapshot(one, tmp_path / ".." / tmp_path.name / "a").zero_pages == 2
    assert snapshot(one, tmp_path / "b").zero_pages == 2
    assert len(logs) == len(one.snapshots) == 2


def test_another_memory_replaces_the_first_only_where_it_is_to(tmp_path: Path) -> None:
    one, other = filled(), filled(64)
    snapshot(one.memory, tmp_path)
    for full in (False, True):
        with pytest.raises(
            UsageError, match=r"holds a memory of 1228800 bytes \(snapshot 1\), and this one has 262144"
        ):
            snapshot(other.memory, tmp_path, full=full)
    assert snapshot(other.memory, tmp_path, replace=True).full
    for full in (False, True):
        with pytest.raises(UsageError, match="holds a memory of 262144 bytes"):
            snapshot(one.memory, tmp_path, full=full)
    assert snapshot(one.memory, tmp_path, full=True, replace=True).number == 3
    assert not snapshot(one.memory, tmp_path).full
    assert not snapshot(one.memory, tmp_path, replace=True).full
    assert restore(tmp_path, at=2).size == 64 * PAGE_SIZE


def test_somebody_else_writes_now(tmp_path: Path) -> None:
    one = filled()
    snapshot(one.memory, tmp_path)
    with open(tmp_path / ".lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for act in (lambda: snapshot(one.memory, tmp_path), lambda: compact(tmp_path)):
            with pytest.raises(UsageError, match="is being written by somebody else"):
                act()
        assert np.array_equal(content(restore(tmp_path)), one.rows)
    snapshot(one.memory, tmp_path)


def test_garbage_goes_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "00000007.tmp").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_bytes(b"mine")
    (tmp_path / "1.snapshot").write_bytes(b"mine")
    snapshot(filled().memory, tmp_path)
    assert files(tmp_path) == ["00000001.snapshot", "1.snapshot", "notes.tmp"]


def test_lost_snapshots_make_the_next_one_full(tmp_path: Path) -> None:
    one = filled()
    for _ in range(3):
        snapshot(one.memory, tmp_path)
    (tmp_path / "00000002.snapshot").unlink()
    with pytest.raises(SnapshotDamaged, match="snapshot 2, which is gone"):
        restore(tmp_path)
    again = snapshot(one.memory, tmp_path)
    assert (again.number, again.full) == (4, True)
    for name in files(tmp_path):
        (tmp_path / name).unlink()
    assert snapshot(one.memory, tmp_path).full


def test_a_chain_of_another_directory_is_noticed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        one = filled()
        snapshot(one.memory, tmp_path / name)
        snapshot(one.memory, tmp_path / name)
    os.replace(tmp_path / "a" / "00000001.snapshot", tmp_path / "b" / "00000001.snapshot")
    with pytest.raises(SnapshotDamaged, match="another snapshot 1"):
        restore(tmp_path / "b")
    assert verify(tmp_path / "b").damage.keys() == {2}


@pytest.mark.parametrize("kept", [1, 2, 3, 9])
def test_compact(tmp_path: Path, kept: int) -> None:
    one = filled()
    history = {}
    for value in range(5):
        one.write(range(value * 10, value * 40), value)
        history[snapshot(one.memory, tmp_path).number] = one.copy()
    done = compact(tmp_path, keep=kept)
    first = max(6 - kept, 1)
    assert (done.number, done.folded, done.removed) == (first, first, first - 1)
    assert [entry.number for entry in snapshots(tmp_path)] == list(range(first, 6))
    assert done.bytes_after == sum(entry.bytes for entry in snapshots(tmp_path))
    for number in range(first, 6):
        assert np.array_equal(content(restore(tmp_path, at=number)), history[number])
    assert not verify(tmp_path).damage
    one.write([0], 77)
    following = snapshot(one.memory, tmp_path)
    assert (following.number, following.full, following.pages) == (6, False, 1)
    assert np.array_equal(content(restore(tmp_path)), one.rows)


def test_compact_does_not_hide_damage(tmp_path: Path) -> None:
    one = filled()
    for value in range(3):
        one.write([value], 50)
        snapshot(one.memory, tmp_path)
    flip(tmp_path / "00000001.snapshot", 50 * PAGE_SIZE)
    before = files(tmp_path)
    with pytest.raises(SnapshotDamaged, match="do not match their checksum"):
        compact(tmp_path)
    assert files(tmp_path) == before
    snapshot(one.memory, tmp_path, full=True)
    flip(tmp_path / "00000004.snapshot", 50 * PAGE_SIZE)
    with pytest.raises(SnapshotDamaged):
        compact(tmp_path)
    assert len(files(tmp_path)) == 4


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("missing/x", "missing is not there"),
        ("missing/deeper/x", "deeper is not there"),
        ("file/x", "file is no directory"),
        ("folder", "no regular file"),
        ("s" * 300, "too long"),
        ("/proc/x", "cannot write /proc/x"),
    ],
)
def test_a_place_where_no_file_can_be_is_a_fault_of_usage(tmp_path: Path, target: str, says: str) -> None:
    snapshot(filled().memory, tmp_path / "s1")
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=says) as caught:
        export(tmp_path / "s1", tmp_path / target)
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "s1"]


def test_verify_names_what_is_damaged(tmp_path: Path) -> None:
    one = filled()
    for value in range(3):
        one.write([value], 50)
        snapshot(one.memory, tmp_path)
    assert verify(tmp_path).snapshots == 3
    flip(tmp_path / "00000002.snapshot", PAGE_SIZE + 5)
    damage = verify(tmp_path).damage
    assert damage.keys() == {2}
    assert "pages 1 to 1 do not match their checksum" in damage[2]
    assert not verify(tmp_path, at=1).damage
    assert verify(tmp_path, at=3).damage.keys() == {2}
    flip(tmp_path / "00000001.snapshot", 40)
    assert verify(tmp_path).damage.keys() == {1, 2, 3}


def restorable(directory: Path, numbers: set[int]) -> set[int]:
    """Which snapshots can be restored, by trying."""
    able = set()
    for number in numbers:
        try:
            with restore(directory, at=number, verify=True) as memory:
                bytes(memory.view)
            able.add(number)
        except SnapshotDamaged:
            pass
    return able


@pytest.mark.parametrize("compress", [None, "zstd"])
@pytest.mark.parametrize("where", ["content", "table", "header", "gone"])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_verify_names_what_is_lost_through_what_is_damaged(
    tmp_path: Path, which: int, where: str, compress: Literal["zstd"] | None
) -> None:
    one = filled()
    for number in range(1, 6):
        one.write(range(40 + 3 * number, 50 + 3 * number) if number < 5 else range(64), 100 * number)
        snapshot(one.memory, tmp_path, compress=compress)
    path = tmp_path / f"{which:08d}.snapshot"
    match where:
        case "content":
            data = path.read_bytes()
            flip(path, next(at for at in range(PAGE_SIZE, len(data)) if data[at]))
        case "table":
            flip(path, path.stat().st_size - 5)
        case "header":
            flip(path, 40)
        case "gone":
            path.unlink()
    found = verify(tmp_path)
    there = set(range(1, 6)) - ({which} if where == "gone" else set())
    assert set(found.lost) == there - restorable(tmp_path, there)
    assert list(found.lost) == sorted(found.lost)
    assert set(found.lost.values()) <= {which}
    assert found.damage
    assert not found
    for number in there:
        alone = verify(tmp_path, at=number)
        assert (number in alone.lost) == (number in found.lost)


def test_what_hides_all_damage_is_not_lost(tmp_path: Path) -> None:
    one = filled()
    snapshot(one.memory, tmp_path)
    one.write(range(one.rows.shape[0]), 7)
    snapshot(one.memory, tmp_path)
    flip(tmp_path / "00000001.snapshot", PAGE_SIZE + 5)
    found = verify(tmp_path)
    assert (list(found.damage), found.lost) == ([1], {1: 1})
    assert np.array_equal(content(restore(tmp_path, at=2, verify=True)), one.rows)


def test_a_hole_that_is_none_is_noticed(tmp_path: Path) -> None:
    one = Written(4096)
    one.rows[5] = 1
    snapshot(one.memory, tmp_path)
    flip(tmp_path / "00000001.snapshot", 2000 * PAGE_SIZE)
    assert "should be zero" in verify(tmp_path).damage[1]


@pytest.mark.parametrize("budget", [1, 2, 5, 1000])
@pytest.mark.parametrize("tmpfs", [True, False])
@pytest.mark.parametrize("compress", ["zstd", None])
def test_more_runs_than_mappings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, tmpfs: bool, compress: Any
) -> None:
    if compress:
        pytest.importorskip("zstandard")
    monkeypatch.setattr(restoring, "_budget", lambda _: budget)
    monkeypatch.setattr(restoring, "file_system", lambda _: "tmpfs" if tmpfs else "ext4")
    one = Written(2000)
    random = np.random.default_rng(budget)
    one.rows[random.integers(0, 2000, 400)] = 3
    one.rows[100:600] = 4
    for value in (0, 6, 0, 8):
        snapshot(one.memory, tmp_path)
        one.write(random.integers(0, 2000, 150), value)
        one.write(range(150 + 10 * value, 170 + 10 * value), value)
    snapshot(one.memory, tmp_path, compress=compress)
    restored = restore(tmp_path)
    assert np.array_equal(content(restored), one.rows)
    export(tmp_path, tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == one.rows.tobytes()


def test_a_restored_memory_is_private_and_outlives_its_files(tmp_path: Path) -> None:
    one = filled()
    snapshot(one.memory, tmp_path)
    restored = restore(tmp_path)
    for name in files(tmp_path):
        (tmp_path / name).rename(tmp_path / "kept")
    rows = np.frombuffer(restored.view, np.uint64).reshape(-1, 512)
    rows[:] += np.uint64(5)
    assert np.array_equal(rows, one.rows + np.uint64(5))
    (tmp_path / "kept").rename(tmp_path / "00000001.snapshot")
    assert np.array_equal(content(restore(tmp_path)), one.rows)


def test_what_cannot_be_restored(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such directory"):
        restore(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"has no snapshot$"):
        restore(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is no directory"):
        restore(tmp_path / "file")
    one = filled()
    snapshot(one.memory, tmp_path)
    with pytest.raises(UsageError, match="has no snapshot 2; there is 1"):
        restore(tmp_path, at=2)
    for act in (verify, export):
        with pytest.raises(UsageError, match=r"no snapshot 5; there is 1$"):
            act(tmp_path, *([tmp_path / "x"] if act is export else []), at=5)  # type: ignore[operator]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a bytearray"):
        snapshot(bytearray(4096), tmp_path)  # type: ignore[arg-type]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is no directory"):
        snapshot(filled().memory, tmp_path / "file")
    with pytest.raises(UsageError, match="no such directory"):
        snapshot(filled().memory, tmp_path / "a" / "b")
    closed = filled()
    closed.memory.close()
    with pytest.raises(UsageError, match="the memory is closed"):
        snapshot(closed.memory, tmp_path)
    assert files(tmp_path) == ["file"]
    with pytest.raises(UsageError, match="how many snapshots to keep is a whole number from 1 on, not 0"):
        compact(tmp_path, keep=0)
    with pytest.raises(UsageError, match="no snapshot that can be restored"):
        compact(tmp_path)


def test_where_the_kernel_cannot_track(tmp_path: Path) -> None:
    class Cannot(ScriptedLog):
        def start(self) -> None:
            raise Unsupported("this kernel cannot", "use another")

    one = filled()
    one.memory.consumer = lambda _: Cannot(one.memory.layout.end_page)  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(Unsupported, match="this kernel cannot; use another; or save everything each time"):
        snapshot(one.memory, tmp_path)
    for number in (1, 2):
        saved = snapshot(one.memory, tmp_path, full=True)
        assert (saved.number, saved.full) == (number, True)
    assert np.array_equal(content(restore(tmp_path)), one.rows)


def test_no_link_and_no_pipe_is_followed(tmp_path: Path) -> None:
    snapshot(filled().memory, tmp_path)
    (tmp_path / "00000001.snapshot").rename(tmp_path / "real")
    (tmp_path / "00000001.snapshot").symlink_to(tmp_path / "real")
    with pytest.raises(SnapshotError, match="cannot open"):
        restore(tmp_path)
    (tmp_path / "00000001.snapshot").unlink()
    os.mkfifo(tmp_path / "00000001.snapshot")
    with pytest.raises(SnapshotError, match="no regular file"):
        restore(tmp_path)
    assert "no regular file" in (snapshots(tmp_path)[0].damage or "")


def test_another_version_is_named(tmp_path: Path) -> None:
    snapshot(filled().memory, tmp_path)
    with open(tmp_path / "00000001.snapshot", "r+b") as file:
        file.seek(8)
        file.write(b"\2")
    with pytest.raises(Unsupported, match="version 2 of the snapshot format"):
        restore(tmp_path)


def test_export_as_an_array(tmp_path: Path) -> None:
    one = filled()
    one.rows[:2] = np.array([1.5], np.float64).view(np.uint64)
    snapshot(one.memory, tmp_path / "s")
    done = export(tmp_path / "s", tmp_path / "a.npy", npy="float64")
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert isinstance(array, np.memmap)
    assert array.dtype == np.float64
    assert np.array_equal(array.view(np.uint64), one.rows.ravel())
    assert done.size == os.stat(tmp_path / "a.npy").st_size == (PAGES + 1) * PAGE_SIZE
    assert done.bytes < 200 * PAGE_SIZE
    for wrong in ("nonsense", "O", "V7", "i4,i4", "(2,)i4"):
        with pytest.raises(UsageError):
            export(tmp_path / "s", tmp_path / "b.npy", npy=wrong)
    with pytest.raises(UsageError, match="cannot write"):
        export(tmp_path / "s", tmp_path / "no" / "b.npy")
    flip(tmp_path / "s" / "00000001.snapshot", 50 * PAGE_SIZE)
    with pytest.raises(SnapshotDamaged):
        export(tmp_path / "s", tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "s"]


def test_a_long_chain_needs_few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precopy.snapshot_store.chain._OPEN_FILES", 3)
    one = filled()
    for value in range(12):
        one.write([value, 100 + value, 290], value)
        snapshot(one.memory, tmp_path)
    most = 0
    opened = os.open

    def counting(*args: Any, **options: Any) -> int:
        nonlocal most
        fd = opened(*args, **options)
        most = max(most, len(os.listdir("/proc/self/fd")))
        return fd

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", counting)
    assert np.array_equal(content(restore(tmp_path)), one.rows)
    compact(tmp_path)
    assert most - before < 9
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before
    assert np.array_equal(content(restore(tmp_path)), one.rows)


@pytest.mark.needs("pagemap")
def test_with_the_kernels_tracker(tmp_path: Path) -> None:
    with Memory(PAGES * PAGE_SIZE) as memory:
        rows = np.frombuffer(memory.view, np.uint64).reshape(-1, 512)
        rows[:50] = 1
        snapshot(memory, tmp_path)
        rows[7] = 2
        rows[200] = 3
        rows[8] = 0
        second = snapshot(memory, tmp_path)
        assert (second.full, second.pages, second.zero_pages) == (False, 2, 1)
        assert np.array_equal(content(restore(tmp_path)), rows)


@pytest.mark.needs("pagemap")
@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("compress", ["zstd", None])
def test_a_restored_memory_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: bool, compress: Any) -> None:
    """Tracked from the first (where there is swap), or found by what the kernel had to copy."""
    if compress:
        pytest.importorskip("zstandard")
    monkeypatch.setattr(restoring, "has_swap", lambda: swap)
    one = filled()
    snapshot(one.memory, tmp_path, compress=compress)
    one.write([5, 6], 9)
    snapshot(one.memory, tmp_path)
    with restore(tmp_path) as memory:
        rows = np.frombuffer(memory.view, np.uint64).reshape(-1, 512)
        assert rows[:140].any()  # reads are no writes
        rows[5], rows[290], rows[7] = 10, 11, 0
        third = snapshot(memory, tmp_path)
        assert (third.number, third.full) == (3, False)
        if swap or not compress:
            assert (third.pages, third.zero_pages) == (2, 1)
        rows[8] = 12
        fourth = snapshot(memory, tmp_path)
        assert (fourth.full, fourth.pages, fourth.zero_pages) == (False, 1, 0)
        with restore(tmp_path) as again:
            assert np.array_equal(content(again), rows)
        snapshot(one.memory, tmp_path, replace=True)
        with pytest.raises(UsageError, match="has got snapshot 5 of another memory since this one's 4"):
            snapshot(memory, tmp_path)
    with restore(tmp_path, at=3) as old:
        with pytest.raises(UsageError, match="has got snapshot 5 of another memory since this one's 3"):
            snapshot(old, tmp_path)
        assert snapshot(old, tmp_path, replace=True).full
        assert not snapshot(old, tmp_path).full


@pytest.mark.needs("pagemap")
def test_a_write_just_before_tracking_begins_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 1 where a restored memory's first snapshot looks for copies, and only then starts the log."""
    monkeypatch.setattr(restoring, "has_swap", lambda: False)
    snapshot(filled().memory, tmp_path)
    with restore(tmp_path) as memory:
        rows = np.frombuffer(memory.view, np.uint64).reshape(-1, 512)
        (series,) = memory.snapshots.values()
        start = series.log.start

        def late() -> None:
            rows[77] = 5
            start()
            rows[78] = 6

        monkeypatch.setattr(series.log, "start", late)
        assert snapshot(memory, tmp_path).pages == 2
        assert np.array_equal(content(restore(tmp_path)), rows)


@pytest.mark.needs("pagemap")
def test_a_restored_memory_of_a_process_in_swap_saves_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = filled()
    snapshot(one.memory, tmp_path)
    monkeypatch.setattr(restoring, "has_swap", lambda: False)
    with restore(tmp_path) as memory:
        monkeypatch.setattr("precopy.snapshot_store.copied._kib", lambda *_: 4)
        saved = snapshot(memory, tmp_path)
        assert (saved.full, saved.pages, saved.zero_pages) == (False, 150, 150)


@pytest.mark.needs("pagemap")
def test_adopted_memory_and_a_child(tmp_path: Path) -> None:
    with mmap.mmap(-1, 64 * PAGE_SIZE) as mapping:
        memory = Memory.adopt(mapping, writers="this process")
        mapping[5] = 1
        assert snapshot(memory, tmp_path).pages == 1
        mapping[9 * PAGE_SIZE] = 1
        assert snapshot(memory, tmp_path).pages == 1
        series = next(iter(memory.snapshots.values()))
        series.process += 1
        with pytest.raises(Unsupported, match="child of that one; take snapshots in the parent"):
            snapshot(memory, tmp_path)
        assert snapshot(memory, tmp_path, full=True).full
        memory.close()
        del memory, series


def test_a_short_read_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reads at most 2 GiB in one call, and may always read less than it was asked for."""
    one, preadv = filled(), os.preadv
    snapshot(one.memory, tmp_path / "s")
    one.write(range(0, 300, 2), 6)
    snapshot(one.memory, tmp_path / "s")
    monkeypatch.setattr(os, "preadv", lambda fd, parts, at: preadv(fd, [parts[0][:777]], at))
    assert not verify(tmp_path / "s").damage
    assert np.array_equal(content(restore(tmp_path / "s")), one.rows)
    export(tmp_path / "s", tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == one.rows.tobytes()


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", b"\0", 7, None])
def test_what_is_no_path(tmp_path: Path, name: Any) -> None:
    one = filled()
    snapshot(one.memory, tmp_path / "s")
    for act in (
        lambda: snapshot(one.memory, name),
        lambda: restore(name),
        lambda: open_memory(name, PAGE_SIZE),
        lambda: snapshots(name),
        lambda: verify(name),
        lambda: compact(name),
        lambda: export(name, tmp_path / "x"),
        lambda: export(tmp_path / "s", name),
    ):
        with pytest.raises(UsageError, match="path") as refused:
            act()
        assert len(str(refused.value)) < 300
    assert sorted(os.listdir(tmp_path)) == ["s"]


def test_a_path_that_is_too_long(tmp_path: Path) -> None:
    snapshot(filled().memory, tmp_path / "s")
    long = tmp_path / ("x" * 300)
    with pytest.raises(UsageError, match="File name too long"):
        snapshot(filled().memory, long)
    with pytest.raises(UsageError, match="File name too long"):
        export(tmp_path / "s", long)


def test_names_that_only_look_like_numbers_are_left_alone(tmp_path: Path) -> None:
    """In Python, \\d has the digits of all scripts."""
    arabic = "".join(chr(0x660 + int(digit)) for digit in "00000001")
    for name in (
        f"{arabic}.snapshot",
        f"{arabic}.tmp",
        "00000001.snapshot\n",
        "+0000001.snapshot",
        "0000_001.snapshot",
    ):
        (tmp_path / name).write_bytes(b"mine")
    os.mkfifo(os.fsencode(tmp_path) + b"/\xff.snapshot")
    before = files(tmp_path)
    assert snapshots(tmp_path) == []
    assert snapshot(filled().memory, tmp_path).number == 1
    assert [one.number for one in snapshots(tmp_path)] == [1]
    compact(tmp_path)
    assert set(files(tmp_path)) == {*before, "00000001.snapshot"}


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "device"])
def test_what_is_no_file_where_a_snapshot_belongs(tmp_path: Path, kind: str) -> None:
    one = filled()
    snapshot(one.memory, tmp_path)
    place = tmp_path / "00000002.snapshot"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    elif kind == "link":
        place.symlink_to("/dev/zero")
    else:
        try:
            os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("no device can be made here")
    for act in (lambda: restore(tmp_path), lambda: compact(tmp_path, 2), lambda: export(tmp_path, tmp_path / "x")):
        with pytest.raises(SnapshotError, match=r"00000002\.snapshot"):
            act()
    with pytest.raises(UsageError, match=r"cannot be told .*00000002\.snapshot.*; give replace=True"):
        snapshot(one.memory, tmp_path)
    assert list(verify(tmp_path).damage) == [2]
    assert np.array_equal(content(restore(tmp_path, at=1)), one.rows)
    assert snapshot(one.memory, tmp_path, replace=True).number == 3
    assert np.array_equal(content(restore(tmp_path)), one.rows)


@pytest.mark.parametrize("kind", ["fifo", "directory", "link"])
def test_what_is_no_lock(tmp_path: Path, kind: str) -> None:
    lock = tmp_path / ".lock"
    if kind == "fifo":
        os.mkfifo(lock)
    elif kind == "directory":
        lock.mkdir()
    else:
        lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SnapshotError, match=r"\.lock"):
        snapshot(filled().memory, tmp_path)
    assert os.listdir(tmp_path) == [".lock"]


def test_an_export_takes_no_file_of_anybody_else(tmp_path: Path) -> None:
    one = filled()
    snapshot(one.memory, tmp_path / "s")
    (tmp_path / ".raw.tmp").write_bytes(b"mine")
    export(tmp_path / "s", tmp_path / "raw")
    assert (tmp_path / ".raw.tmp").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == [".raw.tmp", "raw", "s"]


def test_files_that_go_while_they_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers hold no lock: a compaction may remove what they have just seen."""
    one = filled()
    for value in range(4):
        one.write([value], 9)
        snapshot(one.memory, tmp_path)
    opened, gone = Directory.open, [3, 2, 1]

    def vanishing(store: Directory, number: int) -> int:
        if gone:
            (tmp_path / f"{gone.pop():08d}.snapshot").unlink(missing_ok=True)
        return opened(store, number)

    monkeypatch.setattr(Directory, "open", vanishing)
    found = verify(tmp_path)
    assert found.snapshots <= 4
    assert found.damage.keys() <= {2, 3, 4}


def test_more_than_there_is_memory_for_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zstandard")
    one = filled()
    snapshot(one.memory, tmp_path, compress="zstd")
    monkeypatch.setattr(restoring, "available_memory", lambda: 100 * PAGE_SIZE)
    with pytest.raises(OutOfMemory):
        restore(tmp_path)


def chain_with_all_kinds(directory: Path) -> Written:
    """An image, increments that are mapped and copied, zero pages, and a compressed one where there is zstd."""
    one = filled()
    snapshot(one.memory, directory)
    one.write(range(20, 60), 5)
    one.write([70, 72, 74], 6)
    one.write([1], 0)
    snapshot(one.memory, directory)
    one.write(range(80, 120), 7)
    try:
        snapshot(one.memory, directory, compress="zstd")
    except Unsupported:
        snapshot(one.memory, directory)
    return one


@pytest.mark.parametrize("number", [1, 2, 3])
def test_damaged_content_is_not_restored(tmp_path: Path, number: int) -> None:
    """Wherever a byte that shows was changed, by default, too, for a memory of this size."""
    one = chain_with_all_kinds(tmp_path)
    path = tmp_path / f"{number:08d}.snapshot"
    assert np.array_equal(content(restore(tmp_path, verify=True)), one.rows)
    good = path.read_bytes()
    end = Header.decode(good[:PAGE_SIZE], "", len(good)).table_offset
    for at in range(PAGE_SIZE, end, max((end - PAGE_SIZE) // 40, 1)):
        flip(path, at)
        for options in ({}, {"verify": True}):
            for act in (restore, lambda where, **given: open_memory(where, one.memory.size, **given)):
                with pytest.raises(SnapshotDamaged, match=r"; precopy\.verify\(.*\) says which files are damaged"):
                    act(tmp_path, **options)
        assert number in verify(tmp_path).damage
        path.write_bytes(good)
    assert np.array_equal(content(restore(tmp_path)), one.rows)


def test_content_that_is_not_checked_shows_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once means that nothing is read: without being asked to, only up to a size, or where it was forbidden."""
    one = filled()
    snapshot(one.memory, tmp_path)
    flip(tmp_path / "00000001.snapshot", (50 + 1) * PAGE_SIZE)
    with pytest.raises(SnapshotDamaged):
        restore(tmp_path)
    assert content(restore(tmp_path, verify=False))[50, 0] == one.rows[50, 0] ^ np.uint64(1)
    monkeypatch.setattr(restoring, "CHECKED_BYTES", 150 * PAGE_SIZE)
    with pytest.raises(SnapshotDamaged):
        restore(tmp_path)
    monkeypatch.setattr(restoring, "CHECKED_BYTES", 150 * PAGE_SIZE - 1)
    assert content(restore(tmp_path))[50, 0] == one.rows[50, 0] ^ np.uint64(1)
    with pytest.raises(SnapshotDamaged):
        restore(tmp_path, verify=True)


def test_restoring_at_once_reads_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = filled()
    snapshot(one.memory, tmp_path)
    read: list[int] = []
    into = StoredFile._read_into
    monkeypatch.setattr(
        StoredFile, "_read_into", lambda file, part, at: (read.append(part.nbytes), into(file, part, at))[1]
    )
    assert restore(tmp_path, verify=False).size == one.memory.size
    assert sum(read) < PAGE_SIZE  # the table
    restore(tmp_path, verify=True)
    assert sum(read) > 150 * PAGE_SIZE


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room on its file system"),
        (errno.EDQUOT, "make room within the quota"),
        (errno.EFBIG, "raise the limit on the size of files"),
        (errno.EROFS, "use another directory"),
        (errno.EIO, "the disk fails"),
    ],
)
def test_advice_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str) -> None:
    """Nobody is told to compact by compact itself, nor to compact a directory in order to export from it."""
    one = filled()
    snapshot(one.memory, tmp_path / "s")
    one.write([3], 9)
    snapshot(one.memory, tmp_path / "s")
    before = files(tmp_path / "s")

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    said = {}
    for name, act in {
        "snapshot": lambda: snapshot(one.memory, tmp_path / "s"),
        "full": lambda: snapshot(one.memory, tmp_path / "s", full=True),
        "compact": lambda: compact(tmp_path / "s"),
        "export": lambda: export(tmp_path / "s", tmp_path / "raw"),
    }.items():
        with pytest.raises(SnapshotError, match=advice) as refused:
            act()
        said[name] = str(refused.value)
        assert "compact the directory" not in said[name]
    assert "the snapshots before are untouched, and the next one saves" in said["snapshot"]
    assert "nothing has changed: up to 600 KiB are written before anything is removed" in said["compact"]
    assert "snapshots before" not in said["export"]
    monkeypatch.undo()
    assert files(tmp_path / "s") == before
    assert np.array_equal(content(restore(tmp_path / "s")), one.rows)


@pytest.mark.needs("pagemap")
@pytest.mark.parametrize("swap", [True, False])
def test_a_memory_that_is_all_but_empty_is_not_tracked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: bool
) -> None:
    """Tracking takes page tables for all of it, which its files do not say that it has."""
    monkeypatch.setattr(restoring, "has_swap", lambda: swap)
    one = Written(1 << 16)
    one.write([9], 9)
    snapshot(one.memory, tmp_path)
    with restore(tmp_path) as memory:
        (series,) = memory.snapshots.values()
        assert not series.started
        rows = np.frombuffer(memory.view, np.uint64).reshape(-1, 512)
        rows[12345] = 7
        saved = snapshot(memory, tmp_path)
        assert (saved.full, saved.pages) == (swap, 2 if swap else 1)
        rows[12346] = 8
        saved = snapshot(memory, tmp_path)
        assert (saved.full, saved.pages) == (False, 1)
        assert np.array_equal(content(restore(tmp_path)), rows)


@pytest.mark.parametrize("name", ["00000001.snapshot", "00000007.snapshot", "00000001.tmp", ".lock"])
@pytest.mark.parametrize("linked", [False, True])
def test_an_export_takes_the_place_of_no_snapshot(tmp_path: Path, name: str, linked: bool) -> None:
    one = filled()
    snapshot(one.memory, tmp_path / "s")
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    target = tmp_path / "s" / name
    if linked:
        (tmp_path / "link").symlink_to(target)
    with pytest.raises(UsageError, match="has the name of a snapshot, which it would replace; use another name"):
        export(tmp_path / "s", tmp_path / "link" if linked else target)
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before


@pytest.mark.parametrize(
    "lock",
    [asyncio.Lock(), threading.Lock, object(), 3, "lock"],
    ids=lambda lock: getattr(lock, "__name__", type(lock).__name__),
)
def test_what_is_no_lock_to_hold_saves_nothing(tmp_path: Path, lock: Any) -> None:
    with pytest.raises(UsageError, match=r"a context manager that a thread can hold .* take the snapshot between"):
        snapshot(filled().memory, tmp_path / "s", lock=lock)
    assert not (tmp_path / "s").exists()


def test_a_lock_that_swallows_errors_does_not_make_a_snapshot_whole(tmp_path: Path) -> None:
    class Swallowing:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> bool:
            return True

    one = filled()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 * PAGE_SIZE, limits[1]))
    try:
        with pytest.raises(SnapshotError, match="cannot write"):
            snapshot(one.memory, tmp_path, lock=Swallowing())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == []
    assert snapshot(one.memory, tmp_path, lock=Swallowing()).number == 1
    assert np.array_equal(content(restore(tmp_path)), one.rows)


@pytest.mark.parametrize("number", ["1", 1.5, 0.0, None, [1]])
def test_what_is_no_number_of_snapshots(tmp_path: Path, number: Any) -> None:
    snapshot(filled().memory, tmp_path)
    with pytest.raises(UsageError, match="is a whole number from 1 on, not"):
        compact(tmp_path, keep=number)
    if number is not None:
        with pytest.raises(UsageError, match="the number of a snapshot is a whole number from 0 on, not"):
            restore(tmp_path, at=number)
    assert files(tmp_path) == ["00000001.snapshot"]


def test_what_is_no_directory_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for act in (restore, snapshots, verify, compact, lambda path: snapshot(filled().memory, path)):
        with pytest.raises(UsageError, match=r"is no directory of snapshots: it is no directory$"):
            act(tmp_path / "file")
        with pytest.raises(UsageError, match=r"is no directory of snapshots: there is no such directory$"):
            act(tmp_path / "link")
    with pytest.raises(UsageError, match=r"there is no such directory to make it in: .*/a$"):
        snapshot(filled().memory, tmp_path / "a" / "b")
    (tmp_path / "00000001.snapshot").symlink_to("/dev/zero")
    with pytest.raises(SnapshotError, match="a symbolic link is not followed here; remove it"):
        restore(tmp_path)


def test_what_is_said_to_do_about_damage_can_be_done(tmp_path: Path) -> None:
    one = filled()
    kept = []
    for page in range(4):
        one.write([page], page + 7)
        snapshot(one.memory, tmp_path)
        kept.append(one.rows.copy())
    flip(tmp_path / "00000003.snapshot", PAGE_SIZE + 9)
    for at in (None, 3, 4):
        with pytest.raises(SnapshotDamaged, match=r"says which files are damaged, .* such as any before the first$"):
            restore(tmp_path, at=at)
    first = min(verify(tmp_path).damage)
    assert first == 3
    for number in range(1, first):
        assert np.array_equal(content(restore(tmp_path, at=number)), kept[number - 1])
