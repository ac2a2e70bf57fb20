"""The command's front: its first page, what it says of a slip of the pen, and how long it takes to start."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import click
import msgspec
import pytest

from precopy.cli import front
from precopy.cli.command import cli
from precopy.cli.facts import host_facts
from precopy.cli.main import main
from precopy.progress import Arriving, CpuTime, Progress, Received
from precopy.report.kinds import load, schema
from precopy.report.kinds.check import Checked
from precopy.report.kinds.status import Migrating, Status
from precopy.service import ControlServer
from precopy.transport import Address
from support.commands import modules_of, only_asks, precopy
from support.patience import IN_TIME_S


@pytest.mark.parametrize("columns", [20, 52, 60, 80, 200])
def test_the_page_fits_a_terminal(columns: int) -> None:
    lines = front.page(columns).split("\n")
    kept = [part.split("\n") for part in front.TEXT.split("\n\n") if part.startswith("\b")]  # breaks of their own
    flowing = set(lines) - {f"  {line}" for part in kept for line in part}
    assert all(len(line) <= max(min(columns, 80) - 2, 50) for line in flowing)
    for name in front.COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in lines)


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_the_page_is_the_same_by_way_of_click(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option])
    assert ended.value.code == 0
    at_once = capsys.readouterr().out
    cli.main([option], prog_name="precopy", standalone_mode=False)
    assert capsys.readouterr().out == at_once
    assert at_once.startswith("Usage: precopy [OPTIONS] COMMAND [ARGS]...\n")


def test_options_are_those_of_the_command() -> None:
    described = {name for names in front._OPTIONS for name in names.split(", ")}
    known = {name for param in cli.get_params(cli.make_context("precopy", ["status"])) for name in param.opts}
    assert described == known


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (("mgirate",), "migrate"),
        (("STATUS",), "status"),
        (("bench", "snyc"), "sync"),
        (("plan", "swep"), "sweep"),
        (("snapshot", "lst"), "list"),
        (("snapshot", "verfy"), "verify"),
        (("migrate", "unix:/a", "unix:/b", "--clear", "defered"), "deferred"),
        (("migrate", "unix:/a", "unix:/b", "--polcy", "qemu"), "--policy"),
        (("run", "--guest", "KVMM"), "kvm"),
        (("run", "--workload", "hot-set"), "hotset"),
        (("migrate", "unix:/a", "unix:/b", "--on-timeout", "cancle"), "cancel"),
        (("compare", "/etc/hosts", "--policies", "precopy,nvoa"), "nova"),
        (("compare", "/etc/hosts", "--policies", "qemu-autoconverge"), "qemu-auto-converge"),
    ],
)
def test_what_may_have_been_meant(written: tuple[str, ...], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(written))
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("Did you mean") == 1
    assert said.endswith((f"Did you mean '{meant}'?", f"Did you mean {meant}?"))


@pytest.mark.parametrize("written", ["xyzzy", "", "\n", "[(", "x" * 100_000])
def test_nothing_is_suggested_for_what_is_like_nothing(written: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([written])
    assert ended.value.code == 2
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("bench", "snapshot", "--disk"), ("bench", "predict", "--record")])
def test_a_directory_that_is_not_there_says_what_to_do(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "/nowhere/at/all"])
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'/nowhere/at/all' does not exist. Make it first (mkdir -p), or give a directory that is there." in said


def test_the_suggestion_is_in_the_document() -> None:
    done = precopy("mgirate", "--json")
    assert done.code == 2
    assert done.document()["error"]["message"] == "No such command 'mgirate'. Did you mean 'migrate'?"


def test_an_error_is_what_its_record_prints(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["mgirate", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document.pop("schema") == schema("error")
    made_of = load("error")
    assert made_of.body(msgspec.convert(made_of.today(document), made_of.record)) == document


AT_MOST = 4.0
"""How many times as long as a bare Python start the first page of help may take."""


def test_help_is_there_at_once() -> None:
    """In turn, so that what else the machine does slows both down; medians, so that a single delay counts for
    nothing."""
    bare, helped = [], []
    for _ in range(15):
        bare.append(seconds("-c", "pass"))
        helped.append(seconds("-m", "precopy", "--help"))
    assert statistics.median(helped) < AT_MOST * statistics.median(bare), (bare, helped)


def test_help_imports_little() -> None:
    """What the ratio comes from, whatever the machine does."""
    imported = modules_of("--help")
    assert not imported & {"click", "numpy", "msgspec", "rich", "inspect", "shutil", "ctypes", "socket", "numba"}


STATUS = Status("running", "kvm", "machine", "by the user", 1 << 30, 3, 1, 2.0, session="5e55", workload="random")


MOVING = Progress("round", 2, 5 << 20, 3 << 20, 1e6, 2e7, 1.5, 0.02, None, 4096)
MIGRATING = replace(STATUS, state="migrating", migration=Migrating("unix:/wire", 1.6, 768, MOVING), last_error="no")
ARRIVED = Received("5e55", 3, 1 << 20, 300, 44, 0, 1.5, 0.01, 0.02, cpu=CpuTime(0.1, 0.2))
ARRIVING = replace(STATUS, state="receiving", arriving=Arriving(2, 1 << 20), turned_away=3, received=ARRIVED)
ANSWERS = {"running": STATUS, "migrating": MIGRATING, "receiving": ARRIVING}


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
@pytest.mark.parametrize(
    ("command", "state"),
    [("status", "migrating"), ("status", "receiving"), ("cancel", "migrating")]
    + [(command, "running") for command in ("status", "check", "pause", "resume", "cancel", "quit")],
)
def test_asking_a_guests_process_imports_little(
    tmp_path: Path, command: str, state: str, options: tuple[str, ...]
) -> None:
    """It is done again and again while a guest moves; `tests/integration/test_receive.py` asks one that does."""
    checked = Checked(ok=True, steps=3, pages=2, broken=(), pause_s=0.1)
    address = Address(path=str(tmp_path / "control"))
    server = ControlServer(address, lambda request, _: checked if request.command == "check" else ANSWERS[state])
    try:
        imported = modules_of(command, str(address), *options)
    finally:
        server.close()
    only_asks(imported)


def seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=IN_TIME_S)
    return time.perf_counter() - began


def test_documents_say_where_and_how_they_were_made() -> None:
    """Of every kind: the host, the date, the command as it was typed, and what it left at its defaults."""
    numbers = ("--ram", "8G", "--bandwidth", "1GB/s", "--dirty-rate", "100MB/s", "--sync-time", "1ms")
    for command in (("plan", *numbers), ("layout", "pc-seabios-512m")):
        made = precopy(*command, "--json").document()["machine"]
        assert made["command"] == f"precopy {' '.join(command)} --json"
        assert made["host"] == platform.node()
        assert made["kernel"] == platform.release()
        assert datetime.fromisoformat(made["date"]).tzinfo is not None
        given = {word.lstrip("-") for word in command if word.startswith("--")}
        assert not given & made["defaults"].keys()


def test_options_that_were_left_at_their_defaults_are_named() -> None:
    @click.command()
    @click.option("--ram", default="2G")
    @click.option("-r", "--repeat", default=3)
    @click.option("--verify", is_flag=True)
    @click.option("--record", default=None)
    def command(**_: object) -> None:
        defaults.append(host_facts()["defaults"])

    defaults: list[dict[str, str]] = []
    command.main([], standalone_mode=False)
    command.main(["--ram", "2G", "--verify"], standalone_mode=False)
    assert defaults == [{"ram": "2G", "repeat": "3"}, {"repeat": "3"}]
    assert host_facts()["defaults"] == {}
