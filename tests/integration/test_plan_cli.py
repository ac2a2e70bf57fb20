"""``precopy plan`` and ``precopy plan sweep`` as they are typed."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from precopy.names import EVERYDAY_CLEAR_POLICIES
from support.commands import Command, Finished, called, precopy, processes_of, wait_for
from support.patience import IN_TIME_S
from support.traces import BANDWIDTH, LAYOUT, hot_and_cold, record, write

SEED = ("--ram", "256G", "--bandwidth", "15G", "--dirty-rate", "7.5G", "--sync-time", "250ms")


def plan(*arguments: str) -> Finished:
    """A sweep, which has processes of its own, as a process; all else as a call."""
    return (precopy if "sweep" in arguments else called)("plan", *arguments)


def planned(*arguments: str) -> dict[str, Any]:
    done = plan(*arguments, "--json")
    assert (done.code, done.err) == (0, "")
    return done.document()


def test_the_letters_example_as_a_document() -> None:
    document = planned(*SEED, "--downtime-limit", "300ms")
    assert document["schema"] == "precopy.plan/2"
    letter, forecast = document["qemu_model"], document["forecast"]
    assert letter["smallest_downtime_limit_s"] == 0.5
    assert letter["largest_dirty_rate_bytes_per_s"] == pytest.approx(2.5e9)
    assert letter["critical_transfer_s"] == 0.25
    assert letter["estimated_bandwidth_bytes_per_s"] == 7.5e9
    assert forecast["converges"] is False
    for name in ("rounds", "total_s", "downtime_s", "smallest_downtime_limit_s", "largest_dirty_rate_bytes_per_s"):
        assert forecast[name]["low"] <= forecast[name]["value"] <= forecast[name]["high"]
    assert len(forecast["round_by_round"]) == forecast["rounds"]["value"]
    assert document["input"]["ram_bytes"] == 256 << 30
    assert document["input"]["dirty_rate_bytes_per_s"] == 7_500_000_000
    assert {one["what"] for one in document["advice"]["levers"]} >= {"bandwidth", "dirty rate", "sync time"}
    assert document["verdict"].startswith("will not converge")


def test_the_smallest_limit_that_is_named_makes_it_converge() -> None:
    limit = planned(*SEED)["forecast"]["smallest_downtime_limit_s"]["high"]
    forecast = planned(*SEED, "--downtime-limit", f"{1.0001 * limit:.6f}s")["forecast"]
    assert forecast["converges"] is True
    assert forecast["sure"] is True


def test_what_has_no_end_is_null() -> None:
    document = planned("--ram", "4G", "--bandwidth", "1G", "--dirty-rate", "2G", "--sync-time", "1ms")
    assert document["qemu_model"]["smallest_downtime_limit_s"] is None
    assert document["qemu_model"]["critical_transfer_s"] is None
    small = planned(
        "--ram", "4G", "--bandwidth", "1G", "--dirty-rate", "2G", "--sync-time", "1ms", "--working-set", "9M"
    )
    assert small["forecast"]["largest_dirty_rate_bytes_per_s"]["value"] is None
    assert small["forecast"]["converges"] is True


def test_the_text_begins_with_the_verdict() -> None:
    """That it will not converge is an answer: the exit code is 0."""
    done = precopy("plan", *SEED)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("will not converge: dirty rate is 0.5 of the bandwidth")
    assert "change first: downtime limit" in done.out
    assert 'the patch series "migration: merge fragmented clear_dirty ioctls"' in done.out
    assert "has to be above 500.0 ms, the dirty rate below 2.50 GB/s" in done.out
    idle = plan("--ram", "1G", "--bandwidth", "1G", "--dirty-rate", "0", "--sync-time", "0")
    assert idle.code == 0
    assert idle.out.startswith("converges in 1 round:")


def test_a_layout_gives_ram_and_x() -> None:
    numbers = ("--bandwidth", "2G", "--dirty-rate", "1.5G", "--layout", "q35-ovmf-512m-cirrus", "--ram", "4G")
    before, deferred = (planned(*numbers, "--clear", clear) for clear in ("before-patch", "deferred"))
    cost = before["input"]["sync_cost"]
    assert (cost["clears"], cost["clear_s"]) == (2176, pytest.approx(10e-6))
    assert before["input"]["sync_s"] == cost["sync_s"] == pytest.approx(21.76e-3, rel=0.02)
    assert before["input"]["ram_bytes"] > 4 << 30
    assert deferred["input"]["sync_cost"]["clears"] == 0
    advised = {name for lever in before["advice"]["levers"] for name, _ in lever["clears"]}
    assert advised == set(EVERYDAY_CLEAR_POLICIES)  # what `precopy migrate` takes
    one = planned(*numbers, "--clear", "before-patch", "--listeners", "1", "--clear-cost", "4us", "--sync-time", "1ms")
    assert one["input"]["sync_s"] == pytest.approx(1e-3 + 1088 * 4e-6)


def test_a_recording_gives_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "recorded"
    write(record(hot_and_cold(4000, 500)), path)
    document = planned("--recording", str(path))
    assert document["input"]["ram_bytes"] == LAYOUT.bytes
    assert document["input"]["bandwidth_bytes_per_s"] == pytest.approx(BANDWIDTH, rel=0.2)
    assert document["input"]["curve"]["classes"]
    faster = planned("--recording", str(path), "--bandwidth", "1G", "--downtime-limit", "50ms")
    assert faster["input"]["bandwidth_bytes_per_s"] == 1_000_000_000
    assert faster["forecast"]["total_s"]["value"] < document["forecast"]["total_s"]["value"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--ram, --dirty-rate, --bandwidth, --sync-time not given"),
        (("--ram", "1G"), "--dirty-rate, --bandwidth, --sync-time not given"),
        (("--ram", "0", *SEED[2:]), "--ram is 0"),
        ((*SEED, "--bandwidth", "0"), "--bandwidth is 0"),
        ((*SEED, "--downtime-limit", "0"), "--downtime-limit is 0"),
        ((*SEED, "--working-set", "257G"), "more than the 256 GiB of memory"),
        ((*SEED, "--clear", "deferred"), "--clear says what a layout's sync costs"),
        ((*SEED, "--layout", "x", "--recording", "y"), "give one of them"),
        ((*SEED, "--layout", "nowhere"), "no captured layout"),
        (("--recording", "/nowhere"), "there is no file /nowhere"),
        (("sweep", *SEED, "--bandwidth", "0..1G:3"), "--bandwidth begins at 0"),
        (("sweep", *SEED, "--max-rounds", "501"), "at most 500 rounds"),
        (("sweep", *SEED, "--dirty-rate", "1B..9B:2000", "--bandwidth", "1B..9B:2000"), "at most 1000000"),
        (("sweep", *SEED, "--csv", "/nowhere/x.csv"), "cannot write /nowhere/x.csv"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(arguments: tuple[str, ...], says: str) -> None:
    assert says in plan(*arguments).sentence(2)


CASES = Path(__file__).parents[1] / "cases"


def command_of(case: str) -> list[str]:
    """The first command that a case's README has."""
    text = (CASES / case / "README.md").read_text(encoding="utf-8")
    return shlex.split(text.partition("`precopy ")[2].partition("`")[0])


