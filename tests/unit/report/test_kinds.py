"""The records of documents: their files are anybody's, so each field has bounds; and nothing of a document is lost."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from precopy.migration.results import Committing, Event, Note, Verdict, event_name
from precopy.planning.model.round import Round
from precopy.planning.plan.advice import advise
from precopy.planning.plan.plan import PlanInput, downtime_with, plan
from precopy.progress import Progress
from precopy.report import kinds
from precopy.report.kinds import KINDS, load
from precopy.report.kinds.migrate_event import MigrateEvent
from precopy.report.kinds.plan import PlannedMigration
from support import reports

RECORDED = list(KINDS)


def record(kind: str) -> type[Any]:
    return load(kind).record


def unbounded(hint: Any, where: str) -> Iterator[str]:
    """The fields below ``hint`` that take values without a limit."""
    bounds = [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, msgspec.Meta)]
    plain = hint.__origin__ if typing.get_origin(hint) is Annotated else hint
    if plain in (bool, type(None)) or typing.get_origin(plain) is Literal or issubclass_of(plain, Enum):
        return
    if plain in (int, float):
        if not any(one.ge is not None and one.le is not None for one in bounds):
            yield where
        return
    fixed = typing.get_origin(plain) is tuple and Ellipsis not in typing.get_args(plain)
    union, record = typing.get_origin(plain) in (typing.Union, types.UnionType), dataclasses.is_dataclass(plain)
    if not union and not record and not fixed and not any(one.max_length is not None for one in bounds):
        yield where
    for name, inner in inside(plain):
        yield from unbounded(inner, f"{where}{name}")


def issubclass_of(plain: Any, kind: type) -> bool:
    return isinstance(plain, type) and issubclass(plain, kind)


def inside(plain: Any) -> list[tuple[str, Any]]:
    """What is in a record, in a list, a table, or a choice."""
    if dataclasses.is_dataclass(plain):
        hints = typing.get_type_hints(plain, include_extras=True)
        return [(f".{field.name}", hints[field.name]) for field in dataclasses.fields(plain)]
    name = "" if typing.get_origin(plain) in (typing.Union, types.UnionType) else "[]"
    return [(name, one) for one in typing.get_args(plain) if one is not Ellipsis]


@pytest.mark.parametrize("kind", RECORDED)
def test_every_field_has_bounds(kind: str) -> None:
    assert list(unbounded(record(kind), kind)) == []


@dataclasses.dataclass(frozen=True)
class _Inner:
    number: float
    names: tuple[Annotated[str, msgspec.Meta(max_length=3)], ...]


@dataclasses.dataclass(frozen=True)
class _Loose:
    inner: Annotated[tuple[_Inner, ...], msgspec.Meta(max_length=3)]
    text: str | None
    yes: bool


def test_a_field_without_is_noticed() -> None:
    found = list(unbounded(typing.get_type_hints(_Loose, include_extras=True)["inner"], "inner"))
    assert found == ["inner[].number", "inner[].names"]
    assert list(unbounded(_Loose, "loose")) == ["loose.inner[].number", "loose.inner[].names", "loose.text"]


@pytest.mark.parametrize("kind", RECORDED)
def test_a_record_is_frozen(kind: str) -> None:
    assert record(kind).__dataclass_params__.frozen


@pytest.mark.parametrize("kind", sorted(path.stem for path in reports.GOLDEN.glob("*.json")))
def test_a_document_keeps_its_fields(kind: str) -> None:
    """What a command of version 0.1 printed is what its record prints today, which may say more."""
    made_of, document = load(kind), reports.golden(kind)
    versions = range(KINDS[kind].oldest, KINDS[kind].version + 1)
    assert document.pop("schema") in [f"precopy.{kind}/{version}" for version in versions]
    if isinstance(document.get("machine"), dict):  # a replay has the recorded machine's name there
        assert document.pop("machine")["cores"] == 2
    printed = made_of.body(msgspec.convert(made_of.today(document), made_of.record))
    assert kept(document, msgspec.json.decode(msgspec.json.encode(printed))) == document


def kept(document: Any, printed: Any) -> Any:
    """``printed`` without the fields that ``document`` does not have."""
    if isinstance(document, dict) and isinstance(printed, dict):
        return {name: kept(value, printed[name]) for name, value in document.items() if name in printed}
    if isinstance(document, list) and isinstance(printed, list) and len(document) == len(printed):
        return [kept(one, other) for one, other in zip(document, printed, strict=True)]
    return printed


def test_a_kind_with_a_module_has_a_document_to_test_it_with() -> None:
    assert set(RECORDED) <= {path.stem for path in reports.GOLDEN.glob("*.json")}


def test_every_module_is_a_kind_or_what_kinds_share() -> None:
    modules = {path.stem for path in Path(kinds.__file__).parent.glob("*.py")} - {"__init__", "kind", "older", "shared"}
    assert modules == {kind.replace("-", "_") for kind in KINDS}


ROUND = msgspec.convert(reports.golden("migrate")["rounds"][0], Round)
EVENTS: list[tuple[Event, str]] = [
    (Progress("rounds", 2, 1 << 20, 1 << 30, 1e6, 2e6, 1.5, None, None), "round 2 | 1.0 MiB sent | 1.0 GiB left"),
    (dataclasses.replace(ROUND, number=3, sent_bytes=2 << 20), "round 3: 2.0 MiB sent; sync time "),
    (msgspec.convert(reports.migrate()["verdicts"][0], Verdict), "after round 1: "),
    (Note("the recording ended early"), "the recording ended early"),
    (Committing("5e55"), "the guest is being given away (session 5e55)"),
]


@pytest.mark.parametrize(("event", "said"), EVENTS, ids=[event_name(event) for event, _ in EVENTS])
def test_each_event_is_a_document(event: Event, said: str) -> None:
    kind = load("migrate-event")
    told = MigrateEvent.of(event)
    document = msgspec.json.decode(msgspec.json.encode(kind.body(told)))
    assert document == {"event": event_name(event), **msgspec.json.decode(msgspec.json.encode(event))}
    assert msgspec.convert(kind.today(document), MigrateEvent) == told
    (sentence,) = kind.text(told)
    assert sentence.startswith(said)


def test_an_event_of_another_version_is_shown_by_its_name() -> None:
    kind = load("migrate-event")
    told = msgspec.convert(kind.today({"event": "resumed", "round": 7}), MigrateEvent)
    assert (told.happened, kind.text(told)) == (None, ["resumed"])


def test_events_under_their_older_names() -> None:
    kind = load("migrate-event")
    made = {"event": "round", **msgspec.to_builtins(EVENTS[1][0]), "arrived_s": 2.5, "throttled_share": 0.25}
    older = {**made, "ended_s": made["arrived_s"], "throttle": made["throttled_share"], "remaining_bytes": 5}
    del older["arrived_s"], older["throttled_share"]
    assert msgspec.convert(kind.today(older), MigrateEvent) == msgspec.convert(kind.today(made), MigrateEvent)


@pytest.mark.parametrize("kind", ["plan", "plan-sweep"])
def test_plans_under_their_older_names(kind: str) -> None:
    made_of, document = load(kind), reports.golden(kind)
    (numbers,) = (part for part in (document["input"], document.get("axes", {})) if "switchover_overhead_s" in part)
    today = msgspec.convert(made_of.today(document), made_of.record)
    numbers["handover_s"] = numbers.pop("switchover_overhead_s")
    assert msgspec.convert(made_of.today(document), made_of.record) == today


def test_a_planned_rounds_downtime_is_that_of_what_then_remains() -> None:
    """Also of a round that ends early, after which more remains than after a whole one."""
    asked = PlanInput(4 << 30, 2e9, 1.5e9, 4 << 30, 0.022)
    course = PlannedMigration.of(plan(asked), advise(asked)).forecast
    assert course.converges
    assert course.round_by_round[-1].downtime_s == pytest.approx(course.downtime_s.value, rel=1e-3)
    for planned in course.round_by_round:
        assert planned.downtime_s == downtime_with(asked, planned.remaining_bytes)
