"""`precopy receive` among strangers, and after migrations that failed: it goes on waiting for the real source."""

from __future__ import annotations

import contextlib
import socket

import pytest

from precopy.wire.native import Codec
from support.commands import Bench, Command, modules_of, only_asks, wait_for
from support.patience import IN_TIME_S

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.usefixtures("nothing_left")]

RAM = ("--ram", "16M")
SLOW = ("--max-bandwidth", "200K")
"""With half of 16M filled, a first round of most of a minute, which ends when it is cancelled."""
STRANGERS = {
    "web": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "version": b"PRECOPY\n\x11\0\x01\0" + bytes(4) + b"x" * 3000,
    "hello": Codec.preamble() + b"\x01" + bytes(23),
    "garbage": bytes(range(256)) * 1000,
}


class Waiting:
    """A `receive` at a TCP port, and a guest that can go there."""

    def __init__(self, bench: Bench, *options: str) -> None:
        self.bench = bench
        self.receiver = bench.start("receive", "tcp:127.0.0.1:0", *RAM, "--control", bench.path("to"), *options)
        self.address = self.receiver.line().split()[2]
        self.port = int(self.address.rpartition(":")[2])
        self.source = bench.start("run", *RAM, "--write-rate", "500", "--control", bench.path("from"))
        bench.until_state("from", "running")
        bench.until_state("to", "waiting")

    def connect(self, said: bytes = b"") -> socket.socket:
        stranger = socket.create_connection(("127.0.0.1", self.port), IN_TIME_S)
        with contextlib.suppress(OSError):  # it may be turned away before it has said all
            stranger.sendall(said)
        return stranger

    def turned_away(self) -> int:
        count: int = self.bench.status("to")["turned_away"]
        return count

    def migrate(self, *options: str) -> Command:
        return self.bench.start("migrate", self.bench.path("from"), self.address, *options)

    def arrives(self) -> None:
        """The guest gets there, and is whole; then ends it."""
        done = self.migrate("--verify").finish()
        assert done.code == 0, done.err
        self.bench.until_state("to", "running")
        assert self.bench.ask("to", "check")["ok"]
        self.bench.ask("to", "quit")
        assert self.source.finish().code == 0


@pytest.fixture
def waiting(bench: Bench) -> Waiting:
    return Waiting(bench)


@pytest.mark.parametrize("who", STRANGERS)
def test_a_stranger_is_turned_away_and_counted(waiting: Waiting, who: str) -> None:
    with waiting.connect(STRANGERS[who]) as stranger:
        wait_for(lambda: waiting.turned_away() == 1)
        with contextlib.suppress(ConnectionError):
            while stranger.recv(1 << 16):
                pass
    waiting.arrives()
    done = waiting.receiver.finish()
    assert done.code == 0
    (said,) = done.err.splitlines()
    assert said.startswith("precopy: turned away tcp:127.0.0.1:")
    assert said.isprintable()


def test_many_that_say_nothing_keep_nobody_out(bench: Bench) -> None:
    """Not even for the time-out that each of them has."""
    waiting = Waiting(bench, "--timeout", "60s")
    with contextlib.ExitStack() as stack:
        for number in range(150):
            stack.enter_context(waiting.connect(b"PRECOPY\n"[: number % 9]))
        waiting.arrives()
    done = waiting.receiver.finish()
    assert done.code == 0
    assert len(done.err.splitlines()) == 21  # of many, the first are named
    assert "are counted" in done.err


def test_one_that_says_nothing_is_turned_away_in_time(bench: Bench) -> None:
    waiting = Waiting(bench, "--timeout", "3s")  # which a source that comes then has, too, on a busy machine
    with waiting.connect() as stranger:
        assert stranger.recv(16) == Codec.preamble()  # and why
        wait_for(lambda: waiting.turned_away() == 1)
    waiting.arrives()
    assert "has not greeted within 3 s" in waiting.receiver.finish().err


