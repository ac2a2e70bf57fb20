"""``precopy snapshot compact``: what was folded into a full snapshot, and removed."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.bounds import Count, Number, Text
from precopy.report.kinds.kind import Kind, fields_of
from precopy.units import format_duration, format_size


@dataclass(frozen=True)
class Compacted:
    """What `compact` did: ``number`` is the full snapshot that stands for all before, ``folded`` how many files it was
    made of (1: it was full already), ``removed`` how many are gone."""

    number: Count
    folded: Count
    removed: Count
    bytes_before: Count
    bytes_after: Count
    seconds: Number


@dataclass(frozen=True, kw_only=True)
class CompactedDirectory(Compacted):
    """The same, and the directory of it."""

    directory: Text

    @classmethod
    def of(cls, directory: str, done: Compacted) -> CompactedDirectory:
        return cls(**fields_of(done), directory=directory)


def _text(done: CompactedDirectory) -> list[str]:
    before, after, time = format_size(done.bytes_before), format_size(done.bytes_after), format_duration(done.seconds)
    folded = f"snapshot {done.number} is full now, of {done.folded} files; {done.removed} removed"
    return [f"{folded}: {before} have become {after} in {time}"]


KIND = Kind(CompactedDirectory, _text)
