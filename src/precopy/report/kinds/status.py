"""``precopy status`` and the commands that answer with one: what a guest's process does.

`precopy status` imports nothing of a migration but `precopy.progress`, so that it answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from precopy.bounds import Count, Number, Text
from precopy.progress import Arriving, Progress, Received
from precopy.report.kinds.kind import Kind
from precopy.report.kinds.shared import progress_line
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class Migrating:
    """A migration under way: ``to`` where, and how far it is. ``progress`` is None before there is any."""

    to: Text
    elapsed_s: Number
    remaining_pages: Count | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class Status:
    """What `precopy status` tells. ``machine`` is the guest's; ``session`` is the migration that brought the guest here
    or took it away, or the one under way, of which ``migration`` (at the source) or ``arriving`` (at the destination)
    say more. ``turned_away``: connections of others than a source, while it waited for one. ``workload``: what the
    guest was started with; empty where it came from elsewhere and brought its own."""

    state: Text
    guest: Text
    machine: Text
    why: Text
    ram_bytes: Count
    blocks: Count
    pid: Count
    uptime_s: Number
    session: Text | None = None
    last_error: Text | None = None
    received: Received | None = None
    migration: Migrating | None = None
    arriving: Arriving | None = None
    turned_away: Count = 0
    workload: Text = ""


def _text(status: Status) -> list[str]:
    return [
        f"{status.state}: {status.machine} ({status.why})",
        f"memory: {format_size(status.ram_bytes)} in {status.blocks} RAM blocks",
        *_migration(status),
        *([f"workload: {status.workload}"] if status.workload else []),
        f"process {status.pid}, up {format_duration(status.uptime_s)}",
        *([f"session: {status.session}"] if status.session else []),
        *([f"last error: {status.last_error}"] if status.last_error else []),
    ]


def _migration(status: Status) -> list[str]:
    """How far the migration under way is, if there is one."""
    migration, arriving = status.migration, status.arriving
    lines = []
    if migration is not None:
        lines.append(f"migrating to {migration.to} for {format_duration(migration.elapsed_s)}")
        if migration.progress is not None:
            lines.append(f"{progress_line(migration.progress)} | {migration.remaining_pages} pages left")
            if migration.progress.expected_downtime_s is not None:
                lines.append(f"expected downtime: {format_duration(migration.progress.expected_downtime_s)}")
    if status.turned_away:
        lines.append(f"turned away: {status.turned_away} who connected and were no source")
    if arriving is not None:
        lines.append(f"receiving round {arriving.round}, {format_size(arriving.received_bytes)} so far")
    return lines


KIND = Kind(Status, _text)
