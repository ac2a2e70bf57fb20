"""The processes that a test has started."""

from __future__ import annotations

import contextlib
from pathlib import Path


def children() -> set[int]:
    """Processes that this one has started and that still exist."""
    found: set[int] = set()
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(pid) for pid in task.read_text().split()}
    return found
