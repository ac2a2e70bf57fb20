"""What goes to a terminal: sentences that are broken at words, and tables that never cut a figure.

A table that is wider than the terminal has, in this order: its heads broken at words, its columns of text broken at
words, and then its columns in several tables, one below the other, each of which begins with the first column.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from precopy.report.table import Table as Cells
from precopy.report.wrapping import words, wrap

_WIDE = 160
"""Columns where stdout is no terminal and COLUMNS is not set: enough for most tables in one piece."""
_LEAST_TEXT = 14
"""Columns of text are broken down to this width before the table is split."""
_LONGEST_NAME = 20
"""A word of a column of text, such as a policy's name, is not broken within up to this width."""
_BETWEEN, _EDGES = 3, 2
"""Cells between two columns and at both edges, of `box.SIMPLE_HEAD`."""


def console() -> Console:
    """Stdout, as wide as its terminal or as COLUMNS says."""
    made = Console(highlight=False)
    if made.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        return made
    return Console(highlight=False, width=_WIDE)


def show(*parts: RenderableType | Cells) -> None:
    """Prints to stdout. Text is broken at words on a terminal, and left as it is elsewhere."""
    made = console()
    for part in parts:
        if isinstance(part, str | Text):
            text = part if isinstance(part, str) else part.plain
            lines = wrap(text, made.width, cell_len, "  ") if made.is_terminal else [text]
            made.print(Text("\n".join(lines)), soft_wrap=True)
        else:
            made.print(FittedTable(part) if isinstance(part, Cells) else part, crop=False)


@dataclass(frozen=True)
class FittedTable:
    """A table that fits its terminal without cutting a figure."""

    cells: Cells

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Each with a cell for each column."""
        return [(*row, *[""] * (len(self.cells.columns) - len(row))) for row in self.cells.rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for group, widths in self._groups(options.max_width):
            yield _Uncut(self._table(group, widths), max(_width(widths), options.max_width))

    def _table(self, group: Sequence[int], widths: Sequence[int]) -> Table:
        heads = self.cells.heads
        table = Table(box=box.SIMPLE_HEAD if heads else None, pad_edge=False, show_header=heads)
        for index, width in zip(group, widths, strict=True):
            column = self.cells.columns[index]
            head = Text("\n".join(wrap(column.name, width, cell_len)))
            table.add_column(head, justify="right" if column.numeric else "left", no_wrap=True, vertical="top")
        for given, row in zip(self.cells.rows, self.rows, strict=True):
            shown = (wrap(row[index], width, cell_len) for index, width in zip(group, widths, strict=True))
            heading = len(given) == 1 < len(row)
            table.add_row(*(Text("\n".join(lines)) for lines in shown), style="bold" if heading else None)
        return table

    def _groups(self, width: int) -> list[tuple[list[int], list[int]]]:
        """The columns of each table that this one is split into, and their widths."""
        every = list(range(len(self.cells.columns)))
        whole = [self._natural(index) for index in every]
        if _width(whole) <= width:
            return [(every, whole)]
        groups: list[list[int]] = []
        for index in every:
            joined = [*(groups[-1] if groups else []), index]
            if groups and (len(groups[-1]) == 1 or _width([self._least(column) for column in joined]) <= width):
                groups[-1].append(index)
            else:
                groups.append([0, index] if index else [0])
        return [(group, self._fit(group, width)) for group in groups]

    def _fit(self, group: list[int], width: int) -> list[int]:
        """Widths for ``group``: the least ones, with the rest given to columns that are broken, the narrowest first."""
        widths = [self._least(index) for index in group]
        room = width - _width(widths)
        for _ in range(max(room, 0)):
            wanting = [at for at, index in enumerate(group) if widths[at] < self._natural(index)]
            if not wanting:
                break
            widths[min(wanting, key=lambda at: widths[at])] += 1
        if room < 0 and not self.cells.columns[group[0]].numeric:  # the names give way to a figure
            widths[0] = max(widths[0] + room, 1)
        return widths

    def _natural(self, index: int) -> int:
        return max(map(cell_len, [*self._lines(index), self._head(index)]))

    def _lines(self, index: int) -> list[str]:
        return [line for row in self.rows for line in row[index].split("\n")]

    def _head(self, index: int) -> str:
        return self.cells.columns[index].name if self.cells.heads else ""

    def _least(self, index: int) -> int:
        if not self.cells.columns[index].numeric:
            names = [cell_len(word) for row in self.rows for word in words(row[index])]
            longest = max((length for length in names if length <= _LONGEST_NAME), default=0)
            return max(min(self._natural(index), _LEAST_TEXT), longest)
        return max(map(cell_len, [*words(self._head(index)), *self._lines(index)]), default=0)


@dataclass(frozen=True)
class _Uncut:
    """A table with the width that it needs, even where the terminal has less: then the terminal breaks its lines."""

    table: Table
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.table, options.update(width=self.width))


def _width(widths: Sequence[int]) -> int:
    return sum(widths) + _BETWEEN * (len(widths) - 1) + _EDGES
