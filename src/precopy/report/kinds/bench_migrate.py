"""``precopy bench migrate``: throughput and downtime of a migration, beside the raw socket and beside QEMU's own."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from precopy.bounds import Count, Number, Signed, Text
from precopy.migration.results import Migrated
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.migrate import migration_body
from precopy.report.kinds.older import as_today
from precopy.report.kinds.shared import Failed
from precopy.report.table import Shown, tabulate
from precopy.units import format_duration, format_rate


@dataclass(frozen=True)
class Setup:
    """What is migrated: ``ram`` bytes of random content, of which ``rewritten`` bytes are written again and again at
    ``write_rate`` pages a second (None: as fast as it goes), under ``downtime_limit_s`` seconds."""

    ram: Count
    rewritten: Count
    write_rate: Count | None
    downtime_limit_s: Number
    verify: bool


@dataclass(frozen=True)
class Overhead:
    """Largest resident size of each process (VmHWM), less the guest's RAM, in bytes."""

    source: Signed
    destination: Signed


@dataclass(frozen=True)
class QemuMigration:
    """What one migration took. Times in seconds, sizes in bytes, rates in bytes or pages a second.

    From QEMU's ``query-migrate``, in whole milliseconds: ``total_s``, ``downtime_s``, ``setup_s``; and
    ``transferred_bytes`` (RAM only), ``rounds`` (dirty-sync-count). ``throughput_bytes_per_s`` is
    transferred bytes over total time. By the host's clock: ``wall_s``, from the ``migrate`` command until
    QEMU reports completion, and ``wall_throughput_bytes_per_s``; ``stop_to_resume_s``, from the source's
    STOP event to the destination's RESUME event, which QEMU's own downtime need not include.
    ``write_rate_pages_per_s`` is what the guest's own counter showed before the migration began. ``tracker`` is what
    QEMU tracks by, and ``channels`` carried pages (multifd, where it is more than one).
    """

    version: Text
    total_s: Number
    downtime_s: Number
    setup_s: Number
    transferred_bytes: Count
    throughput_bytes_per_s: Number
    rounds: Count
    downtime_limit_s: Number
    wall_s: Number
    wall_throughput_bytes_per_s: Number
    stop_to_resume_s: Number
    write_rate_pages_per_s: Number
    tracker: Text = "dirty log"
    channels: Count = 1

    @property
    def name(self) -> str:
        """Such as ``QEMU 10.0.2, ring, multifd 2``."""
        ring = ", ring" if self.tracker == "dirty ring" else ""
        multifd = f", multifd {self.channels}" if self.channels > 1 else ""
        return f"QEMU {(self.version.split() or ['?'])[0]}{ring}{multifd}"


@dataclass(frozen=True)
class Repeat:
    """One repeat. ``qemu`` is the first QEMU, by the dirty log and with one channel, None where that was not measured;
    ``other_qemus`` are the other versions, and each by the dirty ring and with multifd."""

    ceiling_bytes_per_s: Number
    precopy: Migrated
    overhead_bytes: Overhead
    qemu: QemuMigration | None
    other_qemus: Annotated[tuple[QemuMigration, ...], Meta(max_length=100)] = ()

    @property
    def qemus(self) -> tuple[QemuMigration, ...]:
        """All that were measured."""
        return (*([] if self.qemu is None else [self.qemu]), *self.other_qemus)

    @property
    def fastest_qemu(self) -> QemuMigration | None:
        """By throughput."""
        return max(self.qemus, key=lambda qemu: qemu.throughput_bytes_per_s, default=None)


@dataclass(frozen=True)
class IdleSync:
    """Syncs of an idle guest over ``slots`` memory slots, in seconds."""

    slots: Count
    syncs: Count
    median_s: Number
    min_s: Number
    max_s: Number


