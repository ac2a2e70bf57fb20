"""What ``precopy bench predict`` migrates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from precopy.report.kinds.bench_predict import Case
from precopy.units import PAGE_SIZE


def grid(migrations: int) -> list[Case]:
    """``migrations`` cases that converge, spread over the grid."""
    return list(itertools.islice(itertools.cycle(_grid()), migrations)) if migrations else []


def _grid() -> Iterator[Case]:
    """Dirty rates of 0.3 to 0.7 of the link, so that it takes four rounds and more; memory for 1.6 s of the link."""
    for share, bandwidth, limit, workload in itertools.product(
        (0.3, 0.45, 0.6, 0.7), (80_000_000, 160_000_000), (0.04, 0.08), ("sequential", "random", "hotset")
    ):
        ram = (128 << 20) * bandwidth // 80_000_000
        yield Case(workload, int(share * bandwidth / PAGE_SIZE), None, bandwidth, limit, ram)
    for workload in ("sequential", "random"):
        yield Case(workload, int(0.6 * 80e6 / PAGE_SIZE), 48 << 20, 80_000_000, 0.04, 128 << 20)


def hopeless_grid(cases: int) -> list[Case]:
    """``cases`` cases that cannot converge within their limits."""
    ram, bandwidth = 128 << 20, 80_000_000
    every = [
        Case("sequential", None, 16 << 20, bandwidth, 0.1, ram, converges=False),
        Case("random", int(1.5 * bandwidth / PAGE_SIZE), None, bandwidth, 0.1, ram, converges=False),
        Case("hotset", None, 48 << 20, bandwidth, 0.05, ram, converges=False),
        Case("random", None, 32 << 20, 2 * bandwidth, 0.1, ram, converges=False),
        Case("sequential", int(1.1 * bandwidth / PAGE_SIZE), None, bandwidth, 0.2, ram, converges=False),
    ]
    return list(itertools.islice(itertools.cycle(every), cases)) if cases else []


def describe(case: Case) -> str:
    """A case in a few words."""
    rate = "max" if case.write_rate is None else f"{case.write_rate * PAGE_SIZE / 1e6:.0f} MB/s"
    where = "all" if case.working_set is None else f"{case.working_set >> 20} MiB"
    return (
        f"{case.workload} {rate} in {where}, link {case.max_bandwidth / 1e6:.0f} MB/s, limit "
        f"{1e3 * case.downtime_limit_s:.0f} ms"
    )
