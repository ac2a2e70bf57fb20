"""Migrations with different chunk sizes of the deferred clear policy, in turn.

Run: .venv/bin/python benchmarks/clear_chunk.py
"""

from __future__ import annotations

import statistics
import sys
from functools import partial

from precopy.bench.failed import Failed, attempt
from precopy.migration import Migrated, MigrationOptions
from precopy.service import ProcessPair, migrate_guest

SHIFTS, REPEATS = (9, 12, 15, 18), 5
GUEST = ["--ram", "1G", "--fill", "1", "--workload", "random", "--write-rate", "200K"]


def migration(shift: int) -> Migrated:
    with ProcessPair(GUEST, ["--ram", "1G", "--prealloc"]) as pair:
        options = MigrationOptions(clear_chunk_shift=shift, downtime_limit_s=0.05)
        return migrate_guest(pair.source, pair.address, options)


def main() -> None:
    done: dict[int, list[Migrated]] = {shift: [] for shift in SHIFTS}
    for _ in range(REPEATS):
        for shift in SHIFTS:
            result = attempt(f"2^{shift}", partial(migration, shift))
            if isinstance(result, Failed):
                print(f"{result.name}: {result.message}", file=sys.stderr)
            else:
                done[shift].append(result)
    print("chunk    clear calls   pages sent   total ms   downtime ms   (medians of at most", REPEATS, "migrations)")
    for shift, runs in done.items():
        if not runs:
            continue
        calls = statistics.median(sum(round.clear_log_ioctls for round in run.rounds) for run in runs)
        pages = statistics.median(sum(round.sent_pages for round in run.rounds) for run in runs)
        total = statistics.median(run.total_s for run in runs)
        downtime = statistics.median(run.downtime.total_s for run in runs)
        print(f"2^{shift:<5} {calls:11.0f} {pages:12.0f} {1e3 * total:10.1f} {1e3 * downtime:13.1f}")


if __name__ == "__main__":
    main()
