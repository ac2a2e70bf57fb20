"""A source and a destination as two processes of their own, as `precopy demo` and `precopy bench` need them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from precopy.abi.filesystem import temporary_directory
from precopy.errors import PeerLost, PrecopyError, system_call
from precopy.service.socket import Command, ask
from precopy.transport import Address, Listener

_START_S = 60.0
"""Seconds that a child process may take to start on a busy machine."""
_END_S = 10.0
"""Seconds that it may take to end before it is killed."""


class ProcessFailed(PrecopyError):
    """One of the two processes ended by itself; ``exit_code`` is its own."""

    def __init__(self, name: str, code: int, said: str) -> None:
        super().__init__(f"the {name} process ended: {said or f'exit code {code}'}")
        self.exit_code = code if code > 0 else 1


class ProcessPair:
    """Starts ``precopy run`` and ``precopy receive`` with the given options; ends both in any case.

    ``source`` and ``destination`` are their control addresses, ``address`` is where the destination waits.
    """

    def __init__(self, run: Sequence[str], receive: Sequence[str], *, tcp: bool = False) -> None:
        self._run, self._receive = list(run), list(receive)
        self._closing = contextlib.ExitStack()
        directory = self._closing.enter_context(temporary_directory())
        self.source, self.destination, unix = (
            Address(path=str(directory / name)) for name in ("source", "destination", "wire")
        )
        self.address = Address(host="127.0.0.1", port=_free_port()) if tcp else unix
        self._children: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> ProcessPair:
        try:
            self._start("destination", ["receive", str(self.address), *self._receive], self.destination)
            self._start("source", ["run", *self._run], self.source)
            self._await("destination", self.destination)
            self._await("source", self.source)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, control: Address, command: str) -> dict[str, Any]:
        """One control request. Raises `precopy.service.RemoteFailure`, `PeerLost`."""
        answer: dict[str, Any] = ask(control, Command(command))
        return answer

    def finish(self, name: str) -> dict[str, Any]:
        """Waits for ``source`` or ``destination`` to end, and returns its JSON document. Raises `ProcessFailed`."""
        child = self._children[name]
        said, complained = child.communicate(timeout=_END_S)
        if child.returncode:
            raise ProcessFailed(name, child.returncode, complained.strip())
        document: dict[str, Any] = msgspec.json.decode(said)
        return document

    def close(self) -> None:
        """Ends both processes, gently at first, and removes their sockets."""
        for child in self._children.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        for child in self._children.values():
            try:
                child.wait(_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdout, child.stderr):
                if pipe is not None:
                    pipe.close()
        self._children.clear()
        for path in (self.source.path, self.destination.path, self.address.path):
            if path is not None:
                with contextlib.suppress(OSError):
                    os.unlink(path)
        self._closing.close()

    def _start(self, name: str, arguments: list[str], control: Address) -> None:
        command = [
            sys.executable,
            "-m",
            "precopy",
            *arguments,
            "--control",
            str(control),
            "--die-with-parent",
            str(os.getpid()),
            "--json",
        ]
        with system_call("fork", f"the {name} process"):
            self._children[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # the user's Ctrl-C is for us; we end them
            )

    def _await(self, name: str, control: Address) -> None:
        """Until the process answers. Raises `ProcessFailed` where it ends instead."""
        child, until = self._children[name], time.monotonic() + _START_S
        while True:
            try:
                ask(control, Command("status"))
                return
            except PeerLost:
                code = child.poll()
                if code is not None:
                    said = child.communicate()[1].strip().splitlines()
                    raise ProcessFailed(name, code, said[-1].removeprefix("precopy: ") if said else "") from None
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)


def _free_port() -> int:
    with Listener(Address(host="127.0.0.1", port=0)) as listener:
        return listener.address.port
