"""``precopy check``: a paused guest's memory, held against its own invariant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Number, Text
from precopy.report.kinds.kind import Kind
from precopy.units import format_duration


@dataclass(frozen=True)
class Checked:
    """``pages`` were held against what ``steps`` writes must have left there; ``broken`` says where they differ.
    ``pause_s`` is how long it took to stop the vCPUs for it."""

    ok: bool
    steps: Count
    pages: Count
    broken: Annotated[tuple[Text, ...], Meta(max_length=100_000)]
    pause_s: Number


def _text(checked: Checked) -> list[str]:
    if not checked.ok:
        return [broken_line(checked)]
    paused = format_duration(checked.pause_s)
    return [f"{checked.pages} pages hold what {checked.steps} writes must have left there (paused in {paused})"]


def broken_line(checked: Checked) -> str:
    """Where the invariant is broken first, in one line."""
    return f"the guest's invariant is broken: {checked.broken[0] if checked.broken else 'it is not said where'}"


KIND = Kind(Checked, _text)
