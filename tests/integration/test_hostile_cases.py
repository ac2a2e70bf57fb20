"""The scripts in tests/cases/hostile-*, as they are: each ends with 0 where the fault that it shows is gone."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import msgspec
import pytest

from precopy.migration import MigrationOptions
from precopy.names import TimeoutPolicy
from precopy.service import Request
from precopy.service.outlet import QUEUE
from support.commands import Bench, wait_for
from support.patience import IN_TIME_S

pytestmark = [pytest.mark.needs("kvm")]

CASES = Path(__file__).parents[1] / "cases"


def run(case: str, *arguments: str, **instead: str) -> subprocess.CompletedProcess[str]:
    """Runs the one script of ``case``, with some of its text replaced where that is given (old: new)."""
    (script,) = (CASES / case).glob("*.py")
    text = script.read_text()
    for old, new in instead.items():
        assert old in text
        text = text.replace(old, new)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, "-c", text, *arguments],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * IN_TIME_S,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_control_socket_is_private_from_the_start() -> None:
    done = run("hostile-1")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.startswith("0 of 100 ")


@pytest.mark.parametrize("frame", ["RoundAck", "Ready", "Running"])
def test_an_answer_a_byte_at_a_time_does_not_hold_the_guest(frame: str) -> None:
    done = run("hostile-2", frame)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert f"state after 15 s: {'unknown' if frame == 'Running' else 'running'};" in done.stdout


def test_a_source_that_dies_after_the_commit_ends_its_client_with_an_unknown_outcome() -> None:
    # On a busy machine its guest may not converge, and then there is no commit to die after.
    done = run("hostile-4", **{"f\"unix:{at['proxy']}\"]": 'f"unix:{at[\'proxy\']}", "--on-timeout", "switch"]'})
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "migrate: exit code 6: precopy: outcome unknown: the commit of session " in done.stdout
    assert "ask the destination" in done.stdout
    assert "destination: running" in done.stdout


def test_a_client_that_does_not_read_stops_no_migration() -> None:
    """The destination takes 5 s of silence for the end; the client's socket and its pipe are full in less. Where a busy
    machine takes longer for that, the next test still sees what the client does to the migration."""
    shorter = {
        "receive.wait(400)": "receive.wait(15)",
        '*common, "--control", at["destination"]': '*common, "--timeout", "5s", "--control", at["destination"]',
    }
    done = run("hostile-5", **shorter)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.startswith("it went on")


@pytest.mark.usefixtures("nothing_left")
def test_events_that_a_client_does_not_read_are_dropped_while_rounds_go_on(bench: Bench) -> None:
    """What hostile-5 is about, without its clock: how fast rounds go, and how long anybody is silent, does not count.

    The client's socket is full when rounds go on and no byte more lies in it. A migration that waited for the client
    then would make no round more, or would have given the client up, who would find no last line.
    """
    common = ("--ram", "4M", "--layout", "flat")
    long = f"{2 * IN_TIME_S}s"
    destination = bench.start("receive", bench.path("wire"), *common, "--control", bench.path("to"), "--timeout", long)
    source = bench.start("run", *common, "--control", bench.path("from"))
    bench.until_state("to", "waiting")
    bench.until_state("from", "running")
    never = MigrationOptions(downtime_limit_s=0, on_timeout=TimeoutPolicy.IGNORE)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(bench.directory / "from"))
        client.sendall(msgspec.json.encode(Request("migrate", bench.path("wire"), 2 * IN_TIME_S, never)) + b"\n")
        bench.until_state("to", "receiving")

        def rounds() -> int:
            arriving = bench.status("to")["arriving"]
            return int(arriving["round"]) if arriving else 0

        def full() -> bool:
            before, first = unread(client), rounds()
            wait_for(lambda: rounds() >= first + 10)
            return unread(client) == before > 0

        wait_for(full)
        first = rounds()
        wait_for(lambda: rounds() > first + QUEUE // 2)  # a round is two events at least: itself, and its verdict
        assert bench.ask("from", "cancel")["state"] == "running"
        client.settimeout(IN_TIME_S)
        with client.makefile("rb") as lines:
            *_, left_out, last = map(json.loads, lines)
    assert "events are left out" in left_out["event"]["value"]["text"]
    assert int(left_out["event"]["value"]["text"].split()[0]) > 0
    assert last["error"]["kind"] == "Cancelled"
    assert bench.ask("from", "quit")["state"] == "ended"
    assert source.finish().code == 0
    assert destination.finish().code == 5


def unread(client: socket.socket) -> int:
    """Bytes that lie in its socket."""
    (size,) = struct.unpack("i", fcntl.ioctl(client, termios.FIONREAD, b"\0" * 4))
    return int(size)
