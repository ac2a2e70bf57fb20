"""What a report is made of: precopy's JSON documents as records. A file may be anybody's, so each number has bounds.

Field names are those of the documents; what a field means is said where it is measured (``migration/results.py``,
``planning/``). Fields that older files lack are None. Fields that nobody shows are not named here and are ignored.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Number = Annotated[float, Meta(ge=0, le=1e24)]
"""Seconds, bytes, or bytes a second."""
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Cells = Annotated[tuple[Count, ...], Meta(max_length=256)]


class Machine(Struct, frozen=True):
    """Where the figures come from, and when: ``vector`` is the CPU's vector unit, ``load_average`` of 1, 5 and 15
    minutes, when they began to be taken; ``command`` is the line that was typed, ``defaults`` the options that were
    left at theirs."""

    host: str = ""
    cpu: str = ""
    vector: str = ""
    cores: Count | None = None
    memory_bytes: Count | None = None
    kernel: str = ""
    python: str = ""
    precopy: str = ""
    date: str = ""
    load_average: Annotated[tuple[Number, ...], Meta(max_length=3)] = ()
    command: str = ""
    defaults: Annotated[dict[str, str], Meta(max_length=100)] = {}


class Score(Struct, frozen=True):
    """What a policy made of a trace."""

    policy: str
    completed: bool
    downtime_s: Number | None
    total_s: Number | None
    sent_bytes: Number | None
    guest_time_lost_s: Number | None
    rounds: Count
    reason: str
    on_front: bool


class ScoredTrace(Struct, frozen=True):
    name: str
    results: Annotated[tuple[Score, ...], Meta(min_length=1, max_length=100)]


class Compare(Struct, frozen=True):
    traces: Annotated[tuple[ScoredTrace, ...], Meta(min_length=1, max_length=200)]


class Document(Struct, frozen=True):
    """``record``: of what its kind is made of; None where its fields, ``body``, are all there is to it."""

    kind: str
    schema: str
    body: dict[str, object]
    machine: Machine | None
    record: object = None
