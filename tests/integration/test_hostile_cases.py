"""The scripts in tests/cases/hostile-*, as they are: each ends with 0 where the fault that it shows is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    done = run("hostile-4")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "migrate: exit code 6: precopy: outcome unknown: the commit of session " in done.stdout
    assert "ask the destination" in done.stdout
    assert "destination: running" in done.stdout


def test_a_client_that_does_not_read_stops_no_migration() -> None:
    """The destination takes 5 s of silence for the end; the client's socket and its pipe are full in less."""
    shorter = {
        "receive.wait(400)": "receive.wait(30)",
        '*common, "--control", at["destination"]': '*common, "--timeout", "5s", "--control", at["destination"]',
    }
    done = run("hostile-5", **shorter)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert done.stdout.startswith("it went on")
