"""What was looked up and is gone, or another's, before it is used: each test forces the order in which that happens."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest

import precopy
from precopy.errors import SnapshotError, UsageError
from precopy.machines.process import tracker_connection
from precopy.machines.process.rendezvous import address_of
from precopy.machines.process.sharing import shared_pages
from precopy.memory.system_memory import peak_resident
from precopy.snapshot_store import chain, maintenance
from precopy.snapshot_store.directory import Directory
from precopy.snapshot_store.succession import newest_of
from precopy.trackers import mapped
from precopy.transport import Address, Listener, connect
from precopy.transport.address import UNIX_PATH_BYTES
from precopy.transport.listener import listening_advice
from support.patience import IN_TIME_S


def first(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, happens: Callable[[], object]) -> None:
    """``happens`` comes just before the first call of this function, which is then made as it is."""
    real = getattr(module, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(module, name, real)
        happens()
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, wrapped)


def stale(path: Path) -> None:
    """A socket's file that nobody listens at."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


class TestASocketsPath:
    def test_another_listens_there_since_it_was_found_stale(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both find the same stale file; the one that is first keeps what it listens at."""
        path = tmp_path / "socket"
        stale(path)
        made: list[Listener] = []

        def the_other() -> None:
            os.unlink(path)
            made.append(Listener(Address(path=str(path))))

        first(monkeypatch, os, "rename", the_other)
        with pytest.raises(UsageError, match="another program listens there"):
            Listener(Address(path=str(path)))
        (other,) = made
        connect(other.address, IN_TIME_S).close()
        assert os.listdir(tmp_path) == ["socket"]
        other.close()
        assert os.listdir(tmp_path) == []

    def test_it_was_removed_since_it_was_found_stale(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "socket"
        stale(path)
        first(monkeypatch, os, "rename", lambda: os.unlink(path))
        with Listener(Address(path=str(path))) as listener:
            connect(listener.address, IN_TIME_S).close()
        assert os.listdir(tmp_path) == []

    def test_a_stale_one_with_a_short_name_in_a_deep_directory(self, tmp_path: Path) -> None:
        folder = tmp_path / ("d" * (UNIX_PATH_BYTES - len(os.fsencode(tmp_path)) - 3))
        folder.mkdir()
        stale(folder / "s")
        with Listener(Address(path=str(folder / "s"))) as listener:
            connect(listener.address, IN_TIME_S).close()
        assert os.listdir(folder) == []

    def test_whoever_was_in_the_way_has_gone(self, tmp_path: Path) -> None:
        taken = OSError(errno.EADDRINUSE, "Address already in use")
        advice = listening_advice(Address(path=str(tmp_path / "gone")), taken)
        assert advice == "; another program listens there: use another path, or end that program"
        (tmp_path / "file").touch()
        assert "is no socket" in listening_advice(Address(path=str(tmp_path / "file")), taken)


class TestADirectoryOfSnapshots:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        memory = precopy.Memory(1 << 20)
        for _ in range(2):
            precopy.snapshot(memory, tmp_path / "saved", full=True)
        return tmp_path / "saved"

    def test_another_process_makes_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "saved"
        made = os.mkdir
        first(monkeypatch, os, "mkdir", lambda: made(path))
        assert precopy.snapshot(precopy.Memory(4096), path).number == 1

    def test_a_file_comes_into_its_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "saved"
        first(monkeypatch, os, "mkdir", path.touch)
        with pytest.raises(UsageError, match="it is no directory"):
            precopy.snapshot(precopy.Memory(4096), path)
        assert stat.S_ISREG(path.stat().st_mode)

    @pytest.mark.needs("pagemap")
    def test_the_newest_was_removed(self, saved: Path) -> None:
        with Directory(saved) as store:
            newest = newest_of(store, [1, 2, 3])
        assert newest is not None
        assert newest.damage == f"{saved}/00000003.snapshot was removed meanwhile"

    @pytest.mark.needs("pagemap")
    def test_a_snapshot_is_removed_while_it_is_compacted(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first(monkeypatch, maintenance, "Chain", (saved / "00000002.snapshot").unlink)
        with pytest.raises(SnapshotError, match=r"00000002\.snapshot was removed while it was compacted; try again"):
            precopy.compact(saved)
        assert [one.number for one in precopy.snapshots(saved)] == [1]

    @pytest.mark.needs("pagemap")
    def test_a_snapshot_is_removed_while_it_is_restored(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then it is looked again, and what is the newest by then is restored."""
        first(monkeypatch, chain, "Chain", (saved / "00000002.snapshot").unlink)
        assert precopy.restore(saved).size == 1 << 20


def test_a_descriptor_whose_number_is_another_files_by_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, other = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("wanted", "other"))
    status = os.fstat(wanted)
    key = (status.st_dev, status.st_ino)
    try:
        found = mapped.descriptors({key})
        assert os.path.samestat(os.fstat(found[key]), status)
        os.close(found[key])
        held = len(os.listdir("/proc/self/fd"))
        first(monkeypatch, os, "dup", lambda: os.dup2(other, wanted))
        assert mapped.descriptors({key}) == {}
        assert len(os.listdir("/proc/self/fd")) == held
    finally:
        os.close(wanted)
        os.close(other)


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    made = SharedMemory(create=True, size=1 << 16)
    yield made
    made.close()
    made.unlink()


@pytest.mark.needs("pagemap")
def test_the_process_that_tracks_ends_while_another_attaches(
    shared: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It listened when it was connected to; before it is told anything, it is gone."""
    held = len(os.listdir("/proc/self/fd"))
    pages = shared_pages(_address_of(shared), shared.size)
    assert pages is not None
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(address_of(pages.file))
            door.listen()
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)

    def ends() -> None:
        os.write(go[1], b"x")
        os.waitpid(child, 0)

    first(monkeypatch, tracker_connection, "MappingWatch", ends)
    with pytest.raises(UsageError, match="no process of this user tracks this shared memory"):
        precopy.attach(shared)
    for end in (*ready, *go):
        os.close(end)
    for _ in range(3):
        with pytest.raises(UsageError, match="no process of this user tracks this shared memory"):
            precopy.attach(shared)
    assert len(os.listdir("/proc/self/fd")) == held, "nothing is left of an attempt"


def _address_of(shared: SharedMemory) -> int:
    import numpy as np

    return int(np.frombuffer(shared.buf, np.uint8).__array_interface__["data"][0])


def test_what_the_process_is_called_does_not_count() -> None:
    """/proc/self/status begins with it, in whatever bytes somebody chose."""
    comm = Path("/proc/self/comm")
    before = comm.read_bytes()
    comm.write_bytes("münchen\xff".encode("latin-1"))
    try:
        assert (peak_resident() or 0) > 1 << 20
    finally:
        comm.write_bytes(before.strip())