def test_a_source_of_another_version_is_told_why(waiting: Waiting) -> None:
    with waiting.connect(STRANGERS["version"]) as stranger:
        said = b""
        while part := stranger.recv(1 << 16):
            said += part
    assert b"speaks version 17.1 of the protocol, this side 1.2" in said
    waiting.arrives()
    assert waiting.receiver.finish().code == 0


class TestKeep:
    def test_after_a_cancelled_migration(self, bench: Bench) -> None:
        waiting = Waiting(bench, "--keep")
        migration = waiting.migrate(*SLOW)
        bench.until_state("to", "receiving")
        bench.until_state("from", "migrating")
        wait_for(lambda: (bench.status("to")["arriving"] or {"received_bytes": 0})["received_bytes"] > 0)
        assert bench.ask("from", "cancel")["state"] == "running"
        migration.finish().sentence(130)
        assert "cancelled" in bench.until_state("to", "waiting")["last_error"]
        waiting.arrives()
        done = waiting.receiver.finish()
        assert done.code == 0
        assert "waiting for another" in done.err

    def test_after_one_that_does_not_fit_and_one_that_broke(self, bench: Bench) -> None:
        waiting = Waiting(bench, "--keep")
        wrong = bench.start("run", "--ram", "24M", "--control", bench.path("wrong"))
        bench.until_state("wrong", "running")
        said = bench.run("migrate", bench.path("wrong"), waiting.address, timeout=IN_TIME_S).sentence(5)
        assert "RAM block 'pc.ram' has" in said
        migration = bench.start("migrate", bench.path("wrong"), waiting.address)
        migration.finish().sentence(5)
        bench.ask("wrong", "quit")
        assert wrong.finish().code == 0
        waiting.arrives()
        assert waiting.receiver.finish().code == 0

    def test_quit_ends_who_waits_again(self, bench: Bench) -> None:
        waiting = Waiting(bench, "--keep")
        migration = waiting.migrate(*SLOW)
        bench.until_state("from", "migrating")
        bench.ask("from", "cancel")
        migration.finish().sentence(130)
        bench.until_state("to", "waiting")
        assert bench.ask("to", "quit")["state"] == "ended"
        assert waiting.receiver.finish().code == 0
        bench.ask("from", "quit")
        assert waiting.source.finish().code == 0


def test_json_says_where_it_is_controlled(bench: Bench) -> None:
    receiver = bench.start("receive", bench.path("wire"), *RAM, "--json")
    assert receiver.process.stderr is not None
    where, control = (receiver.process.stderr.readline().strip() for _ in range(2))
    assert where.startswith(f"waiting at {bench.path('wire')} for a ")
    control = control.removeprefix("control: ")
    assert bench.json("quit", control)["state"] == "ended"
    document = receiver.finish().document()
    assert (document["control"], document["address"]) == (control, bench.path("wire"))
    assert document["turned_away"] == 0


def test_status_says_how_far_a_migration_is(bench: Bench) -> None:
    waiting = Waiting(bench)
    migration = waiting.migrate(*SLOW)
    wait_for(lambda: bool((bench.status("from")["migration"] or {}).get("progress")))
    status = bench.status("from")
    assert status["migration"]["to"] == waiting.address
    assert 0 < status["migration"]["remaining_pages"] <= status["ram_bytes"] // 4096
    assert status["migration"]["elapsed_s"] > 0
    assert status["migration"]["progress"]["round"] >= 1
    shown = bench.run("status", bench.path("from"))
    assert (shown.code, shown.err) == (0, "")
    text = shown.out
    assert f"migrating to {waiting.address} for " in text
    assert "pages left" in text
    for side in ("from", "to"):
        for options in ((), ("--json",)):
            only_asks(modules_of("status", bench.path(side), *options))
    assert bench.run("cancel", bench.path("from")).out.startswith("cancelled; the guest stays where it is\nrunning: ")
    migration.finish().sentence(130)
    waiting.receiver.finish().sentence(5)
    bench.ask("from", "quit")
    assert waiting.source.finish().code == 0
