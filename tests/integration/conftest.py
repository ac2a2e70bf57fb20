"""Fixtures: commands in a directory of their own, and what a test left behind in its own process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import Bench
from support.patience import SETTLED_S


def children() -> set[int]:
    """Processes that this one has started and that still exist."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(pid) for pid in task.read_text().split()}
    return found


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
def bench(tmp_path: Path) -> Iterator[Bench]:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # else children would ignore it, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    bench = Bench(tmp_path)
    yield bench
    bench.close()
