"""``precopy snapshot export``: the file that a snapshot was written to."""

from __future__ import annotations

from dataclasses import dataclass

from precopy.bounds import Count, Text
from precopy.report.kinds.kind import Kind, fields_of
from precopy.units import format_size


@dataclass(frozen=True)
class Exported:
    """What `export` has written: ``size`` bytes, of which the file takes ``bytes``, because zero pages are holes."""

    number: Count
    path: Text
    size: Count
    bytes: Count


@dataclass(frozen=True, kw_only=True)
class ExportedFile(Exported):
    """The same, and the directory of the snapshot."""

    directory: Text

    @classmethod
    def of(cls, directory: str, done: Exported) -> ExportedFile:
        return cls(**fields_of(done), directory=directory)


def _text(done: ExportedFile) -> list[str]:
    sizes = f"{format_size(done.size)}, of which {format_size(done.bytes)} on disk"
    return [f"snapshot {done.number} is in {done.path}: {sizes}"]


KIND = Kind(ExportedFile, _text)
