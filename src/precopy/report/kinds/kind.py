"""What a kind of document is made of. The terminal's text, the JSON document and the page all come from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from precopy.report.table import Table

R = TypeVar("R")

TextPart = str | Table
"""A sentence, or a table."""


@dataclass(frozen=True)
class Kind(Generic[R]):
    """``record`` is a frozen dataclass of what a document says, with bounds on every field (`precopy.bounds`); fields
    that older files lack have a default. ``text``: the same for people, as sentences and tables. A command makes a
    record and hands it to `precopy.cli.facts.show_result`."""

    record: type[R]
    text: Callable[[R], Sequence[TextPart]]
