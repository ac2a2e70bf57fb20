"""``precopy migrate --json-lines``: an event of a migration, a line each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from precopy.bounds import Text
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

    @property
    def happened(self) -> Event | None:
        """None where the event is none that this precopy knows."""
        return self.progress or self.round or self.verdict or self.note or self.committing


def _text(told: MigrateEvent) -> list[str]:
    match told.happened:
        case Progress() as progress:
            return [progress_line(progress)]
        case Round() as done:
            return [_round_line(done)]
        case Verdict() as verdict:
            return [after_round(verdict)]
        case Note() as note:
            return [note.text]
        case Committing() as committing:
            return [f"the guest is being given away (session {committing.session})"]
    return [told.event]


def _round_line(done: Round) -> str:
    name = "the last round" if done.final else f"round {done.number}"
    took = f"sync time {format_duration(done.sync_s)}, transfer time {format_duration(done.transfer_s)}"
    return f"{name}: {format_size(done.sent_bytes)} sent; {took}"


def _body(told: MigrateEvent) -> dict[str, Any]:
    """What happened has its fields in the document itself."""
    happened: dict[str, Any] = msgspec.to_builtins(told.happened) if told.happened else {}
    return {"event": told.event, **happened}


def _today(document: dict[str, Any]) -> dict[str, Any]:
    name = document.get("event")
    if not isinstance(name, str) or name not in EVENTS:
        return {"event": name}
    return {"event": name, name: event_as_today(name, document)}


KIND = Kind(MigrateEvent, _text, body=_body, today=_today)
