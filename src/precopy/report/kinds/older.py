"""Documents that older versions printed: their fields under the names that they have today."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

_OF_A_ROUND = {"throttle": "throttled_share", "ended_s": "arrived_s"}
_OF_A_VERDICT = {"throttle": "throttle_to", "limit_s": "downtime_limit_s"}
_OF_EVENTS = {"round": _OF_A_ROUND, "verdict": _OF_A_VERDICT}
_OF_A_PLAN = {"handover_s": "switchover_overhead_s"}
_OF_THROTTLED = {"stolen_s": "throttled_s"}
_NOT_THROTTLED = {"throttled_s": [], "active_s": 0.0}
_LEVELS = 4
"""A migration lies no deeper than this in a document: ``repeats``, one of them, ``precopy`` of a benchmark."""


def as_today(value: Any, levels: int = _LEVELS) -> Any:
    """``value``, with the fields of every migration in it renamed, and what older ones lack added where it is known;
    what it lies in is a copy, and nothing else is changed. A field that has today's name already stays as it is."""
    if not levels or not isinstance(value, dict | list):
        return value
    if isinstance(value, list):
        return [as_today(item, levels - 1) for item in value]
    if not isinstance(value.get("rounds"), list):
        return {name: as_today(field, levels - 1) for name, field in value.items()}
    return {
        "policy": "",
        **value,
        "rounds": _with_pending(_each(value["rounds"], _OF_A_ROUND)),
        "verdicts": _each(value.get("verdicts", []), _OF_A_VERDICT),
        "throttled": _renamed(value.get("throttled") or _NOT_THROTTLED, _OF_THROTTLED),
        **_without_verification(value),
    }


def event_as_today(name: str, event: dict[str, Any]) -> dict[str, Any]:
    """The fields of an event called ``name``."""
    renamed: dict[str, Any] = _renamed(event, _OF_EVENTS.get(name, {}))
    return renamed


def numbers_as_today(document: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
    """``document`` with the numbers of a plan renamed that lie in ``parts`` of it."""
    return {**document, **{name: _renamed(document[name], _OF_A_PLAN) for name in parts if name in document}}


def _without_verification(migration: dict[str, Any]) -> dict[str, Any]:
    """``sent_bytes`` counted verification's bytes while there was no ``verify_bytes``."""
    sent = [made.get("sent_bytes") if isinstance(made, dict) else None for made in migration["rounds"]]
    if "verify_bytes" in migration or not migration.get("verified") or not all(isinstance(size, int) for size in sent):
        return {}
    return {"sent_bytes": sum(sent)}


def _each(values: Any, names: dict[str, str]) -> Any:
    return [_renamed(value, names) for value in values] if isinstance(values, list) else values


def _with_pending(rounds: list[Any]) -> list[Any]:
    """A round had what remained after the sync that followed it, which is what was pending when the next one began."""
    rounds = [
        {"ack_s": 0.0, **migration_round} if isinstance(migration_round, dict) else migration_round
        for migration_round in rounds
    ]  # which no page shows
    made = rounds[:1]
    for before, after in pairwise(rounds):
        known = isinstance(before, dict) and isinstance(after, dict) and "remaining_bytes" in before
        made.append({"pending_bytes": before["remaining_bytes"], **after} if known else after)
    return made


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {name if names.get(name, name) in value else names.get(name, name): field for name, field in value.items()}
