"""From the bytes of a file to records. The file is not trusted: whatever is wrong with it is one sentence."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import msgspec

from precopy.errors import UsageError
from precopy.report.kinds import KINDS, load, schema
from precopy.report.kinds.kind import Kind
from precopy.report.kinds.shared import Machine

LARGEST = 64 << 20
"""Bytes of the largest file that is read."""
_MOST_DOCUMENTS = 50
_SCHEMA = re.compile(r"precopy\.([a-z][a-z0-9-]{0,40})/([0-9]{1,4})")
_FIELD = re.compile(r"`\$(?:\.(?P<path>[^`]*)|)`$")

T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """``schema`` is the file's own. ``record``: what its kind is made of; None where it is older than all that this
    can be made of, and shown as its fields, ``body``."""

    kind: str
    schema: str
    body: dict[str, Any]
    machine: Machine | None
    record: object = None


def read_documents(data: bytes, name: str) -> tuple[Document, ...]:
    """The record of each document in ``data``: one JSON document, or one a line. ``name`` is the file's, for
    errors. Raises `UsageError`: too large, no JSON, no document of precopy's, or one that lacks something."""
    if len(data) > LARGEST:
        raise UsageError(f"{name} is larger than {LARGEST >> 20} MiB, so it is no result of precopy's")
    values = _decode(data, name)
    if len(values) > _MOST_DOCUMENTS:
        raise UsageError(f"{name} holds {len(values)} documents; a report takes {_MOST_DOCUMENTS} at most")
    named = [name] if len(values) == 1 else [f"{name}, document {number}" for number in range(1, len(values) + 1)]
    return tuple(_record(value, where) for value, where in zip(values, named, strict=True))


def _decode(data: bytes, name: str) -> list[Any]:
    """The values in ``data``, one at least."""
    try:
        try:
            return [msgspec.json.decode(data)]
        except msgspec.DecodeError as error:
            if "trailing" not in str(error):
                raise
            lines = msgspec.json.Decoder().decode_lines(data)
            # What --json-lines prints ends with the document that has it all.
            return [value for value in lines if not _is_event(value)] or lines
    except RecursionError:
        raise UsageError(f"{name} cannot be read: its JSON is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"{name} is not JSON as `precopy ... --json` prints it: {error}") from None


def _is_event(value: Any) -> bool:
    spelt = value.get("schema") if isinstance(value, dict) else None
    return isinstance(spelt, str) and spelt.startswith("precopy.migrate-event/")


def _record(value: Any, where: str) -> Document:
    spelt = value.get("schema") if isinstance(value, dict) else None
    match = _SCHEMA.fullmatch(spelt) if isinstance(spelt, str) else None
    if match is None:
        raise UsageError(
            f"{where} has no `schema` of precopy's, such as {schema('migrate')}; give a file that `precopy ... --json` "
            f"printed"
        )
    kind, version = match.groups()
    if kind not in KINDS:
        raise UsageError(f"{where} is {match[0]}, which is no kind of document of this precopy's; {_known(kind)}")
    newest = KINDS[kind].version
    if not 1 <= int(version) <= newest:
        there = "version 1" if newest == 1 else f"versions 1 to {newest}"
        raise UsageError(f"{where} is {match[0]}; this precopy reads {kind} documents of {there}")
    return _document(kind, int(version), value, where)


def _document(kind: str, version: int, value: dict[str, Any], where: str) -> Document:
    """One of a schema that the kind's record is not made of is shown as its fields. ``machine`` is a field like others
    where it is no object and the record has it."""
    spelt = f"precopy.{kind}/{version}"
    made_of = load(kind) if version >= KINDS[kind].oldest else None
    own = made_of is not None and any(field.name == "machine" for field in fields(made_of.record))
    machine = None
    if isinstance(value.get("machine"), dict) or (made_of is not None and not own):
        machine = _convert(value, _Made, where).machine
    left_out = ("schema",) if machine is None else ("schema", "machine")
    body = {name: field for name, field in value.items() if name not in left_out}
    if made_of is None:
        return Document(kind, spelt, body, machine)
    record = _convert(_today(made_of, value, where), made_of.record, where)
    return Document(kind, spelt, body, machine, record)


@dataclass(frozen=True)
class _Made:
    """Where a document comes from."""

    machine: Machine | None = None


def _known(kind: str) -> str:
    """What may have been meant by ``kind``, and the kinds that are known."""
    close = difflib.get_close_matches(kind, KINDS, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}there are {', '.join(sorted(KINDS))}"


def _today(made_of: Kind[Any], value: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        return made_of.today(value)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def _convert(value: Any, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {_complaint(str(error))}") from None


def _complaint(message: str) -> str:
    """msgspec's words with the place first: ``rounds[0].sync_s: expected `float`, got `str```."""
    match = _FIELD.search(message)
    said = message[: match.start()].removesuffix(" - at ") if match else message
    said = said[:1].lower() + said[1:]
    return f"{match['path']}: {said}" if match and match["path"] else said
