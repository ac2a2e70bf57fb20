"""The most memory that this process has held: ru_maxrss counts what its parent held before it was started, too."""

from __future__ import annotations

from pathlib import Path


def forget_peak() -> None:
    """From here on `peak_kib` counts anew (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_kib() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
