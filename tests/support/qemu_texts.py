"""What the monitor of a real QEMU says of its memory."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from precopy.bench.peers.qemu.launcher import dying_with_us, qmp_options
from support.patience import IN_TIME_S

_POLL = 0.2


class Monitor:
    """Asks a QEMU's human monitor."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8", newline="\n")
        json.loads(self._lines.readline())
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: str) -> object:
        self._connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while "return" not in (answer := json.loads(self._lines.readline())):
            assert "event" in answer, answer
        return answer["return"]

    def ask(self, command: str) -> str:
        """The text, with the line ends that QMP hands on."""
        text = self.execute("human-monitor-command", **{"command-line": command})
        assert isinstance(text, str)
        return text

    def run_until(self, reached: Callable[[str], bool]) -> None:
        """Lets the guest go on until ``reached`` is true of its ``info mtree -f``, and stops it there."""
        self.execute("cont")
        end = time.monotonic() + IN_TIME_S
        while not reached(self.ask("info mtree -f")):
            assert time.monotonic() < end, "the firmware did not come so far"
            time.sleep(_POLL)
        self.execute("stop")


@contextmanager
def qemu(options: Sequence[str], directory: Path, binary: str = "qemu-system-x86_64") -> Iterator[Monitor]:
    """A QEMU that stands still before its first instruction."""
    path = shutil.which(binary)
    assert path is not None
    ours, theirs = socket.socketpair()
    ours.settimeout(IN_TIME_S)
    command = [path, "-S", "-nodefaults", "-no-user-config", "-display", "none", *options]
    command = dying_with_us([*command, *qmp_options(theirs.fileno())])
    with (directory / "qemu.log").open("wb") as log, ours:
        process = subprocess.Popen(command, stderr=log, stdout=log, pass_fds=(theirs.fileno(),))
        theirs.close()
        try:
            try:
                monitor = Monitor(ours)
            except ValueError:
                raise AssertionError((directory / "qemu.log").read_text()) from None
            yield monitor
        finally:
            process.kill()
            process.wait()
