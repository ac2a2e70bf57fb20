"""``precopy report``: the page that was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from precopy.bounds import Count, Text
from precopy.report.kinds.kind import Kind
from precopy.units import format_size


@dataclass(frozen=True)
class WrittenPage:
    """``sections`` are the ids of the page's sections, in their order."""

    path: Text
    bytes: Count
    sections: Annotated[tuple[Text, ...], Meta(max_length=100_000)]


def _text(page: WrittenPage) -> list[str]:
    return [f"{page.path}: {format_size(page.bytes)}, {len(page.sections)} sections"]


KIND = Kind(WrittenPage, _text)
