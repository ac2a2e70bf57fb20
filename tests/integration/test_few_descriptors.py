"""A process that may open few files: each command and each call of the public API ends as documented, in one sentence
that says what was refused, where, and what to do; and leaves nothing behind: no file, no socket, no descriptor.

How many descriptors a verb takes is nobody's promise. So each is tried with one more after the other, until it
succeeds.
"""

from __future__ import annotations

import contextlib
import gc
import math
import mmap
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

import precopy
from precopy import KernelCallError, Memory, PeerError, PrecopyError, Standby
from precopy.machines.kvm import unavailable
from precopy.service import Request, ask
from precopy.snapshot_store import export
from precopy.transport import Address, Listener, SocketStream, connect, parse_address
from precopy.transport.accept import Strangers, accept_peer
from support.commands import Bench, Finished, wait_for
from support.descriptors import Running, Server, leave, only, open_in, plenty
from support.patience import IN_TIME_S, SETTLED_S
from support.replicas import MIB, filled

MOST = 40
"""Free descriptors with which every verb succeeds."""
DOCUMENTED = {1, 3, 5}
"""Of docs/operations.md: refused by the system, not there, the peer is gone. Nothing here is the user's mistake."""
SAID = "Too many open files"


def told(error: BaseException) -> None:
    """It is the tree's, one sentence, and says what to do."""
    assert isinstance(error, PrecopyError), repr(error)
    assert str(error).isprintable()
    assert isinstance(error, PeerError) or "; " in str(error)  # a peer in the same process has as few


def settled(held: Callable[[], object], before: object) -> bool:
    """Whether it is again as it was: threads of a call that failed may still be closing."""
    end = time.monotonic() + SETTLED_S
    while held() != before and time.monotonic() < end:
        time.sleep(0.01)
    return held() == before


class Calls:
    """Calls of the public API that open something, each from beginning to end."""

    def __init__(self, folder: Path, adopted: SharedMemory, tracked: SharedMemory) -> None:
        self.folder, self.adopted, self.tracked = folder, adopted, tracked
        self.saved = folder / "saved"
        with filled(MIB) as memory:
            precopy.snapshot(memory, self.saved)
            memory[0] ^= 1
            precopy.snapshot(memory, self.saved)
        self._copies = 0

    def _new(self) -> Path:
        self._copies += 1
        return self.folder / f"new{self._copies}"

    def track(self) -> None:
        with filled(MIB) as memory, memory.track() as changes:
            changes.sync()
            memory[5] = 1
            assert changes.sync().pages == 1

    def track_by_content(self) -> None:
        with filled(MIB) as memory, memory.track(by="content") as changes:
            changes.sync()

    def snapshot(self) -> None:
        where = self._new()
        with filled(MIB) as memory:
            precopy.snapshot(memory, where)
            memory[5] = 1
            precopy.snapshot(memory, where)

    def restore(self) -> None:
        with precopy.restore(self.saved) as memory, memory.track() as changes:
            changes.sync()

    def open_memory(self) -> None:
        precopy.open_memory(self.saved, MIB).close()

    def look(self) -> None:
        assert len(precopy.snapshots(self.saved)) == 2
        assert precopy.verify(self.saved)

    def export(self) -> None:
        export(self.saved, self.folder / "exported")
        (self.folder / "exported").unlink()

    def compact(self) -> None:
        where = self._new()
        with plenty():
            shutil.copytree(self.saved, where)
        precopy.compact(where)

    def adopt(self) -> None:
        with Memory.adopt(mmap.mmap(-1, MIB)) as memory, memory.track() as changes:
            memory[5] = 1
            assert changes.sync().pages == 1

    def adopt_mine(self) -> None:
        with Memory.adopt(self.adopted, writers="this process") as memory, memory.track() as changes:
            changes.sync()

    def adopt_attached(self) -> None:
        with Memory.adopt(self.adopted, writers="attached") as memory, memory.track() as changes:
            changes.sync()

    def adopt_any(self) -> None:
        with Memory.adopt(self.adopted, writers="any") as memory, memory.track() as changes:
            changes.sync()

    def attach(self) -> None:
        precopy.attach(self.tracked.name).close()

    def replicate(self) -> None:
        with (
            filled(MIB) as memory,
            Standby(f"unix:{self.folder}/standby") as standby,
            precopy.replicate(memory, standby.address, interval=math.inf) as handle,
        ):
            handle.wait(IN_TIME_S)
            handle.checkpoint(wait=True)
            with handle.cutover():
                pass
            standby.wait(IN_TIME_S)
            standby.promote().close()


