"""Reading text line by line, and naming the line that is wrong."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NoReturn

from precopy.errors import LayoutTextError

MAX_LINE = 4096
"""Characters in a line, at most."""
MAX_TEXT = 32 << 20
"""Characters in a text, at most."""

FLAT_VIEW_HEAD = "FlatView #"
"""What ``info mtree -f`` begins with."""
RAMBLOCK_HEAD = f"{'Block Name':>24}"
"""What ``info ramblock`` begins with."""
_OTHERS = (
    ("{", 'this is JSON; take the text of its "return", or ask with virsh qemu-monitor-command --hmp'),
    (RAMBLOCK_HEAD, "the output of info ramblock begins here; it goes into ramblock.txt"),
    (RAMBLOCK_HEAD.lstrip(), "the output of info ramblock begins here; it goes into ramblock.txt"),
    (FLAT_VIEW_HEAD, "the output of info mtree -f begins here; it goes into mtree-flat.txt"),
    ("address-space (flat view)", "this is info mtree -f of a QEMU before 2.11; text of 2.11 or later can be used"),
    ("address-space: ", "this is info mtree without -f; use info mtree -f"),
    ("memory-region: ", "this is info mtree without -f; use info mtree -f"),
)
"""What else is pasted, by what it begins with."""
_CONTROL = re.compile(r"(?!^\t)[\x00-\x1f\x7f]")
"""The monitor begins lines of a dispatch tree with a tab."""
_CONTROL_ADVICE = {
    "\t": "take the text as QEMU printed it, with blanks",
    "\r": "end lines with line feeds (tr '\\r' '\\n')",
}
_BLANKS = " \t"
_PROMPT = "(qemu)"
_MARK = "\ufeff"
"""What editors on other systems begin a text in UTF-8 with."""
_HEX = re.compile(r"[0-9a-f]+")
_DECIMAL = re.compile(r"-?[0-9]+")


class Line:
    """One line, read from left to right; ``at`` is the index of what comes next."""

    def __init__(self, what: str, number: int, text: str) -> None:
        self.what, self.number, self.text, self.at = what, number, text, 0

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        """Raises `LayoutTextError` for the character at index ``at``, or where reading is."""
        at, written = self.at if at is None else at, self.text.rstrip(_BLANKS)
        if len(written) < len(self.text) and at >= len(written):
            message = f"{message}; blanks were added at the ends of lines: remove them (sed 's/[[:blank:]]*$//')"
        raise LayoutTextError(self.what, self.number, at + 1, message)

    def refuse_others(self, but: str = "") -> None:
        """Raises `LayoutTextError` where another command's output begins, or once more the one that ``but`` is the head
        of."""
        for begins, message in _OTHERS:
            if self.text.startswith(begins) and begins != but:
                self.fail(message, 0)

    def take(self, literal: str) -> None:
        """Passes over ``literal``. Raises `LayoutTextError` at the first character that differs from it."""
        if not self.skip(literal):
            self.fail(f"expected {literal!r}", self.at + _common(literal, self.text[self.at :]))

    def skip(self, literal: str) -> bool:
        """Passes over ``literal`` where it comes next, and says whether it did."""
        found = self.text.startswith(literal, self.at)
        self.at += len(literal) if found else 0
        return found

    def match(self, pattern: re.Pattern[str], expected: str) -> str:
        """Passes over what ``pattern`` matches here, which has at least a character. Raises `LayoutTextError`."""
        found = pattern.match(self.text, self.at)
        if not found or found.end() == self.at:
            self.fail(f"expected {expected}")
        self.at = found.end()
        return found[0]

    def hex(self) -> int:
        """A hexadecimal number of 64 bits."""
        at = self.at
        digits = self.match(_HEX, "a hexadecimal number")
        if len(digits) > 16:
            self.fail("a number of more than 64 bits", at)
        return int(digits, 16)

    def decimal(self) -> int:
        """A decimal number of 32 bits, with its sign."""
        at = self.at
        digits = self.match(_DECIMAL, "a number")
        if len(digits) > 11 or not -(1 << 31) <= int(digits) < 1 << 31:
            self.fail("a number of more than 32 bits", at)
        return int(digits)

    def until(self, end: str) -> str:
        """Passes over everything up to ``end``, and over that too."""
        at = self.text.find(end, self.at)
        if at < 0:
            self.fail(f"expected {end!r} somewhere in the rest of the line", len(self.text))
        rest, self.at = self.text[self.at : at], at + len(end)
        return rest

    def rest(self) -> str:
        """Passes over all that is left."""
        rest, self.at = self.text[self.at :], len(self.text)
        return rest

    def check(self, written: str) -> None:
        """Raises `LayoutTextError` at the first character that is not as what was read would be written."""
        if self.text != written:
            same = _common(self.text, written)
            goes_on = f"the line to go on with {written[same : same + 24]!r}" if same < len(written) else "its end"
            self.fail(f"expected {goes_on}", same)


class Lines:
    """The lines of one command's output, from the one that begins with ``head`` on.

    Around it may stand what a terminal or virsh adds: the prompt lines of QEMU's monitor, the output of other commands
    between such lines, and empty lines before and after, or one after every line. The last line may lack its line feed.
    A byte order mark that an editor put before it is passed over.
    """

    def __init__(self, what: str, text: str, head: str) -> None:
        if len(text) > MAX_TEXT:
            raise LayoutTextError(what, 1, 1, f"a text of more than {MAX_TEXT} characters")
        self.what = what
        self._lines = text.removeprefix(_MARK).split("\n")
        found = _outputs(self._lines)
        wanted = [part for part in found if self._lines[part[0]].startswith(head)]
        if len(wanted) > 1:
            raise LayoutTextError(what, wanted[1][0] + 1, 1, "the command's output once more; leave only one of them")
        self._next, self._end = (wanted or found or [(0, 0)])[0]
        self._step = 2 if _double_spaced(self._lines[self._next : self._end]) else 1
        self.cut = self._end == len(self._lines)
        """Whether the last line lacks its line feed, so that it may have been cut anywhere."""
        below = self._lines[self._end + self._step - 1 :]
        self.ended = len(below) > 1 or any(line.startswith(_PROMPT) for line in below)
        """Whether an empty line or a prompt stands below the last line."""

    @property
    def ahead(self) -> str:
        """The next line, without reading it; empty where there is none."""
        return self._lines[self._next] if self._next < self._end else ""

    @property
    def at_end(self) -> bool:
        return self._next >= self._end

    def next(self, expected: str) -> Line:
        """Raises `LayoutTextError` where the text ends, where the line is too long and where it has control codes."""
        if self.at_end:
            over = self._end == len(self._lines)
            place = (self._end, len(self._lines[-1]) + 1) if over else (self._end + 1, 1)
            raise LayoutTextError(self.what, *place, f"the text ends where {expected} is expected")
        line = Line(self.what, self._next + 1, self._lines[self._next])
        if len(line.text) > MAX_LINE:
            line.fail(f"a line of more than {MAX_LINE} characters", MAX_LINE)
        control = _CONTROL.search(line.text)
        if control:
            said = f"the control character {control[0]!r}, which the monitor does not write"
            advice = _CONTROL_ADVICE.get(control[0], "take the text as QEMU printed it")
            line.fail(said if not line.text[control.start() :].strip(_BLANKS) else f"{said}; {advice}", control.start())
        self._next += self._step
        return line


def _outputs(lines: list[str]) -> list[tuple[int, int]]:
    """Start and end of each output that stands between prompt lines, without empty lines around it."""
    prompts = [number for number, line in enumerate(lines) if line.startswith(_PROMPT)]
    found = [_trimmed(lines, start + 1, end) for start, end in pairwise([-1, *prompts, len(lines)])]
    return [part for part in found if part[0] < part[1]]


def _double_spaced(lines: list[str]) -> bool:
    """Whether an empty line was put below every line. No output of the monitor has one below its first line."""
    return len(lines) > 2 and not any(line.strip(" \t\r") for line in lines[1::2])


def _trimmed(lines: list[str], start: int, end: int) -> tuple[int, int]:
    while start < end and _empty(lines, start):
        start += 1
    while end > start and _empty(lines, end - 1):
        end -= 1
    return start, end


def _empty(lines: list[str], number: int) -> bool:
    """Whether nothing stands in a line; spaces that end a text are the beginning of a line that was cut."""
    return not (lines[number] if number == len(lines) - 1 else lines[number].strip(" \t\r"))


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)
