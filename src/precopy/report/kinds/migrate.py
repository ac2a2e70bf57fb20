"""``precopy migrate``: a migration, and what other kinds of document say of one. The records themselves are the
engine's: `precopy.migration.results` and `precopy.planning.model.round`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from precopy.bounds import Text
from precopy.migration.options import MigrationOptions
from precopy.migration.results import Attempt, GuestStall, Migrated
from precopy.planning.model.downtime import Downtime
from precopy.planning.model.round import Round
from precopy.ports import Throttled
from precopy.report.kinds.kind import Kind, TextPart, fields_of
from precopy.report.kinds.older import as_today
from precopy.report.table import Shown, tabulate
from precopy.report.verdicts import expected_line
from precopy.units import format_bits, format_duration, format_rate, format_size


@dataclass(frozen=True, kw_only=True)
class Migration(Migrated):
    """One, and what its guest was doing."""

    workload: Text = ""

    @classmethod
    def of(cls, done: Migrated, workload: str) -> Migration:
        return cls(**fields_of(done), workload=workload)


def migration_body(done: Migrated) -> dict[str, Any]:
    """A migration as documents hold it: its fields, and the sums over its rounds that people ask for."""
    body: dict[str, Any] = msgspec.to_builtins(done)
    downtime = body.pop("downtime")
    return {
        **body,
        "completed": True,
        "verified": done.verified,
        "downtime_s": done.downtime.total_s,
        "downtime": downtime,
        "guest_time_lost_s": done.guest_time_lost_s,
        "moving_s": done.moving_s,
        "throughput_bytes_per_s": done.throughput_bytes_per_s,
        "cpu_s_per_gb": done.cpu_s_per_gb,
        **_sums(done.rounds),
    }


def attempt_body(attempt: Attempt) -> dict[str, Any]:
    """A migration that did not complete, as documents hold it under ``migration``: its fields, and the same sums."""
    body: dict[str, Any] = msgspec.to_builtins(attempt)
    return {**body, "completed": False, **_sums(attempt.rounds)}


def _sums(rounds: tuple[Round, ...]) -> dict[str, int]:
    names = ("get_log_ioctls", "clear_log_ioctls", "zero_pages", "torn_batches")
    return {name: sum(getattr(made, name) for made in rounds) for name in names}


_ROUNDS: tuple[Shown[Round], ...] = (
    Shown("round", lambda made: "last" if made.final else str(made.number)),
    Shown("dirty", lambda made: str(made.dirty_pages)),
    Shown("new", lambda made: str(made.new_dirty_pages)),
    Shown("again", lambda made: str(made.again_pages)),
    Shown("to send", lambda made: str(made.pending_pages)),
    Shown("sent", lambda made: str(made.sent_pages)),
    Shown("zero", lambda made: str(made.zero_pages)),
    Shown("left", lambda made: str(made.left_pages)),
    Shown("torn", lambda made: str(made.torn_batches)),
    Shown("bytes", lambda made: format_size(made.sent_bytes)),
    Shown("sync time", lambda made: format_duration(made.sync_s)),
    Shown("log_sync", lambda made: format_duration(made.log_sync_s)),
    Shown("bitmap", lambda made: format_duration(made.bitmap_sync_s)),
    Shown("log_clear", lambda made: format_duration(made.log_clear_s)),
    Shown("transfer time", lambda made: format_duration(made.transfer_s)),
    Shown("sending", lambda made: format_duration(made.send_s)),
    Shown("bandwidth", lambda made: format_rate(made.bandwidth_bytes_per_s) if made.sent_pages else "-"),
    Shown("get", lambda made: str(made.get_log_ioctls)),
    Shown("clear", lambda made: str(made.clear_log_ioctls)),
)

_STALLS: tuple[Shown[Round], ...] = (
    Shown("longest gap", lambda made: format_duration(made.stall.longest_s) if made.stall else "-"),
    Shown("in gaps", lambda made: format_duration(made.stall.stalled_s) if made.stall else "-"),
)
"""For rounds of which at least one has its guest's stall."""

