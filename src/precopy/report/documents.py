"""Results as JSON documents, each with its ``schema``. Seconds, bytes and pages, as the field names say."""

from __future__ import annotations

from typing import Any

import msgspec

from precopy.migration.results import Migrated


def document(kind: str, version: int, body: dict[str, Any]) -> dict[str, Any]:
    """``body`` under the schema ``precopy.<kind>/<version>``."""
    return {"schema": f"precopy.{kind}/{version}", **body}


def to_json(value: dict[str, Any]) -> str:
    """One line of JSON. Numbers that JSON cannot hold become null."""
    return msgspec.json.encode(value).decode()


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
        "throughput_bytes_per_s": done.throughput_bytes_per_s,
        "get_log_ioctls": sum(one.get_log_ioctls for one in done.rounds),
        "clear_log_ioctls": sum(one.clear_log_ioctls for one in done.rounds),
        "zero_pages": sum(one.zero_pages for one in done.rounds),
        "torn_batches": sum(one.torn_batches for one in done.rounds),
    }
