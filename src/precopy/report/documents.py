"""Results as JSON documents, each with its ``schema``. Seconds, bytes and pages, as the field names say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from precopy.report.kinds import schema

if TYPE_CHECKING:  # numpy, which `precopy status` does without
    from precopy.migration.results import Attempt, Migrated
    from precopy.planning.model.round import Round


def document(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """``body`` under its kind's schema."""
    return {"schema": schema(kind), **body}


def to_json(value: dict[str, Any]) -> str:
    """One line of JSON. Numbers that JSON cannot hold become null."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # the name of a file may be no UTF-8
        return msgspec.json.encode(_escaped(msgspec.to_builtins(value))).decode()


def _escaped(value: Any) -> Any:
    """Bytes that are no UTF-8 as texts for people have them, too: with a backslash."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(name): _escaped(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(one) for one in value]
    return value


def migration_body(done: Migrated) -> dict[str, Any]:
    """A migration as documents hold it: its fields, and the sums over its rounds that people ask for."""
    body: dict[str, Any] = msgspec.to_builtins(done)
    downtime = body.pop("downtime")
    return {
        **body,
        "completed": True,
        "verified": done.compared_pages > 0,
        "downtime_s": done.downtime.total_s,
        "downtime": downtime,
        "guest_time_lost_s": done.guest_time_lost_s,
        "moving_s": done.moving_s,
        "throughput_bytes_per_s": done.throughput_bytes_per_s,
        **_sums(done.rounds),
    }


def attempt_body(attempt: Attempt) -> dict[str, Any]:
    """A migration that did not complete, as documents hold it under ``migration``: its fields, and the same sums."""
    body: dict[str, Any] = msgspec.to_builtins(attempt)
    return {**body, "completed": False, **_sums(attempt.rounds)}


def _sums(rounds: tuple[Round, ...]) -> dict[str, int]:
    names = ("get_log_ioctls", "clear_log_ioctls", "zero_pages", "torn_batches")
    return {name: sum(getattr(one, name) for one in rounds) for name in names}
