"""Few descriptors: how many a process may still open, and commands that begin with a few.

``python -m support.descriptors`` is a server that has the command's modules loaded and forks a process for each
command that it is asked for: dozens of them take seconds so, and a new interpreter each would take a minute.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .commands import Finished
from .patience import IN_TIME_S


def open_in(pid: int | str = "self") -> set[int]:
    """The descriptors that a process has."""
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


def limit_for(descriptors: set[int], free: int) -> int:
    """The limit (RLIMIT_NOFILE) with which ``free`` more can be opened."""
    limit = 0
    while limit + 1 - sum(descriptor <= limit for descriptor in descriptors) <= free:
        limit += 1
    return limit


@contextlib.contextmanager
def only(free: int) -> Iterator[None]:
    """This process may open ``free`` more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    listed = open_in()  # and that of the listing itself
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit_for({one for one in listed if _is_open(one)}, free), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def plenty() -> Iterator[None]:
    """As many as the system allows."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def leave(pid: int, free: int) -> None:
    """Process ``pid`` may open ``free`` more."""
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit_for(open_in(pid), free), most))


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class Running:
    """A command that the server has started."""

    def __init__(self, server: Server, pid: int, out: Path, err: Path) -> None:
        self._server, self.pid, self._out, self._err = server, pid, out, err
        self.finished: Finished | None = None

    def ended(self) -> bool:
        if self.finished is None:
            code = self._server.ask(poll=self.pid)["code"]
            if code is not None:
                self.finished = Finished(code, self._out.read_text(), self._err.read_text())
                assert "Traceback" not in self.finished.err, self.finished.err
        return self.finished is not None

    def says(self, text: str) -> bool:
        return text in self._out.read_text() + self._err.read_text()

    def finish(self) -> Finished:
        end = time.monotonic() + IN_TIME_S
        while not self.ended():
            assert time.monotonic() < end, "the command does not end"
            time.sleep(0.005)
        assert self.finished is not None
        return self.finished


class Server:
    """Starts the server, and ends it with all that it has started. Outputs lie in ``directory``, which is TMPDIR."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._started = directory, 0
        environment = {**os.environ, "TMPDIR": str(directory / "tmp"), "PYTHONPATH": str(Path(__file__).parents[1])}
        for name in ("PRECOPY_DEBUG", "XDG_RUNTIME_DIR", "FORCE_COLOR"):
            environment.pop(name, None)
        (directory / "tmp").mkdir()
        (directory / "said").mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.descriptors"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, *arguments: str, limit: int | None = None) -> Running:
        """A command that may have ``limit`` descriptors, its three standard ones among them."""
        self._started += 1
        out, err = (self._directory / "said" / f"{self._started}.{name}" for name in ("out", "err"))
        answer = self.ask(start=arguments, limit=limit, out=str(out), err=str(err))
        return Running(self, answer["pid"], out, err)

    def run(self, *arguments: str, limit: int | None = None) -> Finished:
        return self.start(*arguments, limit=limit).finish()

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


def _start(request: dict[str, Any]) -> int:
    out, err = (os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600) for name in ("out", "err"))
    pid = os.fork()
    if pid:
        os.close(out)
        os.close(err)
        return pid
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.closerange(3, 100)
        if request["limit"] is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (request["limit"], request["limit"]))
        from precopy.cli.main import main

        try:
            main(request["start"])
        except SystemExit as ended:
            code = int(ended.code or 0)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        os.write(2, f"Traceback: {error!r}\n".encode())
    finally:
        os._exit(code)


def _serve() -> None:
    import precopy

    for module in pkgutil.walk_packages(precopy.__path__, "precopy."):
        if not module.name.startswith(("precopy.bench", "precopy.cli.bench", "precopy.moved", "precopy.__main__")):
            importlib.import_module(module.name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    running: dict[int, int | None] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if "start" in request:
            pid = _start(request)
            running[pid] = None
            answer = {"pid": pid}
        else:
            pid = request["poll"]
            ended, status = os.waitpid(pid, os.WNOHANG) if running[pid] is None else (0, 0)
            if ended:
                running[pid] = os.waitstatus_to_exitcode(status)
            answer = {"code": running[pid]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid, code in running.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    _serve()
