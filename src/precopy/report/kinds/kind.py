"""What a kind of document is made of. The terminal's text, the JSON document and the page all come from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import msgspec

from precopy.report.table import Table

R = TypeVar("R")

TextPart = str | Table
"""A sentence, or a table."""


def fields_of(record: Any) -> dict[str, Any]:
    """The fields of a dataclass by their names, for a record that has more than it."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _fields(record: object) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(record)
    return body


def _as_it_is(document: dict[str, Any]) -> dict[str, Any]:
    return document


@dataclass(frozen=True)
class Kind(Generic[R]):
    """``record`` is a frozen dataclass of what a document says, with bounds on every field (`precopy.bounds`); fields
    that older files lack have a default. ``text``: the same for people, as sentences and tables. A command makes a
    record and hands it to `precopy.cli.facts.show_result`.

    ``body``: the document's fields, where they are more than the record's; ``today``: an older document's fields as
    ``record`` has them, or `UsageError`.
    """

    record: type[R]
    text: Callable[[R], Sequence[TextPart]]
    body: Callable[[R], dict[str, Any]] = _fields
    today: Callable[[dict[str, Any]], dict[str, Any]] = _as_it_is
