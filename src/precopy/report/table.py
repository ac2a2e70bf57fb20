"""A table before it is shown: cells as text, which a terminal and a page set each in their own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """``numeric`` ones are set right; others are text, which may be broken at words."""

    name: str
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """The first cell of each row names it; cells that are missing at its end are empty, and a row of one cell is a
    heading of those below it. ``caption`` is for those who do not see what stands around it, ``heads``: whether a
    terminal shows the names of the columns."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    heads: bool = True


@dataclass(frozen=True)
class Shown(Generic[T]):
    """A column of records: its name, and how it shows one of them."""

    name: str
    cell: Callable[[T], str]
    numeric: bool = True


def tabulate(caption: str, columns: Sequence[Shown[T]], records: Iterable[T]) -> Table:
    """A line a record."""
    return Table(
        caption,
        tuple(Column(column.name, column.numeric) for column in columns),
        tuple(tuple(column.cell(record) for column in columns) for record in records),
    )


def figure(value: float | None, form: str) -> str:
    """``value`` in a format such as ``.2f``; ``-`` where there is none."""
    return "-" if value is None else format(value, form)
