"""``precopy demo``: the same migration once for each clear policy, and what the checks said of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from precopy.bounds import Text
from precopy.errors import UsageError
from precopy.migration.results import Attempt, Migrated
from precopy.planning.model.round import Round
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.migrate import attempt_body, migration_body
from precopy.report.kinds.older import as_today
from precopy.report.table import Shown, tabulate
from precopy.units import format_duration, format_rate, format_size

_MOST_RUNS = 50


@dataclass(frozen=True)
class DemoRun:
    """The clear policy, its migration (None where it did not complete, and then ``attempt`` is how far it came), and
    what the checks said, or why it did not complete."""

    clear: Text
    migrated: Migrated | None
    verified: bool
    verdict: Text
    attempt: Attempt | None = None

    @property
    def rounds(self) -> tuple[Round, ...]:
        made = self.migrated or self.attempt
        return made.rounds if made else ()


@dataclass(frozen=True)
class Demo:
    """``why`` there was this kind of guest."""

    guest: Text
    runs: Annotated[tuple[DemoRun, ...], Meta(min_length=1, max_length=_MOST_RUNS)]
    why: Text = ""


def _of_rounds(run: DemoRun, what: str) -> str:
    return str(sum(getattr(made, what) for made in run.rounds)) if run.rounds else "-"


_COLUMNS: tuple[Shown[DemoRun], ...] = (
    Shown("clear policy", lambda run: run.clear, numeric=False),
    Shown("rounds", lambda run: str(len(run.rounds)) if run.rounds else "-"),
    Shown("get ioctls", lambda run: _of_rounds(run, "get_log_ioctls")),
    Shown("clear ioctls", lambda run: _of_rounds(run, "clear_log_ioctls")),
    Shown("first sync time", lambda run: format_duration(run.rounds[0].sync_s) if run.rounds else "-"),
    Shown("first transfer time", lambda run: format_duration(run.rounds[0].transfer_s) if run.rounds else "-"),
    Shown("downtime", lambda run: format_duration(run.migrated.downtime.total_s) if run.migrated else "-"),
    Shown("sent", lambda run: format_size(run.migrated.sent_bytes) if run.migrated else "-"),
    Shown("in", lambda run: format_duration(run.migrated.moving_s) if run.migrated else "-"),
    Shown("throughput", lambda run: format_rate(run.migrated.throughput_bytes_per_s) if run.migrated else "-"),
    Shown("verified", lambda run: run.verdict, numeric=False),
)
_VERIFIED = (
    "verified: before it ran on, both memories were the same byte for byte; at the destination the guest\n"
    "went on, and every page there holds what the guest's own count of writes says that it must hold."
)


def _text(demo: Demo) -> list[TextPart]:
    """One line a clear policy: ioctls, times of the first sync and round, downtime, bytes sent and the time of that
    (the comparison of the memories counts in neither)."""
    table = tabulate("What each clear policy took", _COLUMNS, demo.runs)
    completed = [run for run in demo.runs if run.attempt is None]
    if not completed or not all(run.verified for run in completed):
        return [table, "NOT verified: see above."]
    said = "A row without a downtime did not complete, and says why; its guest runs on at the source."
    return [table, _VERIFIED, *([said] if len(completed) < len(demo.runs) else [])]


def _body(demo: Demo) -> dict[str, Any]:
    """A run's fields are those of its migration, and the checks'."""
    return {"guest": demo.guest, "why": demo.why, "runs": [_run_body(run) for run in demo.runs]}


def _run_body(run: DemoRun) -> dict[str, Any]:
    if run.migrated:
        body = migration_body(run.migrated)
    else:
        body = attempt_body(run.attempt) if run.attempt else {"completed": False}
    return {**body, "clear": run.clear, "verified": run.verified, "verdict": run.verdict}


def _today(document: dict[str, Any]) -> dict[str, Any]:
    runs = document.get("runs")
    if not isinstance(runs, list) or not 0 < len(runs) <= _MOST_RUNS:
        raise UsageError(f"`runs` has to be a list of 1 to {_MOST_RUNS} runs")
    return {**document, "runs": [_run_of(run) for run in as_today(runs)]}


def _run_of(run: Any) -> Any:
    """``completed`` tells runs apart."""
    if not isinstance(run, dict):
        return run
    checks = {name: run[name] for name in ("clear", "verified", "verdict") if name in run}
    if run.get("completed") is True:
        return {**checks, "migrated": run}
    return {"verified": False, **checks, "migrated": None, "attempt": run if "rounds" in run else None}


KIND = Kind(Demo, _text, body=_body, today=_today)