ROUNDS_LEGEND = (
    "pages to send: all in round 1; then those left, the new ones (dirty, and not to be sent already) and the others "
    "of torn batches, sent again; to send = sent + zero + left\n"
    "sync time = log_sync + bitmap + log_clear; bandwidth = bytes by sending (a part of the transfer time); the last "
    "round has two syncs"
)


def rounds_table(rounds: Sequence[Round]) -> list[TextPart]:
    """A line a round: pages found and sent, sync time and its parts, transfer time, ioctls; and a legend of the sums
    between them."""
    measured = any(made.stall for made in rounds)
    return [tabulate("The rounds", _ROUNDS + _STALLS if measured else _ROUNDS, rounds), ROUNDS_LEGEND]


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


def sync_way_line(done: Migrated) -> str:
    """How syncs were made and why, in one line; empty where that is not known."""
    return f"syncs with {done.sync_way} ({done.sync_way_why})" if done.sync_way_why else ""


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
        if done.verified
        else ""
    )
    return (
        f"{format_size(done.sent_bytes)} in {format_duration(done.moving_s)}: "
        f"{format_rate(done.throughput_bytes_per_s)}{rest}{verified}"
    )


def cpu_line(done: Migrated) -> str:
    """CPU time of both sides, in one line; empty where none was measured."""
    sides = (("source", done.source_cpu), ("destination", done.destination_cpu))
    if not any(cpu.total_s for _, cpu in sides):
        return ""
    parts = " + ".join(
        f"{name} {format_duration(cpu.user_s)} user, {format_duration(cpu.system_s)} system" for name, cpu in sides
    )
    return f"CPU time {format_duration(done.cpu_s_per_gb)} a GB sent = ({parts}) / {done.sent_bytes / 1e9:.2f} GB"


def throttled_line(throttled: Throttled) -> str:
    """The time that throttling took from the guest, in one line; empty where it was not throttled."""
    if not throttled.active_s:
        return ""
    each = ", ".join(format_duration(throttled_s) for throttled_s in throttled.throttled_s)
    return (
        f"throttled for {format_duration(throttled.active_s)}: {100 * throttled.share:.0f} % of the vCPUs' time was "
        f"taken ({each})"
    )


def stall_line(stall: GuestStall) -> str:
    """What was taken from the guest before the switchover, in one line; empty in documents that do not say."""
    if stall.precopy is None or stall.before is None:
        return f"the guest's gaps were not measured: {stall.why_not}" if stall.why_not else ""
    rounds, before = stall.precopy, stall.before
    unread = f" (of those that were read; {rounds.unread} were not)" if rounds.unread else ""
    return (
        f"by its own clock the guest stood still for {format_duration(rounds.stalled_s)} of the "
        f"{format_duration(rounds.window_s)} before it was paused ({100 * rounds.share:.1f} %), longest gap "
        f"{format_duration(rounds.longest_s)}{unread}; in the {format_duration(before.window_s)} before the migration "
        f"{format_duration(before.stalled_s)} ({100 * before.share:.1f} %), longest gap "
        f"{format_duration(before.longest_s)}"
    )


def attempt_line(attempt: Attempt) -> str:
    """What a migration had done when it ended without completing, in one line."""
    unfinished = f", {format_size(attempt.other_bytes)} of it outside these rounds" if attempt.other_bytes else ""
    return (
        f"not completed: {format_size(attempt.sent_bytes)} sent in {format_duration(attempt.total_s)}{unfinished}; "
        f"{format_size(attempt.remaining_bytes)} were still to be sent"
    )


def _text(done: Migration) -> list[TextPart]:
    return [
        tracker_line(done),
        *rounds_table(done.rounds),
        downtime_line(done.downtime),
        total_line(done),
        *filter(
            None,
            (
                sync_way_line(done),
                cpu_line(done),
                expected_line(done),
                stall_line(done.stall),
                throttled_line(done.throttled),
            ),
        ),
    ]


KIND = Kind(Migration, _text, body=migration_body, today=as_today)