def test_the_case_of_a_gigabit() -> None:
    command = command_of("plan-gigabits")
    assert command[-1] == "--json"
    assert called(*command).document()["input"]["bandwidth_bytes_per_s"] == 125_000_000


def test_the_case_of_a_limit_without_a_unit() -> None:
    command = command_of("plan-qemu-milliseconds")
    assert command[-2:] == ["--downtime-limit", "300"]
    done = precopy(*command)
    assert (done.code, done.out) == (2, "")
    assert "write 300ms for milliseconds or 300s for seconds" in " ".join(done.err.split())


GIGABIT = ("--ram", "8G", "--bandwidth", "1Gb/s", "--dirty-rate", "10M", "--sync-time", "1ms")
MILLISECONDS = ("--ram", "8G", "--bandwidth", "1G", "--dirty-rate", "900M", "--sync-time", "10ms")


@pytest.mark.parametrize("link", ["1Gb/s", "1Gb", "1000Mb", "1Gbit/s", "125MB/s", "125M"])
def test_a_link_in_gigabits(link: str) -> None:
    document = planned(*GIGABIT, "--bandwidth", link)
    assert document["input"]["bandwidth_bytes_per_s"] == 125_000_000
    assert document["verdict"].startswith("converges in 3 rounds: 74.68 s")
    said = plan(*GIGABIT, "--bandwidth", link).out
    assert "bandwidth 125 MB/s (1.00 Gb/s)" in said