CALLS = [name for name in vars(Calls) if not name.startswith("_")]

TRACKER = """
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
import precopy
shared = SharedMemory(sys.argv[1])
resource_tracker.unregister(shared._name, "shared_memory")
with precopy.Memory.adopt(shared, writers="attached") as memory, memory.track() as changes:
    for line in sys.stdin:
        print(changes.sync().pages, flush=True)
"""


@pytest.fixture
def adopted() -> Iterator[SharedMemory]:
    yield from _shared()


@pytest.fixture(scope="module")
def tracked() -> Iterator[SharedMemory]:
    """Tracked by another process."""
    for shared in _shared():
        with Popen([sys.executable, "-c", TRACKER, shared.name], stdin=PIPE, stdout=PIPE, text=True) as tracker:
            assert tracker.stdin is not None
            assert tracker.stdout is not None
            tracker.stdin.write("\n")
            tracker.stdin.flush()
            assert tracker.stdout.readline()
            yield shared
            tracker.stdin.close()


def _shared() -> Iterator[SharedMemory]:
    made = SharedMemory(create=True, size=MIB)
    yield made
    made.unlink()
    gc.collect()  # arrays over it
    try:
        made.close()
    except BufferError:  # the frames of a test that failed hold views, and its second try would be one more warning
        made._mmap = None  # type: ignore[attr-defined]


@pytest.mark.needs("pagemap")
class TestAProgram:
    @pytest.mark.parametrize("name", CALLS)
    def test_a_call(self, tmp_path: Path, adopted: SharedMemory, tracked: SharedMemory, name: str) -> None:
        calls = Calls(tmp_path, adopted, tracked)
        call = getattr(calls, name)
        call()  # what is imported and cached stays open
        refused = 0
        for free in range(MOST + 1):
            held = open_in()
            try:
                with only(free):
                    call()
            except Exception as error:
                told(error)
                refused += 1
            else:
                break
            finally:
                gc.collect()
                assert settled(open_in, held), "descriptors are left open"
                assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", "standby", "exported"))]
        assert refused == free > 0
        call()

    def test_a_writer_that_cannot_be_taken_in_stays_known(self, adopted: SharedMemory) -> None:
        """Its writes would be lost (law 1): the sync says that it cannot, until there are descriptors again."""
        with Memory.adopt(adopted, writers="attached") as memory, memory.track() as changes:
            changes.sync()
            writer = (
                "import sys\nfrom multiprocessing import resource_tracker\n"
                "from multiprocessing.shared_memory import SharedMemory\nimport precopy\n"
                "shared = SharedMemory(sys.argv[1])\n"
                'resource_tracker.unregister(shared._name, "shared_memory")\n'
                "attachment = precopy.attach(shared)\nattachment.view[4096 * 7] ^= 1\n"
                "print(flush=True)\nsys.stdin.read()\n"
            )
            with Popen([sys.executable, "-c", writer, adopted.name], stdin=PIPE, stdout=PIPE) as process:
                assert process.stdout is not None
                assert process.stdout.readline()
                for free in range(MOST):
                    try:
                        with only(free):
                            found = changes.sync()
                    except KernelCallError as error:
                        told(error)
                    else:
                        break
                assert free >= 4, "for what it sends; its connection was accepted before"
                assert 7 in found.indexes
                process.communicate(b"")


