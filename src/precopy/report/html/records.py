"""What a report is made of: precopy's JSON documents as records. A file may be anybody's, so each number has bounds.

Field names are those of the documents; what a field means is said where it is measured (``migration/results.py``,
``planning/``). Fields that older files lack are None. Fields that nobody shows are not named here and are ignored.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from precopy.migration.results import Range

Number = Annotated[float, Meta(ge=0, le=1e24)]
"""Seconds, bytes, or bytes a second."""
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Cells = Annotated[tuple[Count, ...], Meta(max_length=256)]


class Machine(Struct, frozen=True):
    """Where the figures come from, and when: ``vector`` is the CPU's vector unit, ``load_average`` of 1, 5 and 15
    minutes, when they began to be taken; ``command`` is the line that was typed, ``defaults`` the options that were
    left at theirs."""

    host: str = ""
    cpu: str = ""
    vector: str = ""
    cores: Count | None = None
    memory_bytes: Count | None = None
    kernel: str = ""
    python: str = ""
    precopy: str = ""
    date: str = ""
    load_average: Annotated[tuple[Number, ...], Meta(max_length=3)] = ()
    command: str = ""
    defaults: Annotated[dict[str, str], Meta(max_length=100)] = {}


class Round(Struct, frozen=True):
    number: Count
    final: bool
    sync_s: Number
    transfer_s: Number
    dirty_pages: Count
    sent_pages: Count
    zero_pages: Count
    sent_bytes: Count
    get_log_ioctls: Count
    clear_log_ioctls: Count
    bandwidth_bytes_per_s: Number | None
    dirty_rate_bytes_per_s: Number | None
    pending_bytes: Number | None = None
    throttled_share: Number | None = None
    dirty_map: Cells | None = None
    send_s: Number | None = None
    new_dirty_pages: Count | None = None
    again_pages: Count = 0
    pending_pages: Count | None = None
    left_pages: Count = 0


class Downtime(Struct, frozen=True):
    pause_s: Number
    final_sync_s: Number
    final_send_s: Number
    state_s: Number
    commit_s: Number


class Verdict(Struct, frozen=True):
    """What was predicted after ``round``."""

    round: Count
    converges: bool | None
    downtime_s: Range
    total_s: Range
    more_rounds: Range
    action: str
    reason: str
    smallest_downtime_limit_s: Range | None = None
    downtime_limit_s: Number | None = None


class Throttled(Struct, frozen=True):
    """Seconds that were taken from each vCPU, and for how long a throttle was in force."""

    throttled_s: Annotated[tuple[Number, ...], Meta(max_length=1024)]
    active_s: Number


class Migration(Struct, frozen=True):
    """A migration that completed. ``policy`` decided when to switch over. Files of older versions have no
    ``verify_bytes``: their ``sent_bytes`` and throughput count what verification sent."""

    guest: str
    tracker: str
    clear: str
    rounds: Annotated[tuple[Round, ...], Meta(min_length=1, max_length=2000)]
    downtime: Downtime
    downtime_s: Number
    downtime_limit_s: Number
    total_s: Number
    sent_bytes: Count
    verified: bool
    get_log_ioctls: Count
    clear_log_ioctls: Count
    verify_s: Number = 0.0
    throughput_bytes_per_s: Number | None = None
    ram_bytes: Count | None = None
    compared_pages: Count = 0
    verify_bytes: Count | None = None
    setup_s: Number = 0.0
    verdicts: Annotated[tuple[Verdict, ...], Meta(max_length=2000)] = ()
    policy: str = ""
    throttled: Throttled | None = None
    workload: str = ""

    @property
    def remaining_bytes(self) -> tuple[Number | None, ...]:
        """What was still to be sent after each round and the sync of the next; None where no round followed, and in
        older files."""
        return (*(one.pending_bytes for one in self.rounds[1:]), None)

    @property
    def unverified_s(self) -> float:
        """The whole time but verification's."""
        return self.total_s - self.verify_s

    @property
    def _mixed(self) -> bool:
        return self.verify_bytes is None and self.verified

    @property
    def moved_bytes(self) -> int:
        """All bytes but verification's."""
        return sum(one.sent_bytes for one in self.rounds) if self._mixed else self.sent_bytes

    @property
    def moved_bytes_per_s(self) -> float | None:
        """Those, a second of the time in which they went."""
        if not self._mixed:
            return self.throughput_bytes_per_s
        moving_s = self.unverified_s - self.setup_s
        return self.moved_bytes / moving_s if moving_s > 0 else None


class Failed(Struct, frozen=True):
    """A run of a demo that has no migration to show."""

    clear: str
    verdict: str


class Checked(Struct, frozen=True):
    """A run of a demo: its migration, and what the checks of both memories and of the guest said."""

    migration: Migration
    verified: bool
    verdict: str


class Demo(Struct, frozen=True):
    runs: Annotated[tuple[Checked | Failed, ...], Meta(min_length=1)]
    guest: str


class QemuMigration(Struct, frozen=True):
    version: str
    total_s: Number
    downtime_s: Number
    throughput_bytes_per_s: Number
    rounds: Count


class Repeat(Struct, frozen=True):
    ceiling_bytes_per_s: Number
    precopy: Migration
    qemu: QemuMigration | None = None


class BenchMigrate(Struct, frozen=True):
    throughput_bytes_per_s: Number
    downtime_s: Number
    ceiling_bytes_per_s: Number
    ratio_to_ceiling: Number
    repeats: Annotated[tuple[Repeat, ...], Meta(min_length=1, max_length=200)]
    ratio_to_qemu: Number | None = None


class Score(Struct, frozen=True):
    """What a policy made of a trace."""

    policy: str
    completed: bool
    downtime_s: Number | None
    total_s: Number | None
    sent_bytes: Number | None
    guest_time_lost_s: Number | None
    rounds: Count
    reason: str
    on_front: bool


class Trace(Struct, frozen=True):
    name: str
    results: Annotated[tuple[Score, ...], Meta(min_length=1, max_length=100)]


class Compare(Struct, frozen=True):
    traces: Annotated[tuple[Trace, ...], Meta(min_length=1, max_length=200)]


class ErrorFields(Struct, frozen=True):
    kind: str
    message: str
    exit_code: Count


class Failure(Struct, frozen=True):
    """What a command with ``--json`` prints where it failed; ``migration`` as far as it came, where it was one."""

    error: ErrorFields
    migration: dict[str, object] = {}


class Document(Struct, frozen=True):
    """``record``: of what its kind is made of; None where its fields, ``body``, are all there is to it."""

    kind: str
    schema: str
    body: dict[str, object]
    machine: Machine | None
    record: object = None
