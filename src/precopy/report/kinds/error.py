"""What a command with ``--json`` prints where it failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from precopy.bounds import Count, Text
from precopy.migration.results import Attempt
from precopy.report.kinds.kind import Kind, TextPart
from precopy.report.kinds.migrate import attempt_body, attempt_line, rounds_table
from precopy.report.kinds.older import as_today


@dataclass(frozen=True)
class ErrorFields:
    kind: Text
    message: Text
    exit_code: Count


@dataclass(frozen=True)
class Failure:
    """``migration`` as far as it came, where it was one."""

    error: ErrorFields
    migration: Attempt | None = None


def _text(failure: Failure) -> list[TextPart]:
    attempt = failure.migration
    migration = [] if attempt is None else [*rounds_table(attempt.rounds), attempt_line(attempt)]
    return [f"failed, exit code {failure.error.exit_code}: {failure.error.message}", *migration]


def _body(failure: Failure) -> dict[str, Any]:
    migration = {} if failure.migration is None else {"migration": attempt_body(failure.migration)}
    return {"error": msgspec.to_builtins(failure.error), **migration}


KIND = Kind(Failure, _text, body=_body, today=as_today)