def test_strangers_do_not_have_the_last_descriptors(tmp_path: Path) -> None:
    """Those that have not greeted are sent away for a peer that has."""
    named: list[str] = []
    strangers = Strangers(lambda _, why: named.append(str(why)), lambda: None)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(Listener(Address(path=str(tmp_path / "socket"))))
        for _ in range(8):
            stack.callback(connect(listener.address, IN_TIME_S).close)
        peer = connect(listener.address, IN_TIME_S)
        stack.callback(peer.close)
        peer.send([b"hello"])
        with only(0), pytest.raises(KernelCallError) as none_left:
            accept_peer(listener, IN_TIME_S, Greeting, strangers)
        told(none_left.value)
        with only(2):
            accepted = accept_peer(listener, IN_TIME_S, Greeting, strangers)
        assert accepted.reader.said == b"hello"
        accepted.stream.close()
    assert named == ["it has not greeted, and others wait"] * 7 + ["it has not greeted, and another has"]


class Greeting:
    """Five bytes are a hello."""

    def __init__(self) -> None:
        self.said = b""

    @property
    def wanted(self) -> int:
        return 5 - len(self.said)

    def receive(self, data: bytes) -> object | None:
        self.said += data
        return self.said if not self.wanted else None

    def refuse(self, stream: SocketStream, reason: str) -> None:
        stream.send_now(reason.encode())


class Commands:
    """Commands in a directory, of which is known what they may leave in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server = folder, Server(folder)
        (folder / "plan.json").write_text(self.server.run(*PLAN.split(), "--json").out)
        with filled(MIB) as memory:
            precopy.snapshot(memory, folder / "saved")
            memory[0] ^= 1
            precopy.snapshot(memory, folder / "saved")

    def words(self, line: str) -> list[str]:
        return line.replace("DIR", str(self.folder)).split()

    def left(self) -> list[str]:
        """What lies in the directories."""
        return sorted(path.name for path in (*self.folder.iterdir(), *(self.folder / "tmp").iterdir()))

    def run(self, line: str, limit: int | None = None) -> Finished:
        return self.server.run(*self.words(line), limit=limit)

    def start(self, line: str, limit: int | None = None) -> Running:
        """Until it says where it is controlled, or has ended."""
        running = self.server.start(*self.words(line), limit=limit)
        wait_for(lambda: running.says("control: ") or running.ended())
        return running


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    made = Commands(tmp_path_factory.mktemp("commands"))
    yield made
    made.server.close()


def refused(done: Finished) -> None:
    assert done.code in DOCUMENTED, (done.code, done.err)
    assert done.sentence(done.code).isprintable()


PLAN = "plan --ram 1G --dirty-rate 1M --bandwidth 1G --sync-time 1ms"
GUEST = f"--ram 16M --layout flat --guest {'emulated' if unavailable() else 'kvm'}"
ENDS = [
    f"{PLAN}",
    "plan --recording DIR/none.precopy --json",
    "report DIR/plan.json -o DIR/report.html",
    "layout q35 --ram 4G",
    "snapshot list DIR/saved --json",
    "snapshot verify DIR/saved",
    "snapshot export DIR/saved DIR/exported",
    "status unix:DIR/none",
    "migrate unix:DIR/none unix:DIR/neither",
    "no-such-verb",
]


@pytest.mark.needs("pagemap")
class TestACommand:
    @pytest.mark.parametrize(
        "line", ENDS, ids=lambda line: line.split()[0] + line.split()[1][:8] if " " in line else line
    )
    def test_that_ends(self, commands: Commands, line: str) -> None:
        """It says so of descriptors as long as they are what it lacks, and then what it would have said at once."""
        free = commands.run(line)
        for name in ("report.html", "exported"):
            (commands.folder / name).unlink(missing_ok=True)
        before = commands.left()
        for limit in range(3, MOST):
            done = commands.run(line, limit)
            if SAID not in done.err:
                break
            refused(done)
            assert "ulimit -n" in done.err
            assert commands.left() == before
        assert done.code == free.code
        assert limit < MOST - 1

    @pytest.mark.parametrize("verb", ["run", "receive unix:DIR/wire"], ids=["run", "receive"])
    def test_that_goes_on(self, commands: Commands, verb: str) -> None:
        before = commands.left()
        for limit in range(3, MOST):
            running = commands.start(f"{verb} {GUEST} --control unix:DIR/control", limit)
            if not running.ended():
                break
            refused(running.finish())
            assert commands.left() == before
        os.kill(running.pid, signal.SIGTERM)
        assert running.finish().code == 130
        assert 3 < limit < MOST - 1
        assert commands.left() == before

    def test_a_new_interpreter(self, tmp_path: Path) -> None:
        """Also what is imported on the way to the error's report takes a descriptor."""
        bench = Bench(tmp_path)
        for line in ("status unix:/nowhere", "snapshot list /nowhere --json", "no-such-verb"):
            for limit in (5, 6):  # with fewer, the interpreter does not come up
                done = bench.run(*line.split(), prefix=("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh"))
                assert done.code in {*DOCUMENTED, 2}, done
                assert done.err.splitlines()[-1].startswith(("precopy: ", "Error: "))
        bench.close()


