"""Words that pages share: terms, facts of a machine, and values as text."""

from __future__ import annotations

from collections.abc import Callable

from precopy.migration.results import Range
from precopy.report.kinds.shared import Machine
from precopy.units import format_duration, format_size

NONE = "-"
"""In a table: there is no such value."""

ROUND_TERMS: tuple[tuple[str, str], ...] = (
    (
        "pre-copy",
        "Memory is copied while the guest goes on writing it; what it wrote meanwhile is copied again, in rounds.",
    ),
    ("dirty page", "4 KiB of memory that were written since they were last looked at, so they have to be sent again."),
    ("round", "One sync, and the sending of what it found."),
    ("sync time", "How long it takes to ask the kernel which pages are dirty, and to have it watch them again."),
    ("transfer time", "How long it takes to send the pages of a round, until all of it has arrived."),
    ("bandwidth", "Bytes a second that are sent."),
    (
        "dirty rate",
        "Bytes a second of memory that the guest dirties. If it is not below the bandwidth, rounds do not get shorter.",
    ),
    ("downtime limit", "How long the guest may stand still at the end."),
    ("downtime", "From the request to pause the guest here until it runs at the other side."),
    ("gap", "More than 0.1 ms in which the guest did not go on, by its own clock."),
    ("ioctl", "A call into the kernel: one kind fetches which pages are dirty (get), one re-arms them (clear)."),
    ("clear policy", "When, and with how many calls, pages are re-armed after a sync."),
)

_MIGRATION = [term for term in ROUND_TERMS if term[0] in ("pre-copy", "round", "downtime", "downtime limit")]
_SYNC = [term for term in ROUND_TERMS if term[0] in ("dirty page", "sync time", "ioctl", "clear policy")]

SYNC_TERMS: tuple[tuple[str, str], ...] = (
    *_SYNC,
    ("RAM block", "A named piece of a guest's memory: its main memory, a firmware's flash, a video memory."),
    ("deferred clear", "A clear that is not made in the sync but just before its pages are sent."),
)

COMPARE_TERMS: tuple[tuple[str, str], ...] = (
    *_MIGRATION,
    ("policy", "The rule that decides after each round: go on, switch over, slow the guest down, or give up."),
    ("trace", "A recorded migration: what the guest wrote, and when. Every policy is tried on the same one."),
    ("front", "Policies that no other one beats in both downtime and total time (the Pareto front)."),
    ("guest time lost", "Time in which the guest did not run: its downtime, and what throttling took."),
)

PREDICT_TERMS: tuple[tuple[str, str], ...] = (
    *_MIGRATION,
    ("range", "Where the truth should lie about nine times in ten."),
)


def facts(machine: Machine | None, workload: str = "") -> tuple[tuple[str, str], ...]:
    """What the document says of where it comes from."""
    if machine is None:
        return ()
    memory = format_size(machine.memory_bytes) if machine.memory_bytes is not None else ""
    cores = f"{machine.cores}" if machine.cores is not None else ""
    named = (
        ("command", machine.command),
        ("options at their defaults", ", ".join(f"{name} {value}" for name, value in machine.defaults.items())),
        ("workload", workload),
        ("date", machine.date.replace("T", " ").replace("+00:00", " UTC")),
        ("host", machine.host),
        ("CPU", machine.cpu),
        ("vector unit", machine.vector),
        ("cores", cores),
        ("memory", memory),
        ("kernel", machine.kernel),
        ("Python", machine.python),
        ("precopy", machine.precopy),
        ("load average", ", ".join(f"{load:.2f}" for load in machine.load_average)),
    )
    return tuple((name, value) for name, value in named if value)


def duration(seconds: float | None) -> str:
    return NONE if seconds is None else format_duration(seconds)


def share(part: float, whole: float) -> str:
    """``1.3`` or ``0.04``: how many times ``whole``."""
    times = part / whole
    return f"{times:.0f}" if times >= 20 else f"{times:.1f}" if times >= 1 else f"{times:.2g}"


def span(estimate: Range | None, text: Callable[[float], str]) -> str:
    """``41.0 to 55.0 ms``, or one value where there is no range."""
    if estimate is None:
        return NONE
    if estimate.low is None or estimate.high is None:
        return f"{text(estimate.low)} or more" if estimate.low is not None else "no end in sight"
    low, high = text(estimate.low), text(estimate.high)
    if low == high:
        return low
    number, _, unit = low.partition(" ")
    return f"{number} to {high}" if high.endswith(f" {unit}") else f"{low} to {high}"


def several(number: int, what: str) -> str:
    """``1 round``, ``3 rounds``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def listed(names: list[str]) -> str:
    """``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
