"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table

from precopy.migration.options import MigrationOptions
from precopy.migration.results import Downtime, Migrated, Round
from precopy.ports import Throttled
from precopy.units import format_bits, format_duration, format_rate, format_size


@dataclass(frozen=True)
class DemoRow:
    """One run of the demo: the clear policy, its migration (None where it failed), and what the checks said."""

    clear: str
    migrated: Migrated | None
    verified: bool
    verdict: str


_WIDE = 160


def _console() -> Console:
    """Stdout, as wide as its terminal, or wide enough for every table where it is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)


def show(*parts: RenderableType) -> None:
    """Prints to stdout."""
    console = _console()
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in columns:
        table.add_column(name, justify="left" if justify == "l" else "right", no_wrap=True)
    return table


_ROUND_COLUMNS: tuple[tuple[str, bool, Callable[[Round], str]], ...] = (
    ("round", True, lambda one: "last" if one.final else str(one.number)),
    ("dirty", True, lambda one: str(one.dirty_pages)),
    ("sent", True, lambda one: str(one.sent_pages)),
    ("zero", True, lambda one: str(one.zero_pages)),
    ("torn", False, lambda one: str(one.torn_batches)),
    ("bytes", False, lambda one: format_size(one.sent_bytes)),
    ("x: sync", True, lambda one: format_duration(one.sync_s)),
    ("log_sync", False, lambda one: format_duration(one.log_sync_s)),
    ("bitmap", False, lambda one: format_duration(one.bitmap_sync_s)),
    ("log_clear", False, lambda one: format_duration(one.log_clear_s)),
    ("t: transfer", True, lambda one: format_duration(one.transfer_s)),
    ("bandwidth", True, lambda one: format_rate(one.bandwidth_bytes_per_s) if one.sent_pages else "-"),
    ("get", True, lambda one: str(one.get_log_ioctls)),
    ("clear", True, lambda one: str(one.clear_log_ioctls)),
)
"""Column of the rounds' table, whether a narrow terminal has it too, and its value."""


def rounds_table(done: Migrated) -> RenderableType:
    """A line a round: x and its parts, t, what was found and sent, what the kernel was asked."""
    columns = [column for column in _ROUND_COLUMNS if column[1] or _console().width >= _WIDE]
    table = _table(*((name, "r") for name, _, _ in columns))
    for one in done.rounds:
        table.add_row(*(value(one) for _, _, value in columns))
    return Group(table, downtime_line(done.downtime), total_line(done))


def bandwidth(bytes_per_s: float) -> str:
    """A bandwidth in bytes and, as links are sold, in bits: ``125 MB/s (1.00 Gb/s)``."""
    return f"{format_rate(bytes_per_s)} ({format_bits(bytes_per_s)})"


def terms_line(options: MigrationOptions) -> str:
    """What a migration was allowed, as it was understood, in one line."""
    most = "any bandwidth" if options.max_bandwidth is None else f"bandwidth {bandwidth(options.max_bandwidth)}"
    total = "" if options.max_total is None else f", {format_duration(options.max_total)} in all"
    return f"limits: downtime {format_duration(options.downtime_limit)}, {most}, {options.max_rounds} rounds{total}"


def tracker_line(done: Migrated) -> str:
    """What told of the guest's writes, why that, and what changing to it cost, in one line."""
    paused = (
        f"; the guest stood still for {format_duration(done.tracker_pause_s)} to change" if done.tracker_pause_s else ""
    )
    return f"tracker {done.tracker} ({done.tracker_why}){paused}"


def downtime_line(downtime: Downtime) -> str:
    """The downtime and its parts, in one line."""
    return (
        f"downtime {format_duration(downtime.total_s)} = pause {format_duration(downtime.pause_s)}"
        f" + final sync {format_duration(downtime.final_sync_s)} + final send {format_duration(downtime.final_send_s)}"
        f" + state {format_duration(downtime.state_s)} + commit {format_duration(downtime.commit_s)}"
    )


def total_line(done: Migrated) -> str:
    """Time, bytes, throughput and what was verified, in one line."""
    verified = (
        f"; all {done.compared_pages} pages compared byte for byte in {format_duration(done.verify_s)}"
        if done.compared_pages
        else ""
    )
    return (
        f"{format_size(done.sent_bytes)} in {format_duration(done.total_s - done.verify_s)}: "
        f"{format_rate(done.throughput_bytes_per_s)}{verified}"
    )


def throttled_line(throttled: Throttled) -> str:
    """What slowing the guest down took from it, in one line; empty where it was not slowed down."""
    if not throttled.active_s:
        return ""
    each = ", ".join(format_duration(stolen) for stolen in throttled.stolen_s)
    return (
        f"throttled for {format_duration(throttled.active_s)}: {100 * throttled.share:.0f} % of the vCPUs' time was "
        f"taken ({each})"
    )


def demo_table(rows: Sequence[DemoRow]) -> RenderableType:
    """One line a clear policy: how many ioctls it took, what a sync cost, and what the guest noticed."""
    table = _table(
        ("clear policy", "l"),
        ("rounds", "r"),
        ("get ioctls", "r"),
        ("clear ioctls", "r"),
        ("x: first sync", "r"),
        ("t: first round", "r"),
        ("downtime", "r"),
        ("throughput", "r"),
        ("verified", "l"),
    )
    for row in rows:
        done = row.migrated
        if done is None:
            table.add_row(row.clear, *["-"] * 7, row.verdict)
            continue
        table.add_row(
            row.clear,
            str(len(done.rounds)),
            str(sum(one.get_log_ioctls for one in done.rounds)),
            str(sum(one.clear_log_ioctls for one in done.rounds)),
            format_duration(done.rounds[0].sync_s),
            format_duration(done.rounds[0].transfer_s),
            format_duration(done.downtime.total_s),
            format_rate(done.throughput_bytes_per_s),
            row.verdict,
        )
    return table


@dataclass(frozen=True)
class BenchRow:
    """One measurement beside its peers: what ran, how fast, how long the guest stood still (None: it did not)."""

    what: str
    throughput_bytes_per_s: float
    downtime_s: float | None
    rounds: int | None
    ratio: str


def bench_migrate_table(rows: Sequence[BenchRow]) -> RenderableType:
    """A line a measurement, in the order in which they were made."""
    table = _table(("", "l"), ("throughput", "r"), ("downtime", "r"), ("rounds", "r"), ("precopy's ratio to it", "r"))
    for row in rows:
        table.add_row(
            row.what,
            format_rate(row.throughput_bytes_per_s),
            "-" if row.downtime_s is None else format_duration(row.downtime_s),
            "-" if row.rounds is None else str(row.rounds),
            row.ratio,
        )
    return table
