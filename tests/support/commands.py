"""The ``precopy`` command as real processes with a bench that knows what they must not leave behind, and as a call."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from precopy.cli.main import main
from precopy.errors import PeerLost
from precopy.machines.workload import CODE_GPA
from precopy.service import Request, ask
from precopy.transport import parse_address

from .patience import IN_TIME_S, SETTLED_S

PRECOPY = (sys.executable, "-m", "precopy")
ARRIVES = ("--on-timeout", "switch")
"""For a migration that has to arrive on a machine, too, that is so busy that its guest does not converge."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """The one JSON document that ``--json`` promises on stdout."""
        assert len(self.out.splitlines()) == 1, self.out
        document: dict[str, Any] = json.loads(self.out)
        return document

    def complaints(self) -> list[str]:
        """What is on stderr but for where a process with ``--json`` waits and is controlled, and the end of the line
        on which a terminal shows ^C."""
        lines = [line for line in self.err.splitlines() if not line.startswith(("control: ", "waiting at "))]
        return lines[1:] if self.code == 130 and lines[:1] == [""] else lines

    def sentence(self, code: int) -> str:
        """The one line on stderr of a command that failed with ``code``."""
        assert self.code == code, (self.code, self.out, self.err)
        lines = self.complaints()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("precopy: ")
        return lines[0].removeprefix("precopy: ")

    def error_document(self, code: int) -> dict[str, Any]:
        """As `sentence`, for a command with ``--json``, which says the same on stdout."""
        document = self.document()
        assert document["schema"] == "precopy.error/1"
        assert document["error"]["exit_code"] == code
        assert document["error"]["message"] == self.sentence(code)
        error: dict[str, Any] = document["error"]
        return error


class Command:
    """A command that runs."""

    def __init__(self, arguments: Sequence[str], directory: Path, prefix: Sequence[str] = ()) -> None:
        environment = {**os.environ, "TMPDIR": str(directory), "COLUMNS": "200"}
        for name in ("PRECOPY_DEBUG", "XDG_RUNTIME_DIR", "FORCE_COLOR"):
            environment.pop(name, None)
        self.arguments = arguments
        self.process = subprocess.Popen(
            [*prefix, *PRECOPY, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line of stdout, when it comes."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()

    def finish(self, timeout: float = IN_TIME_S) -> Finished:
        """Waits until it has ended by itself."""
        out, err = self.process.communicate(timeout=timeout)
        assert "Traceback" not in err, err
        assert "Traceback" not in out, out
        return Finished(self.process.returncode, out, err)


def precopy(*arguments: str, timeout: float = IN_TIME_S) -> Finished:
    """A command that needs no directory of its own, until it has ended."""
    with tempfile.TemporaryDirectory() as directory:
        return Command(arguments, Path(directory)).finish(timeout)


def called(*arguments: str) -> Finished:
    """A command that only computes, in this process: as `precopy`, without a new interpreter's half second."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    environment = {name: value for name, value in os.environ.items() if name not in ("PRECOPY_DEBUG", "FORCE_COLOR")}
    with (
        unittest.mock.patch.dict(os.environ, {**environment, "COLUMNS": "200"}, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main(list(arguments))
    for stream in (out, err):
        stream.seek(0)
    done = Finished(int(ended.value.code or 0), out.read(), err.read())
    assert "Traceback" not in done.err, done.err
    return done


def modules_of(*arguments: str) -> set[str]:
    """What a command that ends well has imported."""
    shown = "import atexit, json, sys; atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))"
    code = (
        f"{shown}; sys.argv = {['precopy', *arguments]}; import runpy; runpy.run_module('precopy', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=IN_TIME_S)
    return set(json.loads(done.stderr.splitlines()[-1]))


def only_asks(imported: set[str]) -> None:
    """A command that asks a guest's process has loaded nothing of what that process itself needs, or of tables."""
    assert {"msgspec", "precopy.service.socket"} <= imported
    assert not {name for name in imported if name.split(".")[0] in ("numpy", "rich")}
    assert not imported & {"precopy.migration", "precopy.planning", "precopy.bitmap", "precopy.service.daemon"}


class Bench:
    """Starts commands in ``directory``, where their sockets and temporary files lie; `close` finds what is left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        self.expected: set[str] = set()
        """Names of files that are meant to stay."""
        self._commands: list[Command] = []

    def path(self, name: str) -> str:
        """An address for a Unix socket of this test's own."""
        return f"unix:{self.directory / name}"

    def start(self, *arguments: str, prefix: Sequence[str] = ()) -> Command:
        command = Command(arguments, self.temporary, prefix)
        self._commands.append(command)
        return command

    def run(self, *arguments: str, prefix: Sequence[str] = (), timeout: float = IN_TIME_S) -> Finished:
        return self.start(*arguments, prefix=prefix).finish(timeout)

    def json(self, *arguments: str) -> dict[str, Any]:
        """The document of a command that succeeds."""
        done = self.run(*arguments, "--json")
        assert (done.code, done.err) == (0, ""), (done.code, done.err)
        return done.document()

    def ask(self, name: str, command: str) -> dict[str, Any]:
        """What the process behind the control socket ``name`` answers to a command, as `precopy COMMAND` asks it.
        Raises `PeerLost` where there is none."""
        answer: dict[str, Any] = ask(parse_address(self.path(name)), Request(command))
        return answer

    def status(self, name: str) -> dict[str, Any]:
        return self.ask(name, "status")

    def until_state(self, name: str, *states: str, timeout: float = IN_TIME_S) -> dict[str, Any]:
        """Waits until the process behind ``name`` says that it is in one of ``states``."""
        end = time.monotonic() + timeout
        while True:
            try:
                status = self.status(name)
                if status["state"] in states:
                    return status
            except PeerLost:
                status = {"state": "not there"}
            assert time.monotonic() < end, f"{name} is {status['state']}, not {' or '.join(states)}"
            time.sleep(0.005)

    def until_gone(self, name: str) -> None:
        """Waits until nobody listens behind ``name``."""
        wait_for(lambda: not (self.directory / name).exists())

    def close(self) -> None:
        """Ends what still runs, as a test that failed leaves it, and fails where something was left behind."""
        running = [command for command in self._commands if command.process.poll() is None]
        for command in running:
            command.kill()
        for command in self._commands:
            command.process.communicate()
        # A child that was only just started finds out that it is alone when its interpreter is up.
        end = time.monotonic() + SETTLED_S
        while processes_of(self.directory) and time.monotonic() < end:
            time.sleep(0.01)
        strays = processes_of(self.directory)
        for pid in strays:
            os.kill(pid, signal.SIGKILL)
        left = {path.name for path in self.directory.iterdir() if stat.S_ISSOCK(path.stat().st_mode)}
        temporary = [path.name for path in self.temporary.rglob("*")]
        assert not [command.arguments for command in running]
        assert not strays
        assert left == self.expected
        assert not temporary


def processes_of(directory: Path) -> dict[int, str]:
    """Processes whose command line or environment names ``directory``, by id."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and os.fsencode(directory) in command + environment:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def wait_for(condition: Callable[[], bool], timeout: float = IN_TIME_S) -> None:
    """Waits for what only looking can tell."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)


def find_in_memory(pid: int, content: bytes, smallest: int) -> int | None:
    """Where ``content`` begins, at the start of a page, in a private mapping of ``smallest`` bytes or more."""
    for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
        where, access, _, _, inode = line.split()[:5]
        start, end = (int(address, 16) for address in where.split("-"))
        if access != "rw-p" or inode != "0" or end - start < smallest:
            continue
        data = read_memory(pid, start, end - start)
        at = data.find(content)
        while at >= 0 and at % 4096:
            at = data.find(content, at + 1)
        if at >= 0:
            return start + at
    return None


def read_memory(pid: int, address: int, size: int) -> bytes:
    """Another process's memory."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def write_memory(pid: int, address: int, content: bytes) -> None:
    """Changes another process's memory behind its back."""
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        assert memory.write(content) == len(content)


CORRUPTED = 512
"""The page that `corrupt` changes: one that holds random content and that no idle guest touches."""


def corrupt(pid: int, program: bytes, ram: int) -> None:
    """Flips a byte of a page that has arrived in the receiving process ``pid``, whose flat RAM has ``ram`` bytes.

    It waits until the migration is well past that page, so that nothing but a comparison can notice.
    """
    wait_for(lambda: find_in_memory(pid, program, ram) is not None)
    start = (find_in_memory(pid, program, ram) or 0) - CODE_GPA
    wait_for(lambda: any(read_memory(pid, start + (CORRUPTED + 512) * 4096, 4096)))
    (byte,) = read_memory(pid, start + CORRUPTED * 4096 + 77, 1)
    write_memory(pid, start + CORRUPTED * 4096 + 77, bytes([byte ^ 0x40]))