def test_a_dirty_rate_in_bits() -> None:
    assert planned(*GIGABIT, "--dirty-rate", "80Mb/s")["input"]["dirty_rate_bytes_per_s"] == 10_000_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("plan", *MILLISECONDS, "--downtime-limit", "300"), "'300' has no unit; write 300ms for milliseconds"),
        (
            ("plan", *MILLISECONDS, "--bandwidth", "1000Mbps"),
            "may mean bits or bytes a second; write 1000Mb/s for",
        ),
        (("plan", *MILLISECONDS, "--ram", "8192"), "'8192' has no unit; write 8192M for MiB"),
        (("plan", *MILLISECONDS, "--max-rounds", "1_0"), "'1_0' is no whole number"),
        (("plan", *MILLISECONDS, "--max-rounds", "\u0663"), "is no whole number"),
        (("plan", *MILLISECONDS, "--max-rounds", "9" * 5000), "is too large"),
        (("plan", *MILLISECONDS, "--uncertainty", "0_1"), "it is no number"),
        (("plan", "sweep", *MILLISECONDS, "--sync-time", "1..500ms:5"), "'1' has no unit"),
        (("plan", "sweep", *MILLISECONDS, "--bandwidth", "1,5G"), "'1' has no unit"),
        (("migrate", "unix:/nowhere", "unix:/nowhere", "--max-bandwidth", "1000"), "'1000' has no unit"),
        (("migrate", "unix:/nowhere", "unix:/nowhere", "--max-bandwidth", "100mbps"), "may mean bits or bytes"),
        (("migrate", "unix:/nowhere", "unix:/nowhere", "--downtime-limit", "300"), "'300' has no unit"),
        (("migrate", "unix:/nowhere", "unix:/nowhere", "--timeout", "10"), "'10' has no unit"),
        (("run", "--ram", "512"), "'512' has no unit; write 512M for MiB"),
        (("run", "--write-rate", "20KB"), "is not a count"),
        (("replay", "nowhere", "--bandwidth", "1gb"), "may mean bits or bytes"),
        (("compare", "nowhere", "--max-total", "60"), "'60' has no unit"),
        (("bench", "snapshot", "--size", "1073741824"), "has no unit"),
        (("bench", "snapshot", "--dirty", "nan"), "it is no number"),
    ],
)
def test_what_has_no_unit_or_two_is_asked_for(arguments: tuple[str, ...], says: str) -> None:
    done = called(*arguments)
    assert done.code == 2
    assert says in " ".join(done.err.split())


@pytest.mark.parametrize("command", [(), ("plan",)])
def test_the_help_says_what_units_mean(command: tuple[str, ...]) -> None:
    said = " ".join(called(*command, "--help").out.split())
    assert "Gbit/s" in said
    assert "MiB" in said or "GiB" in said


def test_a_full_disk_does_not_lose_what_was_planned() -> None:
    done = precopy("plan", "sweep", *SEED, "--sync-time", "1ms..400ms:3", "--csv", "/dev/full")
    assert "of 3 plans converge" in done.out
    assert "cannot write /dev/full" in done.sentence(2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*SEED, "--dirty-rate", "much"), "'much' is not a rate"),
        ((*SEED, "--uncertainty", "nan"), "it is no number"),
        (("sweep", *SEED, "--dirty-rate", "1M..2M"), "'1M..2M' is not a range"),
        ((*SEED, "sweep", *SEED), "options of sweep stand after its name"),
    ],
)
def test_what_cannot_be_read_is_a_usage_error(arguments: tuple[str, ...], says: str) -> None:
    done = plan(*arguments)
    assert done.code == 2
    assert says in done.err


# Sweeps.

SWEEP = ("sweep", *SEED[:4], "--sync-time", "1ms..400ms:6", "--dirty-rate", "100M..15G:20:log")


def test_a_sweep_as_text_document_and_file(tmp_path: Path) -> None:
    file = tmp_path / "plans.csv"
    text = precopy("plan", *SWEEP, "--csv", str(file))
    assert (text.code, text.err) == (0, "")
    document = planned(*SWEEP)
    assert document["schema"] == "precopy.plan-sweep/2"
    assert document["plans"] == 120
    columns = document["columns"]
    assert {len(column) for column in columns.values()} == {120}
    assert document["converging"] == sum(columns["converges"])
    assert f"{document['converging']} of 120 plans converge" in text.out
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == list(columns)
    assert [row["converges"] == "True" for row in rows] == columns["converges"]
    for name in ("sync_s", "dirty_rate_bytes_per_s", "total_s", "downtime_s"):
        assert [float(row[name]) for row in rows] == columns[name]


