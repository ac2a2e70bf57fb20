"""Text broken into lines at words, with a number and its unit on one line. Imports next to nothing: errors need it."""

from __future__ import annotations

import re
from collections.abc import Callable

_UNIT = r"(?:us|ms|s|min|h|%|[kKMGT]?i?[Bb](?:/s)?|times|x)"
_WORD = re.compile(rf"\S*\d\S* {_UNIT}(?![\w/])\S*|\S+")


def words(text: str) -> list[str]:
    """``text`` in the pieces between which a line may end: ``41 ms,`` is one."""
    return _WORD.findall(text)


def wrap(text: str, width: int, measure: Callable[[str], int] = len, indent: str = "") -> list[str]:
    """Lines of at most ``width`` cells, of which ``measure`` says how many a text takes. Line ends in ``text`` stay,
    and so does what a line begins with; further lines of one begin with ``indent``. Only a word that is longer than a
    line is broken within."""
    return [line for piece in text.split("\n") for line in _wrap_line(piece, max(width, 1), measure, indent)]


def _wrap_line(text: str, width: int, measure: Callable[[str], int], indent: str) -> list[str]:
    if measure(text) <= width:
        return [text]
    lines: list[str] = []
    line = start = text[: len(text) - len(text.lstrip())]
    indent = start + indent if measure(start + indent) < width else ""
    for word in words(text):
        joined = line + word if line == start else f"{line} {word}"
        if measure(joined) <= width:
            line = joined
            continue
        if line != start:
            lines.append(line)
        line, start = indent + word, indent
        while measure(line) > width:
            cut = _fitting(line, width, measure)
            lines.append(line[:cut])
            line = indent + line[cut:]
    return [*lines, line]


def _fitting(text: str, width: int, measure: Callable[[str], int]) -> int:
    """How many characters of ``text`` fit, at least one that is not blank."""
    least = len(text) - len(text.lstrip()) + 1
    cut = len(text)
    while cut > least and measure(text[:cut]) > width:
        cut -= 1
    return cut
