"""What it costs a guest to measure its own gaps: CPU time of a step with the measurement and without, in turn.

Run: .venv/bin/python benchmarks/gap_cost.py
"""

from __future__ import annotations

import re
import statistics
import threading
import time
from pathlib import Path

from precopy.machines.kvm import KvmGuest
from precopy.machines.workload import Workload, params, params_words, programs
from precopy.memory import GuestMemory
from precopy.memory.captures.machines import flat

RAM, RUN_S, REPEAT = (8 << 20, 512 << 20), 0.25, 9


def main() -> None:
    for pattern in ("sequential", "random", "hotset"):
        measured = programs.SOURCES[pattern]
        # From the look at the clock to the jump to what writes a gap down, and the steps between two looks.
        bare = re.sub(r"(?<=\nlook:\n).*?(?=step:\n)", "", measured, flags=re.DOTALL)
        bare = re.sub(r"    dec   r8d\n.*\n", "", bare)
        assert bare != measured
        for ram in RAM:
            samples = [(step_ns(pattern, measured, ram), step_ns(pattern, bare, ram)) for _ in range(REPEAT)]
            with_, without = (statistics.median(part) for part in zip(*samples, strict=True))
            ratio = statistics.median(one / other for one, other in samples)
            print(f"{pattern:10} {ram >> 20:4} MiB: {with_:6.1f} ns a step, {without:6.1f} without: {ratio:.3f} times")


def step_ns(pattern: str, source: str, ram: int) -> float:
    """Nanoseconds of the vCPU's thread a step, once all pages were written."""
    programs.SOURCES[pattern] = source
    programs.assemble.cache_clear()
    with KvmGuest(GuestMemory(flat(ram))) as guest:
        guest.boot(Workload(pattern, rate=None))
        step = params_words(guest.memory, 0)[params.STEP // 8 :]
        guest.resume()
        while int(step[0]) < 2 * ram >> 12:
            time.sleep(0.001)
        cpu = vcpu_ns()
        first = int(step[0])
        time.sleep(RUN_S)
        return (vcpu_ns() - cpu) / (int(step[0]) - first)


def vcpu_ns() -> int:
    """CPU time of the vCPU's thread, in nanoseconds."""
    for task in Path("/proc/self/task").iterdir():
        if is_vcpu(int(task.name)):
            return int((task / "schedstat").read_text().split()[0])
    raise AssertionError("no thread is a vCPU's")


def is_vcpu(task: int) -> bool:
    return any(thread.native_id == task and thread.name == "vcpu-0" for thread in threading.enumerate())


if __name__ == "__main__":
    main()
