"""The benchmark's document: what its schema promises is there and adds up. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

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
    assert document["schema"] == "precopy.bench-migrate/1"
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
    ours, theirs = repeat["precopy"]["throughput_bytes_per_s"], repeat["qemu"]["throughput_bytes_per_s"]
    assert document["ratio_to_qemu"] == pytest.approx(ours / theirs)
    assert repeat["qemu"]["transferred_bytes"] >= 60 << 20
