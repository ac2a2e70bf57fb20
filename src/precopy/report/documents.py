"""Results as JSON documents, each with its ``schema``. Seconds, bytes and pages, as the field names say."""

from __future__ import annotations

from typing import Any

import msgspec

from precopy.report.kinds import schema


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
        return {_escaped(name): _escaped(field) for name, field in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    return value
