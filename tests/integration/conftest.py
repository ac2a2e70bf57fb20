"""Fixtures: commands in a directory of their own, and what a test left behind in its own process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import Bench
from support.patience import SETTLED_S
from support.processes import children


def held() -> tuple[set[object], set[object], set[object]]:
    """What a test could leave behind in this process: children, descriptors, threads."""
    threads = {thread.name for thread in threading.enumerate() if not thread.name.startswith("pytest_timeout")}
    return set(children()), set(os.listdir("/proc/self/fd")), set(threads)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fails if a process, a descriptor or a thread of the test outlives it."""
    before = held()
    yield
    end = time.monotonic() + SETTLED_S
    while any(left := [now - then for now, then in zip(held(), before, strict=True)]) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(left), f"left behind: {left}"


@pytest.fixture
def qemu_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails if a process, a file, a socket or a descriptor of the test outlives it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    processes, descriptors = children(), set(os.listdir("/proc/self/fd"))
    yield
    assert children() <= processes
    assert list(tmp_path.iterdir()) == []
    assert set(os.listdir("/proc/self/fd")) <= descriptors  # what an earlier test left may be collected meanwhile


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # else children would ignore it, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    bench = Bench(tmp_path)
    yield bench
    bench.close()
