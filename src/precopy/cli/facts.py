"""What machine a result comes from."""

from __future__ import annotations

import os
import platform
from typing import Any

from precopy import __version__
from precopy.memory.host import total_memory


def machine_facts() -> dict[str, Any]:
    """CPU, kernel, memory and versions, as far as the system tells."""
    cpu = next((line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": total_memory(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "precopy": __version__,
    }


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return lines.readlines()
    except OSError:
        return []
