"""A control socket with many clients, and with clients that do not keep to their part: all real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.service import ControlServer, RemoteFailure, Request, ask
from precopy.service.outlet import QUEUE
from precopy.service.server import MAX_CLIENTS, MAX_REQUEST, MAX_WORKERS, Emit
from precopy.service.socket import _lines
from precopy.transport import Address, SocketStream
from support.patience import IN_TIME_S

BIG = "x" * 2000
EVENTS = 2000
"""Of `BIG`: far more than any socket's buffer holds."""


class Handler:
    """Answers `status` at once; `events` tells of many events first; `wait` waits until `release` is set."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.told = threading.Event()
        self.seconds = 0.0

    def __call__(self, request: Request, emit: Emit) -> Any:
        if request.command == "wait":
            assert self.release.wait(IN_TIME_S)
        if request.command == "few":
            for number in range(QUEUE):
                emit("progress", number)
        if request.command == "events":
            began = time.monotonic()
            for number in range(EVENTS):
                emit("progress", {"number": number, "text": BIG})
            emit("committing", {"session": "5e55"}, surely=True)
            self.seconds = time.monotonic() - began
            self.told.set()
            assert self.release.wait(IN_TIME_S)
        return request.command


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def server(tmp_path: Path, handler: Handler) -> Iterator[ControlServer]:
    server = ControlServer(Address(path=str(tmp_path / "control")), handler)
    yield server
    handler.release.set()
    server.close()


def client(server: ControlServer) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(server.address.path))  # which waits for its turn where many come at once
    sock.settimeout(IN_TIME_S)
    return sock


def workers() -> int:
    return sum(thread.name == "control request" for thread in threading.enumerate())


def read_all(sock: socket.socket) -> list[dict[str, Any]]:
    data = bytearray()
    while part := sock.recv(1 << 20):
        data += part
    return [json.loads(line) for line in data.splitlines()]


def close_all(clients: list[socket.socket]) -> None:
    for one in clients:
        one.close()


SAID = {"nothing": b"", "half a line": b'{"command": "sta', "spaces": b" " * 100}


class TestManyClients:
    @pytest.mark.parametrize("said", SAID.values(), ids=SAID)
    def test_that_say_too_little_hold_up_nobody(self, server: ControlServer, said: bytes) -> None:
        with contextlib.ExitStack() as closing:
            idle = [closing.enter_context(client(server)) for _ in range(MAX_CLIENTS + 100)]
            for one in idle:
                with contextlib.suppress(OSError):  # one of the first, which were sent away
                    one.sendall(said)
            assert ask(server.address, Request("status")) == "status"
            assert workers() <= 1  # the one that has just answered
            # The first to come are sent away for others, and no more than these.
            kept = [not gone(one) for one in idle]
            assert MAX_CLIENTS - 2 <= sum(kept) <= MAX_CLIENTS
            assert not any(kept[: len(idle) - MAX_CLIENTS])

    def test_at_once_are_all_answered(self, server: ControlServer) -> None:
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(ask(server.address, Request("status")))) for _ in range(100)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(IN_TIME_S)
        assert answers == ["status"] * 100

    def test_that_wait_for_long_take_few_threads(self, server: ControlServer, handler: Handler) -> None:
        waiting = [client(server) for _ in range(MAX_WORKERS + 20)]
        for one in waiting:
            one.sendall(b'{"command": "wait"}\n')
        end = time.monotonic() + IN_TIME_S
        while workers() < MAX_WORKERS:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert workers() == MAX_WORKERS
        handler.release.set()
        for one in waiting:
            assert read_all(one) == [{"result": "wait"}]
        close_all(waiting)

    @pytest.mark.parametrize("count", [MAX_WORKERS, MAX_WORKERS + 20])
    def test_that_wait_for_long_do_not_delay_who_asks_for_the_state(
        self, server: ControlServer, handler: Handler, count: int
    ) -> None:
        waiting = [client(server) for _ in range(count)]
        for one in waiting:
            one.sendall(b'{"command": "wait"}\n')
        end = time.monotonic() + IN_TIME_S
        while workers() < MAX_WORKERS:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert ask(server.address, Request("status")) == "status"
        with client(server) as unreadable:
            unreadable.sendall(b"{}\n")
            assert read_all(unreadable)[0]["error"]["exit_code"] == 2
        assert not handler.release.is_set()  # none of the others has been answered
        assert not any(gone(one) for one in waiting)
        handler.release.set()
        close_all(waiting)

    def test_no_room_for_a_thread_ends_nothing(self, server: ControlServer, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with client(server) as first, monkeypatch.context() as no_threads:
            no_threads.setattr(threading.Thread, "start", refuse)
            first.sendall(b'{"command": "status"}\n')
            end = time.monotonic() + IN_TIME_S
            while not server._prompt._waiting:
                assert time.monotonic() < end
                time.sleep(0.01)
            time.sleep(0.05)
            no_threads.undo()
            assert ask(server.address, Request("status")) == "status"
            assert read_all(first) == [{"result": "status"}]


def gone(sock: socket.socket) -> bool:
    """Whether the server has closed its end."""
    sock.setblocking(False)
    try:
        return not sock.recv(1)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


class TestRequests:
    def test_endless_line_is_refused(self, server: ControlServer) -> None:
        broken = pytest.raises(OSError)  # noqa: PT011 - a pipe that broke or a connection that was reset
        with client(server) as one, broken:
            one.sendall(b"x" * 100 * MAX_REQUEST)
        assert ask(server.address, Request("status")) == "status"

    def test_a_request_that_is_too_long_is_named(self, server: ControlServer) -> None:
        with client(server) as one:
            one.sendall(b" " * (MAX_REQUEST + 1))
            (answer,) = read_all(one)
        assert answer["error"]["exit_code"] == 2
        assert answer["error"]["message"] == f"the control request is longer than {MAX_REQUEST} bytes"

    def test_a_client_that_says_nothing_is_sent_away(
        self, tmp_path: Path, handler: Handler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("precopy.service.server.REQUEST_S", 0.3)
        server = ControlServer(Address(path=str(tmp_path / "control")), handler)
        stop = threading.Event()
        with client(server) as silent, client(server) as dripping:

            def drip() -> None:
                while not stop.wait(0.05):
                    try:
                        dripping.send(b" ")
                    except OSError:
                        return

            thread = threading.Thread(target=drip)
            thread.start()
            assert silent.recv(1) == b""
            thread.join(IN_TIME_S)
            assert not thread.is_alive()
            stop.set()
        server.close()

    @pytest.mark.parametrize("line", [b"\n", b"{}\n", b"[1]\n", b"\xff\n", b'{"command": 7}\n', b"[" * 60_000 + b"\n"])
    def test_what_is_no_request_is_named(self, server: ControlServer, line: bytes) -> None:
        with client(server) as one:
            one.sendall(line)
            (answer,) = read_all(one)
        assert answer["error"]["exit_code"] == 2
        assert "cannot be read" in answer["error"]["message"]

    def test_a_client_that_leaves_early_is_forgotten(self, server: ControlServer) -> None:
        for _ in range(50):
            with client(server) as one:
                one.send(b"{")
        assert ask(server.address, Request("status")) == "status"

    def test_an_error_is_raised_again(self, tmp_path: Path) -> None:
        def fail(request: Request, emit: Emit) -> Any:
            raise ZeroDivisionError("oh")

        server = ControlServer(Address(path=str(tmp_path / "control")), fail)
        with pytest.raises(RemoteFailure, match="internal error: ZeroDivisionError: oh") as caught:
            ask(server.address, Request("status"))
        assert caught.value.exit_code == 1
        server.close()


class TestEvents:
    def test_a_client_that_does_not_read_holds_up_nobody(self, server: ControlServer, handler: Handler) -> None:
        with client(server) as stopped:
            stopped.sendall(b'{"command": "events"}\n')
            assert handler.told.wait(IN_TIME_S), "events wait for who does not read them"
            handler.release.set()
            time.sleep(0.1)
            lines = read_all(stopped)
        kinds = [line["event"]["kind"] for line in lines if "event" in line]
        numbers = [
            line["event"]["value"]["number"] for line in lines if line.get("event", {}).get("kind") == "progress"
        ]
        assert lines[-1] == {"result": "events"}
        assert "committing" in kinds
        assert numbers == sorted(numbers)
        left_out = EVENTS - len(numbers)
        assert left_out > QUEUE
        assert kinds[-1] == "note"
        assert lines[-2]["event"]["value"]["text"] == f"{left_out} events are left out, which were not read in time"

    def test_a_client_that_reads_gets_all(self, server: ControlServer) -> None:
        heard: list[int] = []
        assert ask(server.address, Request("few"), lambda _, number: heard.append(number)) == "few"
        assert heard == list(range(QUEUE))

    def test_what_must_not_be_lost_is_there_though_the_server_is_killed(self, tmp_path: Path) -> None:
        """It lies in the socket when `surely` returns, whatever the client has left unread."""
        path = str(tmp_path / "control")
        ready, told = os.pipe()
        child = os.fork()
        if not child:

            def handle(request: Request, emit: Emit) -> Any:
                for number in range(EVENTS):
                    emit("progress", {"number": number, "text": BIG})
                emit("committing", {"session": "5e55"}, surely=True)
                os._exit(0)

            ControlServer(Address(path=path), handle)
            os.write(told, b"r")
            time.sleep(60)
            os._exit(1)
        assert os.read(ready, 1) == b"r"
        with socket.socket(socket.AF_UNIX) as stopped:
            stopped.connect(path)
            stopped.sendall(b'{"command": "events"}\n')
            assert os.waitpid(child, 0)[1] == 0
            lines = read_all(stopped)
        os.close(ready)
        os.close(told)
        assert lines[-1] == {"event": {"kind": "committing", "value": {"session": "5e55"}}}
        assert len(lines) > 10


@given(st.lists(st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")), max_size=8), st.data())
def test_lines_are_the_same_however_they_come(lines: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(line + b"\n" for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    parts = [part for lo, hi in zip([0, *cuts], [*cuts, len(whole)], strict=True) if (part := whole[lo:hi])]

    class Parts:
        def receive_some(self, _most: int) -> bytes:
            return parts.pop(0) if parts else b""

    given_parts: Callable[[], Any] = Parts
    stream: SocketStream = given_parts()
    assert list(_lines(stream)) == lines
