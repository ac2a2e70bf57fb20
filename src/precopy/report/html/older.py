"""Documents that older versions printed: their fields under the names that they have today."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

_OF_A_ROUND = {"throttle": "throttled_share"}
_OF_A_VERDICT = {"throttle": "throttle_to", "limit_s": "downtime_limit_s"}
_OF_THROTTLED = {"stolen_s": "throttled_s"}
_LEVELS = 4
"""A migration lies no deeper than this in a document: ``repeats``, one of them, ``precopy`` of a benchmark."""


def as_today(value: Any, levels: int = _LEVELS) -> Any:
    """``value``, with the fields of every migration in it renamed; what it lies in is a copy, and nothing else is
    changed. A field that has today's name already stays as it is."""
    if not levels or not isinstance(value, dict | list):
        return value
    if isinstance(value, list):
        return [as_today(one, levels - 1) for one in value]
    if not isinstance(value.get("rounds"), list):
        return {name: as_today(field, levels - 1) for name, field in value.items()}
    return {
        **value,
        "rounds": _with_pending(_each(value["rounds"], _OF_A_ROUND)),
        **({"verdicts": _each(value["verdicts"], _OF_A_VERDICT)} if "verdicts" in value else {}),
        **({"throttled": _renamed(value["throttled"], _OF_THROTTLED)} if "throttled" in value else {}),
    }


def _each(values: Any, names: dict[str, str]) -> Any:
    return [_renamed(value, names) for value in values] if isinstance(values, list) else values


def _with_pending(rounds: list[Any]) -> list[Any]:
    """A round had what remained after the sync that followed it, which is what was pending when the next one began."""
    made = rounds[:1]
    for before, one in pairwise(rounds):
        known = isinstance(before, dict) and isinstance(one, dict) and "remaining_bytes" in before
        made.append({"pending_bytes": before["remaining_bytes"], **one} if known else one)
    return made


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {name if names.get(name, name) in value else names.get(name, name): field for name, field in value.items()}
