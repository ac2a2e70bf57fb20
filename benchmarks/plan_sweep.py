"""What a plan of a sweep costs, by how many of its plans converge and in how many rounds, and a sweep of 100,000.

Run: .venv/bin/python benchmarks/plan_sweep.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from precopy.planning.plan.sweep import Axis, Grid, run_chunk

GIB = 1 << 30
SYNCS = tuple(0.001 + 0.0025 * step for step in range(20))
LIMITS = tuple(0.1 + 0.045 * step for step in range(20))
SWEEPS = {
    "wide": ("--bandwidth", "1G..20G:100", "--dirty-rate", "100M..15G:100", "--sync-time", "1ms..500ms:10"),
    "many rounds": ("--bandwidth", "10G", "--dirty-rate", "1G..9.5G:100", "--sync-time", "1ms..50ms:1000"),
}


def grid(shares: tuple[float, ...]) -> Grid:
    """20 sync times by 20 downtime limits, for dirty rates that are these ``shares`` of the bandwidth."""
    return Grid(
        (
            Axis("sync_s", SYNCS),
            Axis("bandwidth_bytes_per_s", (10e9,)),
            Axis("downtime_limit_s", LIMITS),
            Axis("ram_bytes", (64 * GIB,)),
            Axis("working_set_bytes", ()),
            Axis("max_rounds", (30,)),
            Axis("dirty_rate_bytes_per_s", tuple(10e9 * share for share in shares)),
        )
    )


def main() -> None:
    print("rate / bandw.  converge   rounds   us a plan (processor time)")
    for low in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        shares = tuple(low + 0.02 * step for step in range(10))
        some = grid(shares)
        begun = time.process_time()
        columns = run_chunk(some, 0, some.plans)
        each = 1e6 * (time.process_time() - begun) / some.plans
        converge, rounds = (sum(columns[name]) / some.plans for name in ("converges", "rounds"))
        print(f"{shares[0]:.2f} to {shares[-1]:.2f} {100 * converge:8.0f} % {rounds:8.1f} {each:10.1f}")
    for name, ranges in SWEEPS.items():
        command = [sys.executable, "-m", "precopy", "plan", "sweep", "--ram", "64G", *ranges, "--json"]
        begun = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        spent = time.monotonic() - begun
        print(f"100,000 plans, {name}: {spent:.1f} s (load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores)")


if __name__ == "__main__":
    main()
