"""The benchmark's document: what its schema promises is there and adds up. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from precopy.bench.migrate import Setup, measure
from precopy.bench.peers.qemu.launcher import absent_qemus, find_qemus
from precopy.errors import PrecopyError
from support.commands import precopy
from support.patience import IN_TIME_S


def bench(*options: str) -> dict[str, object]:
    command = [sys.executable, "-m", "precopy", "bench", "migrate", "--json", "--ram", "64M", "--rewritten", "8M"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=4 * IN_TIME_S)
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


@pytest.mark.needs("kvm")
def test_precopy_beside_the_raw_socket() -> None:
    document = bench("--repeat", "1", "--no-qemu", "--verify")
    assert document["schema"] == "precopy.bench-migrate/3"
    assert document["ratio_to_qemu"] is None
    (repeat,) = document["repeats"]
    assert repeat["precopy"]["verified"] is True
    assert repeat["precopy"]["sent_bytes"] >= 64 << 20
    ours, ceiling = document["throughput_bytes_per_s"], document["ceiling_bytes_per_s"]
    assert document["ratio_to_ceiling"] == pytest.approx(ours / ceiling)
    assert document["idle_sync"]["slots"] >= 10
    assert 0 < document["overhead_bytes"]["source"] < 150 << 20
    assert 0 < document["overhead_bytes"]["destination"] < 150 << 20


@pytest.mark.needs("kvm", "qemu")
def test_precopy_beside_qemu() -> None:
    document = bench("--repeat", "1", "--against-qemu")
    (repeat,) = document["repeats"]
    qemus = [repeat["qemu"], *repeat["other_qemus"]]
    ours, theirs = repeat["precopy"]["throughput_bytes_per_s"], [qemu["throughput_bytes_per_s"] for qemu in qemus]
    assert document["ratio_to_qemu"] == pytest.approx(ours / max(theirs))
    assert all(qemu["transferred_bytes"] >= 60 << 20 for qemu in qemus)
    ways = [(qemu["version"], qemu["tracker"], qemu["channels"]) for qemu in qemus]
    assert len(set(ways)) == len(ways) == 4 * len(find_qemus())
    assert {way[1:] for way in ways} == {("dirty log", 1), ("dirty log", 2), ("dirty ring", 1), ("dirty ring", 2)}
    assert document["left_out"] == absent_qemus()


SMALL = ("--ram", "64M", "--rewritten", "8M", "--repeat", "1")


def without_qmp(*options: str) -> subprocess.CompletedProcess[str]:
    """The command where the package that speaks QMP cannot be imported."""
    code = "import sys; sys.modules['qemu.qmp'] = None; from precopy.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "bench", "migrate", "--json", *SMALL, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=4 * IN_TIME_S)


@pytest.mark.needs("kvm", "qemu")
def test_without_the_qmp_client_it_goes_on_without_qemu_and_says_so() -> None:
    done = without_qmp()
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert document["ratio_to_qemu"] is None
    assert [(failed["name"], failed["exit_code"]) for failed in document["failed"]] == [("QEMU", 3)]
    assert "QEMU was not measured: " in done.stderr
    asked = without_qmp("--against-qemu")
    assert asked.returncode == 3
    assert json.loads(asked.stdout)["throughput_bytes_per_s"] > 0


@pytest.mark.needs("kvm")
def test_where_nothing_could_be_measured_the_first_failure_is_the_answer() -> None:
    done = precopy("bench", "migrate", "--no-qemu", *SMALL, "--downtime-limit", "100us", "--json")
    assert done.code == 4
    assert done.document()["error"]["kind"] == "NotConverged"


@pytest.mark.needs("kvm")
def test_a_repeat_that_fails_is_noted_and_the_others_are_made() -> None:
    """A guest of a mebibyte cannot be made, each time, but the raw socket carries as much."""
    setup = Setup(ram=1 << 20, rewritten=0, write_rate=None, downtime_limit_s=0.3, verify=False)
    told: list[str] = []
    repeats, failed = measure(setup, 2, False, told.append)
    assert repeats == []
    assert [one.name for one in failed] == ["precopy, repeat 1", "precopy, repeat 2"]
    assert told == ["1/2: raw socket", "1/2: precopy", "2/2: raw socket", "2/2: precopy"]
    with pytest.raises(PrecopyError, match="at least 2M") as caught:
        raise failed[0].error()
    assert caught.value.exit_code == failed[0].exit_code
