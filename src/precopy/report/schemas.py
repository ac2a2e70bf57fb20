"""The kinds of document that ``--json`` prints, each with the number of its schema. A number goes up where a field's
name or meaning changes; `precopy report` reads all numbers up to it."""

from __future__ import annotations

VERSIONS = {
    "bench-bitmap": 1,
    "bench-display": 1,
    "bench-migrate": 1,
    "bench-predict": 1,
    "bench-snapshot": 1,
    "bench-sync": 1,
    "bench-track": 1,
    "check": 1,
    "compare": 1,
    "demo": 1,
    "demo-memory": 1,
    "error": 1,
    "layout": 1,
    "migrate": 1,
    "migrate-event": 1,
    "plan": 1,
    "plan-sweep": 1,
    "receive": 1,
    "replay": 2,  # a round's sync is the one that begins it
    "report": 1,
    "run": 1,
    "snapshot-compact": 1,
    "snapshot-export": 1,
    "snapshot-list": 1,
    "snapshot-verify": 1,
    "status": 1,
}


def schema(kind: str) -> str:
    """``precopy.<kind>/<number>`` as it is written today."""
    return f"precopy.{kind}/{VERSIONS[kind]}"
