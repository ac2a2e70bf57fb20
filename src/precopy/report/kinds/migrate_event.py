"""``precopy migrate --json-lines``: an event of a migration, a line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from precopy.bounds import Text
from precopy.errors import UsageError
from precopy.migration.results import EVENTS, Committing, Event, Note, Verdict, event_name
from precopy.planning.model.round import Round
from precopy.progress import Progress
from precopy.report.kinds.kind import Kind
from precopy.report.kinds.older import event_as_today
from precopy.report.kinds.shared import progress_line
from precopy.report.verdicts import after_round
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class MigrateEvent:
    """``event`` is the name of one of the other fields, which is what happened; the rest are None."""

    event: Text
    progress: Progress | None = None
    round: Round | None = None
    verdict: Verdict | None = None
    note: Note | None = None
    committing: Committing | None = None

    @classmethod
    def of(cls, event: Event) -> MigrateEvent:
        return cls(
            event_name(event),
            progress=event if isinstance(event, Progress) else None,
            round=event if isinstance(event, Round) else None,
            verdict=event if isinstance(event, Verdict) else None,
            note=event if isinstance(event, Note) else None,
            committing=event if isinstance(event, Committing) else None,
        )


def _text(told: MigrateEvent) -> list[str]:
    done = told.round
    lines = [
        progress_line(told.progress) if told.progress else "",
        _round(done) if done else "",
        after_round(told.verdict) if told.verdict else "",
        told.note.text if told.note else "",
        f"the guest is being given away (session {told.committing.session})" if told.committing else "",
    ]
    return [line for line in lines if line] or [told.event]


def _round(done: Round) -> str:
    name = "the last round" if done.final else f"round {done.number}"
    took = f"sync time {format_duration(done.sync_s)}, transfer time {format_duration(done.transfer_s)}"
    return f"{name}: {format_size(done.sent_bytes)} sent; {took}"


def _body(told: MigrateEvent) -> dict[str, Any]:
    """What happened has its fields in the document itself."""
    happened: dict[str, Any] = msgspec.to_builtins(getattr(told, told.event))
    return {"event": told.event, **happened}


def _today(document: dict[str, Any]) -> dict[str, Any]:
    name = document.get("event")
    if not isinstance(name, str) or name not in EVENTS:
        raise UsageError(f"`event` has to be one of {', '.join(EVENTS)}")
    return {"event": name, name: event_as_today(name, document)}


KIND = Kind(MigrateEvent, _text, body=_body, today=_today)
