"""Memories whose writes are known, to try snapshots without the kernel's tracker; and children that die."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from precopy import Memory
from precopy.bitmap import Runs
from precopy.snapshot_store import directory as directory_module
from precopy.units import PAGE_SIZE
from support.scripted_log import ScriptedLog

Content = npt.NDArray[np.uint64]
"""Shape (pages, words in a page)."""


class Written:
    """A memory, the log that is told what is written to it, and its content as rows."""

    def __init__(self, pages: int, memory: Memory | None = None) -> None:
        self.memory = Memory(pages * PAGE_SIZE) if memory is None else memory
        self.log = ScriptedLog(self.memory.layout.end_page)
        for series in self.memory.snapshots.values():  # it is a restored one, which goes on from its snapshot
            series.log, series.started = self.log, True
        self.memory.consumer = lambda _name: self.log  # type: ignore[method-assign,assignment,return-value]
        self.rows: Content = np.frombuffer(self.memory.view, np.uint64).reshape(-1, PAGE_SIZE // 8)

    def write(self, pages: Iterable[int], value: int) -> None:
        """Fills pages with ``value``, and tells the log."""
        index = np.unique(np.fromiter(pages, np.int64))
        self.rows[index] = value
        self.log.wrote(Runs.from_indexes(index))

    def copy(self) -> Content:
        return self.rows.copy()


def content(memory: Memory) -> Content:
    """All of a restored memory."""
    return np.frombuffer(memory.view, np.uint64).reshape(-1, PAGE_SIZE // 8).copy()


def files(directory: Path) -> list[str]:
    """All names in a directory of snapshots but its lock's."""
    return sorted(name for name in os.listdir(directory) if name != ".lock")


def dying(act: Callable[[], object], at: int) -> int:
    """Does ``act`` in a forked child that is killed at its step ``at`` (from 1); returns how many steps it came to."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads: ours hold no lock here
        child = os.fork()
    if child == 0:
        os.close(reader)
        done = 0

        def step(_name: str) -> None:
            nonlocal done
            done += 1
            os.write(writer, b".")
            if done == at:
                os.kill(os.getpid(), signal.SIGKILL)

        directory_module.step = step
        try:
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(writer)
    steps = 0
    while data := os.read(reader, 100):
        steps += len(data)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == (steps == at), status
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return steps