class TestAMigration:
    @pytest.fixture
    def source(self, commands: Commands) -> Iterator[Running]:
        yield from self._running(commands, f"run {GUEST} --control unix:DIR/source")

    @pytest.fixture
    def destination(self, commands: Commands) -> Iterator[Running]:
        yield from self._running(commands, f"receive unix:DIR/wire {GUEST} --control unix:DIR/destination --keep")

    def _running(self, commands: Commands, line: str) -> Iterator[Running]:
        running = commands.start(line)
        assert not running.ended()
        yield running
        if not running.ended():
            os.kill(running.pid, signal.SIGTERM)
            running.finish()

    def _status(self, commands: Commands, name: str) -> dict[str, Any]:
        status: dict[str, Any] = ask(parse_address(f"unix:{commands.folder}/{name}"), Request("status"))
        return status

    MIGRATE = "migrate unix:DIR/source unix:DIR/wire --on-timeout switch --verify --record DIR/recording"

    @pytest.mark.usefixtures("destination")
    def test_of_a_source_with_few(self, commands: Commands, source: Running) -> None:
        """Whatever it fails with, the guest runs on there, until the source has enough to give it away."""
        for free in range(1, MOST):  # with none, it hears of no request
            leave(source.pid, free)
            done = commands.run(self.MIGRATE)
            if done.code == 0:
                break
            refused(done)
            assert self._status(commands, "source")["state"] == "running"
            (commands.folder / "recording").unlink(missing_ok=True)  # what was recorded of one that failed stays
            wait_for(lambda: self._status(commands, "destination")["state"] == "waiting")
        assert 1 < free < MOST - 1
        assert source.finish().code == 0
        assert self._status(commands, "destination")["state"] == "running"
        (commands.folder / "recording").unlink()

    @pytest.mark.usefixtures("source")
    def test_of_a_destination_with_few(self, commands: Commands, destination: Running) -> None:
        leave(destination.pid, 0)
        refused(commands.run(self.MIGRATE))
        refused(destination.finish())
        assert self._status(commands, "source")["state"] == "running"
        (commands.folder / "recording").unlink(missing_ok=True)
        assert not (commands.folder / "wire").exists()

    @pytest.mark.usefixtures("destination")
    def test_of_a_client_with_few(self, commands: Commands, source: Running) -> None:
        for limit in range(3, MOST):
            done = commands.run(self.MIGRATE, limit)
            if done.code == 0:
                break
            refused(done)
            assert SAID in done.err
        assert 3 < limit < MOST - 1
        assert source.finish().code == 0
        (commands.folder / "recording").unlink()
