"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import RenderableType

from precopy.migration.options import MigrationOptions
from precopy.migration.results import Attempt, Migrated
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.round import Round
from precopy.ports import Throttled
from precopy.report.console import table
from precopy.units import format_bits, format_duration, format_rate, format_size


@dataclass(frozen=True)
class DemoRow:
    """One run of the demo: the clear policy, its migration (None where it did not complete, and then ``attempt`` is how
    far it came), and what the checks said, or why it did not complete."""

    clear: str
    migrated: Migrated | None
    verified: bool
    verdict: str
    attempt: Attempt | None = None

    @property
    def rounds(self) -> tuple[Round, ...]:
        made = self.migrated or self.attempt
        return made.rounds if made else ()


_ROUND_COLUMNS: tuple[tuple[str, Callable[[Round], str]], ...] = (
    ("round", lambda one: "last" if one.final else str(one.number)),
    ("dirty", lambda one: str(one.dirty_pages)),
    ("new", lambda one: str(one.new_dirty_pages)),
    ("again", lambda one: str(one.again_pages)),
    ("to send", lambda one: str(one.pending_pages)),
    ("sent", lambda one: str(one.sent_pages)),
    ("zero", lambda one: str(one.zero_pages)),
    ("left", lambda one: str(one.left_pages)),
    ("torn", lambda one: str(one.torn_batches)),
    ("bytes", lambda one: format_size(one.sent_bytes)),
    ("sync time", lambda one: format_duration(one.sync_s)),
    ("log_sync", lambda one: format_duration(one.log_sync_s)),
    ("bitmap", lambda one: format_duration(one.bitmap_sync_s)),
    ("log_clear", lambda one: format_duration(one.log_clear_s)),
    ("transfer time", lambda one: format_duration(one.transfer_s)),
    ("sending", lambda one: format_duration(one.send_s)),
    ("bandwidth", lambda one: format_rate(one.bandwidth_bytes_per_s) if one.sent_pages else "-"),
    ("get", lambda one: str(one.get_log_ioctls)),
    ("clear", lambda one: str(one.clear_log_ioctls)),
)
"""Column of the rounds' table and its value."""

ROUNDS_LEGEND = (
    "pages to send: all in round 1; then those left, the new ones (dirty, and not to be sent already) and the others "
    "of torn batches, sent again; to send = sent + zero + left\n"
    "sync time = log_sync + bitmap + log_clear; bandwidth = bytes by sending (a part of the transfer time); the last "
    "round has two syncs"
)


def rounds_table(rounds: Sequence[Round]) -> list[RenderableType]:
    """A line a round: pages found and sent, sync time and its parts, transfer time, ioctls; and a legend of the sums
    between them."""
    shown = table(*((name, "r") for name, _ in _ROUND_COLUMNS))
    for one in rounds:
        shown.add_row(*(value(one) for _, value in _ROUND_COLUMNS))
    return [shown, ROUNDS_LEGEND]


def bandwidth(bytes_per_s: float) -> str:
    """A bandwidth in bytes and, as links are sold, in bits: ``125 MB/s (1.00 Gb/s)``."""
    return f"{format_rate(bytes_per_s)} ({format_bits(bytes_per_s)})"


def terms_line(options: MigrationOptions) -> str:
    """The migration's limits as they were understood, in one line."""
    most = "any bandwidth" if options.max_bandwidth is None else f"bandwidth {bandwidth(options.max_bandwidth)}"
    total = "" if options.max_total is None else f", {format_duration(options.max_total)} in all"
    return f"limits: downtime {format_duration(options.downtime_limit_s)}, {most}, {options.max_rounds} rounds{total}"


def tracker_line(done: Migrated) -> str:
    """The tracker, why it was chosen, and the pause of changing to it, in one line."""
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
    """Bytes, the time in which they went, throughput, and beside them the rest of the time and verification."""
    rest = f" (setup {format_duration(done.setup_s)} besides)"
    verified = (
        f"; then verified: all {done.compared_pages} pages compared byte for byte, {format_size(done.verify_bytes)} in "
        f"{format_duration(done.verify_s)}"
        if done.compared_pages
        else ""
    )
    return (
        f"{format_size(done.sent_bytes)} in {format_duration(done.moving_s)}: "
        f"{format_rate(done.throughput_bytes_per_s)}{rest}{verified}"
    )


def attempt_line(attempt: Attempt) -> str:
    """What a migration had done when it ended without completing, in one line."""
    unfinished = f", {format_size(attempt.other_bytes)} of it outside these rounds" if attempt.other_bytes else ""
    return (
        f"not completed: {format_size(attempt.sent_bytes)} sent in {format_duration(attempt.total_s)}{unfinished}; "
        f"{format_size(attempt.remaining_bytes)} were still to be sent"
    )


def throttled_line(throttled: Throttled) -> str:
    """The time that throttling took from the guest, in one line; empty where it was not throttled."""
    if not throttled.active_s:
        return ""
    each = ", ".join(format_duration(throttled_s) for throttled_s in throttled.throttled_s)
    return (
        f"throttled for {format_duration(throttled.active_s)}: {100 * throttled.share:.0f} % of the vCPUs' time was "
        f"taken ({each})"
    )


def demo_table(rows: Sequence[DemoRow]) -> RenderableType:
    """One line a clear policy: ioctls, times of the first sync and round, downtime, bytes sent and the time of that
    (the comparison of the memories counts in neither)."""
    shown = table(
        ("clear policy", "l"),
        ("rounds", "r"),
        ("get ioctls", "r"),
        ("clear ioctls", "r"),
        ("first sync time", "r"),
        ("first transfer time", "r"),
        ("downtime", "r"),
        ("sent", "r"),
        ("in", "r"),
        ("throughput", "r"),
        ("verified", "l"),
    )
    for row in rows:
        done, rounds = row.migrated, row.rounds
        shown.add_row(
            row.clear,
            str(len(rounds)) if rounds else "-",
            str(sum(one.get_log_ioctls for one in rounds)) if rounds else "-",
            str(sum(one.clear_log_ioctls for one in rounds)) if rounds else "-",
            format_duration(rounds[0].sync_s) if rounds else "-",
            format_duration(rounds[0].transfer_s) if rounds else "-",
            format_duration(done.downtime.total_s) if done else "-",
            format_size(done.sent_bytes) if done else "-",
            format_duration(done.moving_s) if done else "-",
            format_rate(done.throughput_bytes_per_s) if done else "-",
            row.verdict,
        )
    return shown


@dataclass(frozen=True)
class BenchRow:
    """One measurement beside its peers: what ran, throughput, and the guest's downtime (None: it had none)."""

    what: str
    throughput_bytes_per_s: float
    downtime_s: float | None
    rounds: int | None
    ratio: str


def bench_migrate_table(rows: Sequence[BenchRow]) -> RenderableType:
    """A line a measurement, in the order in which they were made."""
    shown = table(("", "l"), ("throughput", "r"), ("downtime", "r"), ("rounds", "r"), ("precopy's ratio to it", "r"))
    for row in rows:
        shown.add_row(
            row.what,
            format_rate(row.throughput_bytes_per_s),
            "-" if row.downtime_s is None else format_duration(row.downtime_s),
            "-" if row.rounds is None else str(row.rounds),
            row.ratio,
        )
    return shown