@dataclass(frozen=True)
class MigrateBench:
    """Figures are medians of the repeats, ratios of the repeats' own, and ``overhead_bytes`` the largest of all;
    ``ratio_to_qemu`` is to the fastest QEMU of a repeat, None where none was measured; ``left_out`` says which QEMUs
    are not on this machine."""

    setup: Setup
    throughput_bytes_per_s: Number
    downtime_s: Number
    ceiling_bytes_per_s: Number
    ratio_to_ceiling: Number
    ratio_to_qemu: Number | None
    overhead_bytes: Overhead
    idle_sync: IdleSync
    repeats: Annotated[tuple[Repeat, ...], Meta(min_length=1, max_length=200)]
    failed: Annotated[tuple[Failed, ...], Meta(max_length=1000)] = ()
    left_out: Annotated[tuple[Text, ...], Meta(max_length=20)] = ()

    @classmethod
    def of(
        cls,
        setup: Setup,
        repeats: tuple[Repeat, ...],
        idle: IdleSync,
        failed: tuple[Failed, ...],
        left_out: tuple[str, ...] = (),
    ) -> MigrateBench:
        beside_qemu = [
            _rate(repeat) / qemu.throughput_bytes_per_s
            for repeat in repeats
            if (qemu := repeat.fastest_qemu) is not None and qemu.throughput_bytes_per_s
        ]

        def median(figure: Callable[[Repeat], float]) -> float:
            return statistics.median(map(figure, repeats))

        return cls(
            setup=setup,
            throughput_bytes_per_s=median(_rate),
            downtime_s=median(lambda repeat: repeat.precopy.downtime.total_s),
            ceiling_bytes_per_s=median(lambda repeat: repeat.ceiling_bytes_per_s),
            ratio_to_ceiling=median(lambda repeat: _rate(repeat) / repeat.ceiling_bytes_per_s),
            ratio_to_qemu=statistics.median(beside_qemu) if beside_qemu else None,
            overhead_bytes=Overhead(
                max(repeat.overhead_bytes.source for repeat in repeats),
                max(repeat.overhead_bytes.destination for repeat in repeats),
            ),
            idle_sync=idle,
            repeats=repeats,
            failed=failed,
            left_out=left_out,
        )


def _rate(repeat: Repeat) -> float:
    return repeat.precopy.throughput_bytes_per_s


@dataclass(frozen=True)
class _Line:
    """What ran, its throughput, the guest's downtime and rounds (None: it had none), and precopy's ratio to it."""

    what: str
    throughput: float
    downtime_s: float | None = None
    rounds: int | None = None
    ratio: str = ""


_COLUMNS: tuple[Shown[_Line], ...] = (
    Shown("", lambda line: line.what, numeric=False),
    Shown("throughput", lambda line: format_rate(line.throughput)),
    Shown("downtime", lambda line: "-" if line.downtime_s is None else format_duration(line.downtime_s)),
    Shown("rounds", lambda line: "-" if line.rounds is None else str(line.rounds)),
    Shown("precopy's ratio to it", lambda line: line.ratio),
)


def _lines(repeat: Repeat) -> list[_Line]:
    ours = _rate(repeat)
    return [
        _Line("raw socket", repeat.ceiling_bytes_per_s, ratio=_ratio(ours, repeat.ceiling_bytes_per_s)),
        _Line("precopy", ours, repeat.precopy.downtime.total_s, len(repeat.precopy.rounds)),
        *(_qemu_line(qemu, ours) for qemu in repeat.qemus),
    ]


def _qemu_line(qemu: QemuMigration, ours: float) -> _Line:
    theirs = qemu.throughput_bytes_per_s
    return _Line(qemu.name, theirs, qemu.downtime_s, qemu.rounds, _ratio(ours, theirs))


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if theirs else "-"


def _text(bench: MigrateBench) -> list[TextPart]:
    lines = [line for repeat in bench.repeats for line in _lines(repeat)]
    qemu = any(repeat.qemus for repeat in bench.repeats)
    whose = ["QEMU's figures are its own (query-migrate); its rounds are the syncs that it counts"] if qemu else []
    against = f", {bench.ratio_to_qemu:.2f} times QEMU's best" if bench.ratio_to_qemu else "; QEMU was not measured"
    peak = max(bench.overhead_bytes.source, bench.overhead_bytes.destination)
    return [
        tabulate("Each measurement, in the order in which they were made", _COLUMNS, lines),
        *whose,
        f"median of the repeats' ratios: {bench.ratio_to_ceiling:.2f} of the raw socket{against}",
        _idle(bench.idle_sync),
        f"memory beyond the guest's RAM: at most {int(peak) >> 20} MiB on either side",
        *bench.left_out,
    ]


def _idle(idle: IdleSync) -> str:
    spread = f"median of {idle.syncs}; {format_duration(idle.min_s)} to {format_duration(idle.max_s)}"
    return f"idle guest: a sync over {idle.slots} slots takes {format_duration(idle.median_s)} ({spread})"


def _body(bench: MigrateBench) -> dict[str, Any]:
    repeats = [{**msgspec.to_builtins(repeat), "precopy": migration_body(repeat.precopy)} for repeat in bench.repeats]
    return {**msgspec.to_builtins(bench), "repeats": repeats}


KIND = Kind(MigrateBench, _text, body=_body, today=as_today)