def test_a_plan_of_a_sweep_is_that_of_plan() -> None:
    columns = planned(*SWEEP)["columns"]
    at = 70
    alone = planned(
        *("--ram", "256G", "--bandwidth", "15G", "--uncertainty", "0"),
        *(
            "--sync-time",
            f"{columns['sync_s'][at]:.17f}s",
            "--dirty-rate",
            f"{columns['dirty_rate_bytes_per_s'][at]:.9f}B/s",
        ),
    )
    assert alone["forecast"]["converges"] == columns["converges"][at]
    assert alone["forecast"]["total_s"]["value"] == pytest.approx(columns["total_s"][at], rel=1e-6)


@pytest.mark.parametrize("after_s", [0.0, 1.0])
def test_an_interrupt_ends_it_and_its_processes(tmp_path: Path, after_s: float) -> None:
    """A million plans take minutes; the first moment is that in which processes are made."""
    numbers = ("--dirty-rate", "1G..14G:1000", "--sync-time", "1ms..50ms:1000")
    running = Command(("plan", *SWEEP[:5], *numbers), tmp_path, ("setsid",))
    wait_for(lambda: len(processes_of(tmp_path)) > 2)
    time.sleep(after_s)
    for _ in range(3):  # as somebody without patience does it
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does it
        time.sleep(0.1)
    assert running.finish().sentence(130) == "interrupted"
    assert not processes_of(tmp_path)


needs_cluster = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="needs distributed: the package is not installed"
)


@contextlib.contextmanager
def dask(program: str, ready: str, *arguments: str) -> Iterator[str]:
    """A process of a Dask cluster, when it has said that it is ``ready``; that line of its log."""
    command = (sys.executable, "-m", f"distributed.cli.dask_{program}", *arguments, "--no-dashboard")
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
        try:
            end = time.monotonic() + IN_TIME_S
            while True:
                log.seek(0)
                said = [line for line in log if ready in line and line.endswith("\n")]
                if said:
                    break
                assert process.poll() is None, program
                assert time.monotonic() < end, f"the {program} says nothing of {ready!r}"
                time.sleep(0.02)
            yield said[0]
        finally:
            process.terminate()
            process.wait(IN_TIME_S)


def scheduler() -> contextlib.AbstractContextManager[str]:
    return dask("scheduler", "Scheduler at:", "--host", "127.0.0.1", "--port", "0")


def worker(address: str) -> contextlib.AbstractContextManager[str]:
    return dask("worker", "Registered to:", address, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny")


@needs_cluster
def test_a_cluster_comes_to_the_same_result() -> None:
    """Scheduler and workers as operators start them; more plans than one task has."""
    ranges = ("sweep", *SEED[:4], "--sync-time", "1ms..400ms:100", "--dirty-rate", "100M..15G:100")
    here = planned(*ranges)
    with scheduler() as line:
        address = line.split()[-1]
        with worker(address), worker(address):
            there = planned(*ranges, "--scheduler", address)
    assert there["where"] == f"2 workers of {address}"
    assert there["columns"] == here["columns"]
    assert there["frontier"] == here["frontier"]


@needs_cluster
def test_a_cluster_that_is_not_there_or_has_no_workers_is_named() -> None:
    nobody = precopy("plan", *SWEEP, "--scheduler", "tcp://127.0.0.1:9")
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in nobody.sentence(5)
    wrong = precopy("plan", *SWEEP, "--scheduler", "nonsense://x")
    assert "write it like tcp://HOST:PORT" in wrong.sentence(2)
    with scheduler() as line:
        alone = precopy("plan", *SWEEP, "--scheduler", line.split()[-1])
    assert "has no workers" in alone.sentence(5)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    """A module of that name that cannot be imported stands in front of the one that may be installed."""
    (tmp_path / "distributed.py").write_text("raise ImportError")
    command = [sys.executable, "-m", "precopy", "plan", *SWEEP, "--scheduler", "tcp://127.0.0.1:9"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 3
    assert 'pip install "precopy[cluster]"' in done.stderr
